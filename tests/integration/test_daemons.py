"""Daemons as processes: what SIGHUP does to them, and that one that cannot work ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import psutil
import pytest

from nommerd.hangup import held
from nommerd.secrets import new_key
from tests.rig import Rig, wait_until

SMALL = """\
kind: preset
name: small
pipeline: web-mp4
params: {width: 320, height: 180, video_bitrate: 200k, audio_bitrate: 64k}
"""
WITHIN = 2.0
TERMINAL = """
import fcntl, os, select, signal, subprocess, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, and that heeded: no end with the terminal
ours, theirs = os.openpty()
program = subprocess.Popen(sys.argv[1:], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                           preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
os.close(theirs)
while 0 not in select.select([0, ours], [], [])[0]:
    os.write(1, os.read(ours, 65536))
os.close(ours)  # the window is closed
sys.exit(program.wait())
"""
# both open, and never answer then
DEAF = """
import sys
from nommerd import runtime
runtime.patch()
from importlib import import_module
from pathlib import Path
from nommerd.config import load
module = import_module(f"nommerd.{sys.argv[1]}")
module.process_age = lambda: 0.0  # what was imported up to here takes its time, too
module.answer = lambda store, queue: print("asked", file=sys.stderr)
sys.exit(module.main(load(Path(sys.argv[2]), {}), ready_within=3.0))
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """With directories for presets and pipelines."""
    for kind in ("presets", "pipelines"):
        (tmp_path / kind).mkdir()
    with Rig(tmp_path, config="secrets: {}\n") as rig:
        yield rig


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of something that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=512)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_sighup_takes_changed_presets_all_or_none_and_a_worker_has_nothing_to_reload(rig: Rig) -> None:
    feeder, worker = rig.start_feeder(), rig.start_worker("w")
    reloads = hup(rig, "catalog.reloaded", lambda: (rig.root / "presets/small.yaml").write_text(SMALL))
    assert reloads["changed"] == ["presets/small"]
    assert width(rig) == 320
    (rig.root / "presets/other.yaml").write_text(SMALL.replace("small", "other"))
    refused = hup(rig, "catalog.not_reloaded", lambda: (rig.root / "presets/small.yaml").write_text(
        SMALL.replace("width: 320", "widht: 480")))
    assert refused["faults"] == 1
    assert rig.events("feeder", "catalog.fault")[-1]["place"].startswith(f"{rig.root}/presets/small.yaml:4:")
    assert width(rig) == 320, "the one before stays"
    assert rig.call("GET", "/v1/presets/other")[0] == 404, "none of a set that does not hold is taken"
    (rig.root / "presets/other.yaml").unlink()
    gone = hup(rig, "catalog.reloaded", (rig.root / "presets/small.yaml").unlink)
    assert gone["changed"] == ["presets/small"]
    assert rig.call("GET", "/v1/presets/small")[0] == 404
    wait_until(lambda: rig.events("w", "worker.started"), 20, lambda: rig.tail("w"))
    worker.signal(signal.SIGHUP)
    wait_until(lambda: rig.events("w", "worker.nothing_to_reload"), 10, lambda: rig.tail("w"))
    assert feeder.alive and worker.alive


def hup(rig: Rig, event: str, change: Callable[[], object]) -> dict[str, object]:
    """What the feeder says of a reload after a change of files."""
    assert rig.feeder is not None
    before = len(rig.events("feeder", event))
    change()
    rig.feeder.signal(signal.SIGHUP)
    return wait_until(lambda: rig.events("feeder", event)[before:], 20, lambda: rig.tail("feeder"))[0]


def width(rig: Rig) -> object:
    status, preset = rig.call("GET", "/v1/presets/small")
    assert status == 200, preset
    return preset["params"]["width"]


@pytest.mark.parametrize("by_parent", [True, False])
def test_a_sighup_that_comes_before_a_daemon_can_heed_it_neither_ends_it_nor_is_lost(rig: Rig, by_parent: bool) -> None:
    with held() if by_parent else nullcontext():
        feeder = rig.feeder = rig.start("feeder")
    wait_until(lambda: holds_sighup(feeder.pid), 20, "it is held back, by the daemon itself where nobody else did")
    feeder.signal(signal.SIGHUP)
    wait_until(lambda: rig.events("feeder", "catalog.reloaded"), 30, lambda: rig.tail("feeder"))


