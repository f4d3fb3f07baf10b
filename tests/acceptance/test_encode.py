"""`nommerd encode`: no configuration, no daemon, no network; broken media is told from whole."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nommerd.media.mp4 import is_fast_start
from tests.media import clip, cut, facts, lossy, missing
from tests.rig import wait_until

COMMAND = [sys.executable, "-m", "nommerd", "encode"]


class Desk:
    """A folder to work in, with a home and a scratch directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.work = folder / "work"
        self.scratch.mkdir()
        self.work.mkdir()
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("NOMMERD_", "XDG_"))}
        self.env = clean | {"HOME": str(folder), "TMPDIR": str(self.scratch)}

    def put(self, name: str, source: Path) -> Path:
        return Path(shutil.copyfile(source, self.work / name))

    def encode(self, *arguments: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run([*prefix, *COMMAND, *arguments], cwd=self.work, env=self.env | env, capture_output=True,
                               text=True, timeout=90, stdin=subprocess.DEVNULL)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert list(self.scratch.iterdir()) == []
        return ended

    def told(self, *arguments: str, code: int) -> dict[str, Any]:
        """What --json says; the exit code must be this one."""
        ended = self.encode(*arguments, "--json")
        assert ended.returncode == code, ended
        return dict(json.loads(ended.stdout))

    def error(self, *arguments: str) -> str:
        """The code of the error it ends with; nothing is left at the destination."""
        told = self.told(*arguments, code=1)
        assert not (self.work / arguments[1]).exists()
        fault = told["error"] if "error" in told else told["errors"][0]
        assert fault["message"]
        return str(fault["code"])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def network_prefix() -> tuple[str, ...]:
    """`unshare` for a process without any network; as a user namespace where we are not root."""
    for prefix in (("unshare", "-n"), ("unshare", "-r", "-n")):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return missing("this machine lets nobody unshare the network")


def test_it_works_without_configuration_daemon_or_network(desk: Desk) -> None:
    desk.put("in.mov", clip(seconds=3, size="1280x720", container="mov"))
    ended = desk.encode("in.mov", "out.mp4", "-p", "web-480p", prefix=network_prefix())
    assert ended.returncode == 0, ended
    assert "verified" in ended.stdout
    found: Any = facts(desk.work / "out.mp4")
    kinds = {stream["codec_type"]: stream for stream in found["streams"]}
    assert (kinds["video"]["codec_name"], kinds["video"]["width"], kinds["video"]["height"]) == ("h264", 854, 480)
    assert kinds["audio"]["codec_name"] == "aac"
    assert float(found["format"]["duration"]) == pytest.approx(3, abs=0.2)
    assert is_fast_start(desk.work / "out.mp4")
    assert sorted(path.name for path in desk.work.iterdir()) == ["in.mov", "out.mp4"]
    assert sorted(path.name for path in desk.folder.iterdir()) == ["scratch", "work"]


def test_a_name_that_is_no_utf8_is_a_name_like_any_other(desk: Desk) -> None:
    desk.put(os.fsdecode(b"odd \xff %41.mp4"), clip(seconds=1, size="160x120"))
    ended = desk.encode(os.fsdecode(b"odd \xff %41.mp4"), "out.m4a", "-p", "audio-aac")
    assert ended.returncode == 0, ended


def test_progress_goes_to_stderr_line_by_line_where_there_is_no_terminal(desk: Desk) -> None:
    desk.put("in.mp4", clip(seconds=2, size="320x180"))
    ended = desk.encode("in.mp4", "out.mp4", "-p", "web-480p")
    assert "\r" not in ended.stderr
    assert "%" in ended.stderr
    assert ended.stdout.startswith(str(desk.work / "out.mp4"))


def test_a_destination_that_exists_is_replaced_only_when_asked(desk: Desk) -> None:
    desk.put("in.mp4", clip(seconds=1, size="160x120"))
    (desk.work / "out.m4a").write_text("precious")
    ended = desk.encode("in.mp4", "out.m4a", "-p", "audio-aac")
    assert ended.returncode == 1
    assert "dest.exists" in ended.stderr
    assert (desk.work / "out.m4a").read_text() == "precious"
    assert desk.encode("in.mp4", "out.m4a", "-p", "audio-aac", "--overwrite").returncode == 0
    assert (desk.work / "out.m4a").stat().st_size > 100


def test_params_and_an_operators_pipeline_file(desk: Desk) -> None:
    desk.put("in.mp4", clip(seconds=2, size="640x360"))
    (desk.work / "own.yaml").write_text("""\
kind: pipeline
name: whatever
params: {height: {type: integer, default: 100, min: 16}}
stages:
  - fetch
  - ffmpeg: {video: {codec: h264, crf: 30, encoder_preset: ultrafast, width: 640, height: $height}, output: {container: mp4}}
  - upload
""")
    told = desk.told("in.mp4", "out.mp4", "--pipeline", "own.yaml", "--set", "height=90", code=0)
    assert told["outputs"][0]["probe"]["streams"][0]["height"] == 90
    ended = desk.encode("in.mp4", "b.mp4", "--pipeline", "own.yaml", "--set", "heigth=90")
    assert ended.returncode == 1
    assert "Did you mean height?" in ended.stderr
    (desk.work / "own.yaml").write_text("kind: pipeline\nname: x\nstages:\n  - fetsh\n")
    ended = desk.encode("in.mp4", "b.mp4", "--pipeline", "own.yaml")
    assert ended.returncode == 2
    assert "own.yaml:4:5" in ended.stderr


@pytest.mark.parametrize(("arguments", "code"), [
    (("in.mp4", "in.mp4", "-p", "audio-aac"), "dest.is_source"),
    (("none.mp4", "out.m4a", "-p", "audio-aac"), "source.not_found"),
    (("in.mp4", "out.m4a", "-p", "nothing"), "recipe.unknown_preset"),
    (("ftp://host/a", "out.m4a", "-p", "audio-aac"), "source.unknown_scheme"),
])
def test_what_cannot_work_is_told_before_any_work(desk: Desk, arguments: tuple[str, ...], code: str) -> None:
    desk.put("in.mp4", clip(seconds=1, size="160x120"))
    told = desk.told(*arguments, code=1)
    fault = told["error"] if "error" in told else told["errors"][0]
    assert fault["code"] == code
    assert not (desk.work / "out.m4a").exists()


def test_half_a_file_whose_index_is_at_its_end_is_unreadable(desk: Desk) -> None:
    desk.put("in.mp4", cut(clip(seconds=4, size="320x180", faststart=False)))
    assert desk.error("in.mp4", "out.mp4", "-p", "web-480p") == "input.unreadable"


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_half_a_file_that_can_be_read_is_truncated(desk: Desk, container: str) -> None:
    desk.put(f"in.{container}", cut(clip(seconds=4, size="320x180", container=container)))
    assert desk.error(f"in.{container}", "out.mp4", "-p", "web-480p") == "input.truncated"


class Counter(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - emptied by the fixture

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[str]:
    """A server that notes whether anybody comes."""
    Counter.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counter, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/segment.ts"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("posing", [
    "only words, nothing else\n" * 50,
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXTINF:10,\n{trap}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile '{other}'\nfile '{trap}'\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation id="1">'
    "<BaseURL>{trap}</BaseURL></Representation></AdaptationSet></Period></MPD>",
], ids=["words", "playlist", "concat", "dash"])
def test_texts_and_playlists_that_pose_as_mp4_are_no_media_and_open_nothing_else(desk: Desk, trap: str, posing: str) -> None:
    other = desk.put("other.ts", clip(seconds=1, size="160x120", container="ts"))
    os.utime(other, ns=(0, 0))
    (desk.work / "in.mp4").write_text(posing.format(other=other, trap=trap))
    assert desk.error("in.mp4", "out.mp4", "-p", "web-480p") == "input.not_media"
    assert Counter.asked == []
    assert other.stat().st_atime_ns == 0


