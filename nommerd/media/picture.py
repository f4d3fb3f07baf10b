"""What becomes of a picture track: encoder, size, rate, colours. Pure; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from nommerd.errors import ConfigError
from nommerd.media.binaries import Binaries
from nommerd.media.box import Fitted, constant_rate, fit
from nommerd.media.probe import StreamInfo
from nommerd.media.targets import Video
from nommerd.media.verify import StreamExpectation

BUFFER_SECONDS = 2.0  # of the rate buffer, at the largest bit rate
HD_PIXELS = (1280, 720)  # from this size on, a picture without colour tags is taken for BT.709
# The last filters take away what a screen would be told about brightness that is no longer there.
EIGHT_BIT_HDR_CHAIN = ("zscale=t=linear:npl=100", "format=gbrpf32le", "zscale=p=bt709", "tonemap=tonemap=hable:desat=0",
                       "zscale=t=bt709:m=bt709:r=tv",
                       "sidedata=mode=delete:type=MASTERING_DISPLAY_METADATA",
                       "sidedata=mode=delete:type=CONTENT_LIGHT_LEVEL")
_BT709 = (("color_primaries", "bt709"), ("color_trc", "bt709"), ("colorspace", "bt709"), ("color_range", "tv"))
_CURVES = "color_primaries=bt709:color_trc=bt709"
_PIXEL_FORMATS = {"prores": "yuv422p10le"}  # by codec; else 8-bit 4:2:0, which every player shows
_INTERLACED = frozenset({"tt", "bb", "tb", "bt"})
Option = tuple[str, str | None]
Warned = tuple[str, str, str]  # code, message, hint


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


@dataclass(frozen=True, slots=True)
class _Colours:
    """Filters before and after the scaling, arguments for `scale`, and the tags of the result."""

    before: tuple[str, ...] = ()
    scale: str = ""
    after: tuple[str, ...] = ()
    tags: tuple[Option, ...] = ()


def plan_video(video: Video, pictures: tuple[StreamInfo, ...], can: Binaries, warnings: list[Warned]) -> VideoPlan:
    """Hold `video` against the source's pictures: the first is encoded, or all are copied.

    ConfigError config.no_encoder where this ffmpeg lacks every encoder that would do.
    """
    source = pictures[0]
    if video.codec == "copy":
        return VideoPlan(encoder="copy", language=source.language,
                         expect=tuple(StreamExpectation(kind="video", codec=s.codec, width=s.width, height=s.height)
                                      for s in pictures))
    encoder = pick_encoder(video.codec, video.encoder, can)
    pixel_format = video.pixel_format or _PIXEL_FORMATS.get(video.codec, "yuv420p")
    rate = constant_rate(source.average_frame_rate, source.frame_rate, Fraction(video.max_frame_rate).limit_denominator(1_001))
    fitted, sar = _fitted(video, source)
    colours = _Colours() if video.codec == "prores" else _colours(source, pixel_format, can, warnings)
    # -r alone forgets in ffmpeg 5 how long the last frame is shown. Brightness is mapped last: that is slow for large pictures
    filters = (*_deinterlacing(video, source, can), f"fps={rate}", *colours.before, *_scaling(fitted, source, colours.scale),
               *colours.after, *(("setsar=1",) if sar == 1 else ()))
    options = [*_ENCODER_OPTIONS.get(encoder, _plain_options)(video), *_rate_options(video), *_gop(video, rate), *colours.tags]
    expect = StreamExpectation(kind="video", codec=video.codec, width=fitted.width, height=fitted.height,
                               pixel_format=pixel_format, sample_aspect_ratio=sar)
    return VideoPlan(encoder=encoder, filters=filters, frame_rate=rate, pixel_format=pixel_format,
                     options=tuple(options), expect=(expect,), language=source.language)


def pick_encoder(codec: str, wanted: list[str] | None, can: Binaries) -> str:
    """The first of `wanted` that this ffmpeg has, else its best for the codec. ConfigError config.no_encoder."""
    found = can.pick_encoder(codec, wanted or ())
    if found is None:
        raise ConfigError("config.no_encoder", f"This ffmpeg has no encoder for {codec}"
                          f"{' among ' + ', '.join(wanted) if wanted else ''}.",
                          "Install an ffmpeg that has one, or set media.ffmpeg.")
    return found


# --- size ---------------------------------------------------------------------------------------------------------


def fitted_size(video: Video, source: StreamInfo) -> tuple[int, int]:
    """Width and height of what is made of this picture."""
    fitted, _ = _fitted(video, source)
    return fitted.width, fitted.height


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


def _scaling(fitted: Fitted, source: StreamInfo, more: str) -> list[str]:
    """`more` are further arguments of the scaler, for what it has to do even where the size stays."""
    stored = (source.width, source.height) if source.rotation % 180 == 0 else (source.height, source.width)
    size = "" if stored == fitted.scaled else f"{fitted.scaled[0]}:{fitted.scaled[1]}"
    filters = [f"scale={':'.join(filter(None, (size, more)))}"] if size or more else []
    if fitted.cropped:
        filters.append(f"crop={fitted.width}:{fitted.height}")
    if fitted.padded:
        filters.append(f"pad={fitted.width}:{fitted.height}:(ow-iw)/2:(oh-ih)/2:color=black")
    return filters


def _deinterlacing(video: Video, source: StreamInfo, can: Binaries) -> tuple[str, ...]:
    """Screens show whole pictures: two halves of different moments in one look like a comb. An archive copy keeps them."""
    if source.field_order not in _INTERLACED or video.codec == "prores":
        return ()
    name = next((name for name in ("bwdif", "yadif") if name in can.filters), None)
    return (f"{name}=mode=send_frame:deint=interlaced",) if name else ()


# --- colours ------------------------------------------------------------------------------------------------------


def _colours(source: StreamInfo, pixel_format: str, can: Binaries, warnings: list[Warned]) -> _Colours:
    """What the players of the result take for granted: limited range, and BT.709 wherever the source did not say."""
    if source.hdr and not ("10" in pixel_format or "12" in pixel_format):
        return _Colours(after=_tone_map(source, can, warnings), tags=_BT709 if {"zscale", "tonemap"} <= can.filters else ())
    if source.rgb:
        return _Colours(before=(f"setparams={_CURVES}",), scale="out_color_matrix=bt709:out_range=tv", tags=_BT709)
    scale = "out_range=tv" if source.full_range else ""
    silent = source.color_space is None and source.color_transfer is None and source.color_primaries is None
    if silent and ((source.width or 0) >= HD_PIXELS[0] or (source.height or 0) >= HD_PIXELS[1]):
        # made small and still silent, it would be taken for BT.601
        return _Colours(before=(f"setparams={_CURVES}:colorspace=bt709",), scale=scale)
    return _Colours(scale=scale)


def _tone_map(source: StreamInfo, can: Binaries, warnings: list[Warned]) -> tuple[str, ...]:
    """PQ and HLG look washed out on 8 bits unless their brightness is mapped. What the source does not say of its colours is
    what such sources have."""
    if not {"zscale", "tonemap"} <= can.filters:
        warnings.append(("input.hdr_not_mapped", "The source is HDR, and this ffmpeg cannot map it (no zscale filter): the "
                         "colours come out pale.", "Use an ffmpeg that was built with libzimg."))
        return ()
    unsaid = [text for text, said in (("color_primaries=bt2020", source.color_primaries),
                                      ("colorspace=bt2020nc", source.color_space)) if not said]
    return (*((f"setparams={':'.join(unsaid)}",) if unsaid else ()), *EIGHT_BIT_HDR_CHAIN)


# --- encoders -----------------------------------------------------------------------------------------------------


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
