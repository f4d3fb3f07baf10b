"""The original system's clients against real daemons: their call, their callbacks, and what comes of it, by two ffmpegs."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl

import pytest
from standardwebhooks import Webhook

from nommerd import __version__
from tests.acceptance.test_journey import boxes, probe
from tests.media import BUILDS, build, clip
from tests.rig import CANARY, Rig, invariants, wait_until

NOMMER = "media_nommer.ec2nommerd.nommers.ffmpeg.FFmpegNommer"
PICTURE = [["vcodec", "libx264"], ["b", "400k"], ["vf", "yadif,scale='640:trunc(ow/a/2)*2'"]]
TWO_PASSES = [{"outfile_options": [*PICTURE, ["pass", "1"], ["f", "mp4"], ["an", None]]},
              {"outfile_options": [*PICTURE, ["pass", "2"], ["acodec", "libfaac"], ["async", "480"], ["f", "mp4"]],
               "move_atom_to_front": True}]


class FormReceiver:
    """An application that the original system called back; `calls` are headers, body and fields. It refuses the first call."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], bytes, dict[str, str]]] = []
        self.refused: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if not receiver.refused:
                    receiver.refused.append(self.headers["webhook-id"])
                    self.send_response(500)
                else:
                    fields = dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True))
                    receiver.calls.append((dict(self.headers.items()), body, fields))
                    self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/done?token={CANARY}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def states(self, job_id: str) -> list[str]:
        return [fields["job_state"] for _, _, fields in self.calls if fields["unique_id"] == job_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[FormReceiver]:
    receiver = FormReceiver()
    yield receiver
    receiver.close()


def body(source: Path, dest: Path, options: list[Any], notify_url: str | None = None) -> bytes:
    return json.dumps({"source_path": source.as_uri(), "dest_path": dest.as_uri(), "notify_url": notify_url,
                       "job_options": {"nommer": NOMMER, "options": options}}).encode()


def as_the_client_does(rig: Rig, raw: bytes) -> Any:
    """Bytes to urllib, which sends them under the form's content type, and raises for any status but 2xx."""
    request = urllib.request.Request(f"http://127.0.0.1:{rig.port}/job/submit", raw)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
    rig.answers.append(text)
    return json.loads(text)


def in_chunks(rig: Rig, raw: bytes) -> Any:
    """The documented address, and a length that is not known beforehand."""
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=30)
    try:
        connection.request("POST", "/job/submit/", iter([raw[:100], raw[100:]]), encode_chunked=True, headers={
            "Content-Type": "application/x-www-form-urlencoded", "Transfer-Encoding": "chunked"})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (200, "application/json")
        return json.loads(answer.read())
    finally:
        connection.close()


def streams(path: Path) -> dict[str, dict[str, Any]]:
    return {stream["codec_type"]: stream for stream in probe(path)["streams"]}  # type: ignore[attr-defined]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("which", BUILDS)
def test_the_two_passes_that_clients_send_become_a_fast_start_mp4(tmp_path: Path, which: str) -> None:
    ffmpeg, ffprobe = build(which)
    with Rig(tmp_path, env={"NOMMERD_MEDIA__FFMPEG": str(ffmpeg), "NOMMERD_MEDIA__FFPROBE": str(ffprobe)}) as rig:
        source = rig.media / "holiday film.mov"
        source.write_bytes(clip(seconds=3, size="320x180", container="mov", faststart=False).read_bytes())
        outputs = [rig.media / "client.mp4", rig.media / "chunks.mp4", rig.media / "three.mp4"]
        outputs[0].write_bytes(b"of an earlier run: replaced")
        rig.start_feeder()
        rig.start_worker("w1")
        measure = TWO_PASSES[0]["outfile_options"]
        middle = {"outfile_options": [["pass", "3"] if pair[0] == "pass" else pair for pair in measure]}  # type: ignore[attr-defined]
        answers = [as_the_client_does(rig, body(source, outputs[0], TWO_PASSES)),
                   in_chunks(rig, body(source, outputs[1], TWO_PASSES)),
                   as_the_client_does(rig, body(source, outputs[2], [TWO_PASSES[0], middle, TWO_PASSES[1]]))]
        for answer, output in zip(answers, outputs, strict=True):
            assert answer["success"] is True
            job = rig.wait_finished(answer["job_id"], 120)
            assert [warning["code"] for warning in job["warnings"]] == ["recipe.old_encoder", "recipe.old_option"]
            names = boxes(output)
            assert names.index("moov") < names.index("mdat")
            found = streams(output)
            assert (found["video"]["codec_name"], found["video"]["width"], found["video"]["height"]) == ("h264", 640, 360)
            assert found["audio"]["codec_name"] == "aac"
            assert abs(float(found["video"]["duration"]) - 3) < 0.1 and abs(float(found["audio"]["duration"]) - 3) < 0.2
            assert 200_000 < int(found["video"]["bit_rate"]) < 600_000  # 400k were asked for, and the picture can use them
        source.unlink()
        invariants(rig, outputs=outputs)


