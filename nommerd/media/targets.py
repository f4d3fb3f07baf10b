"""What the ffmpeg stage may be told: the typed form (video, audio, output …), and the raw form's option pairs.

Faults carry a pydantic error type; `two_pass`, `forbidden` and the like become recipe.* codes where they are reported.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from nommerd.later import Later, not_yet_supported
from nommerd.media.binaries import ENCODERS
from nommerd.media.units import Bitrate, Duration

TITLE_AND_LANGUAGE = ["title", "language"]
VideoCodec = Literal["h264", "hevc", "vp9", "av1", "prores", "copy"]
AudioCodec = Literal["aac", "mp3", "opus", "flac", "pcm_s16le", "pcm_s24le", "pcm_s32le", "copy"]
Container = Literal["mp4", "m4a", "mov", "mkv", "webm", "mp3", "wav", "flac", "ogg", "mpegts"]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$", json_schema_extra={"x-type": "word"})]
Side = Annotated[int, Field(ge=2, le=16_384)]
Pair = tuple[str, str | None]

# container -> codecs that can live in it; None: anything
HOLDS: dict[str, frozenset[str] | None] = {
    "mp4": frozenset({"h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}),
    "m4a": frozenset({"aac", "alac", "ac3", "eac3", "mp3"}),
    "mov": frozenset({"h264", "hevc", "prores", "mpeg4", "mjpeg", "dnxhd", "dvvideo", "mpeg2video", "aac", "mp3", "alac",
                      "ac3", "eac3", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_s16be", "pcm_s24be"}),
    "mkv": None, "webm": frozenset({"vp8", "vp9", "av1", "opus", "vorbis"}), "mp3": frozenset({"mp3"}),
    "wav": frozenset({"pcm_s16le", "pcm_s24le", "pcm_s32le"}), "flac": frozenset({"flac"}),
    "ogg": frozenset({"opus", "vorbis", "flac"}),
    "mpegts": frozenset({"h264", "hevc", "mpeg2video", "aac", "mp3", "mp2", "ac3", "eac3"}),
}
SOUND_ONLY = frozenset({"m4a", "mp3", "wav", "flac", "ogg"})
_DEFAULT_CONTAINER = {"mp3": "mp3", "opus": "ogg", "flac": "flac", "pcm_s16le": "wav", "pcm_s24le": "wav", "pcm_s32le": "wav",
                      "aac": "m4a"}


def fault(kind: str, message: str) -> PydanticCustomError:
    """A validation error whose type decides its code."""
    return PydanticCustomError(kind, "{message}", {"message": message})


class Part(BaseModel):
    """Base of the typed form's parts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _first_or_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Encoders = Annotated[list[Word], BeforeValidator(_first_or_list, json_schema_input_type=Word | list[Word]),
                     Field(min_length=1)]


def _word(value: Any) -> Any:
    return str(value) if type(value) is int else value


