"""ffprobe's JSON as a client sends it: of what we read, everything has its type and a limit; the rest is ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from nommerd.media.info import number

NUMBER_MAX = 1e12  # bytes, bits a second, seconds: more than any file has
STREAMS_MAX = 100
TAGS_MAX = 100


def _figure(value: Any) -> Any:
    """ffprobe writes numbers as numbers or texts, and N/A."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise PydanticCustomError("number", "must be a number")
    found = number(value)
    if found is not None and abs(found) > NUMBER_MAX:
        raise PydanticCustomError("number", "is out of range")
    return value


Word = Annotated[str, Field(max_length=200)]
Figure = Annotated[Any, BeforeValidator(_figure), WithJsonSchema({"type": ["string", "number", "null"]})]
Whole = Annotated[int, Field(ge=0, le=2**31)]
Ratio = Annotated[str, Field(pattern=r"^\d{1,10}[/:]\d{1,10}$")]
Tags = Annotated[dict[Word, Annotated[str, Field(max_length=4096)]], Field(max_length=TAGS_MAX)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


class SideData(_Part):
    """How a picture is to be turned."""

    rotation: Annotated[float, Field(ge=-3600, le=3600)] | None = None


class Disposition(_Part):
    """What a stream is for."""

    default: Whole = 0
    attached_pic: Whole = 0


class Stream(_Part):
    """One of `-show_streams`."""

    index: Whole = 0
    codec_type: Word = "data"
    codec_name: Word = "unknown"
    codec_tag_string: Word = ""
    profile: Word | None = None
    width: Whole | None = None
    height: Whole | None = None
    pix_fmt: Word | None = None
    sample_aspect_ratio: Ratio | None = None
    avg_frame_rate: Ratio | None = None
    r_frame_rate: Ratio | None = None
    field_order: Word | None = None
    duration: Figure = None
    start_time: Figure = None
    sample_rate: Figure = None
    channels: Whole | None = None
    channel_layout: Word | None = None
    color_range: Word | None = None
    color_space: Word | None = None
    color_transfer: Word | None = None
    color_primaries: Word | None = None
    bit_rate: Figure = None
    disposition: Disposition = Disposition()
    tags: Tags = {}
    side_data_list: Annotated[list[SideData], Field(max_length=20)] = []


class Format(_Part):
    """What `-show_format` says."""

    format_name: Word
    duration: Figure = None
    start_time: Figure = None
    bit_rate: Figure = None
    tags: Tags = {}


class ProbeBody(_Part):
    """What `ffprobe -show_format -show_streams -of json` prints."""

    format: Format
    streams: Annotated[list[Stream], Field(min_length=1, max_length=STREAMS_MAX)]

    def document(self) -> dict[str, Any]:
        """As ffprobe wrote it, without what we do not read."""
        made: dict[str, Any] = self.model_dump(exclude_none=True)
        return made
