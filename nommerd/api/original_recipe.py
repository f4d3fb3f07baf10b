"""What the original's FFmpegNommer was told, as a recipe: fetch, the passes of raw ffmpeg, fast start, upload, notify."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nommerd.api.body import shown
from nommerd.api.old_options import Changes, Pair, Placed, modern, modern_input
from nommerd.errors import InputError, ManyErrors, Problem
from nommerd.media.command import RawPass
from nommerd.media.formats import FAST_START_MUXERS
from nommerd.media.options import check_options
from nommerd.media.rawform import muxer_for
from nommerd.pipeline.params import describe
from nommerd.pipeline.recipe import Recipe, StageSpec, build_stages
from nommerd.pipeline.stages import STAGES

PIPELINE = "original"  # what the API shows as the job's pipeline
PASSES_MAX = 32
KEYS = ("infile_options", "outfile_options", "move_atom_to_front")
OPTIONS = "job_options.options"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:.#-]{0,79}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of `options`: a run of ffmpeg. `number` is its option `pass`, 0 without."""

    place: str
    before: tuple[Placed, ...]
    after: tuple[Placed, ...]
    number: int
    to_front: bool


def ffmpeg_recipe(options: Any, dest: str) -> tuple[Recipe, tuple[Problem, ...]]:
    """The recipe, and warnings of what was changed on the way. Raises InputError with the place as the caller wrote it."""
    if not isinstance(options, list) or not options:
        raise _bad("Expected a list of one or more passes.", OPTIONS)
    if len(options) > PASSES_MAX:
        raise _bad(f"More than {PASSES_MAX} passes.", OPTIONS)
    changes, ignored = Changes(), dict[str, None]()
    entries = [_entry(entry, f"{OPTIONS}[{number}]", changes, ignored) for number, entry in enumerate(options)]
    chain = _chain(entries)
    _check_front(entries[-1], dest)
    recipe = _recipe(chain)
    try:
        build_stages(recipe, STAGES)
    except ManyErrors as many:
        raise many.errors[0] from None
    return recipe, (*changes.warnings(), *_warnings(len(entries) - len(chain), ignored))


def _recipe(chain: Sequence[Entry]) -> Recipe:
    def stage(name: str, **settings: Any) -> StageSpec:
        return StageSpec(name=name, id=name, settings=settings, origin="api")

    passes = [stage("ffmpeg", **({"pass": number} if len(chain) > 1 else {}), options=_plain(entry.after),
                    **({"input_options": _plain(entry.before)} if entry.before else {}))
              for number, entry in enumerate(chain, start=1)]
    front = [stage("faststart")] if chain[-1].to_front else []
    return Recipe(pipeline=PIPELINE, stages=(stage("fetch"), *passes, *front, stage("upload"), stage("notify")))


def _plain(options: Sequence[Placed]) -> list[list[str | None]]:
    return [list(pair) for _, pair in options]


# --- what was sent ------------------------------------------------------------------------------------------------


def _entry(entry: Any, place: str, changes: Changes, ignored: dict[str, None]) -> Entry:
    if not isinstance(entry, dict):
        raise _bad("Expected an object with outfile_options.", place)
    ignored.update(dict.fromkeys(f"{place}.{shown(key)[1:-1]}" for key in entry if key not in KEYS))
    before = modern_input(_pairs(entry.get("infile_options"), f"{place}.infile_options"), changes)
    sent = _pairs(entry.get("outfile_options"), f"{place}.outfile_options")
    number = _number([value for name, value in sent if name == "pass"], f"{place}.outfile_options")
    after = [(at, pair) for at, pair in modern(sent, changes) if pair[0] != "pass"]
    _check(before, f"{place}.infile_options", "input_options")
    _check(after, f"{place}.outfile_options", "options")
    return Entry(place=place, before=tuple(before), after=tuple(after), number=number,
                 to_front=bool(entry.get("move_atom_to_front")))


def _pairs(value: Any, place: str) -> list[Pair]:
    """The option pairs in order; an object stands for its members."""
    items = [[name, setting] for name, setting in value.items()] if isinstance(value, dict) else [] if value is None else value
    if not isinstance(items, list):
        raise _bad(f"Expected a list of [name, value], got {describe(value)}.", place)
    return [_pair(item, f"{place}[{index}]") for index, item in enumerate(items)]


def _pair(item: Any, place: str) -> Pair:
    if not isinstance(item, list) or len(item) != 2:
        raise _bad(f"Expected [name, value], got {describe(item)}.", place, "A bare flag is [name, null].")
    name, value = item
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(f"{shown(name) if isinstance(name, str) else describe(name)} is no option's name.", place,
                   "Letters, digits, `_`, `-` and a stream specifier; no dash in front.")
    if isinstance(value, bool):
        raise _bad(f"The option {name} cannot be {str(value).lower()}.", place, "Send null for a bare flag, or 0 or 1.")
    if isinstance(value, dict | list):
        raise _bad(f"The option {name} takes one plain value, got {describe(value)}.", place)
    return name, None if value in (None, "") else str(value)


def _check(options: Sequence[Placed], place: str, kind: str) -> None:
    """Hold them to the allowlist; the error's place is the one of what was sent."""
    for at, pair in options:
        try:
            check_options([pair], kind)
        except InputError as error:
            raise InputError(error.code, error.message, error.hint, place=f"{place}[{at}]") from None


# --- passes -------------------------------------------------------------------------------------------------------


def _number(given: Sequence[str | None], place: str) -> int:
    if not given:
        return 0
    if not re.fullmatch(r"[0-9]{1,2}", given[-1] or "", re.ASCII):
        raise _bad("The option pass is a number: 1 for the first pass.", place)
    return int(given[-1] or 0)


def _chain(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that the last one needs. All but the last write nowhere: those without the option `pass` leave nothing at
    all, and those with it their measurements, for a last one that reads them."""
    last = entries[-1]
    if last.number <= 1 and not any(entry.number for entry in entries[:-1]):
        return [last]
    if last.number == 0:
        return [last]
    chain = [entry for entry in entries if entry.number]
    if chain[0].number > 1:
        raise _bad(f"Pass {chain[0].number} has no pass before it.", f"{chain[0].place}.outfile_options",
                   "The first pass has the option pass with 1.")
    return chain


def _check_front(last: Entry, dest: str) -> None:
    muxer = muxer_for(RawPass(options=[pair for _, pair in last.after]), dest)[0]
    if last.to_front and muxer not in FAST_START_MUXERS:
        raise _bad(f"A file of the format {muxer} has no atom to move to the front.", f"{last.place}.move_atom_to_front",
                   "Only MP4 and MOV have: set the option f, or leave this out.")


def _warnings(left_out: int, ignored: dict[str, None]) -> list[Problem]:
    told = []
    if left_out:
        told.append(Problem(code="recipe.pass_dropped", message=f"Passes left out, as the last one reads nothing of theirs: "
                            f"{left_out}.", hint="Passes that measure have the option pass with 1."))
    if ignored:
        told.append(Problem(code="recipe.key_ignored", message=f"Unknown, and ignored: {', '.join(list(ignored)[:5])}.",
                            hint=f"Known: {', '.join(KEYS)}."))
    return told


def _bad(message: str, place: str, hint: str = "") -> InputError:
    return InputError("request.invalid", message, hint, place=place)
