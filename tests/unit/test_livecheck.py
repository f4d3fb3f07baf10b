"""Whether a process still answers, asked where it really listens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from xmlrpc.client import Fault
from xmlrpc.server import SimpleXMLRPCServer

import pytest

from nommerd import livecheck, logs
from nommerd.livecheck import Address, LiveCheck, answers, listening
from tests.media import missing
from tests.rig import wait_until

SERVER = """
import socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)
class Server(HTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
Server((sys.argv[1], 0), Handler).serve_forever()
"""


@contextmanager
def server(host: str = "127.0.0.1") -> Iterator[int]:
    """A process that answers 404 to everything; its id, once it listens."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, host], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or listening(process.pid), 20, "it listens")
        yield process.pid
    finally:
        process.kill()
        process.wait()


class Supervisor:
    """What is asked of supervisor, about one process."""

    def __init__(self, pid: int, state: int = livecheck.RUNNING) -> None:
        self.pid, self.state = pid, state
        self.signals: list[str] = []

    def getProcessInfo(self, program: str) -> dict[str, int]:
        return {"pid": self.pid, "state": self.state}

    def signalProcess(self, program: str, signal: str) -> None:
        self.signals.append(f"{program} {signal}")


@pytest.mark.parametrize(("bound", "reached"), [
    ("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"]), ("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]),
    ("127.1.2.3", ["127.1.2.3"])])
def test_a_process_is_asked_where_it_listens(bound: str, reached: list[str]) -> None:
    with server(bound) as pid:
        addresses = listening(pid)
        assert [host for host, _ in addresses] == reached
        assert all(map(answers, addresses)), "any answer is one"


@pytest.mark.parametrize("host", ["fe80::1", "192.0.2.1"])
def test_an_address_that_this_machine_cannot_ask_says_nothing(host: str) -> None:
    if os.geteuid() != 0:
        missing("root's rights")
    without_routes = ["unshare", "--net", sys.executable, "-c",
                      f"from nommerd.livecheck import answers; print(answers(({host!r}, 8001), 5))"]
    assert subprocess.run(without_routes, capture_output=True, text=True, timeout=30).stdout == "None\n"
    with listener() as pid:
        supervisor = Supervisor(pid)
        check = LiveCheck(supervisor, "daemon", lambda address: None)
        for _ in range(4):
            check.look()
        assert supervisor.signals == []


def test_a_kernel_without_ipv6_and_a_process_that_nobody_may_look_at_are_borne(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read = Path.read_text
    with server() as pid, monkeypatch.context() as patch:
        patch.setattr(Path, "read_text",
                      lambda path, **how: read(path.with_name("none") if path.name == "tcp6" else path, **how))
        assert len(listening(pid)) == 1
    with server() as pid, monkeypatch.context() as patch:
        patch.setattr(livecheck, "listening", not_allowed)
        logs.configure(sys.stderr, json=True, level="info")
        supervisor = Supervisor(pid)
        check = LiveCheck(supervisor, "daemon", silent)
        for _ in range(4):
            check.look()
        assert supervisor.signals == []
        assert capsys.readouterr().err.count("health.not_asked") == 1, "told once for each process"


def not_allowed(pid: int) -> list[Address]:
    raise PermissionError(13, "Permission denied")


def test_it_asks_for_life_and_not_for_readiness() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 503 Not ready\r\n\r\n")

        thread = Thread(target=serve)
        thread.start()
        assert answers(("127.0.0.1", listener.getsockname()[1]))
        thread.join()
    assert asked[0].startswith(b"GET /healthz HTTP/1.1\r\n"), "one whose store is slow is alive"


@pytest.mark.parametrize(("sent", "is_one"), [(b"HTTP/1.1 100 Continue\r\n", True), (b"", False)])
def test_an_answer_that_goes_on_for_ever_is_not_waited_for(sent: bytes, is_one: bool) -> None:
    code = ("import os, socket\nserver = socket.create_server(('127.0.0.1', 0)); taken = server.accept()[0]\n"
            f"if not {sent!r}: taken.close(), input()\nwhile taken.recv(1): taken.sendall({sent!r})")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listening(process.pid), 20, "it listens")
        begun = time.monotonic()
        assert answers(listening(process.pid)[0], 5) is is_one
        assert time.monotonic() - begun < 5
    finally:
        process.kill()
        process.wait()


def test_one_that_opens_and_closes_files_all_the_time_listens_at_each_look() -> None:
    code = ("import os, socket\nserver = socket.create_server(('127.0.0.1', 0))\nwhile True:\n"
            "    for one in [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]: os.close(one)")
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: listening(process.pid), 20, "it listens")
        assert [len(listening(process.pid)) for _ in range(10)] == [1] * 10
    finally:
        process.kill()
        process.wait()