def test_a_lossy_ts_is_encoded_with_a_warning_or_refused_where_damage_fails(desk: Desk) -> None:
    desk.put("in.ts", lossy(clip(seconds=10, size="640x360", container="ts")))
    told = desk.told("in.ts", "out.mp4", "-p", "web-480p", code=0)
    assert "input.damaged" in [warning["code"] for warning in told["warnings"]]
    assert desk.error("in.ts", "strict.mp4", "-p", "web-480p", "--on-damage", "fail") == "input.damaged"


def test_less_sound_than_picture_is_no_false_alarm(desk: Desk) -> None:
    desk.put("in.mp4", clip(seconds=6, size="320x180", audio_seconds=3))
    told = desk.told("in.mp4", "out.m4a", "-p", "audio-aac", code=0)
    assert told["outputs"][0]["probe"]["duration_seconds"] == pytest.approx(3, abs=0.3)
    assert "input.truncated" not in [warning["code"] for warning in told["warnings"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_ffmpeg_and_leaves_nothing(desk: Desk, number: signal.Signals) -> None:
    desk.put("in.mp4", clip(seconds=20, size="1280x720", rate=50))
    running = subprocess.Popen([*COMMAND, "in.mp4", "out.mp4", "-p", "web-1080p"], cwd=desk.work, env=desk.env,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)

    def ffmpegs() -> list[bytes]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(entry.read_bytes())
            except OSError:
                continue
        return [line for line in found if b"ffmpeg" in line.split(b"\0")[0] and b"-progress" in line
                and os.fsencode(desk.scratch) in line]

    wait_until(ffmpegs, 40, lambda: f"ffmpeg at work; exit {running.poll()}")
    running.send_signal(number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130, said
    assert "interrupted" in said
    assert ffmpegs() == []
    assert list(desk.scratch.iterdir()) == []
    assert sorted(path.name for path in desk.work.iterdir()) == ["in.mp4"]


def test_a_file_without_ffmpeg_on_the_machine_ends_with_2_and_says_how_to_get_it(desk: Desk) -> None:
    desk.put("in.mp4", clip(seconds=1, size="160x120"))
    ended = desk.encode("in.mp4", "out.m4a", "-p", "audio-aac", NOMMERD_MEDIA__FFMPEG="/nowhere/ffmpeg")
    assert ended.returncode == 2
    assert "config.no_ffmpeg" in ended.stderr
    assert "pip install" in ended.stderr
