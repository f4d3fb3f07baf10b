"""The allowlist of raw options from the API: what people need passes, what reaches beyond the output does not."""

from __future__ import annotations

import pytest

from nommerd.errors import InputError, ManyErrors
from nommerd.media.options import check_options

ALLOWED = [
    ("c:v", "libx264"), ("c:a", "aac"), ("codec:v:0", "libx265"), ("preset", "medium"), ("b:v", "2500k"), ("b:v:0", "2.5M"),
    ("b:a", "128k"), ("crf", 21), ("crf", "21.5"), ("maxrate", "5M"), ("bufsize", "10M"), ("g", 50), ("bf", 0), ("an", None),
    ("shortest", None), ("vf", "scale=-2:720"), ("filter:v", "scale=w=1280:h=720:flags=lanczos,fps=30000/1001"),
    ("vf", "yadif,scale='min(1280,iw)':-2,format=yuv420p"), ("vf", "scale=if(gt(iw\\,1280)\\,1280\\,iw):-2"),
    ("vf", "crop=iw/2:ih/2:0:0"), ("vf", "pad=1280:720:(ow-iw)/2:(oh-ih)/2:black"), ("vf", "hflip"),
    ("af", "loudnorm=I=-16:TP=-1.5:LRA=11"), ("af", "pan=stereo|c0=FL+0.5*FC|c1=FR+0.5*FC"),
    ("af", "volume=0.5,aresample=48000"),
    ("map", "0:v:0"), ("map", "0:a?"), ("map", "-0:s"), ("map_metadata", "-1"), ("metadata", "title=It's a film: part 1"),
    ("metadata:s:a:0", "language=eng"), ("movflags", "+faststart"), ("f", "mp4"), ("r", "30000/1001"), ("t", "10"),
    ("ss", "00:01:02.5"), ("pix_fmt", "yuv420p"), ("x264-params", "keyint=48:min-keyint=48:scenecut=0:no-mbtree"),
    ("x265-params", "log-level=error:hdr10=1"), ("svtav1-params", "tune=0:film-grain=8"), ("profile:v", "high"),
    ("level", "4.1"),
    ("tag:v", "hvc1"), ("ar", 48000), ("ac", 2), ("force_key_frames", "expr:gte(t,n_forced*2)"), ("aspect", "16:9"),
    ("s", "1280x720"),
    ("x264-params", "chroma-qp-offset=2:nal-hrd=vbr:no-scenecut"), ("x265-params", "strong-intra-smoothing=0"),
    ("svtav1-params", "hierarchical-levels=4"), ("s", "15360x8640"), ("s", "hd720"), ("max_muxing_queue_size", 9999),
    ("strict", -2), ("disposition:a:1", "0"), ("sc_threshold", 0), ("fps_mode", "cfr"), ("color_primaries", "bt709"),
]
FORBIDDEN = [
    # another input or output, a file, a log, a script
    ("i", "/etc/passwd"), ("f", "tee"), ("f", "hls"), ("f", "segment"), ("f", "image2"), ("f", "concat"), ("f", "ffmetadata"),
    ("f", "lavfi"), ("passlogfile", "/tmp/x"), ("pass", 1), ("vpre", "x"), ("fpre", "/etc/passwd"), ("report", None),
    ("filter_script", "/etc/passwd"), ("filter_complex", "movie=/etc/passwd"), ("filter_complex_script", "x"), ("lavfi", "x"),
    ("attach", "/etc/passwd"), ("dump_attachment:t", "x"), ("progress", "http://10.0.0.1/"), ("vstats_file", "/tmp/x"),
    ("sdp_file", "x"), ("protocol_whitelist", "file,http"), ("format_whitelist", "hls"), ("/filter:v", "/etc/passwd"),
    ("init_hw_device", "x"), ("stats_enc_post", "/tmp/x"), ("enc_stats_pre", "x"), ("print_graphs_file", "x"), ("cpucount", 1),
    ("y", None), ("-i", "x"), ("c:v -i", "x"), ("hls_segment_filename", "x"), ("segment_list", "x"), ("max_alloc", 1),
    ("f:v", "tee|x"), ("map", "1:v"), ("map", "[out]"), ("map_metadata", "1"), ("map_metadata", "0:s:0"),
    # filters that open something, and tricks with those that do not
    ("vf", "movie=/etc/passwd"), ("vf", "scale=1:1,movie=x"), ("vf", "null[a];movie=x[b];[a][b]overlay"),
    ("vf", "subtitles=x.srt"),
    ("vf", "ass=x.ass"), ("vf", "drawtext=textfile=/etc/passwd"), ("vf", "lut3d=file=x"), ("vf", "lut3d=/x"),
    ("af", "amovie=x"),
    ("vf", "metadata=print:file=/tmp/x"), ("vf", "sendcmd=f=x"), ("vf", "zmq"), ("vf", "frei0r=x"), ("vf", "curves=psfile=x"),
    ("vf", "vidstabdetect=result=/tmp/x"), ("vf", "deshake=filename=/tmp/x"), ("vf", "removelogo=x"),
    ("vf", "libvmaf=log_path=x"),
    ("vf", "signature=filename=x"), ("af", "ladspa=file=x"), ("af", "sofalizer=sofa=x"), ("af", "arnndn=m=x"), ("vf", "psnr"),
    ("vf", "scale=/w=/etc/passwd"), ("vf", "scale= /w=/etc/passwd"), ("vf", "crop=/x"), ("af", "pan=/args=/etc/passwd"),
    ("af", "pan=args=/etc/passwd"), ("vf", "scale@a=1:1"), ("vf", "scale=1:1:psnr_file=x"), ("vf", "scale='1:1:movie=x'"),
    ("vf", "scale=w=1:file=x"), ("vf", "select='while(1,1)'"), ("vf", "setpts=print(1)"), ("vf", "scale=1\\:1"),
    ("vf", "scale='1"), ("af", "loudnorm=stats_file=/tmp/x"), ("vf", "fps=30\nmovie=x"), ("vf", ""), ("vf", "scale=%{x}"),
    # codec parameters that name files
    ("x264-params", "stats=/tmp/x"), ("x264-params", "keyint=48:qpfile=/etc/passwd"), ("x264opts", "dump-yuv=/tmp/x"),
    ("x264-params", "log-file=/tmp/x"), ("x264-params", "cqmfile=x"), ("x264-params", "keyint=48:opencl-clbin=x"),
    ("x265-params", "csv=/tmp/x"), ("x265-params", "analysis-save=x"), ("x265-params", "recon=x"),
    ("x265-params", "film-grain=x"),
    ("x265-params", "dolby-vision-rpu=x"), ("svtav1-params", "stats=x"), ("svtav1-params", "fgs-table=x"),
    ("x264-params", "keyint='48:stats=x'"), ("x264-params", "keyint=\\:stats=x"), ("vp9-params", "x"), ("aom-params", "x=1"),
    # values that are something else
    ("crf", "21 -i x"), ("b:v", "file:x"), ("metadata", "title"), ("metadata", "title=a\nb"), ("c:v", "lib x"), ("c:v", None),
    ("an", "x"), ("s", "file:x"), ("force_key_frames", "/etc/passwd"), ("force_key_frames", "expr:while(1,1)"), ("c:v", "-i"),
    ("crf", "\u0662\u0661"), ("c:v:\u0661", "libx264"), ("s", "99999x99999"), ("max_muxing_queue_size", 10**9),
    ("bsf:v", "trace_headers"), ("metadata", "title=" + "x" * 3000), ("t", "1e9"), ("pix_fmt", "../x"),
]


