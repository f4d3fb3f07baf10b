"""The original system's ffmpeg options in the words of today's ffmpeg: renamed, replaced, or gone. Nothing runs here.

Its clients send what ffmpeg took in 2011. What ffmpeg 5 and newer still take in the same sense stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nommerd.errors import Problem
from nommerd.job import clipped

Pair = tuple[str, str | None]
Placed = tuple[int, Pair]  # an option and its place in the list that was sent

RENAMED = {
    "b": "b:v", "vb": "b:v", "qscale": "q:v", "profile": "profile:v", "vprofile": "profile:v", "vtag": "tag:v",
    "atag": "tag:a", "vbsf": "bsf:v", "absf": "bsf:a", "wpredp": "weightp", "directpred": "direct-pred",
    "rc_lookahead": "rc-lookahead", "aq_mode": "aq-mode", "aq_strength": "aq-strength",
}
REWORDED = {  # old name -> new name, and old values -> new ones
    "vsync": ("fps_mode", {"-1": "auto", "0": "passthrough", "1": "cfr", "2": "vfr"}),
    "map_meta_data": ("map_metadata", {"0:0": "0"}),
}
ENCODERS = {"libfaac": "aac", "libvo_aacenc": "aac", "libaacplus": "aac"}
GONE = {
    "y": "outputs are always replaced", "passlogfile": "each job has pass logs of its own",
    "flags2": "x264's own preset decides", "rc_eq": "x264 has a formula of its own", "psnr": "it only filled the log",
    "deblockalpha": "x264's own preset decides", "deblockbeta": "x264's own preset decides",
}
GONE_BEFORE_INPUT = {"f": "the source's format is recognised", "y": "outputs are always replaced"}
_X264_PRESETS = frozenset({"ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
                           "placebo"})
PRESETS: dict[str, tuple[Pair, ...]] = {  # of -vpre, without `_firstpass`
    **{name: (("preset", name),) for name in _X264_PRESETS},
    "default": (("preset", "medium"),), "normal": (("preset", "medium"),), "hq": (("preset", "slow"),),
    "max": (("preset", "veryslow"),), "baseline": (("profile:v", "baseline"),), "main": (("profile:v", "main"),),
    "ipod320": (("profile:v", "baseline"), ("level", "13")), "ipod640": (("profile:v", "baseline"), ("level", "30")),
}
_SOUND_CODEC, _PICTURE_CODEC = ("acodec", "c:a", "codec:a"), ("vcodec", "c:v", "codec:v")
_SOUND_FILTER, _PICTURE_FILTER = ("af", "filter:a"), ("vf", "filter:v")
_BY_QUALITY = ("libx264", "libx265", "libvpx")  # encoders that know crf
_FOR_X264 = frozenset({None, "mp4", "mov", "ipod", "matroska", "3gp", "3g2", "psp"})  # muxers whose default encoder is x264
MESSAGE_BYTES_MAX = 300
_SEE = "docs/original.md lists what became of the old options."


@dataclass
class Changes:
    """What was changed on the way, told as at most one warning of each kind."""

    renamed: dict[str, None] = field(default_factory=dict)
    encoders: dict[str, None] = field(default_factory=dict)
    dropped: dict[str, None] = field(default_factory=dict)

    def warnings(self) -> tuple[Problem, ...]:
        """`attempt` is none: they belong to the job, not to an attempt at it."""
        told = (("recipe.old_encoder", "Encoders that ffmpeg no longer has", self.encoders),
                ("recipe.old_option", "Options in today's form", self.renamed),
                ("recipe.option_dropped", "Options without effect today", self.dropped))
        return tuple(Problem(code=code, message=clipped(f"{what}: {', '.join(items)}.", MESSAGE_BYTES_MAX), hint=_SEE)
                     for code, what, items in told if items)


def modern(sent: Sequence[Pair], changes: Changes) -> list[Placed]:
    """The output options of one pass in today's words; each keeps the place of the one it came from."""
    work = _Work(sent, changes)
    for place, (name, value) in enumerate(sent):
        _take(work, place, name, value)
    return work.joined()


def modern_input(sent: Sequence[Pair], changes: Changes) -> list[Placed]:
    """The input options of one pass."""
    for name, why in GONE_BEFORE_INPUT.items():
        if any(name == given for given, _ in sent):
            changes.dropped[f"{name} before the input ({why})"] = None
    return [(place, pair) for place, pair in enumerate(sent) if pair[0] not in GONE_BEFORE_INPUT]


