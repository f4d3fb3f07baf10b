"""The typed form held against a probe: which tracks, which encoder, which size, rate and metadata. Pure; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from nommerd.errors import ConfigError, InputError
from nommerd.media.binaries import Binaries
from nommerd.media.box import Fitted, constant_rate, fit
from nommerd.media.formats import FAST_START_CONTAINERS
from nommerd.media.probe import Probe, StreamInfo
from nommerd.media.targets import HOLDS, SOUND_ONLY, Audio, Clip, Metadata, Output, Video, default_container
from nommerd.media.verify import Expectation, StreamExpectation

BUFFER_SECONDS = 2.0  # of the rate buffer, at the largest bit rate
EIGHT_BIT_HDR_CHAIN = ("zscale=t=linear:npl=100", "format=gbrpf32le", "zscale=p=bt709", "tonemap=tonemap=hable:desat=0",
                       "zscale=t=bt709:m=bt709:r=tv")
_PIXEL_FORMATS = {"prores": "yuv422p10le"}  # by codec; else 8-bit 4:2:0, which every player shows
_SAMPLE_RATES = {
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000), "opus": (48_000,),
}
_CHANNELS_MAX = {"mp3": 2, "aac": 8, "opus": 8, "flac": 8}
_MP4_CAPTIONS = "mov_text"  # the only captions that an MP4 holds as they are
Option = tuple[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPlan:
    """One picture track. `options` are its encoder's, without a stream specifier."""

    encoder: str
    filters: tuple[str, ...] = ()
    frame_rate: Fraction | None = None
    pixel_format: str | None = None
    options: tuple[Option, ...] = ()
    expect: tuple[StreamExpectation, ...] = ()
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPlan:
    """One sound track: the source's track number `track` among its sound."""

    track: int
    encoder: str
    bitrate: int | None = None
    channels: int | None = None
    sample_rate: int | None = None
    expect: StreamExpectation
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the command line needs, decided."""

    container: str
    video: VideoPlan | None = None
    audio: tuple[AudioPlan, ...] = ()
    captions: tuple[int, ...] = ()  # copied: numbers among the source's captions
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
    warnings: tuple[tuple[str, str, str], ...] = ()  # code, message, hint


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
    warnings: list[tuple[str, str, str]] = []
    pictures = _pictures(wanted, source, source_name)
    sounds = _sounds(wanted, source, source_name)
    if not pictures and not sounds:
        raise InputError("input.no_audio" if wanted.video is None else "input.no_video",
                         f"{source_name} has no track that this pipeline uses.")
    if wanted.remux:
        _check_remux(wanted.container, (*pictures, *(s for _, s in sounds)), source_name)
    video = _video(wanted.video, pictures, can, warnings) if wanted.video is not None and pictures else None
    audio = tuple(_audio(wanted.audio, number, stream, can) for number, stream in sounds) if wanted.audio else ()
    captions = _captions(wanted, source, warnings)
    tracks = (*pictures, *(s for _, s in sounds))
    seconds = _longest(source, tracks)
    start, length = _clip(wanted.clip, seconds, source_name)
    total = _clipped(seconds, start, length)
    rate = video.frame_rate if video is not None else None
    fast = wanted.container in FAST_START_CONTAINERS and wanted.output.faststart is not False
    expect = Expectation(
        source_name=source_name, streams=(*(video.expect if video is not None else ()), *(a.expect for a in audio)),
        duration_seconds=total, duration_certain=total is not None and not source.duration_estimated, fast_start=fast,
        source=source.path if wanted.clip is None else None, tracks=tuple(s.index for s in tracks),
        frame_seconds=float(1 / rate) if rate else _frame_seconds(pictures),
        copied=any(p is not None and p.codec == "copy" for p in (wanted.video, wanted.audio)))
    metadata = wanted.metadata
    return Plan(
        container=wanted.container, video=video, audio=audio, captions=captions, fast_start=fast, clip_start=start,
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
        raise InputError("input.no_audio", f"{name} has no sound track that can be decoded.")
    if (wanted.audio.tracks or ("all" if wanted.audio.codec == "copy" else "default")) == "all":
        return tuple(tracks)
    chosen = next((track for track in tracks if track[1].default), None) or next(iter(tracks), None)
    return (chosen,) if chosen is not None else ()


def _captions(wanted: Wanted, source: Probe, warnings: list[tuple[str, str, str]]) -> tuple[int, ...]:
    """Captions travel only with a remux of everything, and only where the container holds them as they are."""
    texts = [stream for stream in source.streams if stream.kind == "subtitle"]
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


def _longest(source: Probe, streams: tuple[StreamInfo, ...]) -> float | None:
    known = [seconds for seconds in (source.track_seconds(stream) for stream in streams) if seconds is not None]
    return max(known) if len(known) == len(streams) and known else None


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


# --- pictures -----------------------------------------------------------------------------------------------------


def _video(video: Video, pictures: tuple[StreamInfo, ...], can: Binaries, warnings: list[tuple[str, str, str]]) -> VideoPlan:
    source = pictures[0]
    if video.codec == "copy":
        return VideoPlan(encoder="copy", language=source.language,
                         expect=tuple(StreamExpectation(kind="video", codec=s.codec, width=s.width, height=s.height)
                                      for s in pictures))
    encoder = _encoder(video.codec, video.encoder, can)
    pixel_format = video.pixel_format or _PIXEL_FORMATS.get(video.codec, "yuv420p")
    rate = constant_rate(source.average_frame_rate, source.frame_rate, Fraction(video.max_frame_rate).limit_denominator(1_001))
    fitted, sar = _fitted(video, source)
    mapping = _tone_map(source, pixel_format, can, warnings)
    # -r alone forgets in ffmpeg 5 how long the last frame is shown
    filters = (f"fps={rate}", *mapping, *_scaling(fitted, source), *(("setsar=1",) if sar == 1 else ()))
    options = [*_ENCODER_OPTIONS.get(encoder, _plain_options)(video), *_rate_options(video), *_gop(video, rate)]
    if mapping:
        options += [("color_primaries", "bt709"), ("color_trc", "bt709"), ("colorspace", "bt709"), ("color_range", "tv")]
    size = (fitted.width, fitted.height)
    expect = StreamExpectation(kind="video", codec=video.codec, width=size[0], height=size[1], pixel_format=pixel_format,
                               sample_aspect_ratio=sar)
    return VideoPlan(encoder=encoder, filters=filters, frame_rate=rate, pixel_format=pixel_format,
                     options=tuple(options), expect=(expect,), language=source.language)


def _fitted(video: Video, source: StreamInfo) -> tuple[Fitted, Fraction]:
    """The size to make, and the shape of its pixels: square, but in an archive copy that asks for no size."""
    stored = (source.width or 2, source.height or 2)
    sar = source.sample_aspect_ratio
    if source.rotation % 180:
        stored, sar = (stored[1], stored[0]), 1 / sar
    if video.codec == "prores" and video.width is None and video.height is None:
        return fit(stored, Fraction(1), None, None), sar
    return fit(stored, sar, video.width, video.height, how=video.fit, upscale=video.upscale,
               turn=video.turn_with_source), Fraction(1)


def _scaling(fitted: Fitted, source: StreamInfo) -> list[str]:
    stored = (source.width, source.height) if source.rotation % 180 == 0 else (source.height, source.width)
    filters = [] if stored == fitted.scaled else [f"scale={fitted.scaled[0]}:{fitted.scaled[1]}"]
    if fitted.cropped:
        filters.append(f"crop={fitted.width}:{fitted.height}")
    if fitted.padded:
        filters.append(f"pad={fitted.width}:{fitted.height}:(ow-iw)/2:(oh-ih)/2:color=black")
    return filters


def _tone_map(source: StreamInfo, pixel_format: str, can: Binaries, warnings: list[tuple[str, str, str]]) -> tuple[str, ...]:
    """PQ and HLG look washed out on 8 bits unless their brightness is mapped."""
    if not source.hdr or "10" in pixel_format or "12" in pixel_format:
        return ()
    if not {"zscale", "tonemap"} <= can.filters:
        warnings.append(("input.hdr_not_mapped", "The source is HDR, and this ffmpeg cannot map it (no zscale filter): the "
                         "colours come out pale.", "Use an ffmpeg that was built with libzimg."))
        return ()
    return EIGHT_BIT_HDR_CHAIN


def _encoder(codec: str, wanted: list[str] | None, can: Binaries) -> str:
    found = can.pick_encoder(codec, wanted or ())
    if found is None:
        raise ConfigError("config.no_encoder", f"This ffmpeg has no encoder for {codec}"
                          f"{' among ' + ', '.join(wanted) if wanted else ''}.",
                          "Install an ffmpeg that has one, or set media.ffmpeg.")
    return found


def _rate_options(video: Video) -> list[Option]:
    options: list[Option] = []
    if video.crf is not None:
        options.append(("crf", f"{video.crf:g}"))
    if video.bitrate is not None:
        options.append(("b", str(video.bitrate)))
    if video.max_bitrate is not None:
        options += [("maxrate", str(video.max_bitrate)), ("bufsize", str(round(video.max_bitrate * BUFFER_SECONDS)))]
    return options


def _gop(video: Video, rate: Fraction) -> list[Option]:
    return [] if video.gop_seconds is None else [("g", str(max(1, round(rate * Fraction(video.gop_seconds)))))]


def _plain_options(video: Video) -> list[Option]:
    """For encoders that know `preset` and `profile`."""
    options: list[Option] = [] if video.encoder_preset is None else [("preset", video.encoder_preset)]
    return options if video.profile is None else [*options, ("profile", video.profile)]


def _hevc_options(video: Video) -> list[Option]:
    return [*_plain_options(video), ("x265-params", "log-level=error"), ("tag", "hvc1")]


def _speed_options(video: Video) -> list[Option]:
    """libvpx-vp9 and libaom: their speed is cpu-used, and a quality needs the bit rate 0 beside it."""
    options: list[Option] = [("cpu-used", video.encoder_preset or "4"), ("row-mt", "1")]
    return options if video.crf is None else [*options, ("b", "0")]


_ENCODER_OPTIONS = {"libx265": _hevc_options, "libvpx-vp9": _speed_options, "libaom-av1": _speed_options}


# --- sound --------------------------------------------------------------------------------------------------------


def _audio(audio: Audio, number: int, source: StreamInfo, can: Binaries) -> AudioPlan:
    if audio.codec == "copy":
        expect = StreamExpectation(kind="audio", codec=source.codec, channels=source.channels)
        return AudioPlan(track=number, encoder="copy", expect=expect, language=source.language)
    encoder = _encoder(audio.codec, audio.encoder, can)
    channels = audio.channels or min(source.channels or 2, _CHANNELS_MAX.get(audio.codec, 64))
    sample_rate = _sample_rate(audio, source)
    expect = StreamExpectation(kind="audio", codec=audio.codec, channels=channels, sample_rate=sample_rate)
    return AudioPlan(track=number, encoder=encoder, bitrate=audio.bitrate, channels=channels, sample_rate=sample_rate,
                     expect=expect, language=source.language)


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
