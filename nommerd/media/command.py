"""ffmpeg command lines, as pure values: nothing here runs anything.

What every line carries: no standard input, progress on standard output, `file:` before each name, and inputs held to one
protocol and to containers that open nothing else. Only option allowlists stop the muxers and filters that ignore those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nommerd.media.formats import FAST_START_MUXERS, INPUT_FORMATS, INPUT_PROTOCOLS, OUTPUTS
from nommerd.media.picture import Option, VideoPlan
from nommerd.media.plan import Plan

MAX_ERROR_RATE = "0.1"  # more failing packets than that, and ffmpeg ends with an error of its own
QUEUE_PACKETS = "4096"  # what a late track may let wait; ffmpeg's default fails on long gaps
NOWHERE = ("-f", "null", "file:/dev/null")
SILENT = ("-an", "-sn", "-dn")
OUTPUT_PROTOCOLS = ("-protocol_whitelist", "file")
STEADY_MUXERS = frozenset({"avi", "mpeg", "vob", "svcd", "dvd", "dv", "mxf", "gxf"})  # they hold one frame rate, and no other


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a stage. `output` is the file it writes; the totals are what progress is measured against."""

    stage: str
    label: str
    argv: tuple[str, ...]
    output: Path | None = None
    total_frames: int | None = None
    total_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a command line needs besides its options. `pass_log` is a prefix in the workspace; `threads` 0: ffmpeg decides."""

    ffmpeg: Path
    stage: str
    source: Path
    output: Path
    pass_log: Path
    threads: int = 0
    fail_on_damage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPass:
    """One run by flags: ordered pairs, None for a bare flag."""

    options: Sequence[Option]
    input_options: Sequence[Option] = ()

    def says(self, *names: str) -> bool:
        """Whether any of these options is given, with or without a stream specifier."""
        return any(name.split(":")[0] in names for name, _ in self.options)

    @property
    def muxer(self) -> str | None:
        return next((value for name, value in reversed(self.options) if name == "f"), None)


# --- typed --------------------------------------------------------------------------------------------------------


def typed(plan: Plan, job: Job, passes: int = 1) -> tuple[Command, ...]:
    """The commands of a plan: with `passes` 2, one that only measures goes first."""
    muxer = OUTPUTS[plan.container][0]
    whole = (*_head(job), *_input(job, _clip(plan)), *_video(plan, job.threads), *_audio(plan), *_captions(plan),
             *_metadata(plan))
    end = (*(("-movflags", "+faststart") if plan.fast_start else ()), *_strictness(plan),
           "-max_muxing_queue_size", QUEUE_PACKETS, *OUTPUT_PROTOCOLS, "-f", muxer, f"file:{job.output}")
    if passes == 1:
        return (_command(plan, job, "copy" if plan.expect.copied else "encode", (*whole, *end)),)
    measure = (*_head(job), *_input(job, _clip(plan)), *_video(plan, job.threads), *_pass(1, job), *_unheard(plan), *NOWHERE)
    return (_command(plan, job, "pass 1", measure, writes=False),
            _command(plan, job, "pass 2", (*whole, *_pass(2, job), *end)))


def _command(plan: Plan, job: Job, label: str, argv: tuple[str, ...], *, writes: bool = True) -> Command:
    return Command(stage=job.stage, label=label, argv=argv, output=job.output if writes else None,
                   total_frames=plan.total_frames, total_seconds=plan.total_seconds)


def _head(job: Job) -> tuple[str, ...]:
    strict = ("-xerror",) if job.fail_on_damage else ()
    return (str(job.ffmpeg), "-nostdin", "-hide_banner", "-y", "-loglevel", "level+warning", "-nostats", "-progress", "pipe:1",
            "-max_error_rate", MAX_ERROR_RATE, *strict)


def _input(job: Job, options: Sequence[str]) -> tuple[str, ...]:
    threads = ("-threads", str(job.threads)) if job.threads else ()
    return ("-protocol_whitelist", INPUT_PROTOCOLS, "-format_whitelist", INPUT_FORMATS["media"], *threads, *options,
            "-i", f"file:{job.source}")


def _clip(plan: Plan) -> tuple[str, ...]:
    start = ("-ss", f"{plan.clip_start:.6f}") if plan.clip_start else ()
    return start if plan.clip_seconds is None else (*start, "-t", f"{plan.clip_seconds:.6f}")


def _strictness(plan: Plan) -> tuple[str, ...]:
    """ffmpeg 5 takes FLAC in MP4 for an experiment, and refuses."""
    return ("-strict", "experimental") if any(track.expect.codec == "flac" for track in plan.audio) else ()


def _pass(number: int, job: Job) -> tuple[str, ...]:
    """`-passlogfile` takes a plain name: with `file:` in front nothing is written."""
    return ("-pass", str(number), "-passlogfile", str(job.pass_log))


def _video(plan: Plan, threads: int) -> tuple[str, ...]:
    video = plan.video
    if video is None:
        return ("-vn",)
    if video.encoder == "copy":
        return ("-map", "0:V", "-c:v", "copy")
    argv = ["-map", "0:V:0", "-c:v", video.encoder, *_specified(video)]
    if video.filters:
        argv += ["-filter:v", ",".join(video.filters)]
    if video.pixel_format is not None:
        argv += ["-pix_fmt:v", video.pixel_format]
    if video.frame_rate is not None:
        argv += ["-r:v", str(video.frame_rate), "-fps_mode:v", "cfr"]
    return (*argv, *(("-threads:v", str(threads)) if threads else ()))


def _specified(video: VideoPlan) -> Iterable[str]:
    for name, value in video.options:
        yield f"-{name}:v"
        if value is not None:
            yield value


def _audio(plan: Plan) -> tuple[str, ...]:
    argv: list[str] = []
    for number, track in enumerate(plan.audio):
        argv += ["-map", f"0:a:{track.track}", f"-c:a:{number}", track.encoder]
        if track.encoder == "copy":
            continue
        # A gap in the sound is filled: left alone, what follows it would come too early.
        filters = ",".join(filter(None, (track.pan, "aresample=async=1")))
        argv += [f"-filter:a:{number}", filters, f"-ar:a:{number}", str(track.sample_rate),
                 f"-ac:a:{number}", str(track.channels)]
        if track.bitrate is not None:
            argv += [f"-b:a:{number}", str(track.bitrate)]
    return tuple(argv) if argv else ("-an",)


def _unheard(plan: Plan) -> tuple[str, ...]:
    """The sound in a pass that only measures: copied to nowhere. A transport stream begins where the first of the streams in
    use does, so without it the passes would count different frames, and x264 refuses the second one."""
    maps = [part for track in plan.audio for part in ("-map", f"0:a:{track.track}")]
    return (*maps, "-c:a", "copy", "-sn", "-dn") if maps else SILENT


def _captions(plan: Plan) -> tuple[str, ...]:
    argv = [part for number in plan.captions for part in ("-map", f"0:s:{number}")]
    return (*argv, "-c:s", "copy", "-dn") if argv else ("-sn", "-dn")


def _metadata(plan: Plan) -> tuple[str, ...]:
    argv = ["-map_metadata", "0" if plan.keep_all_tags else "-1", "-map_chapters", "0" if plan.chapters else "-1"]
    for name, value in plan.tags:
        argv += ["-metadata", f"{name}={value}"]
    if plan.keep_language and not plan.keep_all_tags:
        argv += _language("v", (plan.video.language,) if plan.video is not None else ())
        argv += _language("a", tuple(track.language for track in plan.audio))
        argv += _language("s", plan.caption_languages)
    if plan.timecode is not None and plan.container in ("mov", "mp4"):
        argv += ["-timecode", plan.timecode]
    return tuple(argv)


def _language(kind: str, languages: Sequence[str | None]) -> list[str]:
    return [part for number, language in enumerate(languages) if language and language != "und"
            for part in (f"-metadata:s:{kind}:{number}", f"language={language}")]


_PASS_FLAGS = {(True, False): 1, (False, False): 3, (False, True): 2}  # by first, last: 1 writes the log, 2 reads it, 3 both


# --- raw ----------------------------------------------------------------------------------------------------------


def raw(passes: Sequence[RawPass], job: Job, muxer: str, *, total_seconds: float | None = None,
        total_frames: int | None = None) -> tuple[Command, ...]:
    """The commands of a run of passes. All but the last write nowhere, unless they set `f`; the last one writes `muxer`
    unless it does."""
    commands = []
    for number, one in enumerate(passes, start=1):
        last = number == len(passes)
        passing = _pass(_PASS_FLAGS[number == 1, last], job) if len(passes) > 1 and not one.says("pass", "passlogfile") else ()
        timing = _timing(one, passes[-1].muxer or muxer) if len(passes) > 1 else ()
        quiet = () if last or one.muxer is not None else _silent(one)
        argv = (*_head(job), *_input(job, _flat(one.input_options)), *_default_maps(one), *_flat(one.options), *passing,
                *timing, *quiet, *_raw_end(one, job, muxer, last=last))
        commands.append(Command(stage=job.stage, label=f"pass {number}" if len(passes) > 1 else "encode", argv=argv,
                                output=job.output if last else None, total_seconds=total_seconds, total_frames=total_frames))
    return tuple(commands)


def _timing(one: RawPass, muxer: str) -> tuple[str, ...]:
    """One way to time frames for all passes. By itself ffmpeg chooses it by the muxer, and the first pass has none: x264 fails
    when the second one finds more frames, or crashes."""
    if one.says("fps_mode", "vsync"):
        return ()
    return ("-fps_mode", "cfr" if one.says("r") or muxer in STEADY_MUXERS else "vfr")


def _silent(one: RawPass) -> tuple[str, ...]:
    """A pass that only measures reads the sound as well, as `_unheard` says, where nothing stands in the way."""
    filtered = any(name.startswith("filter:a") for name, _ in one.options)
    return SILENT if filtered or one.says("an", "af", "map", "filter_complex") else ("-c:a", "copy", "-sn", "-dn")


def _raw_end(one: RawPass, job: Job, muxer: str, *, last: bool) -> tuple[str, ...]:
    if not last:
        return NOWHERE if one.muxer is None else (*OUTPUT_PROTOCOLS, f"file:{job.pass_log}.out")
    return (*OUTPUT_PROTOCOLS, *(() if one.muxer is not None else ("-f", muxer)), f"file:{job.output}")


def _default_maps(one: RawPass) -> tuple[str, ...]:
    """The first moving picture and the first sound, never a cover."""
    return () if one.says("map", "filter_complex") else ("-map", "0:V:0?", "-map", "0:a:0?")


def _flat(options: Sequence[Option]) -> tuple[str, ...]:
    return tuple(part for name, value in options for part in ((f"-{name}",) if value is None else (f"-{name}", value)))


# --- copies -------------------------------------------------------------------------------------------------------


def fast_start(job: Job, total_seconds: float | None) -> Command:
    """Copy every track of an MP4 or MOV into one whose index comes first. Time code tracks are made anew from the tags."""
    suffix = job.output.suffix.lstrip(".")
    muxer = next((muxer for muxer, extension in OUTPUTS.values() if suffix == extension), None)
    muxer = muxer or (suffix if suffix in FAST_START_MUXERS else "mp4")
    argv = (*_head(job), *_input(job, ()), "-map", "0:v?", "-map", "0:a?", "-map", "0:s?", "-c", "copy", "-map_metadata", "0",
            "-movflags", "+faststart", *OUTPUT_PROTOCOLS, "-f", muxer, f"file:{job.output}")
    return Command(stage=job.stage, label="fast start", argv=argv, output=job.output, total_seconds=total_seconds)