class _Work:
    """One list on its way. Filters wait until all of it is seen: the list's own chain may come later."""

    def __init__(self, sent: Sequence[Pair], changes: Changes) -> None:
        self.sent, self.changes = sent, changes
        self.done: list[Placed] = []
        self.filters: list[tuple[int, tuple[str, str], str, bool]] = []  # place, option's names, filter, whether in front
        self.silent = any(name == "an" for name, _ in sent) or self.last(*_SOUND_CODEC) == "copy"

    def put(self, place: int, old: str, *new: Pair) -> None:
        """These stand for `old`."""
        shown = " ".join(name if value is None else f"{name} {value}" for name, value in new)
        self.changes.renamed[f"{old} as {shown}"] = None
        self.done += [(place, pair) for pair in new]

    def filter(self, place: int, old: str, names: tuple[str, str], text: str, *, first: bool) -> None:
        """A filter stands for `old`, before or behind those of the list's own chain."""
        if names == _SOUND_FILTER and self.silent:
            self.changes.dropped[f"{old} (no sound is encoded)"] = None
        else:
            self.changes.renamed[f"{old} as {names[0]} {text}"] = None
            self.filters.append((place, names, text, first))

    def joined(self) -> list[Placed]:
        """All of it, the filters in their chains. Of several chains ffmpeg takes the last."""
        for place, names, text, first in self.filters:
            at = next((at for at in reversed(range(len(self.done))) if self.done[at][1][0] in names), None)
            if at is None:
                self.done.append((place, (names[0], text)))
            else:
                where, (name, chain) = self.done[at]
                self.done[at] = (where, (name, f"{text},{chain}" if first else f"{chain},{text}"))
        return self.done

    def last(self, *names: str) -> str | None:
        """The value that counts of an option with these names."""
        return next((value for name, value in reversed(self.sent) if name in names), None)


def _take(work: _Work, place: int, name: str, value: str | None) -> None:
    """One option: as it is, or what stands for it."""
    if name in _REPLACED:
        _REPLACED[name](work, place, value)
    elif name in GONE:
        work.changes.dropped[f"{name} ({GONE[name]})"] = None
    elif name in REWORDED and value is not None:
        new, values = REWORDED[name]
        work.put(place, f"{name} {value}", (new, values.get(value, value)))
    elif name in (*_SOUND_CODEC, *_PICTURE_CODEC) and value in ENCODERS:
        work.changes.encoders[f"{value} became {ENCODERS[value]}"] = None
        work.done.append((place, (name, ENCODERS[value])))
    elif name in RENAMED and not (name == "profile" and value is not None and value.startswith("aac")):
        work.changes.renamed[f"{name} as {RENAMED[name]}"] = None
        work.done.append((place, (RENAMED[name], value)))
    else:
        work.done.append((place, (name, value)))


def _async(work: _Work, place: int, value: str | None) -> None:
    """What ffmpeg itself put before the other filters."""
    work.filter(place, f"async {value}", _SOUND_FILTER, f"aresample=async={value}:first_pts=0", first=True)


def _vol(work: _Work, place: int, value: str | None) -> None:
    """256 was as loud as the source."""
    text = value or ""
    if text.isascii() and text.isdecimal() and len(text) < 7:
        text = f"{int(text) / 256:.4f}"
    work.filter(place, f"vol {value}", _SOUND_FILTER, f"volume={text}", first=False)


def _deinterlace(work: _Work, place: int, value: str | None) -> None:
    work.filter(place, "deinterlace", _PICTURE_FILTER, "yadif", first=True)


def _sameq(work: _Work, place: int, value: str | None) -> None:
    """It took over the source's quantisers, which says nothing across codecs: a high quality is what was meant."""
    encoder = work.last(*_PICTURE_CODEC)
    by_quality = work.last("f") in _FOR_X264 if encoder is None else encoder.startswith(_BY_QUALITY)
    work.put(place, "sameq", ("crf", "18") if by_quality else ("q:v", "2"))


def _vpre(work: _Work, place: int, value: str | None) -> None:
    name = (value or "").removeprefix("libx264-").removesuffix("_firstpass")
    if name in PRESETS:
        work.put(place, f"vpre {value}", *PRESETS[name])
    else:
        work.changes.dropped["vpre (it named a file on the original's machines)"] = None


def _target(work: _Work, place: int, value: str | None) -> None:
    """Still known, but the muxer is said apart here."""
    work.done.append((place, ("target", value)))
    kind = (value or "").rpartition("-")[2]
    if kind and work.last("f") is None:
        work.done.append((place, ("f", kind)))


_REPLACED: dict[str, Callable[[_Work, int, str | None], None]] = {
    "async": _async, "vol": _vol, "deinterlace": _deinterlace, "sameq": _sameq, "vpre": _vpre, "target": _target,
}