@pytest.mark.timeout(240)
def test_callbacks_are_signed_forms_in_order_and_outlive_a_receiver_in_trouble(tmp_path: Path, receiver: FormReceiver) -> None:
    with Rig(tmp_path) as rig:
        good, bad = rig.media / "good.mov", rig.media / "bad.mov"
        good.write_bytes(clip(seconds=1, size="160x90", container="mov").read_bytes())
        bad.write_bytes(b"no film at all " * 100)
        rig.start_feeder()
        rig.start_worker("w1")
        one_pass = [{"outfile_options": [["vcodec", "libx264"], ["f", "mp4"]]}]
        made = as_the_client_does(rig, body(good, rig.media / "made.mp4", one_pass, receiver.url))["job_id"]
        failed = as_the_client_does(rig, body(bad, rig.media / "failed.mp4", one_pass, receiver.url))["job_id"]
        rig.wait_finished(made, 60)
        rig.wait_state(failed, {"ERROR"}, 60)
        wait_until(lambda: receiver.states(made)[-1:] == ["FINISHED"] and receiver.states(failed)[-1:] == ["ERROR"], 60,
                   lambda: f"callbacks: {[fields for _, _, fields in receiver.calls]}; {rig.tail('feeder')}")
        assert receiver.states(made) == ["DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED"]
        assert receiver.states(failed)[0] == "DOWNLOADING"
        assert receiver.refused[0] in [headers["webhook-id"] for headers, _, _ in receiver.calls]
        signer = Webhook((rig.data / "webhook-secret").read_text().strip())
        for headers, sent, fields in receiver.calls:
            assert set(fields) == {"unique_id", "job_state", "job_state_details"}
            assert headers["Content-Type"] == "application/x-www-form-urlencoded"
            assert headers["User-Agent"] == f"nommerd-feeder/{__version__}"
            signer.verify(sent, {name.lower(): value for name, value in headers.items()}, json_parse=False)
            assert (fields["job_state"] == "ERROR") == ("input.not_media" in fields["job_state_details"])
        for film in (good, bad):
            film.unlink()
        invariants(rig, outputs=[rig.media / "made.mp4"])


def test_what_cannot_be_is_an_answer_that_the_client_reads(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        source = rig.media / "a.mov"
        source.write_bytes(b"x")
        rig.start_feeder()
        for raw, part in (
                (b"{}", "Missing/invalid required key+val: ['source_path']"), (b"not json", "request.bad_json"),
                (body(source, rig.media / "o.mp4", []), "Missing/invalid required key+val: ['job_options'][options]"),
                (body(Path("/etc/passwd"), rig.media / "o.mp4", TWO_PASSES), "source.outside_roots"),
                (body(source, rig.media / "o.mp4", [{"outfile_options": [["i", "/etc/passwd"]]}]), "recipe.forbidden_option"),
                (body(source, rig.media / "o.mp4", TWO_PASSES, f"http://10.0.0.1/?k={CANARY}"), "webhook.forbidden_address"),
                (b"x" * 300_000, "request.too_large")):
            answer = as_the_client_does(rig, raw)
            assert (answer["success"], answer["error_code"]) == (False, "BADINPUT") and part in answer["message"]
        assert rig.jobs() == []
        invariants(rig, outputs=[])


def test_switched_off_it_is_not_there(tmp_path: Path) -> None:
    with Rig(tmp_path, env={"NOMMERD_API__ORIGINAL__ENABLED": "false"}) as rig:
        rig.start_feeder()
        assert rig.call("POST", "/job/submit", {}, token=False)[0] == 404
