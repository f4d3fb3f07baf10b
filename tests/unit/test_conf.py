"""What ships: presets and pipelines load, from a checkout and installed; and the formats users want first are known."""

from pathlib import Path

import pytest

from nommerd.catalog import Catalog, shipped
from nommerd.errors import ManyErrors, NommerdError
from nommerd.pipeline.recipe import build_stages
from nommerd.pipeline.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ["audio-aac", "remux-mp4", "web-1080p", "web-480p", "web-720p"]
PIPELINES = ["audio-aac", "classic-2pass", "remux-mp4", "web-mp4"]


def test_all_that_ships_loads_without_a_fault():
    catalog = Catalog([], [])
    assert catalog.errors == []
    assert catalog.names() == {"presets": PRESETS, "pipelines": PIPELINES}


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_becomes_stages_that_publish_one_output_and_notify(name):
    recipe = Catalog([], []).resolve(name)
    assert recipe.outputs_count == 1
    assert recipe.notifies
    assert [stage.name for stage in build_stages(recipe, STAGES)] == ["fetch", "ffmpeg", "upload", "notify"]


def test_the_classic_pipeline_is_one_unit_of_two_passes():
    recipe = Catalog([], []).resolve(pipeline="classic-2pass", params={"video_bitrate": "900k"})
    stages = build_stages(recipe, STAGES)
    assert [stage.name for stage in stages] == ["fetch", "ffmpeg", "faststart", "upload", "notify"]
    assert recipe.stages[2].settings["options"][2] == ["b:v", "900k"]


@pytest.mark.parametrize("kind", ["pipelines", "presets"])
def test_every_shipped_document_is_commented_for_operators(kind):
    for file in shipped(kind).iterdir():
        assert file.read_text().startswith("# "), file


# --- what users want on day one ----------------------------------------------------------------------------------

