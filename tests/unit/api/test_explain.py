"""POST /v1/explain: validated like a submission, told from a probe, and nothing comes of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nommerd.api.access import Scope
from nommerd.api.explain import ExplainAnswer
from nommerd.job import Key, utcnow
from nommerd.media import binaries
from nommerd.store.base import JobQuery, WorkerRecord
from nommerd.store.memory import MemoryStore
from tests import media
from tests.unit.api.calls import Answer, Api

SOURCE = "https://media.example/a/Film.mkv?sig=canary-7f3a91"
PROBE: dict[str, Any] = {
    "format": {"format_name": "matroska,webm", "duration": "61.5", "start_time": "0.000", "bit_rate": "8000000",
               "nb_streams": 2, "tags": {"title": "A film", "location": "+52.5+013.4/"}},
    "streams": [
        {"index": 0, "codec_name": "hevc", "codec_type": "video", "width": 3840, "height": 2160, "pix_fmt": "yuv420p10le",
         "avg_frame_rate": "30000/1001", "r_frame_rate": "30000/1001", "sample_aspect_ratio": "1:1", "color_range": "tv",
         "color_transfer": "smpte2084", "color_primaries": "bt2020", "color_space": "bt2020nc", "level": 153, "refs": 1,
         "disposition": {"default": 1, "attached_pic": 0}, "tags": {"language": "deu"}, "side_data_list": [{"rotation": -90}]},
        {"index": 1, "codec_name": "ac3", "codec_type": "audio", "sample_rate": "48000", "channels": 6,
         "disposition": {"default": 1}}]}


def ask(api: Api, **more: Any) -> Answer:
    fields = {"source": SOURCE, "preset": "web-720p", **more}
    answer = api.call("POST", "/v1/explain", {name: value for name, value in fields.items() if value is not None})
    if answer.status == 200:
        ExplainAnswer.model_validate(answer.json)
    return answer


def codes(answer: Answer) -> list[str]:
    return [warning["code"] for warning in answer.json["warnings"]]


# --- what it answers ----------------------------------------------------------------------------------------------


def test_a_probe_decides_what_is_made(api: Api) -> None:
    answer = ask(api, probe=PROBE)
    assert answer.status == 200, answer.body
    output, = answer.json["outputs"]
    assert (output["stage"], output["name"], output["container"]) == ("ffmpeg", "Film.mp4", "mp4")
    video, audio = output["streams"]
    assert video == {"kind": "video", "codec": "h264", "width": 720, "height": 1280, "pixel_format": "yuv420p",
                     "frame_rate": 29.97, "language": "deu", "duration_seconds": 61.5}  # turned, as players turn it
    assert (audio["codec"], audio["channels"], audio["sample_rate"]) == ("aac", 2, 48000)
    assert [command["stage"] for command in answer.json["commands"]] == ["fetch", "ffmpeg", "ffmpeg", "verify", "verify"]
    first = answer.json["commands"][1]["argv"]
    assert first[0] == "ffmpeg" and "file:source.mkv" in first and "tonemap" in " ".join(first)
    assert codes(answer) == ["explain.assumed_encoders", "explain.tone_mapped"]
    recipe = answer.json["recipe"]
    assert recipe["pipeline"] == "web-mp4" and recipe["params"]["width"] == 1280 and len(recipe["hash"]) == 64


def test_neither_secrets_nor_paths_of_this_machine_are_in_an_answer(api: Api) -> None:
    answer = ask(api, probe=PROBE, source="https://user:canary-7f3a91@media.example/a.mkv?x=canary-7f3a91")
    assert b"canary" not in answer.body and b"/workspace" not in answer.body and answer.status == 200


def test_a_source_that_is_not_here_is_assumed_to_be_a_usual_one(api: Api) -> None:
    answer = ask(api)
    assert codes(answer)[:2] == ["explain.assumed_encoders", "explain.assumed_source"]
    assert answer.json["outputs"][0]["streams"][0]["width"] == 1280


def test_an_assumed_source_is_long_enough_for_a_clip(api: Api) -> None:
    (api.root / "pipelines" / "late.yaml").write_text(
        "kind: pipeline\nname: late\nstages: [fetch, ffmpeg: {clip: {start: 10m, end: 11m}, audio: {codec: aac}}, upload]\n")
    api.catalog.reload()
    answer = ask(api, preset=None, pipeline="late")
    assert answer.status == 200 and answer.json["outputs"][0]["duration_seconds"] == 60


def test_a_file_of_this_machine_is_looked_at(api: Api) -> None:
    api.binaries = binaries.find(None, None)
    media.copy(media.clip(seconds=2, size="320x180"), api.source)
    answer = ask(api, source=api.source.as_uri())
    assert codes(answer) == ["explain.not_enlarged"], answer.body
    assert answer.json["outputs"][0]["streams"][0]["width"] == 320
    assert answer.json["commands"][1]["argv"][0] == str(api.binaries.ffmpeg)


def test_a_file_that_is_no_media_is_refused_as_the_job_would_be(api: Api) -> None:
    api.binaries = binaries.find(None, None)
    answer = ask(api, source=api.source.as_uri())
    assert (answer.status, answer.codes, answer.places) == (422, ["input.not_media"], ["body.source"])


@pytest.mark.parametrize("link", [False, True])
def test_a_file_outside_the_roots_is_not_looked_at(api: Api, tmp_path: Path, link: bool) -> None:
    api.binaries = binaries.find(None, None)
    outside = media.copy(media.clip(seconds=2, size="320x180"), tmp_path / "outside.mp4")
    if link:
        (api.media / "inside.mp4").symlink_to(outside)
    answer = ask(api, source=(api.media / "inside.mp4" if link else outside).as_uri())
    assert (answer.status, answer.codes, answer.places) == (422, ["source.outside_roots"], ["body.source"])


def test_a_pipe_among_the_sources_is_not_opened(api: Api) -> None:
    api.binaries = binaries.find(None, None)
    os.mkfifo(api.media / "pipe.mp4")
    assert codes(ask(api, source=(api.media / "pipe.mp4").as_uri())) == ["explain.assumed_source"]


def test_without_an_ffmpeg_here_the_workers_encoders_count(api: Api) -> None:
    def worker(name: str, *encoders: str, **more: Any) -> None:
        api.store.put_worker(replace(WorkerRecord(name=name, node="n", state="ACTIVE", slots=1, version="1", reported=utcnow(),
                                                  active=(), encoders=encoders), **more))

    worker("w1", "aac", "libx264", "mpeg4")
    worker("w2", "aac", "libx264")
    worker("gone", "aac", state="TERMINATED")
    answer = ask(api, probe=PROBE)
    assert answer.status == 200 and "explain.assumed_encoders" not in codes(answer)
    worker("w3", "aac")
    assert ask(api, probe=PROBE).codes == ["config.no_encoder"]


def test_a_source_that_the_pipeline_cannot_take_is_refused(api: Api) -> None:
    answer = ask(api, probe={**PROBE, "streams": PROBE["streams"][1:]})
    assert (answer.status, answer.codes, answer.places) == (422, ["input.no_video"], ["body.source"])


def test_stages_that_do_not_tell_are_marked(api: Api) -> None:
    answer = ask(api, preset=None, pipeline="copy", probe=PROBE)
    assert answer.status == 200 and "explain.unknown_stage" in codes(answer) and answer.json["outputs"] == []


# --- like a submission --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"source": None}, {"source": "ftp://x/y"}, {"source": 7}, {"preset": "web-72Op"}, {"pipeline": "copy"},
    {"preset": None}, {"params": {"wdith": 3}}, {"params": {"width": "wide"}}, {"labels": {"a": 1}}, {"extra": 1},
    {"dest": "file:///etc/x.mp4"}, {"notify_url": "http://10.0.0.1/"}, {"inputs": {"logo": [{"uri": "https://h/l.png"}]}},
    {"on_damage": "perhaps"}, {"priority": "urgent"},
])
def test_what_a_submission_is_refused_for_is_refused_here_alike(api: Api, wrong: dict[str, Any]) -> None:
    body = {"source": SOURCE, "dest": (api.media / "x.mp4").as_uri(), "preset": "web-720p", **wrong}
    body = {name: value for name, value in body.items() if value is not None}
    submitted, explained = api.call("POST", "/v1/jobs", body), api.call("POST", "/v1/explain", body)
    assert submitted.status >= 400
    assert (explained.status, explained.codes, explained.places) == (submitted.status, submitted.codes, submitted.places)


def test_a_destination_that_exists_does_not_matter_and_none_is_needed(api: Api) -> None:
    (api.media / "there.mp4").write_bytes(b"x")
    answer = ask(api, dest=(api.media / "there.mp4").as_uri())
    assert answer.status == 200 and answer.json["outputs"][0]["name"] == "there.mp4"


def test_nothing_is_stored_sent_or_written(api: Api) -> None:
    assert isinstance(api.store, MemoryStore)
    assert ask(api, dest=(api.media / "x.mp4").as_uri(), probe=PROBE).status == 200
    assert api.store.list(JobQuery()).jobs == [] and api.bus.jobs.depth().visible == 0
    assert not api.store._recipes and not (api.media / "x.mp4").exists()


# --- a job that is there ------------------------------------------------------------------------------------------


def test_a_job_is_explained_by_the_recipe_it_was_submitted_with(api: Api) -> None:
    job_id = api.call("POST", "/v1/jobs", {"source": SOURCE, "dest": (api.media / "y.mp4").as_uri(), "preset": "web-480p",
                                           "params": {"video_bitrate": "333k"}}).json["id"]
    answer = api.call("POST", "/v1/explain", {"job": job_id})
    ExplainAnswer.model_validate(answer.json)
    assert "333000" in answer.json["commands"][1]["argv"] and answer.json["outputs"][0]["name"] == "y.mp4"
    assert answer.json["recipe"]["hash"] == api.store.get(Key("default", job_id)).recipe
    assert "file:source.mkv" in answer.json["commands"][1]["argv"] and b"canary" not in answer.body


def test_another_projects_job_is_none(api: Api) -> None:
    job_id = api.submit().json["id"]
    _, text = api.tokens.make("theirs", "other", [Scope.SUBMIT])
    answer = api.call("POST", "/v1/explain", {"job": job_id}, token=text.reveal())
    assert (answer.status, answer.codes, answer.places) == (404, ["request.unknown_job"], ["body.job"])


@pytest.mark.parametrize("body", [{"job": "x", "preset": "web-720p"}, {"job": 7}, {"job": ""}, {"job": None}])
def test_a_job_is_named_alone(api: Api, body: dict[str, Any]) -> None:
    assert api.call("POST", "/v1/explain", body).status == 422


# --- probes of any kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "value", "place"), [
    (("format",), 3, "body.probe.format"), (("format", "format_name"), None, "body.probe.format.format_name"),
    (("format", "duration"), "1e300", "body.probe.format.duration"), (("format", "tags"), [], "body.probe.format.tags"),
    (("format", "start_time"), {}, "body.probe.format.start_time"),
    (("streams",), {}, "body.probe.streams"), (("streams",), [], "body.probe.streams"),
    (("streams", 0, "width"), "1920", "body.probe.streams.0.width"),
    (("streams", 0, "width"), -1, "body.probe.streams.0.width"), (("streams", 0, "width"), 70_000, "body.probe"),
    (("streams", 0, "avg_frame_rate"), "25", "body.probe.streams.0.avg_frame_rate"),
    (("streams", 0, "side_data_list", 0, "rotation"), "x", "body.probe.streams.0.side_data_list.0.rotation"),
    (("streams", 1, "disposition"), True, "body.probe.streams.1.disposition"),
])
def test_a_fault_in_a_probe_is_told_with_its_place(api: Api, path: tuple[str | int, ...], value: Any, place: str) -> None:
    answer = ask(api, probe=changed(PROBE, path, value))
    assert answer.status == 422 and answer.places == [place], answer.body


def changed(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    made = deepcopy(document)
    at = made
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return made


def test_no_probe_makes_the_feeder_stumble(api: Api) -> None:
    chance = random.Random(7)
    values = [None, "", "N/A", "0/0", "1/1", "4294967295/1", 0, 1, -1, 2**31, 1e12, "1e12", "-5", True, [], {}, "x" * 200,
              "\x00é", "smpte2084", "hevc", "tt", "mov,mp4", "00:00:61.000"]
    places: list[tuple[str | int, ...]] = [("format", key) for key in (*PROBE["format"], "size")]
    keys = (*PROBE["streams"][0], "channels", "duration", "profile", "field_order", "codec_tag_string", "start_time")
    places += [("streams", number, key) for number in (0, 1) for key in keys]
    for _ in range(300):
        probe = PROBE
        for place in chance.sample(places, chance.randint(1, 3)):
            probe = changed(probe, place, chance.choice(values))
        answer = ask(api, probe=probe, preset=chance.choice(["web-480p", "audio-aac", "remux-mp4"]))
        assert answer.status in (200, 422), (json.dumps(probe), answer.body)


def test_what_ffprobe_prints_is_taken_as_it_is(api: Api) -> None:
    own = binaries.find(None, None)
    path = media.clip(seconds=2, size="320x180", container="webm")
    said = subprocess.run([own.ffprobe, "-v", "error", "-show_format", "-show_streams", "-of", "json", path], check=True,
                          capture_output=True).stdout
    answer = ask(api, probe=json.loads(said))
    assert answer.status == 200, answer.body
