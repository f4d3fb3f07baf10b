"""The typed form held against a probe: which tracks, which encoder, which size, rate and metadata. Pure; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nommerd.errors import InputError
from nommerd.media.binaries import Binaries
from nommerd.media.formats import FAST_START_CONTAINERS
from nommerd.media.picture import VideoPlan, Warned, pick_encoder, plan_video
from nommerd.media.probe import Probe, StreamInfo
from nommerd.media.targets import HOLDS, SOUND_ONLY, Audio, Clip, Metadata, Output, Video, default_container
from nommerd.media.verify import Expectation, StreamExpectation

_SAMPLE_RATES = {
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000), "opus": (48_000,),
}
SURROUND_MAX = 8  # more channels than that are no surround sound but as many microphones and mixes: the first are the mix
_LAYOUTS = {1: "mono", 2: "stereo"}  # by channels, for a mix of these
_CHANNELS_MAX = {"mp3": 2, "aac": 8, "opus": 8, "flac": 8}
_MP4_CAPTIONS = "mov_text"  # the only captions that an MP4 holds as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPlan:
    """One sound track: the source's track number `track` among its sound."""

    track: int
    encoder: str
    bitrate: int | None = None
    channels: int | None = None
    sample_rate: int | None = None
    pan: str | None = None  # a filter that picks channels
    expect: StreamExpectation
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the command line needs, decided."""

    container: str
    video: VideoPlan | None = None
    audio: tuple[AudioPlan, ...] = ()
    captions: tuple[int, ...] = ()  # copied: numbers among the source's captions
    caption_languages: tuple[str | None, ...] = ()
    fast_start: bool = False
    clip_start: float = 0.0
    clip_seconds: float | None = None
    tags: tuple[tuple[str, str], ...] = ()
    keep_all_tags: bool = False
    keep_language: bool = True
    chapters: bool = False
    timecode: str | None = None
    total_seconds: float | None = None
    total_frames: int | None = None
    expect: Expectation
    warnings: tuple[Warned, ...] = ()  # code, message, hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The typed form's parts."""

    video: Video | None = None
    audio: Audio | None = None
    clip: Clip | None = None
    metadata: Metadata = field(default_factory=Metadata)
    output: Output = field(default_factory=Output)

    @property
    def container(self) -> str:
        return self.output.container or default_container(self.video, self.audio)

    @property
    def remux(self) -> bool:
        """Nothing is encoded."""
        return all(part is None or part.codec == "copy" for part in (self.video, self.audio))


def resolve(wanted: Wanted, source: Probe, can: Binaries, source_name: str) -> Plan:
    """Hold the typed form against a source.

    InputError input.no_video, input.no_audio, input.cannot_remux, input.clip_outside, recipe.container;
    ConfigError config.no_encoder where this ffmpeg lacks every encoder that would do.
    """
    warnings: list[Warned] = []
    pictures = _pictures(wanted, source, source_name)
    sounds = _sounds(wanted, source, source_name)
    if not pictures and not sounds:
        raise InputError("input.no_audio" if wanted.video is None else "input.no_video",
                         f"{source_name} has no track that this pipeline uses.")
    if wanted.remux:
        _check_remux(wanted.container, (*pictures, *(s for _, s in sounds)), source_name)
    video = plan_video(wanted.video, pictures, can, warnings) if wanted.video is not None and pictures else None
    audio = tuple(_audio(wanted.audio, number, stream, can, warnings) for number, stream in sounds) if wanted.audio else ()
    captions = _captions(wanted, source, warnings)
    tracks = (*pictures, *(s for _, s in sounds))
    seconds = source.span_seconds(tracks)
    start, length = _clip(wanted.clip, seconds, source_name)
    total = _clipped(seconds, start, length)
    rate = video.frame_rate if video is not None else None
    fast = wanted.container in FAST_START_CONTAINERS and wanted.output.faststart is not False
    expect = Expectation(
        source_name=source_name, streams=(*(video.expect if video is not None else ()), *(a.expect for a in audio)),
        duration_seconds=total, duration_certain=total is not None and not source.duration_estimated, fast_start=fast,
        source=source.path if wanted.clip is None else None, source_seconds=source.duration_seconds,
        tracks=tuple(s.index for s in tracks),
        frame_seconds=float(1 / rate) if rate else _frame_seconds(pictures),
        copied=any(p is not None and p.codec == "copy" for p in (wanted.video, wanted.audio)))
    metadata = wanted.metadata
    return Plan(
        container=wanted.container, video=video, audio=audio, captions=captions,
        caption_languages=tuple(source.captions[number].language for number in captions), fast_start=fast, clip_start=start,
        clip_seconds=length, tags=_tags(metadata, source), keep_all_tags=metadata.keep == "all",
        keep_language="language" in metadata.keep, chapters=metadata.chapters,
        timecode=source.timecode if metadata.timecode else None, total_seconds=total, expect=expect, warnings=tuple(warnings),
        total_frames=round(total * rate) if total is not None and rate else None)


