"""Command lines, to the letter. Nothing runs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from nommerd.media.command import Job, RawPass, fast_start, raw, typed
from nommerd.media.formats import INPUT_FORMATS
from nommerd.media.picture import VideoPlan
from nommerd.media.plan import AudioPlan, Plan
from nommerd.media.rawform import expectation, muxer_for
from nommerd.media.verify import Expectation, StreamExpectation
from tests.unit.media.test_plan import FILM

JOB = Job(ffmpeg=Path("/bin/ffmpeg"), stage="web", source=Path("/w/-in %d:.mp4"), output=Path("/w/out-web.mp4"),
          pass_log=Path("/w/out-web.pass"), threads=2)
HEAD = ["/bin/ffmpeg", "-nostdin", "-hide_banner", "-y", "-loglevel", "level+warning", "-nostats", "-progress", "pipe:1",
        "-max_error_rate", "0.1"]
INPUT = ["-protocol_whitelist", "file", "-format_whitelist", INPUT_FORMATS["media"], "-threads", "2"]
SOURCE = ["-i", "file:/w/-in %d:.mp4"]
VIDEO = VideoPlan(encoder="libx264", filters=("fps=25", "scale=1280:720", "setsar=1"), frame_rate=Fraction(25),
                  pixel_format="yuv420p", options=(("preset", "medium"), ("b", "2500000"), ("g", "50")), language="eng")
SOUND = AudioPlan(track=1, encoder="aac", bitrate=128_000, channels=2, sample_rate=48_000, language="deu",
                  expect=StreamExpectation(kind="audio"))
PLAN = Plan(container="mp4", video=VIDEO, audio=(SOUND,), fast_start=True, tags=(("title", "A film"),), total_seconds=10.0,
            total_frames=250, expect=Expectation())
PICTURE_ARGV = ["-map", "0:V:0", "-c:v", "libx264", "-preset:v", "medium", "-b:v", "2500000", "-g:v", "50", "-filter:v",
                "fps=25,scale=1280:720,setsar=1", "-pix_fmt:v", "yuv420p", "-r:v", "25", "-fps_mode:v", "cfr", "-threads:v",
                "2"]
REST_ARGV = ["-map", "0:a:1", "-c:a:0", "aac", "-filter:a:0", "aresample=async=1", "-ar:a:0", "48000", "-ac:a:0", "2",
             "-b:a:0", "128000", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1", "-metadata", "title=A film",
             "-metadata:s:v:0", "language=eng", "-metadata:s:a:0", "language=deu"]
END = ["-movflags", "+faststart", "-max_muxing_queue_size", "4096", "-protocol_whitelist", "file", "-f", "mp4",
       "file:/w/out-web.mp4"]
SILENT = ["-an", "-sn", "-dn"]
TIMED = ["-fps_mode", "vfr"]
UNHEARD = ["-map", "0:a:1", "-c:a", "copy", "-sn", "-dn"]  # the same streams in every pass
NOWHERE = ["-f", "null", "file:/dev/null"]


def test_a_typed_encode_in_one_pass() -> None:
    command, = typed(PLAN, JOB)
    assert list(command.argv) == [*HEAD, *INPUT, *SOURCE, *PICTURE_ARGV, *REST_ARGV, *END]
    assert (command.stage, command.label, command.output) == ("web", "encode", JOB.output)
    assert (command.total_frames, command.total_seconds) == (250, 10.0)


def test_a_typed_encode_in_two_passes_shares_a_log_that_has_no_file_prefix() -> None:
    first, second = typed(PLAN, JOB, passes=2)
    log = ["-passlogfile", "/w/out-web.pass"]
    assert list(first.argv) == [*HEAD, *INPUT, *SOURCE, *PICTURE_ARGV, "-pass", "1", *log, *UNHEARD, *NOWHERE]
    assert list(second.argv) == [*HEAD, *INPUT, *SOURCE, *PICTURE_ARGV, *REST_ARGV, "-pass", "2", *log, *END]
    assert first.output is None and second.output == JOB.output


def test_damage_stops_ffmpeg_only_when_it_is_asked_to() -> None:
    command, = typed(PLAN, replace(JOB, fail_on_damage=True))
    assert list(command.argv[: len(HEAD) + 1]) == [*HEAD, "-xerror"]


def test_a_clip_is_cut_before_the_input() -> None:
    command, = typed(replace(PLAN, clip_start=10.0, clip_seconds=15.0), JOB)
    at = command.argv.index("-i")
    assert command.argv[at - 4 : at] == ("-ss", "10.000000", "-t", "15.000000")


def test_a_copy_takes_every_moving_picture_and_no_cover() -> None:
    copied = replace(PLAN, video=VideoPlan(encoder="copy"), audio=(replace(SOUND, encoder="copy"),), captions=(1,),
                     expect=Expectation(copied=True))
    command, = typed(copied, JOB)
    text = " ".join(command.argv)
    assert "-map 0:V -c:v copy -map 0:a:1 -c:a:0 copy -map 0:s:1 -c:s copy -dn" in text
    assert "-filter" not in text and "-r:v" not in text


def test_sound_alone_has_no_picture() -> None:
    command, = typed(replace(PLAN, video=None, container="mp3", fast_start=False), replace(JOB, output=Path("/w/o.mp3")))
    assert "-vn" in command.argv and command.argv[-3:] == ("-f", "mp3", "file:/w/o.mp3")
    assert "-movflags" not in command.argv


def test_raw_passes_keep_their_options_in_order() -> None:
    options = [("c:v", "libx264"), ("b:v", "2500k"), ("vf", "scale=-2:720")]
    passes = [RawPass(options=options), RawPass(options=[*options, ("c:a", "aac"), ("shortest", None), ("f", "mp4")])]
    first, second = raw(passes, JOB, "mp4", total_seconds=10.0)
    maps = ["-map", "0:V:0?", "-map", "0:a:0?"]
    flags = ["-c:v", "libx264", "-b:v", "2500k", "-vf", "scale=-2:720"]
    log = ["-passlogfile", "/w/out-web.pass"]
    assert list(first.argv) == [*HEAD, *INPUT, *SOURCE, *maps, *flags, "-pass", "1", *log, *TIMED, *UNHEARD[2:], *NOWHERE]
    assert list(second.argv) == [*HEAD, *INPUT, *SOURCE, *maps, *flags, "-c:a", "aac", "-shortest", "-f", "mp4", "-pass", "2",
                                 *log, *TIMED, "-protocol_whitelist", "file", "file:/w/out-web.mp4"]
    assert [c.label for c in (first, second)] == ["pass 1", "pass 2"]


def test_between_the_first_and_the_last_of_many_passes_each_reads_the_log_and_writes_it() -> None:
    commands = raw([RawPass(options=[("b:v", "1M")])] * 5, JOB, "mp4")
    assert [_after(command.argv, "-pass") for command in commands] == ["1", "3", "3", "3", "2"]
    assert {_after(command.argv, "-passlogfile") for command in commands} == {"/w/out-web.pass"}


def test_raw_passes_all_time_their_frames_alike_and_a_measuring_one_reads_the_sound_too() -> None:
    def first(*more: tuple[str, str | None], muxer: str = "mp4") -> tuple[str, ...]:
        return raw([RawPass(options=more), RawPass(options=more)], JOB, muxer)[0].argv

    assert _after(first(), "-fps_mode") == "vfr" and _after(first(muxer="avi"), "-fps_mode") == "cfr"
    assert _after(first(("r", "25")), "-fps_mode") == "cfr" and "vfr" not in first(("vsync", "0"))
    assert _after(first(), "-c:a") == "copy"
    for stands_in_the_way in (("af", "volume=2"), ("filter:a:0", "volume=2"), ("map", "0:v"), ("an", None)):
        assert first(stands_in_the_way)[-len(SILENT + NOWHERE):] == (*SILENT, *NOWHERE)


def _after(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_a_raw_pass_with_maps_and_input_options_of_its_own() -> None:
    one = RawPass(options=[("map", "0:v:1"), ("map", "0:a"), ("c", "copy")], input_options=[("ss", "5")])
    command, = raw([one], JOB, "mov")
    assert list(command.argv) == [*HEAD, *INPUT, "-ss", "5", *SOURCE, "-map", "0:v:1", "-map", "0:a", "-c", "copy",
                                  "-protocol_whitelist", "file", "-f", "mov", "file:/w/out-web.mp4"]


def test_a_first_pass_that_names_a_muxer_writes_to_a_file_of_the_workspace() -> None:
    first, _ = raw([RawPass(options=[("f", "matroska")]), RawPass(options=[])], JOB, "mp4")
    assert first.argv[-1] == "file:/w/out-web.pass.out"


def test_the_raw_forms_container_is_what_it_says_else_what_the_destination_is_called() -> None:
    assert muxer_for(RawPass(options=[("f", "matroska")]), "file:///o.mp4") == ("matroska", "mkv")
    assert muxer_for(RawPass(options=[]), "https://host/a/o.MKV?token=1.mp4") == ("matroska", "mkv")
    assert muxer_for(RawPass(options=[]), "file:///out/") == ("mp4", "mp4")


def test_a_raw_output_must_be_as_long_as_its_source_unless_its_flags_reshape_it() -> None:
    plain = expectation([RawPass(options=[("c:v", "libx264"), ("vf", "pad=10:10,scale=2:2")])], FILM, "film.mp4")
    assert plain.duration_seconds == 10.0 and plain.duration_certain
    sound = expectation([RawPass(options=[("vn", None)])], FILM, "film.mp4")
    assert sound.duration_seconds == 9.0
    for name, value in (("t", "5"), ("ss", "1"), ("map", "0:a"), ("vf", "hflip,setpts=2*PTS"), ("af", "atempo=2"),
                        ("frames:v", "1")):
        assert expectation([RawPass(options=[(name, value)])], FILM, "film.mp4").duration_seconds is None


def test_fast_start_copies_every_track() -> None:
    command = fast_start(JOB, 10.0)
    assert " ".join(command.argv).endswith(
        "-map 0:v? -map 0:a? -map 0:s? -c copy -map_metadata 0 -movflags +faststart -protocol_whitelist file -f mp4 "
        "file:/w/out-web.mp4")


def test_fast_start_keeps_the_kind_of_mp4_that_it_was() -> None:
    for extension, muxer in (("m4a", "ipod"), ("3gp", "3gp"), ("psp", "psp"), ("mov", "mov"), ("dat", "mp4")):
        assert _after(fast_start(replace(JOB, output=Path(f"/w/o.{extension}")), None).argv[-4:], "-f") == muxer
