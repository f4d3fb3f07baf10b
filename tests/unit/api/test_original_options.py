"""The original's ffmpeg options in today's words. That ffmpeg takes them is tested with the real ones, of two ages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nommerd.api.old_options import ENCODERS, GONE, PRESETS, RENAMED, REWORDED, Changes, Pair, modern, modern_input
from nommerd.media.options import OLD_MUXERS, check_options
from tests.media import BUILDS, build, clip


def now(*sent: Pair) -> list[Pair]:
    return [pair for _, pair in modern(sent, Changes())]


def codes(*sent: Pair) -> list[str]:
    changes = Changes()
    modern(sent, changes)
    return [warning.code for warning in changes.warnings()]


@pytest.mark.parametrize(("sent", "meant"), [
    (("b", "400k"), [("b:v", "400k")]), (("vprofile", "baseline"), [("profile:v", "baseline")]),
    (("profile", "main"), [("profile:v", "main")]), (("profile", "aac_low"), [("profile", "aac_low")]),
    (("qscale", "3"), [("q:v", "3")]), (("vtag", "mp4v"), [("tag:v", "mp4v")]), (("vsync", "1"), [("fps_mode", "cfr")]),
    (("vsync", "vfr"), [("fps_mode", "vfr")]), (("map_meta_data", "0:0"), [("map_metadata", "0")]),
    (("acodec", "libfaac"), [("acodec", "aac")]), (("c:a", "libfaac"), [("c:a", "aac")]),
    (("async", "480"), [("af", "aresample=async=480:first_pts=0")]), (("vol", "512"), [("af", "volume=2.0000")]),
    (("deinterlace", None), [("vf", "yadif")]), (("vpre", "slow_firstpass"), [("preset", "slow")]),
    (("vpre", "libx264-hq"), [("preset", "slow")]), (("vpre", "ipod640"), [("profile:v", "baseline"), ("level", "30")]),
    (("vpre", "/etc/passwd"), []), (("sameq", None), [("crf", "18")]), (("flags2", "+mixed_refs+dct8x8"), []),
    (("y", None), []), (("target", "ntsc-dvd"), [("target", "ntsc-dvd"), ("f", "dvd")])])
def test_an_old_option_is_written_as_today(sent: Pair, meant: list[Pair]) -> None:
    assert now(sent) == meant
    for pair in meant:
        check_options([pair], "options")


@pytest.mark.parametrize("pair", [("vcodec", "libx264"), ("ab", "128k"), ("ar", "48000"), ("ac", "2"), ("s", "640x360"),
                                  ("b:v", "1M"), ("preset", "medium"), ("threads", "0"), ("strict", "experimental"),
                                  ("coder", "1"), ("partitions", "+parti8x8+parti4x4+partp8x8+partb8x8"), ("cmp", "+chroma"),
                                  ("bt", "400k"), ("flags", "+loop"), ("me_method", "hex"), ("direct-pred", "spatial")])
def test_what_ffmpeg_still_takes_stays_and_is_allowed(pair: Pair) -> None:
    assert now(pair) == [pair] and codes(pair) == []
    check_options([pair], "options")


def test_order_and_repetition_stay() -> None:
    changes = Changes()
    placed = modern([("metadata", "a=1"), ("async", "1"), ("b", "1M"), ("metadata", "b=2")], changes)
    assert placed == [(0, ("metadata", "a=1")), (2, ("b:v", "1M")), (3, ("metadata", "b=2")),
                      (1, ("af", "aresample=async=1:first_pts=0"))]


def test_filters_join_the_chain_that_is_there_wherever_it_stands() -> None:
    assert now(("deinterlace", None), ("vf", "scale=320:-2"), ("async", "1"), ("vol", "128"), ("af", "highpass=200")) == [
        ("vf", "yadif,scale=320:-2"), ("af", "aresample=async=1:first_pts=0,highpass=200,volume=0.5000")]


@pytest.mark.parametrize("silence", [("an", None), ("acodec", "copy")])
def test_filters_for_sound_go_where_no_sound_is_encoded(silence: Pair) -> None:
    assert now(silence, ("async", "480")) == [silence]
    assert codes(silence, ("async", "480")) == ["recipe.option_dropped"]


@pytest.mark.parametrize(("others", "meant"), [
    ([("vcodec", "mpeg4")], ("q:v", "2")), ([("f", "flv")], ("q:v", "2")),
    ([("vcodec", "libx264"), ("f", "flv")], ("crf", "18")), ([("vcodec", "libvpx")], ("crf", "18")), ([], ("crf", "18"))])
def test_sameq_is_a_high_quality_in_the_encoders_own_terms(others: list[Pair], meant: Pair) -> None:
    assert now(*others, ("sameq", None))[-1] == meant


def test_there_is_one_warning_of_each_kind_and_it_belongs_to_no_attempt() -> None:
    changes = Changes()
    for _ in range(2):
        modern([("b", "1M"), ("vprofile", "main"), ("acodec", "libfaac"), ("y", None), ("rc_eq", "x"),
                ("vsync", "1")], changes)
    modern_input([("f", "mov"), ("ss", "1")], changes)
    told = changes.warnings()
    assert [(problem.code, problem.attempt) for problem in told] == [
        ("recipe.old_encoder", None), ("recipe.old_option", None), ("recipe.option_dropped", None)]
    assert told[1].message == "Options in today's form: b as b:v, vprofile as profile:v, vsync 1 as fps_mode cfr."
    assert all(len(problem.message) <= 310 for problem in told)


def test_what_forces_the_sources_format_is_left_out() -> None:
    assert modern_input([("ss", "1"), ("f", "mov"), ("t", "2")], Changes()) == [(0, ("ss", "1")), (2, ("t", "2"))]


def test_the_page_lists_every_mapping() -> None:
    page = (Path(__file__).parents[3] / "docs" / "original.md").read_text(encoding="utf-8")
    others = ("async", "vol", "deinterlace", "sameq", "vpre", "target", "pass")
    missing = [name for name in (*RENAMED, *REWORDED, *ENCODERS, *GONE, *others) if f"`{name}`" not in page]
    assert missing == []


# --- the real ffmpeg ----------------------------------------------------------------------------------------------

X264: list[Pair] = [("vcodec", "libx264"), ("pix_fmt", "yuv420p")]
LINES: dict[str, list[Pair]] = {
    "the published preset for the web": [
        ("threads", "0"), *X264, ("preset", "medium"), ("profile", "baseline"), ("b", "400k"),
        ("vf", "yadif,scale='160:trunc(ow/a/2)*2'"), ("acodec", "libfaac"), ("ab", "128k"), ("ar", "48000"), ("ac", "2"),
        ("f", "mp4")],
    "the published preset for phones": [
        *X264, ("vprofile", "baseline"), ("b", "230k"), ("bufsize", "230k"), ("acodec", "libfaac"), ("ab", "96k"),
        ("async", "480"), ("keyint_min", "60"), ("g", "120"), ("f", "mp4")],
    "x264 by hand": [
        *X264, ("coder", "1"), ("flags", "+loop"), ("cmp", "+chroma"), ("partitions", "+parti8x8+parti4x4+partp8x8+partb8x8"),
        ("me_method", "hex"), ("subq", "6"), ("me_range", "16"), ("g", "250"), ("keyint_min", "25"), ("sc_threshold", "40"),
        ("i_qfactor", "0.71"), ("b_strategy", "1"), ("qcomp", "0.6"), ("qmin", "10"), ("qmax", "51"), ("qdiff", "4"),
        ("bf", "3"), ("refs", "3"), ("directpred", "3"), ("trellis", "1"), ("wpredp", "2"), ("rc_lookahead", "40"),
        ("aq_mode", "1"), ("rc_eq", "blurCplx^(1-qComp)"), ("flags2", "+mixed_refs+wpred+dct8x8+fastpskip"), ("level", "30"),
        ("bt", "400k"), ("bidir_refine", "0"), ("deblockalpha", "0"), ("psnr", None), ("f", "mp4")],
    "what ffmpeg has removed": [
        *X264, ("vpre", "fast_firstpass"), ("deinterlace", None), ("vol", "300"), ("vsync", "1"), ("vtag", "avc1"),
        ("sameq", None), ("map_meta_data", "0:0"), ("absf", "aac_adtstoasc"), ("f", "mp4")],
    "Flash": [("vcodec", "flv"), ("qscale", "4"), ("acodec", "libmp3lame"), ("ar", "44100"), ("f", "flv")],
    "a disc": [("target", "ntsc-dvd")],
    "Windows": [("vcodec", "wmv2"), ("acodec", "wmav2"), ("sameq", None), ("f", "asf")],
    "sound alone": [("vn", None), ("acodec", "libmp3lame"), ("aq", "4"), ("async", "1"), ("f", "mp3")],
}


@pytest.mark.parametrize("which", BUILDS)
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_ffmpeg_takes_the_lines_that_people_sent(tmp_path: Path, which: str, line: list[Pair]) -> None:
    source = clip(seconds=0.4, size="160x120")
    options = now(*line)
    check_options(options, "options")
    argv = [part for name, value in options for part in (f"-{name}", *([] if value is None else [value]))]
    ended = subprocess.run([build(which)[0], "-nostdin", "-y", "-v", "warning", "-i", source, *argv, tmp_path / "out"],
                           capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out").stat().st_size > 500
    assert "deprecated" not in ended.stderr.lower().replace("deprecated pixel format", ""), ended.stderr


@pytest.mark.parametrize("which", BUILDS)
def test_every_format_that_may_be_asked_for_is_one_that_ffmpeg_writes(which: str) -> None:
    listed = subprocess.run([build(which)[0], "-hide_banner", "-muxers"], capture_output=True, text=True, timeout=30).stdout
    known = {name for line in listed.splitlines() if line[:3].strip() == "E" for name in line.split()[1].split(",")}
    assert known >= OLD_MUXERS


def test_the_presets_of_x264_are_x264s() -> None:
    assert all(name in ("preset", "profile:v", "level") for pairs in PRESETS.values() for name, _ in pairs)