class Clip(Part):
    """Which part of the source, in seconds from its beginning."""

    start: Duration = Field(0.0, description="Where it begins.")
    end: Duration | None = Field(None, description="Where it ends; without it, at the source's end.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end is not None and self.end <= self.start:
            raise fault("clip", "`end` must come after `start`")
        return self


class Video(Part):
    """A picture track. `width` x `height` is a box in square pixels; see `fit`."""

    codec: VideoCodec = Field("h264", description="What ffprobe will say of the result; `copy` changes nothing, or refuses "
                                                  "the source with the reason.")
    encoder: Encoders | None = Field(None, description="How it is made: the first of these that the ffmpeg at work has.")
    encoder_preset: Annotated[Word, BeforeValidator(_word, json_schema_input_type=Word | int)] | None = Field(
        None, description="The encoder's own preset, its trade of time for size: `veryfast`, `medium`, `slow` in libx264.")
    profile: Word | None = Field(None, description="The codec's profile, such as `main` or `high` of h264.")
    pixel_format: Word | None = Field(None, description="ffmpeg's name; `yuv420p` for the web, unless set.")
    width: Side | None = Field(None, description="Of the box in pixels, turned with portrait sources.")
    height: Side | None = Field(None, description="Of the box in pixels.")
    fit: Literal["inside", "crop", "pad", "stretch"] = Field(
        "inside", description="How the picture comes into the box: whole, cut to fill it, with bars, or distorted.")
    upscale: bool = Field(False, description="Whether a smaller picture is enlarged.")
    turn_with_source: bool = Field(True, description="Whether the box is turned for portrait sources.")
    crf: Annotated[float, Field(ge=0, le=63)] | None = Field(
        None, description="Constant quality: less is better and larger. Excludes `bitrate`.")
    bitrate: Bitrate | None = Field(None, description="The average to aim for. Excludes `crf`.")
    max_bitrate: Bitrate | None = Field(None, description="The most over about two seconds; goes with either.")
    gop_seconds: Annotated[float, Field(gt=0, le=60)] | None = Field(None, description="The distance of key frames.")
    max_frame_rate: Annotated[float, Field(ge=1, le=240)] = Field(60, description="Faster sources are thinned out to this.")
    overlays: Later = None
    copy_when: Later = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crf is not None and self.bitrate is not None:
            raise fault("exclusive", "`bitrate` and `crf` exclude each other: give one")
        if self.fit in ("crop", "pad", "stretch") and (self.width is None or self.height is None):
            raise fault("box", f"`fit: {self.fit}` needs both `width` and `height`")
        if self.codec == "prores" and (self.crf is not None or self.bitrate is not None or self.max_bitrate is not None):
            raise fault("rate", "prores has no bit rate to set: its `profile` decides")
        _check_copy(self, {"codec"})
        _check_encoders(self.codec, self.encoder)
        return self


class Audio(Part):
    """Sound. `tracks: default` is the one a player would choose; where nothing is said: that one, or all for a copy."""

    name: Word | None = Field(None, description="A name for this sound.")
    codec: AudioCodec = Field("aac", description="What ffprobe will say of the result; `copy` changes nothing, or refuses the "
                                                 "source with the reason.")
    encoder: Encoders | None = Field(None, description="How it is made: the first of these that the ffmpeg at work has.")
    bitrate: Bitrate | None = Field(None, description="Of all channels together; lossless codecs have none.")
    channels: Annotated[int, Field(ge=1, le=8)] | None = Field(None, description="Unless set, as many as the source has.")
    sample_rate: Annotated[int, Field(ge=8_000, le=192_000)] | None = Field(
        None, description="In Hz; unless set, the source's, or 48000 where the codec does not take that.")
    tracks: Literal["default", "all"] | None = Field(
        None, description="The one that a player would choose, or all. Unless set: that one, or all for a copy.")
    required: bool = Field(False, description="Whether a source without sound is refused.")
    loudness: Later = None
    copy_when: Later = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bitrate is not None and (self.codec == "flac" or self.codec.startswith("pcm")):
            raise fault("rate", f"{self.codec} has no bit rate to set")
        if self.codec == "mp3" and (self.channels or 0) > 2:
            raise fault("channels", "mp3 holds at most 2 channels")
        _check_copy(self, {"codec", "name", "tracks", "required"})
        _check_encoders(self.codec, self.encoder)
        return self


def _check_copy(part: Video | Audio, kept: set[str]) -> None:
    changed = sorted(part.model_fields_set - kept)
    if part.codec == "copy" and changed:
        raise fault("copy", f"`codec: copy` changes nothing, so it goes with no {', '.join(f'`{name}`' for name in changed)}")


def _check_encoders(codec: str, encoders: list[str] | None) -> None:
    known = ENCODERS.get(codec, (codec,))
    strange = [name for name in encoders or () if name not in known]
    if strange:
        raise fault("encoder", f"`{strange[0]}` is no encoder for {codec} that is supported: {', '.join(known)}")


def _refuse_true(value: Any) -> Any:
    return not_yet_supported(value) if value is True else value


Tag = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", json_schema_extra={"x-type": "word"})]


class Metadata(Part):
    """What is kept of the source's metadata; everything else is dropped (it may say where a film was taken)."""

    keep: Literal["all"] | list[Tag] = Field(TITLE_AND_LANGUAGE, description="The tags that stay.")
    chapters: bool = Field(False, description="Whether chapters stay.")
    timecode: bool = Field(False, description="Whether a timecode track stays.")
    cover: Annotated[bool, BeforeValidator(_refuse_true)] = Field(False, description="`true` is not yet supported.")


class Output(Part):
    """The file. `file` is its name under a destination that ends in `/`."""

    container: Container | None = Field(None, description="Unless set, what suits the codecs: mp4, webm for vp9, mov for "
                                                          "prores, m4a for aac alone.")
    faststart: bool | None = Field(None, description="Whether an MP4 or MOV has its index in front: unless this is false.")
    file: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Its name under a destination that ends in `/`; may hold `${source.stem}`.")
    separate: Annotated[bool, BeforeValidator(_refuse_true)] = Field(False, description="`true` is not yet supported.")

    @model_validator(mode="after")
    def _plain_name(self) -> Self:
        if self.file is not None and (re.search(r"[/\\\x00-\x1f\x7f]", self.file) or self.file.startswith(".")):
            raise fault("file", "`file` is a plain name: no `/`, no control characters, no dot in front")
        return self


def _one_audio(value: Any) -> Any:
    """A mapping, or a list of one; several tracks of different kinds come later."""
    if isinstance(value, list):
        if len(value) > 1:
            return not_yet_supported(value)
        return value[0] if value else None
    return value


OneAudio = Annotated[Audio | None, BeforeValidator(_one_audio, json_schema_input_type=Audio | list[Audio] | None)]


def default_container(video: Video | None, audio: Audio | None) -> str:
    """The container for these tracks where the recipe names none."""
    if video is not None:
        return "mov" if video.codec == "prores" else "webm" if video.codec == "vp9" else "mp4"
    return _DEFAULT_CONTAINER.get(audio.codec, "mkv") if audio is not None else "mp4"


# --- the raw form -------------------------------------------------------------------------------------------------


def _pair(value: Any) -> Pair:
    """One `[name, value]`; null is a bare flag, 0 is kept."""
    if not isinstance(value, list):
        raise fault("option", "expected [name, value]")
    if len(value) != 2:
        hint = ": quote a value that holds a comma" if len(value) > 2 else ": write [name, null] for a bare flag"
        raise fault("option", f"expected [name, value], got {len(value)} item{'' if len(value) == 1 else 's'}{hint}")
    name, setting = value
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_:.#-]{0,79}", name):
        raise fault("option", "an option's name has letters, digits, `_`, `-` and a stream specifier; no dash in front")
    if isinstance(setting, bool):
        raise fault("option", f"`{name}` cannot be {str(setting).lower()}: write null for a bare flag, or 0 or 1")
    if setting is not None and not isinstance(setting, str | int | float):
        raise fault("option", f"`{name}` takes one plain value")
    if isinstance(setting, str) and "\x00" in setting:
        raise fault("option", f"`{name}` holds a NUL character")
    return name, None if setting is None else str(setting)


OptionPair = Annotated[Pair, BeforeValidator(_pair), Field(strict=False), WithJsonSchema({
    "x-type": "`[name, value]` pair", "type": "array", "minItems": 2, "maxItems": 2,
    "prefixItems": [{"type": "string"}, {"type": ["string", "number", "null"]}]})]
Options = list[OptionPair]
