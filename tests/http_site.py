"""A real HTTP server on 127.0.0.1 for tests: well-behaved by default (ETag, Range, If-Range, PUT, If-None-Match), and for
the next requests to a path whatever a test scripts."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.quiet_server import QuietServer

Act = Callable[["Handler"], None]


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: Message
    body: bytes = b""


@dataclass
class Site:
    """What is served and what was asked. `script[path]` answers the next requests to it, one entry each."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    script: dict[str, list[Act]] = field(default_factory=lambda: defaultdict(list))
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0  # bytes of scripted bodies that went out

    def asked(self, method: str) -> list[Seen]:
        return [request for request in self.seen if request.method == method]


class _Server(QuietServer):
    site: Site


class Handler(BaseHTTPRequestHandler):
    """One request. Scripts use `head` and `write`."""

    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 30

    @property
    def site(self) -> Site:
        return self.server.site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        request = Seen(self.command, self.path, self.headers)
        self.site.seen.append(request)
        script = self.site.script[self.path]
        act = script.pop(0) if script else _SERVE[self.command]
        if self.command in ("PUT", "POST"):
            wanted = int(self.headers.get("Content-Length", 0))
            request.body = self.rfile.read(wanted)
            if len(request.body) < wanted:  # the client gave up
                return
        act(self)

    do_GET = do_HEAD = do_PUT = do_POST = handle_any

    def head(self, status: int, **headers: str) -> None:
        """Status line and headers; underscores are dashes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.site.sent += len(data)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def etag(body: bytes) -> str:
    return '"' + hashlib.sha256(body).hexdigest()[:12] + '"'


def _get(handler: Handler) -> None:
    body = handler.site.files.get(handler.path)
    if body is None:
        handler.head(404, Content_Length="0")
        return
    tag, ranged = etag(body), re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if ranged and handler.headers.get("If-Range", tag) == tag and int(ranged[1]) < len(body):
        start, end = int(ranged[1]), int(ranged[2] or len(body) - 1)
        part = body[start:end + 1]
        where = f"bytes {start}-{start + len(part) - 1}/{len(body)}"
        handler.head(206, Content_Length=str(len(part)), Content_Range=where, ETag=tag)
        handler.write(part)
        return
    handler.head(200, Content_Length=str(len(body)), ETag=tag)
    if handler.command == "GET":
        handler.write(body)


def _put(handler: Handler) -> None:
    if handler.headers.get("If-None-Match") == "*" and handler.path in handler.site.files:
        handler.head(412, Content_Length="0")
        return
    handler.site.files[handler.path] = handler.site.seen[-1].body
    handler.head(201, Content_Length="0")


_SERVE: dict[str, Act] = {"GET": _get, "HEAD": _get, "PUT": _put, "POST": lambda handler: handler.head(204)}


def status(code: int, **headers: str) -> Act:
    """Answers with a status and no body."""
    return lambda handler: handler.head(code, **{"Content_Length": "0", **headers})


def cut_after(count: int, **headers: str) -> Act:
    """The start of the file under its real headers, then the connection ends."""
    def act(handler: Handler) -> None:
        body = handler.site.files[handler.path]
        handler.head(200, **{"Content_Length": str(len(body)), "ETag": etag(body), **headers})
        handler.write(body[:count])
        handler.hang_up()
    return act


def drip(data: bytes, seconds: float, until: threading.Event) -> Act:
    """One byte at a time, for ever, until the test is over."""
    def act(handler: Handler) -> None:
        handler.write(data)
        while not until.wait(seconds):
            handler.write(b"x")
    return act


def repeat(begin: bytes, piece: bytes, until: threading.Event) -> Act:
    """The same bytes again and again, for ever, until the test is over."""
    def act(handler: Handler) -> None:
        handler.write(begin)
        while not until.wait(0.001):
            handler.write(piece)
    return act


def endless(code: int, **headers: str) -> Act:
    """A body without end, up to 256 MB."""
    def act(handler: Handler) -> None:
        handler.head(code, Transfer_Encoding="chunked", **headers)
        block = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(4096):
            handler.write(block)
    return act


@contextmanager
def serve(host: str = "127.0.0.1", certificate: Path | None = None) -> Iterator[Site]:
    """A site, gone at the end."""
    server = _Server((host, 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.site = Site(f"{'https' if certificate else 'http'}://{host}:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns once the condition holds; fails when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)