WANTED = {
    "web-mp4": ("""\
kind: pipeline
name: web-mp4
description: Two-pass H.264 and AAC in a fast-start MP4.
params:
  width:         {type: integer, default: 1280, min: 16, max: 7680}
  height:        {type: integer, default: 720, min: 16, max: 4320}
  video_bitrate: {type: bitrate, default: 2500k}
stages:
  - fetch
  - ffmpeg:
      passes: 2
      video: {codec: h264, encoder_preset: medium, bitrate: $video_bitrate, width: $width, height: $height, gop_seconds: 2}
      audio: {codec: aac, bitrate: 128k, channels: 2, sample_rate: 48000}
      output: {container: mp4}          # mp4 is fast-start unless faststart: false
  - upload
  - notify
""", []),
    "archive-prores": ("""\
kind: pipeline
name: archive-prores
stages:
  - fetch
  - ffmpeg:
      video: {codec: prores, profile: hq, pixel_format: yuv422p10le}   # no size, rate or colour change
      audio: {codec: pcm_s24le, tracks: all}
      metadata: {keep: all, timecode: true, chapters: true}
      output: {container: mov}
  - upload
  - notify
""", []),
    "branded-clip": ("""\
kind: pipeline
name: branded-clip
inputs:
  logo: {type: image, default: "file:///etc/nommerd/assets/logo.png"}
params:
  start: {type: duration, default: 0s}
  end:   {type: duration, required: true}
stages:
  - fetch
  - ffmpeg:
      clip: {start: $start, end: $end}
      video:
        codec: h264
        crf: 21
        width: 1920
        height: 1080
        overlays: [{input: logo, position: top-right, margin: "3%", width: "10%", opacity: 0.8}]
      audio: {codec: aac, bitrate: 128k}
      output: {container: mp4}
  - upload
  - notify
""", [("17:9", "stages[1].ffmpeg.video.overlays")]),
    "podcast-mp3": ("""\
kind: pipeline
name: podcast-mp3
stages:
  - fetch
  - ffmpeg:
      audio: {codec: mp3, bitrate: 96k, channels: 1, required: true, loudness: {lufs: -16, true_peak_db: -1.5}}
      metadata: {keep: [title, artist, album, date], cover: true}
      output: {container: mp3}
  - upload
  - notify
""", [("6:70", "stages[1].ffmpeg.audio.loudness"), ("7:54", "stages[1].ffmpeg.metadata.cover")]),
    "preview-pack": ("""\
kind: pipeline
name: preview-pack
stages:
  - fetch
  - thumbnails: {id: poster, at: ["10%"], width: 1280, output: {file: "poster.jpg"}}
  - thumbnails: {every_seconds: 10, width: 320, output: {file: "thumb-${n}.jpg"}}
  - sprite: {every_seconds: 5, width: 160, columns: 10, rows: 10, output: {file: "sprite-${n}.jpg", vtt: sprite.vtt}}
  - upload
  - notify
""", [("5:5", "stages[1].thumbnails"), ("6:5", "stages[2].thumbnails"), ("7:5", "stages[3].sprite")]),
    "remux-or-encode": ("""\
kind: pipeline
name: remux-or-encode
stages:
  - fetch
  - ffmpeg:
      video:
        codec: h264
        crf: 21
        width: 1920
        height: 1080
        copy_when: {codec: [h264], pixel_format: [yuv420p], max_height: 1080, max_bitrate: 8M}
      audio: {codec: aac, bitrate: 128k, channels: 2, copy_when: {codec: [aac], max_channels: 2}}
      output: {container: mp4}
  - upload
  - notify
""", [("11:9", "stages[1].ffmpeg.video.copy_when"), ("12:55", "stages[1].ffmpeg.audio.copy_when")]),
    "social-vertical": ("""\
kind: pipeline
name: social-vertical
stages:
  - fetch
  - ffmpeg:
      video: {codec: h264, crf: 20, max_bitrate: 8M, width: 1080, height: 1920, fit: crop, turn_with_source: false,
              upscale: true, max_frame_rate: 30}
      audio: {codec: aac, bitrate: 192k, channels: 2, sample_rate: 48000, loudness: {lufs: -14, true_peak_db: -1}}
      output: {container: mp4}
  - upload
  - notify
""", [("8:75", "stages[1].ffmpeg.audio.loudness")]),
    "web-abr": ("""\
kind: pipeline
name: web-abr
inputs:
  captions: {type: captions, many: true, required: false}
stages:
  - fetch
  - ffmpeg:
      id: ladder
      video: {codec: h264, encoder_preset: medium, gop_seconds: 2}
      renditions:
        - {name: 1080p, video: {width: 1920, height: 1080, crf: 21, max_bitrate: 5M}}
        - {name: 360p,  video: {width: 640,  height: 360,  crf: 23, max_bitrate: 800k}}
      audio:
        - {name: stereo, codec: aac, bitrate: 128k, channels: 2, tracks: all}
      output: {separate: true}          # one file per rendition and per audio track, for package
  - package:
      input: ladder
      captions: captions
      formats: [hls, dash]
      segment_seconds: 4
      output: {file: master}
  - upload
  - notify
""", [("10:7", "stages[1].ffmpeg.renditions"), ("15:16", "stages[1].ffmpeg.output.separate"), ("16:5", "stages[2].package")]),
}


@pytest.mark.parametrize("name", WANTED)
def test_what_is_supported_loads_and_every_key_that_is_not_yet_is_named_and_nothing_else(name, tmp_path):
    text, unsupported = WANTED[name]
    file = tmp_path / f"{name}.yaml"
    file.write_text(text)
    found: list[NommerdError] = []
    try:
        Catalog([], []).pipeline_from_file(file)
    except ManyErrors as many:
        found = many.errors
    except NommerdError as error:
        found = [error]
    assert {error.code for error in found} <= {"recipe.not_yet_supported"}
    assert [(error.place, error.message) for error in found] == [
        (f"{file}:{place}", f"{path}: not yet supported.") for place, path in unsupported]
