"""The typed form against a source: sizes, rates, tracks, metadata; and what is refused. No ffmpeg runs here."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nommerd.errors import ConfigError, InputError
from nommerd.media.binaries import Binaries
from nommerd.media.box import Fitted, constant_rate, fit
from nommerd.media.picture import EIGHT_BIT_HDR_CHAIN
from nommerd.media.plan import Plan, Wanted, resolve
from nommerd.media.probe import Probe, StreamInfo
from nommerd.media.targets import Audio, Clip, Metadata, Output, Video
from nommerd.media.units import parse_bitrate, parse_duration

CAN = Binaries(ffmpeg=Path("/usr/bin/ffmpeg"), ffprobe=Path("/usr/bin/ffprobe"), version="7.0",
               encoders=frozenset({"libx264", "libx265", "aac", "libmp3lame", "prores_ks", "pcm_s24le"}),
               filters=frozenset({"zscale", "tonemap", "yadif"}))
PICTURE = StreamInfo(index=0, kind="video", codec="h264", width=1920, height=1080, pixel_format="yuv420p",
                     average_frame_rate=Fraction(25), duration_seconds=10.0, language="eng", color_space="bt709")
SOUND = StreamInfo(index=1, kind="audio", codec="aac", sample_rate=44_100, channels=2, duration_seconds=9.0, language="deu")
FILM = Probe(path=Path("/w/in.mp4"), container="mp4", size=1000, duration_seconds=10.0, streams=(PICTURE, SOUND),
             tags={"title": "A film", "location": "+48.2/", "artist": "Someone"})
ONE = Fraction(1)


def plan(source: Probe = FILM, can: Binaries = CAN, **parts: Any) -> Plan:
    return resolve(Wanted(**parts), source, can, "film.mp4")


def film(*streams: StreamInfo, **more: Any) -> Probe:
    return replace(FILM, streams=streams, **more)


@pytest.mark.parametrize(("source", "sar", "box", "more", "expected"), [
    ((1920, 1080), ONE, (1280, 720), {}, (1280, 720)),
    ((640, 360), ONE, (1280, 720), {}, (640, 360)),
    ((640, 360), ONE, (1280, 720), {"upscale": True}, (1280, 720)),
    ((1080, 1920), ONE, (1280, 720), {}, (720, 1280)),
    ((1080, 1920), ONE, (1280, 720), {"turn": False}, (404, 720)),
    ((1920, 1080), ONE, (1280, None), {}, (1280, 720)),
    ((1920, 1080), ONE, (None, 480), {}, (854, 480)),
    ((1080, 1920), ONE, (None, 720), {}, (720, 1280)),
    ((1000, 1000), ONE, (1280, 720), {}, (720, 720)),
    ((641, 361), ONE, (None, None), {}, (640, 360)),
    ((1, 1), ONE, (None, None), {}, (2, 2)),
    ((720, 576), Fraction(64, 45), (None, None), {}, (1024, 576)),
    ((720, 576), Fraction(64, 45), (1280, 720), {}, (1024, 576)),
    ((4096, 1716), ONE, (1280, 720), {}, (1280, 536)),
    ((1920, 1080), ONE, (853, 481), {}, (852, 480)),
])
def test_a_picture_is_fitted_inside_its_box(source: tuple[int, int], sar: Fraction, box: tuple[int | None, int | None],
                                            more: dict[str, Any], expected: tuple[int, int]) -> None:
    assert fit(source, sar, *box, **more) == Fitted(*expected, expected)


@pytest.mark.parametrize(("source", "box", "more", "expected"), [
    ((1920, 1080), (1080, 1920), {"how": "crop", "turn": False, "upscale": True}, Fitted(1080, 1920, (3414, 1920))),
    ((1920, 1080), (1080, 1920), {"how": "crop", "turn": False}, Fitted(606, 1080, (1920, 1080))),
    ((1920, 1080), (720, 720), {"how": "crop"}, Fitted(720, 720, (1280, 720))),
    ((1000, 1000), (1280, 720), {"how": "pad"}, Fitted(1280, 720, (720, 720))),
    ((320, 180), (1280, 720), {"how": "pad"}, Fitted(1280, 720, (320, 180))),
    ((1920, 1080), (720, 720), {"how": "stretch"}, Fitted(720, 720, (720, 720))),
    ((320, 180), (720, 720), {"how": "stretch"}, Fitted(320, 180, (320, 180))),
])
def test_a_picture_is_cropped_padded_or_stretched_to_its_box(source: tuple[int, int], box: tuple[int, int],
                                                             more: dict[str, Any], expected: Fitted) -> None:
    assert fit(source, ONE, *box, **more) == expected


@pytest.mark.parametrize(("average", "most", "expected"), [
    (Fraction(25), 60, Fraction(25)), (Fraction(2997, 100), 60, Fraction(30_000, 1_001)), (Fraction(30), 60, Fraction(30)),
    (Fraction(24_000, 1_001), 60, Fraction(24_000, 1_001)), (Fraction(120), 60, Fraction(60)),
    (Fraction(50), 30, Fraction(25)),
    (Fraction(120_000, 1_001), 60, Fraction(60_000, 1_001)), (None, 60, Fraction(25)), (Fraction(13), 60, Fraction(13)),
    (Fraction(123_456_789, 9_999_991), 60, Fraction(123_456_789, 9_999_991).limit_denominator(1_001)),
])
def test_the_frame_rate_is_the_constant_average_below_a_limit(average: Fraction | None, most: int, expected: Fraction) -> None:
    assert constant_rate(average, None, Fraction(most)) == expected


@pytest.mark.parametrize(("average", "stamped", "expected"), [
    (Fraction(24_659, 989), Fraction(25), Fraction(25)), (Fraction(2987, 100), Fraction(30), Fraction(30)),
    (Fraction(24_000, 1_001), Fraction(24), Fraction(24_000, 1_001)), (Fraction(14), Fraction(30), Fraction(14)),
    (Fraction(24_995, 1_000), Fraction(90_000), Fraction(25)), (None, Fraction(30), Fraction(30)),
    (Fraction(1, 5_000), Fraction(1, 5_000), Fraction(1)), (Fraction(1, 5), None, Fraction(1)),
])
def test_a_gap_does_not_bend_the_frame_rate_and_a_still_has_one_frame_a_second(
        average: Fraction | None, stamped: Fraction | None, expected: Fraction) -> None:
    assert constant_rate(average, stamped, Fraction(60)) == expected


def test_a_source_turned_on_its_side_is_fitted_as_it_is_shown() -> None:
    turned = replace(PICTURE, rotation=90)
    video = plan(film(turned), video=Video(width=1280, height=720)).video
    assert video is not None and video.filters == ("fps=25", "scale=720:1280", "setsar=1")


def test_a_source_that_fits_is_not_scaled() -> None:
    video = plan(video=Video(width=1920, height=1080)).video
    assert video is not None and video.filters == ("fps=25", "setsar=1")
    assert video.pixel_format == "yuv420p"


def test_an_archive_copy_keeps_size_and_pixel_shape() -> None:
    anamorphic = replace(PICTURE, width=720, height=576, sample_aspect_ratio=Fraction(64, 45))
    video = plan(film(anamorphic), video=Video(codec="prores", profile="hq")).video
    assert video is not None and video.filters == ("fps=25",)
    assert (video.expect[0].width, video.expect[0].sample_aspect_ratio) == (720, Fraction(64, 45))
    assert video.pixel_format == "yuv422p10le"


def test_brightness_of_hdr_is_mapped_and_its_tags_are_made_right() -> None:
    hdr = replace(PICTURE, color_transfer="smpte2084", pixel_format="yuv420p10le")
    video = plan(film(hdr), video=Video()).video
    assert video is not None and set(EIGHT_BIT_HDR_CHAIN) < set(video.filters)
    assert ("color_trc", "bt709") in video.options


def test_what_hdr_does_not_say_of_its_colours_is_taken_for_the_usual() -> None:
    hdr = replace(PICTURE, color_transfer="smpte2084", color_space=None)
    filters = _filters(hdr)
    assert filters.index("setparams=color_primaries=bt2020:colorspace=bt2020nc") < filters.index(EIGHT_BIT_HDR_CHAIN[0])
    assert not any(one.startswith("setparams") for one in _filters(replace(hdr, color_space="bt2020nc",
                                                                           color_primaries="bt2020")))


def test_hdr_is_made_small_before_its_brightness_is_mapped() -> None:
    filters = _filters(replace(PICTURE, color_transfer="arib-std-b67"), width=1280, height=720)
    assert filters.index("scale=1280:720") < filters.index(EIGHT_BIT_HDR_CHAIN[0])


@pytest.mark.parametrize("source", [replace(PICTURE, color_range="pc"), replace(PICTURE, pixel_format="yuvj420p")])
def test_the_full_range_of_a_phone_becomes_the_one_that_players_expect(source: StreamInfo) -> None:
    assert "scale=out_range=tv" in _filters(source)
    assert "scale=1280:720:out_range=tv" in _filters(source, width=1280, height=720)


def test_red_green_and_blue_are_converted_by_the_matrix_that_the_tags_name() -> None:
    for source in (replace(PICTURE, pixel_format="rgb24"), replace(PICTURE, codec="qtrle", pixel_format=None)):
        made = plan(film(source), video=Video()).video
        assert made is not None and "scale=out_color_matrix=bt709:out_range=tv" in made.filters
        assert ("colorspace", "bt709") in made.options
    assert "scale=out_color_matrix=bt709:out_range=tv" not in _filters(replace(PICTURE, codec="qtrle", pixel_format="yuv420p"))


def test_a_large_picture_that_says_nothing_of_its_colours_is_not_mistaken_once_it_is_small() -> None:
    untold = replace(PICTURE, color_space=None)
    assert "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709" in _filters(untold, width=640, height=480)
    for told in (replace(untold, width=720, height=576), replace(untold, color_space="bt470bg")):
        assert not any(one.startswith("setparams") for one in _filters(told, width=640, height=480))


def test_half_pictures_are_made_whole_ones_before_all_else_but_in_an_archive_copy() -> None:
    fields = replace(PICTURE, field_order="tt")
    assert _filters(fields)[0] == "yadif=mode=send_frame:deint=interlaced"
    both = plan(film(fields), replace(CAN, filters=frozenset({"yadif", "bwdif"})), video=Video()).video
    assert both is not None and both.filters[0].startswith("bwdif")
    none = plan(film(fields), replace(CAN, filters=frozenset()), video=Video()).video
    assert none is not None and none.filters[0] == "fps=25"
    assert _filters(fields, codec="prores")[0] == _filters(replace(PICTURE, field_order="progressive"))[0] == "fps=25"


def _filters(source: StreamInfo, **wanted: Any) -> tuple[str, ...]:
    made = plan(film(source), video=Video(**wanted)).video
    assert made is not None
    return made.filters


def test_hdr_without_the_filter_for_it_is_a_warning() -> None:
    hdr = replace(PICTURE, color_transfer="arib-std-b67")
    made = plan(film(hdr), replace(CAN, filters=frozenset()), video=Video())
    assert [code for code, _, _ in made.warnings] == ["input.hdr_not_mapped"]


def test_rates_and_key_frames_become_the_encoders_options() -> None:
    video = plan(video=Video(encoder_preset="fast", crf=21, max_bitrate=5_000_000, gop_seconds=2)).video
    assert video is not None
    assert video.options == (("preset", "fast"), ("crf", "21"), ("maxrate", "5000000"), ("bufsize", "10000000"), ("g", "50"))


def test_without_an_encoder_the_operator_must_act() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(video=Video(codec="vp9"))
    assert caught.value.code == "config.no_encoder"


@pytest.mark.parametrize(("codec", "rate", "channels", "expected"), [
    ("aac", 44_100, 2, (44_100, 2)), ("aac", 96_000, 6, (48_000, 6)), ("aac", 37_800, 2, (48_000, 2)),
    ("mp3", 48_000, 6, (48_000, 2)),
    ("pcm_s24le", 96_000, 2, (96_000, 2)),
])
def test_the_sample_rate_is_always_said(codec: Any, rate: int, channels: int, expected: tuple[int, int]) -> None:
    sound = replace(SOUND, sample_rate=rate, channels=channels)
    track, = plan(film(sound), audio=Audio(codec=codec)).audio
    assert (track.sample_rate, track.channels) == expected


def test_of_more_channels_than_surround_has_the_first_are_taken_and_that_is_said() -> None:
    made = plan(film(replace(SOUND, channels=12)), audio=Audio(channels=2))
    assert made.audio[0].pan == "pan=stereo|c0=c0|c1=c1"
    assert [code for code, _, _ in made.warnings] == ["input.channels_dropped"]
    for channels in (8, 2, 1):
        assert plan(film(replace(SOUND, channels=channels)), audio=Audio(channels=2)).audio[0].pan is None


def test_the_default_sound_track_is_taken_and_all_when_asked() -> None:
    second = replace(SOUND, index=2, default=True, language="fra")
    source = film(PICTURE, SOUND, second)
    assert [track.track for track in plan(source, video=Video(), audio=Audio()).audio] == [1]
    assert [track.track for track in plan(source, video=Video(), audio=Audio(tracks="all")).audio] == [0, 1]
    assert [track.track for track in plan(source, audio=Audio(codec="copy")).audio] == [0, 1]
    assert [track.track for track in plan(source, audio=Audio(codec="copy", tracks="default")).audio] == [1]


def test_a_silent_source_loses_nothing_unless_sound_is_required() -> None:
    assert plan(film(PICTURE), video=Video(), audio=Audio()).audio == ()
    with pytest.raises(InputError) as caught:
        plan(film(PICTURE), video=Video(), audio=Audio(required=True))
    assert caught.value.code == "input.no_audio"
    with pytest.raises(InputError) as caught:
        plan(film(PICTURE), audio=Audio())
    assert caught.value.code == "input.no_audio"


@pytest.mark.parametrize("streams", [(SOUND,), (replace(PICTURE, attached_pic=True), SOUND)])
def test_a_cover_is_no_picture_track(streams: tuple[StreamInfo, ...]) -> None:
    with pytest.raises(InputError) as caught:
        plan(film(*streams), video=Video(), audio=Audio())
    assert caught.value.code == "input.no_video"


def test_the_length_that_matters_is_that_of_the_tracks_used() -> None:
    assert plan(video=Video(), audio=Audio()).expect.duration_seconds == 10.0
    assert plan(audio=Audio()).expect.duration_seconds == 9.0
    assert plan(film(replace(SOUND, duration_seconds=None)), audio=Audio()).expect.duration_seconds == 10.0
    late = film(PICTURE, replace(SOUND, start_seconds=2.0))
    assert plan(late, video=Video(), audio=Audio()).expect.duration_seconds == 11.0
    assert plan(late, audio=Audio()).expect.duration_seconds == 9.0
    unknown = plan(film(replace(SOUND, duration_seconds=None), duration_seconds=None), audio=Audio()).expect
    assert (unknown.duration_seconds, unknown.duration_certain) == (None, False)
    assert plan(replace(FILM, duration_estimated=True), audio=Audio()).expect.duration_certain is False


def test_a_clip_is_cut_to_what_there_is() -> None:
    made = plan(video=Video(), clip=Clip(start=4.0, end=30.0))
    assert (made.clip_start, made.clip_seconds, made.total_seconds, made.total_frames) == (4.0, 26.0, 6.0, 150)
    with pytest.raises(InputError) as caught:
        plan(video=Video(), clip=Clip(start=10.0))
    assert caught.value.code == "input.clip_outside"


def test_metadata_is_dropped_but_title_and_language() -> None:
    made = plan(video=Video(), audio=Audio())
    assert (made.tags, made.keep_language, made.keep_all_tags) == ((("title", "A film"),), True, False)
    chosen = plan(video=Video(), metadata=Metadata(keep=["artist", "album"]))
    assert (chosen.tags, chosen.keep_language) == ((("artist", "Someone"),), False)


def test_a_codec_that_cannot_live_in_the_container_is_no_remux() -> None:
    copy = {"video": Video(codec="copy"), "audio": Audio(codec="copy", tracks="all"), "output": Output(container="mp4")}
    assert plan(**copy).expect.copied
    with pytest.raises(InputError) as caught:
        plan(film(replace(PICTURE, codec="vp8"), SOUND), **copy)
    assert caught.value.code == "input.cannot_remux" and "vp8" in caught.value.message


def test_captions_that_cannot_be_copied_are_a_warning() -> None:
    captions = StreamInfo(index=2, kind="subtitle", codec="subrip")
    copy = {"video": Video(codec="copy"), "audio": Audio(codec="copy"), "output": Output(container="mp4")}
    made = plan(film(PICTURE, SOUND, captions), **copy)
    assert made.captions == () and [code for code, _, _ in made.warnings] == ["input.captions_dropped"]
    kept = plan(film(PICTURE, SOUND, replace(captions, codec="mov_text", language="eng")), **copy)
    assert (kept.captions, kept.caption_languages) == ((0,), ("eng",))


@pytest.mark.parametrize(("text", "bits"), [("2500k", 2_500_000), ("5M", 5_000_000), ("1.5M", 1_500_000), (128_000, 128_000)])
def test_bit_rates_are_read(text: Any, bits: int) -> None:
    assert parse_bitrate(text) == bits


@pytest.mark.parametrize("text", ["", "fast", "-5k", True, None, "5G", "0", float("nan"), [1]])
def test_what_is_no_bit_rate_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="bit rate"):
        parse_bitrate(text)


@pytest.mark.parametrize(("text", "seconds"), [
    ("10s", 10), ("1:30", 90), ("250ms", 0.25), (7, 7), ("1:00:00.5", 3600.5), ("2m", 120),
])
def test_durations_are_read(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", True, None, "1:2:3:4", float("inf"), "900000s"])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)