# --- which tracks -------------------------------------------------------------------------------------------------


def _pictures(wanted: Wanted, source: Probe, name: str) -> tuple[StreamInfo, ...]:
    if wanted.video is None:
        return ()
    if wanted.video.codec == "copy":
        if not source.video and not wanted.remux:
            raise InputError("input.no_video", f"{name} has no picture track.")
        return source.video
    if not source.video or not source.video[0].usable:
        raise InputError("input.no_video", f"{name} has no picture track that can be decoded.",
                         "Use a pipeline for sound, such as audio-aac.")
    return source.video[:1]


def _sounds(wanted: Wanted, source: Probe, name: str) -> tuple[tuple[int, StreamInfo], ...]:
    """The sound tracks to take, with their numbers among the source's sound."""
    if wanted.audio is None:
        return ()
    tracks = [(number, stream) for number, stream in enumerate(source.audio) if stream.usable]
    if not tracks and (wanted.audio.required or wanted.video is None):
        raise InputError("input.no_audio", f"{name} has no sound track that can be decoded.",
                         "Send one with sound, or use a pipeline for pictures, such as web-mp4." if source.video else "")
    if (wanted.audio.tracks or ("all" if wanted.audio.codec == "copy" else "default")) == "all":
        return tuple(tracks)
    chosen = next((track for track in tracks if track[1].default), None) or next(iter(tracks), None)
    return (chosen,) if chosen is not None else ()


def _captions(wanted: Wanted, source: Probe, warnings: list[Warned]) -> tuple[int, ...]:
    """Captions travel only with a remux of everything, and only where the container holds them as they are."""
    texts = source.captions
    everything = wanted.remux and wanted.video is not None and wanted.audio is not None
    if not texts or not everything:
        return ()
    fits = tuple(number for number, stream in enumerate(texts)
                 if wanted.container == "mkv" or (wanted.container in ("mp4", "mov") and stream.codec == _MP4_CAPTIONS))
    if len(fits) < len(texts):
        left_out = ", ".join(sorted({s.codec for number, s in enumerate(texts) if number not in fits}))
        warnings.append(("input.captions_dropped", f"Captions ({left_out}) cannot be copied into {wanted.container}.", ""))
    return fits


def _check_remux(container: str, streams: tuple[StreamInfo, ...], name: str) -> None:
    holds = HOLDS[container]
    strange = [s for s in streams if holds is not None and s.codec not in holds]
    if strange:
        what = ", ".join(sorted({f"{s.codec} ({'picture' if s.kind == 'video' else 'sound'})" for s in strange}))
        raise InputError("input.cannot_remux", f"{name} cannot be copied into {container}: {what} does not go there.",
                         "Use a pipeline that encodes, such as web-mp4.")


# --- how long -----------------------------------------------------------------------------------------------------


def _clip(clip: Clip | None, seconds: float | None, name: str) -> tuple[float, float | None]:
    """Where to start and how long to go on (None: to the end)."""
    if clip is None:
        return 0.0, None
    if seconds is not None and clip.start >= seconds:
        raise InputError("input.clip_outside", f"The clip starts at {clip.start:g} s, but {name} is {seconds:.2f} s long.")
    return clip.start, None if clip.end is None else clip.end - clip.start


