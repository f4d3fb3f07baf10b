"""What a list of stages must be as a whole: in an order that makes sense, and with something to publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nommerd.pipeline.params import known_hint
from nommerd.pipeline.tree import Faults

if TYPE_CHECKING:
    from nommerd.pipeline.spec import StageEntry

SOURCE = "source"
FROM_SOURCE = frozenset({"ffmpeg"})  # media stages whose input is the source unless they say otherwise
FROM_BEFORE = frozenset({"faststart"})  # media stages whose input is the media stage before
SILENT = frozenset({"fetch", "verify", "upload", "notify"})  # ours, and without an output
OURS = SILENT | FROM_SOURCE | FROM_BEFORE


@dataclass(frozen=True, slots=True)
class Outline:
    """A stage without its settings: what the order depends on. A run of `pass` stages is one outline."""

    name: str
    id: str
    input: str | None
    number: int  # of its pass; 0 without one


def outline(name: str, id: str, settings: Mapping[str, Any]) -> Outline:
    """The outline of a stage with these settings."""
    number, given = settings.get("pass"), settings.get("input")
    return Outline(name, id, given if isinstance(given, str) else None,
                   number if name == "ffmpeg" and type(number) is int else 0)


def output_ids(stages: Sequence[Outline]) -> tuple[str, ...] | None:
    """The ids whose outputs are published, in order; None where a stage that is not ours could add to them."""
    if any(stage.name not in OURS for stage in stages):
        return None
    waiting: list[str] = []
    published: list[str] = []
    last = SOURCE
    for stage in units(stages):
        if stage.name == "upload":
            published += waiting
            waiting = []
        elif stage.name not in SILENT:
            taken = stage.input or (SOURCE if stage.name in FROM_SOURCE else last)
            waiting = [id for id in waiting if id != taken] + [stage.id]
            last = stage.id
    return tuple(published)


def units(stages: Sequence[Outline]) -> list[Outline]:
    """The stages with each run of passes as one, under the id of its first."""
    return [stage for stage in stages if stage.number <= 1]


def check_structure(entries: Sequence[StageEntry], outlines: Sequence[Outline], faults: Faults) -> None:
    """Report what is wrong in the order of the stages. Their settings are known to be right."""
    check = _Check(entries, outlines, faults)
    check.passes()
    check.once("fetch")
    check.once("notify")
    check.inputs()
    check.publishing()


class _Check:
    def __init__(self, entries: Sequence[StageEntry], outlines: Sequence[Outline], faults: Faults) -> None:
        self.pairs = list(zip(entries, outlines, strict=True))
        self.faults = faults
        self.ours = all(o.name in OURS for o in outlines)

    def fault(self, entry: StageEntry, message: str, hint: str = "", key: str | None = None) -> None:
        at = entry.settings.get(key) if key else None
        place = at.place if at else entry.settings.key_place
        self.faults.add("bad_stage", f"{entry.path}{f'.{key}' if key else ''}: {message}.", hint, place)

    def passes(self) -> None:
        before = 0
        first: Outline | None = None
        for entry, stage in self.pairs:
            first = stage if stage.number <= 1 else first
            if stage.number > 1 and first is not None and stage.input not in (None, first.input):
                self.fault(entry, "the passes of a run have one input", "Name it in the first pass.", "input")
            if stage.number > 1 and stage.number != before + 1:
                self.fault(entry, f"pass {stage.number} does not follow pass {stage.number - 1}",
                           "Passes are stages one after the other, numbered from 1.", "pass")
            before = stage.number

    def once(self, name: str) -> None:
        found = [entry for entry, stage in self.pairs if stage.name == name]
        for entry in found[1:]:
            self.fault(entry, f"{name} stands here a second time", f"One {name} is enough.")

    def inputs(self) -> None:
        """Each input is the source, with fetch before, or the id of an earlier stage that makes something."""
        ids: list[str] = []
        before: set[str] = set()
        for entry, stage in self.pairs:
            if stage.name not in SILENT:
                self._input(entry, stage, ids, before)
                ids += [stage.id] if stage.number <= 1 else []
            elif stage.name == "fetch" and before - SILENT:
                self.fault(entry, "fetch comes after a stage that works on the source", "Put it first.")
            before.add(stage.name)

    def _input(self, entry: StageEntry, stage: Outline, ids: list[str], before: set[str]) -> None:
        if stage.input not in (None, SOURCE, *ids) and stage.name in FROM_SOURCE | FROM_BEFORE:
            self.fault(entry, f"no earlier stage makes {stage.input!r}",
                       known_hint(str(stage.input), [SOURCE, *ids], "An input is one of"), "input")
        takes_source = stage.input == SOURCE or (stage.input is None and stage.name in FROM_SOURCE)
        if takes_source and "fetch" not in before and before <= OURS:
            self.fault(entry, "it works on the source, and no fetch stage comes before", "Put `- fetch` first.")
        elif stage.name in FROM_BEFORE and stage.input is None and not ids:
            self.fault(entry, f"no media stage comes before {stage.name}", "Put it after the ffmpeg stage.")

    def publishing(self) -> None:
        """Something is published, and nothing is made in vain. What an operator's own stages do is theirs to know."""
        if not self.ours:
            return
        uploads = [index for index, (_, stage) in enumerate(self.pairs) if stage.name == "upload"]
        made = [index for index, (_, stage) in enumerate(self.pairs) if stage.name not in SILENT]
        if not made:
            self.fault(self.pairs[0][0], "no stage of this pipeline makes an output", "Add an ffmpeg stage.")
        elif not uploads:
            self.fault(self.pairs[-1][0], "nothing is published", "Add `- upload` after the last media stage.")
        else:
            for index in made:
                if index > uploads[-1]:
                    self.fault(self.pairs[index][0], "its output is never published", "Put `- upload` after it.")
            if made[0] > uploads[0]:
                self.fault(self.pairs[uploads[0]][0], "no media stage comes before upload", "Put it after the ffmpeg stage.")
