"""Which raw ffmpeg options may come from API users: default deny.

ffmpeg's options reach files, hosts, devices and logs in many ways (a second input, `tee`, `-vpre`, `movie`, `x264-params
stats=…`, values read from a file by `-/name`). So each option is listed with what its value may look like, each filter with
its arguments, each codec parameter by its key. Nothing here names a file, a protocol, another input or output, or a script.
Filters' arguments are in `filters.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from nommerd.errors import InputError, ManyErrors, NommerdError
from nommerd.media.filters import filter_fault
from nommerd.media.formats import OUTPUTS

Pair = tuple[str, str | int | float | None]
VALUE_MAX = 2_000

_SPECIFIER = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_-]*)(?P<specifier>(?::[vVasdt])?(?::\d{1,3})?)", re.ASCII)
_METADATA_SPECIFIER = re.compile(r"(?P<name>metadata|disposition)"
                                 r"(?P<specifier>(?::g|:s(?::[vas])?(?::\d{1,3})?|:[vas](?::\d{1,3})?)?)", re.ASCII)

WHOLE, NUMBER, WORD = r"-?\d{1,10}", r"-?\d{1,10}(\.\d{1,9})?", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}"
BITS = r"\d{1,10}(\.\d{1,6})?[kKM]?"
TIME = r"\d{1,6}(\.\d{1,6})?(ms|us|s)?|(\d{1,3}:)?\d{1,2}:\d{1,2}(\.\d{1,6})?"
RATE = r"\d{1,6}(\.\d{1,6})?(/\d{1,6})?|ntsc|pal|film|ntsc-film"
SIDE = r"(\d{1,4}|1[0-5]\d{3})"  # pixels, as far as sources may go
SIZE = rf"{SIDE}x{SIDE}|[a-z0-9]{{2,8}}"
FLAGS = r"[+-]?[A-Za-z0-9_]+([+-][A-Za-z0-9_]+)*"
FREE = r"[^\x00-\x1f\x7f]{0,500}"
OLD_MUXERS = {"3gp", "3g2", "psp", "flv", "avi", "asf", "mpeg", "vob", "dvd", "svcd", "vcd", "mp2", "ogv", "oga", "aiff",
              "caf", "ac3"}
MUXERS = "|".join(re.escape(name) for name in sorted({muxer for muxer, _ in OUTPUTS.values()} | OLD_MUXERS))
KEY_FRAME_TIMES = rf"({TIME})(,({TIME})){{0,99}}|expr:gte\(t,n_forced\*\d{{1,4}}(\.\d{{1,3}})?\)|source|chapters"


def _group(pattern: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), pattern)


OUTPUT_OPTIONS: dict[str, str] = {
    **_group(WORD, "c codec vcodec acodec scodec preset tune profile pix_fmt sample_fmt deadline quality usage application "
             "vbr coder aac_coder color_range color_primaries color_trc colorspace chroma_sample_location ch_layout "
             "channel_layout fps_mode vsync field_order stereo_mode avoid_negative_ts rc rc_mode frame_duration "
             "me_method level coder direct-pred"),
    **_group(BITS, "b ab vb minrate maxrate bufsize rc_init_occupancy bt muxrate"),
    **_group(WHOLE, "g keyint_min bf refs sc_threshold qmin qmax qdiff b_strategy trellis me_range subq slices threads ac ar "
             "cpu-used row-mt tile-columns tile-rows lag-in-frames auto-alt-ref arnr-maxframes arnr-strength aq-mode "
             "frames vframes aframes rc-lookahead cutoff compression_level id3v2_version write_xing "
             "b-pyramid weightp weightb cluster_size_limit frag_size frag_duration min_frag_duration error-resilience speed "
             "bidir_refine packetsize"),
    **_group(NUMBER, "crf qp q qscale aq aq-strength psy-rd qcomp i_qfactor b_qfactor i_qoffset b_qoffset "
             "max-intra-rate undershoot-pct overshoot-pct aspect_ratio muxdelay muxpreload"),
    **_group(TIME, "t to ss"),
    **_group(RATE, "r fpsmax"),
    **_group(FLAGS, "flags movflags fflags sws_flags cmp subcmp mbcmp mbd"),
    "partitions": r"[A-Za-z0-9+,-]{1,100}", "target": r"((pal|ntsc|film)-)?(vcd|svcd|dvd)",
    "max_muxing_queue_size": r"\d{1,5}",  # packets kept in memory
    "s": SIZE, "aspect": r"\d{1,5}(\.\d{1,6})?([:/]\d{1,5})?", "f": MUXERS, "tag": r"[A-Za-z0-9]{4}",
    "map": r"-?0(:[vVasd])?(:\d{1,3})?\??", "map_metadata": r"-1|0", "map_chapters": r"-1|0",
    "metadata": rf"[A-Za-z][A-Za-z0-9_-]{{0,39}}={FREE}", "disposition": r"0|" + FLAGS,
    "strict": r"-?[0-2]|experimental|normal",
    "force_key_frames": KEY_FRAME_TIMES, "bsf": r"(h264_mp4toannexb|hevc_mp4toannexb|aac_adtstoasc|extract_extradata|null)",
}
INPUT_OPTIONS: dict[str, str] = {
    **_group(TIME, "t to ss"), **_group(RATE, "r"), **_group(WHOLE, "threads"), **_group(NUMBER, "itsscale"),
    "fflags": r"[+-]?(genpts|igndts|discardcorrupt|sortdts)([+-](genpts|igndts|discardcorrupt|sortdts))*",
    "err_detect": r"[+-]?(crccheck|bitstream|buffer|careful|compliant|ignore_err)([+-][a-z_]+)*",
    "skip_frame": r"nokey|noref|default",
    "probesize": r"\d{1,9}", "analyzeduration": r"\d{1,9}",
}
OUTPUT_FLAGS = frozenset({"an", "vn", "sn", "dn", "shortest"})
INPUT_FLAGS = frozenset({"an", "vn", "sn", "dn", "noautorotate", "accurate_seek", "noaccurate_seek"})
FILTER_OPTIONS = frozenset({"vf", "af", "filter"})

_X264 = (
    "8x8dct aq-mode aq-strength aud b-adapt b-bias b-pyramid bff bframes bitrate bluray-compat cabac chroma-me "
    "chroma-qp-offset chromaloc colormatrix colorprim crf crf-max deadzone-inter deadzone-intra deblock direct fast-pskip "
    "force-cfr intra-refresh ipratio keyint level lookahead-threads mbtree me merange min-keyint mixed-refs mvrange "
    "nal-hrd no-8x8dct no-cabac no-chroma-me no-dct-decimate no-deblock no-fast-pskip no-mbtree no-mixed-refs no-psy "
    "no-scenecut no-weightb nr open-gop overscan partitions pbratio pic-struct psy psy-rd qcomp qp qpmax qpmin qpstep range "
    "ratetol rc-lookahead ref scenecut sliced-threads slices stitchable subme sync-lookahead tff threads transfer "
    "trellis vbv-bufsize vbv-init vbv-maxrate weightb weightp"
)
_X265 = (
    "amp aq-mode aq-strength aud b-adapt b-intra bframes bitrate bframe-bias cbqpoffs chromaloc colormatrix colorprim "
    "crf crf-max crf-min crqpoffs ctu cutree deblock early-skip fast-intra frame-threads hdr10 hdr10-opt high-tier hrd "
    "info intra-refresh ipratio keyint level-idc limit-modes limit-refs limit-sao limit-tu log-level lookahead-slices "
    "master-display max-cll max-merge me merange min-cu-size min-keyint no-cutree no-deblock no-info no-open-gop no-sao "
    "no-scenecut no-wpp nr-inter nr-intra open-gop pbratio pmode pools preset profile psy-rd psy-rdoq qcomp qg-size qp "
    "range rc-lookahead rd rdoq-level rect ref repeat-headers rskip sao sar scenecut slices splitrd-skip "
    "strong-intra-smoothing subme tskip tu-inter-depth tu-intra-depth tune transfer uhd-bd vbv-bufsize vbv-init vbv-maxrate "
    "weightb weightp wpp"
)
_SVT = (
    "aq-mode bias-pct buf-initial-sz buf-optimal-sz buf-sz color-primaries color-range crf enable-cdef enable-dlf "
    "enable-overlays enable-qm enable-restoration enable-tf fast-decode film-grain film-grain-denoise "
    "hierarchical-levels irefresh-type keyint lookahead lp mastering-display matrix-coefficients max-qp mbr min-qp "
    "pred-struct preset qm-max qm-min qp rc scd scm sharpness tbr tile-columns tile-rows transfer-characteristics tune"
)
CODEC_PARAMS = {"x264-params": frozenset(_X264.split()), "x264opts": frozenset(_X264.split()),
                "x265-params": frozenset(_X265.split()), "svtav1-params": frozenset(_SVT.split())}
_PARAM_VALUE = re.compile(r"[A-Za-z0-9_.,+()-]{0,120}")


def check_options(options: Iterable[Sequence[object]], place: str) -> None:
    """Raise InputError recipe.forbidden_option (ManyErrors for several) for what is not on the list.

    `place` is what messages call the list; one that ends in `input_options` is held to what may precede the input.
    """
    errors: list[NommerdError] = []
    for number, pair in enumerate(options):
        name, value = pair[0], pair[1]
        fault = _fault(str(name), None if value is None else str(value), inputs=place.endswith("input_options"))
        if fault is not None:
            message, hint = fault
            errors.append(InputError("recipe.forbidden_option", message, hint, place=f"{place}[{number}]"))
    if errors:
        raise errors[0] if len(errors) == 1 else ManyErrors(errors)


def _fault(full_name: str, value: str | None, *, inputs: bool) -> tuple[str, str] | None:
    """Message and hint, if this option is not allowed."""
    match = _METADATA_SPECIFIER.fullmatch(full_name) or _SPECIFIER.fullmatch(full_name)
    name = match["name"] if match else ""
    patterns, flags = (INPUT_OPTIONS, INPUT_FLAGS) if inputs else (OUTPUT_OPTIONS, OUTPUT_FLAGS)
    named = {*patterns, *flags} | (set() if inputs else {*FILTER_OPTIONS, *CODEC_PARAMS})
    if name not in named:
        return f"The option {full_name[:80]!r} is not allowed from the API.", _allowed(name, named)
    if name in flags:
        return None if value is None else (f"The option {full_name!r} is a bare flag: its value must be null.", "")
    if value is None or len(value) > VALUE_MAX:
        return f"The option {full_name!r} needs a value of at most {VALUE_MAX} characters.", ""
    if name in patterns:
        return _value_fault(full_name, name, value, patterns)
    if name in CODEC_PARAMS:
        return _params_fault(full_name, value, CODEC_PARAMS[name])
    wrong = filter_fault(value)
    return None if wrong is None else (f"In the option {full_name!r}, {wrong[0]}", wrong[1])


def _allowed(name: str, named: set[str]) -> str:
    near = get_close_matches(name, named, n=3)
    return (f"Did you mean {' or '.join(near)}? " if near else "") + f"Allowed: {', '.join(sorted(named))}."


def _value_fault(full_name: str, name: str, value: str, patterns: Mapping[str, str]) -> tuple[str, str] | None:
    if re.fullmatch(patterns[name], value, re.ASCII):
        return None
    hint = {"f": f"Allowed: {MUXERS.replace('|', ', ')}.", "map": "Only tracks of the source: 0:v:0, 0:a?."}.get(name)
    return (f"The option {full_name!r} cannot have the value {value[:80]!r} from the API.",
            hint or f"Its values look like this: {patterns[name]}")


def _params_fault(full_name: str, value: str, allowed: frozenset[str]) -> tuple[str, str] | None:
    for part in value.split(":"):
        key, _, setting = part.partition("=")
        if key not in allowed:
            return (f"In the option {full_name!r}, the parameter {key[:80]!r} is not allowed from the API.",
                    _allowed(key, set(allowed)))
        if not _PARAM_VALUE.fullmatch(setting):
            return f"In the option {full_name!r}, {key} cannot have the value {setting[:80]!r}.", ""
    return None
