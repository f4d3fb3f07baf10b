"""The server's own limits, on a real socket, with times shortened."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

from nommerd.api import server as module
from nommerd.api.body import read_body
from nommerd.api.problems import Refusal
from nommerd.api.server import Server
from nommerd.errors import ConfigError

SHORT = 0.3


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answers with the body; `/early` without reading it, `/slow` after a while."""
    if environ["PATH_INFO"] == "/slow":
        gevent.sleep(SHORT)
    try:
        body = b"" if environ["PATH_INFO"] == "/early" else read_body(environ)
    except Refusal as refusal:
        start_response(f"{refusal.status} no", list(refusal.headers.items()))
        return []
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


Start = Callable[..., Server]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(module, "HEADER_SECONDS", SHORT)
    servers: list[Server] = []

    def run(connections_max: int = 64) -> Server:
        server = Server("127.0.0.1", 0, echo, connections_max)
        server.start()
        servers.append(server)
        return server
    yield run
    for server in servers:
        server.finish(1)


def connect(server: Server, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
    connection.sendall(data)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    connection.close()
    return received


def test_a_header_that_drips_is_cut_off(start: Start) -> None:
    connection = connect(start(), b"GET / HTTP/1.1\r\nHost: x\r\n")
    begun = time.monotonic()
    dripping = gevent.spawn(drip, connection)
    assert until_closed(connection).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < 5
    dripping.kill()


def drip(connection: socket.socket) -> None:
    for number in range(1000):
        gevent.sleep(0.02)
        connection.sendall(b"X-%d: y\r\n" % number)


def test_a_request_line_that_never_ends_is_cut_off(start: Start) -> None:
    begun = time.monotonic()
    until_closed(connect(start(), b"GET /"))
    assert time.monotonic() - begun < 5


def test_more_files_are_allowed_than_the_usual_limit() -> None:
    script = ("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, 900)); from nommerd.api.server import allow_files; "
              "allow_files(); print(r.getrlimit(r.RLIMIT_NOFILE))")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "(900, 900)\n"


def test_an_idle_connection_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", SHORT)
    begun = time.monotonic()
    answer = until_closed(connect(start(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert SHORT <= time.monotonic() - begun < 5


def test_a_body_that_drips_is_refused_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from nommerd.api import body

    monkeypatch.setattr(body, "BODY_SECONDS", SHORT)
    connection = connect(start(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    begun = time.monotonic()
    until_closed(connection)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("head", [
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
])
def test_a_header_too_large_is_refused(start: Start, head: bytes) -> None:
    assert until_closed(connect(start(), head)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("head", [
    b"GET /\r\n\r\n",  # HTTP/0.9
    b"GET / HTTP/3.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nabcde",
    b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\nabcdeabcde",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\nabcde",
    b"POST / HTTP/1.1\r\nX: y\rContent-Length: 5\r\n\r\nabcde",
    b"GET / HTTP/1.1\r\nX: y\x00z\r\n\r\n",
    b"nonsense\r\n\r\n",
])
def test_requests_that_could_be_read_two_ways_are_refused(start: Start, head: bytes) -> None:
    assert until_closed(connect(start(), head)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("head", "status"), [
    (b"nonsense\r\n\r\n", 400), (b"GET / HTTP/1\r\nHost: x\r\n\r\n", 400), (b"GET / HTTP/1.x\r\nHost: x\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: x\r\n", 408), (b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
])
def test_refusals_of_the_server_itself_are_problem_documents_too(start: Start, head: bytes, status: int) -> None:
    answer = until_closed(connect(start(), head))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["errors"][0]["code"].startswith("request.")


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("request_bytes", [
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", CHUNKED + b"5\r\nab", CHUNKED + b"zz\r\n",
    CHUNKED + b"2\r\nabXX0\r\n\r\n", CHUNKED + b"2\r\nab\r\n0\r\nb@d\r\n\r\n", CHUNKED + b"2\r\nab\r\n0\r\na:b",
    CHUNKED + b"2;" + b"a" * 9000 + b"\r\nab\r\n0\r\n\r\n", CHUNKED + b"FFFFFFFFFFFFFFFF\r\nab",
    CHUNKED + b"0" * 20 + b"2\r\nab\r\n0\r\n\r\n",
])
def test_a_body_that_breaks_off_is_a_400_and_the_end_of_its_connection(start: Start, request_bytes: bytes) -> None:
    connection = connect(start(), request_bytes + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" * request_bytes.endswith(b"\n"))
    connection.shutdown(socket.SHUT_WR)
    answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_asking_for_a_websocket_is_like_not_asking(start: Start) -> None:
    for upgrade in (b"Upgrade: websocket\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"):
        connection = connect(start(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n" + upgrade + b"\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        assert until_closed(connection).endswith(b"\r\n\r\nabc")


def test_header_fields_arrive_as_they_were_sent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return echo(environ, start_response)

    server = start()
    server.application = application
    connection = connect(server, b"POST /a%20b?c=%C3%A9 HTTP/1.1\r\nhOST:x:1\r\nX-Two: a\r\nx-two:  b \t\r\nX_Under: no\r\n"
                                 b"X-Bytes: \xe9:\xff\r\nEmpty:\r\nContent-Type: a/b\r\nContent-Length: 3\r\n"
                                 b"Connection: close\r\n\r\nabc")
    answer = until_closed(connection)
    assert answer.endswith(b"\r\n\r\nabc")
    assert {name: seen[name] for name in ("HTTP_HOST", "HTTP_X_TWO", "HTTP_X_BYTES", "HTTP_EMPTY", "CONTENT_TYPE", "PATH_INFO",
                                          "QUERY_STRING", "CONTENT_LENGTH")} == {
        "HTTP_HOST": "x:1", "HTTP_X_TWO": "a,b", "HTTP_X_BYTES": "\xe9:\xff", "HTTP_EMPTY": "", "CONTENT_TYPE": "a/b",
        "PATH_INFO": "/a b", "QUERY_STRING": "c=%C3%A9", "CONTENT_LENGTH": "3"}
    assert "HTTP_X_UNDER" not in seen


def test_idle_connections_give_way_to_new_ones(start: Start) -> None:
    server = start(connections_max=8)
    idle = [connect(server) for _ in range(8)]
    for _ in range(20):
        connection = connect(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")
    for connection in idle:
        connection.close()


def test_slow_clients_give_way_too_in_the_order_in_which_they_became_slow(start: Start) -> None:
    """Half a header, half a body, an answer that is not read: none of them is idle, and none keeps others out."""
    server = start(connections_max=8)
    server.application = lots
    slow = [connect(server, b"GET / HTTP/1.1\r\nHost: x\r\nX-") for _ in range(3)]
    slow += [connect(server, b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc") for _ in range(3)]
    slow += [connect(server, b"GET /lots HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
    for _ in range(20):
        connection = connect(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")
    assert until_closed(slow[0]) == b""
    for connection in slow[1:]:
        connection.close()


def lots(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """As `echo`; at `/lots` far more than a socket holds for who does not read."""
    if environ["PATH_INFO"] != "/lots":
        return echo(environ, start_response)
    start_response("200 OK", [("Content-Length", str(64 * 2**20))])
    return [b"x" * 2**20] * 64


def busy(connection: socket.socket, data: bytes) -> None:
    """Send without end, and read what comes."""
    def read() -> None:
        with suppress(OSError):
            while connection.recv(65536):
                pass
    gevent.spawn(read)
    with suppress(OSError):
        while True:
            connection.sendall(data)


@pytest.mark.parametrize(("head", "more"), [
    (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 500),  # requests without waiting for answers
    (b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b" " * 65536),  # a body nobody reads
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 9000),  # endless trailers
    (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 9000),
], ids=["pipelined", "body", "trailers", "header"])
def test_whoever_sends_without_a_pause_does_not_have_the_server_for_himself(start: Start, head: bytes, more: bytes) -> None:
    server = start()
    talkers = [connect(server, head) for _ in range(4)]
    talking = [gevent.spawn(busy, talker, more) for talker in talkers]
    took = []
    for _ in range(10):
        begun = time.monotonic()
        connection = connect(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")
        took.append(time.monotonic() - begun)
    gevent.killall(talking)
    for talker in talkers:
        talker.close()
    assert sorted(took)[4] < 0.5


def test_a_client_that_is_made_to_wait_holds_up_nobody_and_gives_way(start: Start) -> None:
    server = start(connections_max=8)

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/guess":
            environ[module.PAUSE](60)
        return echo(environ, start_response)
    server.application = application
    guessing = [connect(server, b"GET /guess HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(8)]
    begun = time.monotonic()
    for _ in range(8):
        connection = connect(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - begun < 5
    for connection in guessing:
        connection.close()


def test_a_body_nobody_read_does_not_become_the_next_request(start: Start) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    connection = connect(start(), b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(smuggled) + smuggled
                         + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert until_closed(connection).count(b"HTTP/1.1 200 ") == 2


def test_a_client_that_waits_for_100_continue_gets_it(start: Start) -> None:
    connection = connect(start(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
                                  b"Connection: close\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    connection.sendall(b"abc")
    assert until_closed(connection).endswith(b"abc")


def test_finishing_lets_running_requests_end_and_drops_idle_connections(start: Start) -> None:
    server = start()
    idle, slow = connect(server), connect(server, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    deadline = time.monotonic() + 10
    while len(server.pool) < 2 and time.monotonic() < deadline:
        gevent.sleep(0.01)
    begun = time.monotonic()
    server.finish(10)
    assert time.monotonic() - begun < 5
    assert until_closed(slow).startswith(b"HTTP/1.1 200 ")
    assert until_closed(idle) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_an_address_in_use_is_a_configuration_error(start: Start) -> None:
    with pytest.raises(ConfigError) as caught:
        Server("127.0.0.1", start().server_port, echo)
    assert caught.value.place == "api.port"
    with pytest.raises(ConfigError):
        Server("no-such-host.invalid", 0, echo)