@pytest.mark.parametrize(("name", "value"), ALLOWED, ids=lambda value: str(value)[:40])
def test_an_everyday_option_is_allowed(name: str, value: str | int | None) -> None:
    check_options([(name, value)], "ffmpeg.options")


@pytest.mark.parametrize(("name", "value"), FORBIDDEN, ids=lambda value: str(value)[:40])
def test_an_option_that_reaches_elsewhere_is_refused(name: str, value: str | int | None) -> None:
    with pytest.raises(InputError) as caught:
        check_options([("c:v", "libx264"), (name, value)], "ffmpeg.options")
    assert caught.value.code == "recipe.forbidden_option"
    assert caught.value.place == "ffmpeg.options[1]"


def test_the_error_names_the_option_and_what_is_allowed() -> None:
    with pytest.raises(InputError) as caught:
        check_options([("passlogfile", "x")], "ffmpeg.options")
    assert "'passlogfile'" in caught.value.message
    assert "crf" in caught.value.hint and "maxrate" in caught.value.hint


def test_the_error_for_a_filter_names_it_and_what_is_allowed() -> None:
    with pytest.raises(InputError) as caught:
        check_options([("vf", "scale=1:1,movie=x")], "ffmpeg.options")
    assert "'movie'" in caught.value.message and "yadif" in caught.value.hint


def test_every_forbidden_option_is_reported() -> None:
    with pytest.raises(ManyErrors) as caught:
        check_options([("i", "x"), ("c:v", "libx264"), ("attach", "y")], "ffmpeg.options")
    assert [error.place for error in caught.value.errors] == ["ffmpeg.options[0]", "ffmpeg.options[2]"]


def test_before_the_input_only_options_for_inputs_are_allowed() -> None:
    check_options([("ss", "10"), ("t", "5"), ("fflags", "+genpts")], "ffmpeg.input_options")
    for name, value in (("f", "mp4"), ("c:v", "h264"), ("vf", "hflip"), ("protocol_whitelist", "http"), ("i", "x")):
        with pytest.raises(InputError):
            check_options([(name, value)], "ffmpeg.input_options")
