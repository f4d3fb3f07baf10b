"""Which filters, with which arguments, may come from API users. One chain, without labels: no second input or output."""

from __future__ import annotations

import re
from collections.abc import Iterator

# filter -> (how many arguments may stand without a name, which names are allowed)
FILTERS: dict[str, tuple[int, frozenset[str]]] = {
    name: (bare, frozenset(keys.split())) for name, bare, keys in (
        # pictures
        ("scale", 2, "w h width height flags force_original_aspect_ratio force_divisible_by in_range out_range "
         "in_color_matrix out_color_matrix interl"),
        ("crop", 5, "w h x y out_w out_h keep_aspect exact"), ("pad", 5, "w h x y width height color aspect"),
        ("fps", 1, "fps start_time round eof_action"), ("format", 1, "pix_fmts"), ("setsar", 2, "sar r ratio max"),
        ("setdar", 2, "dar r ratio max"), ("setparams", 0, "field_mode range color_primaries color_trc colorspace"),
        ("settb", 1, "tb expr"), ("setpts", 1, "expr"), ("trim", 0, "start end duration start_frame end_frame"),
        ("yadif", 3, "mode parity deint"), ("bwdif", 3, "mode parity deint"), ("hflip", 0, ""), ("vflip", 0, ""),
        ("transpose", 2, "dir passthrough"), ("rotate", 1, "a angle ow oh out_w out_h fillcolor c bilinear"),
        ("eq", 3, "contrast brightness saturation gamma gamma_r gamma_g gamma_b gamma_weight"), ("hue", 2, "h s b H"),
        ("unsharp", 6, "lx ly la cx cy ca luma_msize_x luma_msize_y luma_amount chroma_msize_x chroma_msize_y chroma_amount"),
        ("hqdn3d", 4, "luma_spatial chroma_spatial luma_tmp chroma_tmp"), ("gblur", 1, "sigma steps planes sigmaV"),
        ("boxblur", 2, "lr lp cr cp luma_radius luma_power"), ("deblock", 2, "filter block alpha beta gamma delta"),
        ("fade", 3, "type t start_frame s nb_frames n start_time st duration d color c alpha"),
        ("drawbox", 6, "x y w h width height color c thickness t"), ("delogo", 4, "x y w h show"),
        ("colorspace", 1, "all space range primaries trc format iall ispace irange iprimaries itrc fast dither"),
        ("zscale", 0, "w h width height size dither d filter f range r primaries p transfer t matrix m rangein rin "
         "primariesin pin transferin tin matrixin min chromal c npl"),
        ("tonemap", 1, "tonemap param desat peak"), ("framestep", 1, "step"), ("null", 0, ""), ("decimate", 0, "cycle"),
        ("select", 1, "expr e"), ("minterpolate", 0, "fps mi_mode"), ("negate", 0, ""), ("vignette", 1, "angle a"),
        ("colorbalance", 0, "rs gs bs rm gm bm rh gh bh"), ("gradfun", 2, "strength radius"), ("deband", 0, "range r"),
        # sound
        ("aresample", 1, "async first_pts min_hard_comp min_comp resampler precision osr out_sample_rate och ocl "
         "out_channel_layout"),
        ("aformat", 0, "sample_fmts f sample_rates r channel_layouts cl"), ("volume", 1, "volume precision"),
        ("loudnorm", 0, "I i LRA lra TP tp measured_I measured_i measured_LRA measured_lra measured_TP measured_tp "
         "measured_thresh offset linear dual_mono"),
        ("dynaudnorm", 0, "f framelen g gausssize p peak m maxgain r targetrms n coupling c b s"),
        ("acompressor", 0, "level_in mode threshold ratio attack release makeup knee link detection mix"),
        ("alimiter", 0, "level_in level_out limit attack release asc asc_level level"),
        ("highpass", 1, "frequency f poles p width_type t width w"),
        ("lowpass", 1, "frequency f poles p width_type t width w"),
        ("equalizer", 0, "frequency f width_type t width w gain g"), ("bass", 0, "gain g frequency f"),
        ("treble", 0, "gain g frequency f"), ("pan", 9, ""), ("atempo", 1, "tempo"), ("asetpts", 1, "expr"),
        ("afade", 3, "type t start_sample ss nb_samples ns start_time st duration d curve c"),
        ("atrim", 0, "start end duration"), ("apad", 0, "pad_len whole_len pad_dur whole_dur"), ("anull", 0, ""),
        ("aphaser", 0, ""), ("asetrate", 1, "sample_rate r"), ("adelay", 1, "delays all"), ("extrastereo", 1, "m"),
        ("stereowiden", 0, ""), ("afftdn", 0, "nr nf"), ("agate", 0, "threshold ratio attack release"),
    )
}
_FORBIDDEN = re.compile(r"[\[\];\"\x00-\x1f\x7f`$]")
_VALUE = re.compile(r"[A-Za-z0-9_.+*/()<>=|&!#@^%, -]*")
_PAN = re.compile(r"[A-Za-z0-9.+]+\|")  # the layout, before the first gain: no `name=value` for ffmpeg either
_WORDS = re.compile(r"\b(?:while|print)\b")  # of expressions: they can go on for ever, and fill the log


def filter_fault(graph: str) -> tuple[str, str] | None:
    """What is wrong with a chain of filters from the API (message and hint), None where nothing is."""
    strange = _FORBIDDEN.search(graph)
    if strange is not None:
        return f"{strange[0]!r} is not allowed: a filter is one chain, without labels.", "Separate filters by commas."
    try:
        parts = list(_chain(graph))
    except ValueError as error:
        return f"{error}.", "Quote or escape a comma inside an expression."
    return next((fault for fault in map(_part_fault, parts) if fault is not None), None)


def _chain(graph: str) -> Iterator[str]:
    """The filters of the chain with quotes and escapes taken away. A colon always separates, even where ffmpeg would not
    take it for one: so no argument hides in another."""
    part, quoted, escaped = "", False, False
    for letter in graph:
        if escaped:
            if letter not in ",'":
                raise ValueError("only a comma can be escaped")
            part, escaped = part + letter, False
        elif letter == "\\":
            if quoted:
                raise ValueError("a backslash cannot stand between quotes")
            escaped = True
        elif letter == "'":
            quoted = not quoted
        elif letter == "," and not quoted:
            yield part
            part = ""
        else:
            part += letter
    if quoted or escaped:
        raise ValueError("a quote is not closed")
    yield part


def _part_fault(part: str) -> tuple[str, str] | None:
    name, _, arguments = part.strip().partition("=")
    if name not in FILTERS:
        return f"the filter {name[:80]!r} is not allowed from the API.", f"Allowed: {', '.join(sorted(FILTERS))}."
    bare, keys = FILTERS[name]
    given = arguments.split(":") if arguments else []
    hint = f"Allowed: {', '.join(sorted(keys))}." if keys else ""
    for number, argument in enumerate(given):
        key, equals, value = argument.partition("=")
        if equals and not (name == "pan" and _PAN.match(argument)):
            if key not in keys:
                return f"the argument {key[:80]!r} of {name} is not allowed from the API.", hint
        elif number >= bare:
            return f"{name} takes at most {bare} arguments without a name.", hint
        text = value if equals and name != "pan" else argument
        if not _VALUE.fullmatch(text) or text.strip().startswith("/") or _WORDS.search(text):
            return f"an argument of {name} cannot be {text[:80]!r}.", ""
    return None