def _clipped(seconds: float | None, start: float, length: float | None) -> float | None:
    if seconds is None:
        return None
    return seconds - start if length is None else min(length, seconds - start)


def _frame_seconds(pictures: tuple[StreamInfo, ...]) -> float:
    return max((float(1 / s.average_frame_rate) for s in pictures if s.average_frame_rate), default=0.0)


# --- sound --------------------------------------------------------------------------------------------------------


def _audio(audio: Audio, number: int, source: StreamInfo, can: Binaries, warnings: list[Warned]) -> AudioPlan:
    if audio.codec == "copy":
        expect = StreamExpectation(kind="audio", codec=source.codec, channels=source.channels)
        return AudioPlan(track=number, encoder="copy", expect=expect, language=source.language)
    encoder = pick_encoder(audio.codec, audio.encoder, can)
    channels = audio.channels or min(source.channels or 2, _CHANNELS_MAX.get(audio.codec, 64))
    sample_rate = _sample_rate(audio, source)
    expect = StreamExpectation(kind="audio", codec=audio.codec, channels=channels, sample_rate=sample_rate)
    return AudioPlan(track=number, encoder=encoder, bitrate=audio.bitrate, channels=channels, sample_rate=sample_rate,
                     pan=_pan(source, channels, warnings), expect=expect, language=source.language)


def _pan(source: StreamInfo, channels: int, warnings: list[Warned]) -> str | None:
    """The first channels of many: nobody says how they are to be mixed, and some ffmpegs refuse to guess."""
    if (source.channels or 0) <= max(SURROUND_MAX, channels):
        return None
    warnings.append(("input.channels_dropped", f"The sound has {source.channels} channels: the first {channels} were used.",
                     "Send the mix alone if it is on others."))
    layout = _LAYOUTS.get(channels, f"{channels}c")
    return "|".join((f"pan={layout}", *(f"c{number}=c{number}" for number in range(channels))))


def _sample_rate(audio: Audio, source: StreamInfo) -> int:
    """Always said out loud: the one asked for, else the source's where the codec takes it and it is no more than 48 kHz."""
    takes = _SAMPLE_RATES.get(audio.codec)
    if audio.sample_rate is not None:
        return audio.sample_rate
    rate = source.sample_rate or 48_000
    if takes is None:
        return rate
    return rate if rate in takes and rate <= 48_000 else 48_000


# --- metadata -----------------------------------------------------------------------------------------------------


def _tags(metadata: Metadata, source: Probe) -> tuple[tuple[str, str], ...]:
    """What is kept of the container's tags. `language` belongs to the tracks."""
    if metadata.keep == "all":
        return ()
    return tuple((name, source.tags[name]) for name in metadata.keep if name != "language" and source.tags.get(name))


def check_wanted(wanted: Wanted) -> str | None:
    """What is wrong with the typed form whatever the source, for people; None where nothing is."""
    container = wanted.container
    if container in SOUND_ONLY and wanted.video is not None:
        return f"{container} holds no pictures: leave out `video`, or choose mp4, mov, mkv or webm"
    holds = HOLDS[container]
    for part in (wanted.video, wanted.audio):
        if part is not None and part.codec != "copy" and holds is not None and part.codec not in holds:
            return f"{part.codec} cannot live in {container}"
    rates = _SAMPLE_RATES.get(wanted.audio.codec) if wanted.audio is not None else None
    if rates and wanted.audio is not None and wanted.audio.sample_rate not in (None, *rates):
        return f"{wanted.audio.codec} takes no sample rate of {wanted.audio.sample_rate}: {', '.join(map(str, rates))}"
    if wanted.clip is not None and any(p is not None and p.codec == "copy" for p in (wanted.video, wanted.audio)):
        return "a clip cannot be copied: copies can only be cut at key frames"
    return None


def output_path(workspace: Path, stage_id: str, extension: str) -> Path:
    """Where a stage's file goes. Nothing in the name can be a pattern, an option or a protocol."""
    safe = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in stage_id) or "stage"
    return workspace / f"out-{safe}.{extension}"