def holds_sighup(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(bool(int(line.split()[1], 16) & 1) for line in lines if line.startswith("SigBlk"))


def test_a_daemon_whose_store_or_bus_does_not_answer_ends_in_time(rig: Rig, silent: str) -> None:
    aws = f"aws: {{region: us-east-1, endpoint_url: '{silent}', access_key_id: a, secret_access_key: b}}\n"
    common = rig.config.read_text().replace("secrets: {}", f"secrets: {{keys: [{new_key()}]}}") + aws
    started = []
    for name, command, urls in (("store", ("feeder",), "store: dynamodb://gone\n"),
                                ("bus", ("feeder",), "bus: sqs://gone\n"),
                                ("worker", ("worker", "--local"), "bus: sqs://gone\n")):
        data = rig.root / f"{name}.data"
        data.mkdir(mode=0o700)
        rig.config = rig.root / f"{name}.yaml"
        rig.config.write_text(common.replace(str(rig.data), str(data)).replace(f"port: {rig.port}", "port: 0") + urls)
        started.append((rig.start(*command, "--ready-within", str(WITHIN), name=name), time.monotonic()))
    for daemon, since in started:
        assert daemon.process.wait(30) == 1, rig.tail(daemon.name)
        assert "node.not_ready: It was not ready within 2 seconds." in rig.tail(daemon.name)
        assert "Traceback" not in rig.tail(daemon.name)
        assert time.monotonic() - since < 20


def test_a_node_whose_configuration_does_not_come_ends_in_time(rig: Rig, silent: str) -> None:
    boot = rig.root / "boot.yaml"
    boot.write_text(f"{{cluster: c, region: us-east-1, endpoint_url: '{silent}', data: {rig.data},"
                    f" config: {{uri: 's3://b/k', version: v, sha256: '{'0' * 64}'}}}}\n")
    argv = [sys.executable, "-m", "nommerd", "worker", "--boot", str(boot), "--ready-within", str(WITHIN)]
    ended = subprocess.run(argv, env={**rig.env, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, capture_output=True,
                           text=True, timeout=60)
    assert (ended.returncode, "node.not_ready" in ended.stderr, "Traceback" in ended.stderr) == (1, True, False), ended.stderr


def test_a_daemon_that_was_made_but_whose_store_and_bus_do_not_answer_ends_in_time(rig: Rig) -> None:
    rig.config.write_text(rig.config.read_text().replace("secrets: {}", f"secrets: {{keys: [{new_key()}]}}"))
    started = [subprocess.Popen([sys.executable, "-c", DEAF, daemon, str(rig.config)], env=rig.env, text=True,
                                stderr=subprocess.PIPE) for daemon in ("feeder", "worker")]
    try:
        told = [daemon.communicate(timeout=30)[1] for daemon in started]
    finally:
        for daemon in started:
            daemon.kill()
    assert [daemon.returncode for daemon in started] == [1, 1], told
    assert all("asked" in text and "node.not_ready" in text and "Traceback" not in text for text in told), told


def test_up_passes_sighup_on_and_ends_with_its_terminal(rig: Rig) -> None:
    log = rig.logs / "up.log"
    with log.open("wb") as out:
        argv = [sys.executable, "-c", TERMINAL, sys.executable, "-m", "nommerd", "up", "-c", str(rig.config)]
        terminal = subprocess.Popen(argv, env=rig.env, stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=rig.root)
    assert terminal.stdin is not None
    try:
        wait_until(lambda: "ready: " in log.read_text(), 60, log.read_text)
        up, = psutil.Process(terminal.pid).children()
        children = up.children()
        assert len(children) == 2
        up.send_signal(signal.SIGHUP)
        for event in ("catalog.reloaded", "worker.nothing_to_reload"):
            wait_until(lambda event=event: event in log.read_text(), 20, log.read_text)
        assert all(child.is_running() for child in children)
        terminal.stdin.write(b"close\n")  # gevent puts off closing a pipe
        terminal.stdin.flush()
        assert terminal.wait(30) == 0, "up's own exit code"
        assert not any(child.is_running() for child in children)
    finally:
        for process in psutil.Process(terminal.pid).children() if terminal.poll() is None else []:
            process.kill()  # its daemons end with it
        terminal.kill()
        terminal.wait()