def test_a_connection_is_no_place_where_it_listens_and_an_answer_at_one_of_two_is_enough() -> None:
    with listener(places=2) as pid:
        two = listening(pid)
        assert len(two) == 2
        supervisor = Supervisor(pid)
        check = LiveCheck(supervisor, "daemon", lambda address: address == two[1])
        for _ in range(4):
            check.look()
        assert supervisor.signals == []


def test_what_does_not_listen_or_is_gone_has_no_addresses() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert listening(process.pid) == []
    process.communicate(b"\n")
    assert listening(process.pid) == []


def test_a_stopped_process_does_not_answer_and_is_killed_at_the_second_miss() -> None:
    with server() as pid:
        supervisor = Supervisor(pid)
        check = LiveCheck(supervisor, "daemon")
        check.look()
        os.kill(pid, signal.SIGSTOP)
        check._answers = lambda address: answers(address, 0.3)
        for _ in range(2):
            assert supervisor.signals == []
            check.look()
        assert supervisor.signals == ["daemon KILL"]
        check.look()
        assert supervisor.signals == ["daemon KILL"], "what supervisor has not yet reaped has two looks again"


@pytest.mark.parametrize("state", [0, 10, 30, 40, 100, 200])
def test_only_what_is_running_is_asked(state: int) -> None:
    with listener() as pid:
        supervisor = Supervisor(pid, state)
        check = LiveCheck(supervisor, "daemon", silent)
        for _ in range(5):
            check.look()
        assert supervisor.signals == []


def test_an_answer_between_them_forgives_misses() -> None:
    with listener() as pid:
        supervisor = Supervisor(pid)
        told = iter([True, False, True, False, True, False])
        check = LiveCheck(supervisor, "daemon", lambda address: next(told))
        for _ in range(6):
            check.look()
        assert supervisor.signals == []


def test_a_new_process_begins_anew_and_one_replaced_meanwhile_is_left_alone() -> None:
    with listener() as pid:
        supervisor = Supervisor(0)

        def replaced(address: Address) -> bool:
            supervisor.pid = 1
            return False

        check = LiveCheck(supervisor, "daemon", silent)
        for seen in (pid, pid, 0, pid, pid):
            supervisor.pid = seen
            check.look()
        assert supervisor.signals == [], "never two misses of one process in a row"
        check._answers = replaced
        check.look()
        assert supervisor.signals == []


def test_one_that_was_stopped_in_the_last_moment_is_no_error() -> None:
    class Stopped(Supervisor):
        def signalProcess(self, program: str, signal: str) -> None:
            raise Fault(70, "NOT_RUNNING")

    with listener() as pid:
        check = LiveCheck(Stopped(pid), "daemon", silent)
        for _ in range(4):
            check.look()


def test_it_looks_at_each_tick_bears_a_supervisor_that_is_ending_and_ends_with_it() -> None:
    asked: list[str] = []

    def told(program: str) -> dict[str, int]:
        asked.append(program)
        if len(asked) == 1:
            raise Fault(6, "SHUTDOWN_STATE")
        return {"pid": 0, "state": 0}

    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as rpc:
        rpc.register_function(told, "supervisor.getProcessInfo")
        thread = Thread(target=rpc.serve_forever, args=(0.05,))
        thread.start()
        events = "".join(f"ver:3.0 server:s serial:1 pool:p poolserial:1 eventname:{name} len:0\n"
                         for name in ("TICK_5", "PROCESS_LOG", "TICK_5"))
        env = {**os.environ, "SUPERVISOR_SERVER_URL": f"http://127.0.0.1:{rpc.server_address[1]}"}
        try:
            ended = subprocess.run([sys.executable, "-m", "nommerd.livecheck", "daemon"], env=env, input=events, text=True,
                                   capture_output=True, timeout=30)
        finally:
            rpc.shutdown()
            thread.join()
    assert (ended.returncode, ended.stdout) == (0, "READY\n" + "RESULT 2\nOKREADY\n" * 3), ended.stderr
    assert asked == ["daemon", "daemon"]
    assert "Traceback" not in ended.stderr
    assert "SHUTDOWN_STATE" in ended.stderr


def silent(address: Address) -> bool:
    return False


@contextmanager
def listener(places: int = 1) -> Iterator[int]:
    """A process that listens at as many places, and has a connection."""
    code = ("import socket, sys\nservers = [socket.create_server(('127.0.0.1', 0)) for _ in range(int(sys.argv[1]))]\n"
            "ours = socket.create_connection(servers[0].getsockname()), servers[0].accept()\nprint(flush=True)\ninput()")
    process = subprocess.Popen([sys.executable, "-c", code, str(places)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()
