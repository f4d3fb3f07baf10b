"""AWS's documented rules for S3 in front of the emulator, which does not hold them, and faults as a test scripts them.

Held here: a part's Content-MD5 and the checksums are those of its body (BadDigest); an upload that was aborted or completed
takes neither parts nor a completion (NoSuchUpload); a completion on If-None-Match fails where an object is (412); HEAD tells
how many parts a checksum is composed of.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Action = Callable[["Exchange"], None]
HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


@dataclass
class Exchange:
    """A request, and its answer once there is one. Faults change it, or raise Hangup."""

    operation: str  # UploadPart, CompleteMultipartUpload, GetObject …
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # lower-case names
    body: bytes
    status: int = 0
    answer: list[tuple[str, str]] = field(default_factory=list)
    content: bytes = b""
    send_bytes: int | None = None  # of the content, then the connection is cut

    def refuse(self, status: int, code: str) -> None:
        """Answer with one of S3's errors."""
        self.status = status
        self.answer = [("Content-Type", "application/xml")]
        self.content = f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


class Hangup(Exception):
    """Close the connection without an answer."""


@dataclass
class _Fault:
    operation: str
    times: int
    before: Action | None
    after: Action | None
    when: Callable[[Exchange], bool]


class S3Proxy:
    """`url` is the endpoint; `seen` what was asked, in order."""

    def __init__(self, emulator_url: str) -> None:
        parts = urlsplit(emulator_url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self.uploads: dict[str, str] = {}  # id -> open, aborted, completed
        self.seen: list[Exchange] = []
        self.forgets_completed = True  # a completed upload is not known any longer (AWS: after a while)
        proxy = self

        class Handler(_Handler):
            parent = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget faults and what was asked."""
        with self._lock:
            self._faults.clear()
        self.seen.clear()
        self.uploads.clear()

    def fault(self, operation: str, *, before: Action | None = None, after: Action | None = None, times: int = 1,
              when: Callable[[Exchange], bool] = lambda exchange: True) -> None:
        """For the next `times` requests of this operation: `before` may answer instead of the emulator, `after` changes
        what it answered."""
        with self._lock:
            self._faults.append(_Fault(operation, times, before, after, when))

    def asked(self, operation: str) -> list[Exchange]:
        return [exchange for exchange in self.seen if exchange.operation == operation]

    @property
    def open_uploads(self) -> list[str]:
        return [id for id, state in self.uploads.items() if state == "open"]

    def take(self, exchange: Exchange) -> _Fault | None:
        """The fault that this request gets, if any."""
        with self._lock:
            for fault in self._faults:
                if fault.operation == exchange.operation and fault.times > 0 and fault.when(exchange):
                    fault.times -= 1
                    return fault
        return None

    def exchange(self, exchange: Exchange) -> None:
        """Fill in the answer."""
        self.seen.append(exchange)
        fault = self.take(exchange)
        if fault and fault.before:
            fault.before(exchange)
        if not exchange.status:
            self._check(exchange)
        if not exchange.status:
            self._forward(exchange)
            self._note(exchange)
        if fault and fault.after:
            fault.after(exchange)

    def _check(self, exchange: Exchange) -> None:
        upload = exchange.query.get("uploadId")
        state = self.uploads.get(upload or "", "unknown")
        if upload and state != "open" and not (state == "completed" and not self.forgets_completed):
            exchange.refuse(404, "NoSuchUpload")
        elif exchange.operation == "UploadPart" and not digests_fit(exchange):
            exchange.refuse(400, "BadDigest")

    def _note(self, exchange: Exchange) -> None:
        upload = exchange.query.get("uploadId", "")
        if exchange.operation == "CreateMultipartUpload" and exchange.status == 200:
            match = re.search(rb"<UploadId>([^<]+)</UploadId>", exchange.content)
            assert match
            self.uploads[match[1].decode()] = "open"
        elif exchange.operation == "HeadObject":
            self._say_parts(exchange)
        elif exchange.operation == "AbortMultipartUpload" and exchange.status == 204:
            self.uploads[upload] = "aborted"
        elif exchange.operation == "CompleteMultipartUpload" and exchange.status == 200:
            self.uploads[upload] = "completed"

    @staticmethod
    def _say_parts(exchange: Exchange) -> None:
        told = {name.lower(): value for name, value in exchange.answer}
        parts = told.get("etag", "").strip('"').partition("-")[2]
        if parts:
            exchange.answer = [(name, f"{value}-{parts}" if re.fullmatch("x-amz-checksum-(crc32|sha1|sha256)", name.lower())
                                and "-" not in value else value) for name, value in exchange.answer]

    def _forward(self, exchange: Exchange) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=30)
        try:
            method, target = exchange.path.split(" ", 1)
            headers = {name: value for name, value in exchange.headers.items() if name not in ("connection", "expect")}
            connection.request(method, target, exchange.body or None, headers)
            answer = connection.getresponse()
            exchange.status, exchange.content = answer.status, answer.read()
            exchange.answer = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP]
            if method == "HEAD":
                exchange.answer.append(("Content-Length", answer.headers.get("Content-Length", "0")))
        finally:
            connection.close()


def digests_fit(exchange: Exchange) -> bool:
    """Whether the body is the one that the headers tell of."""
    def same(name: str, digest: bytes) -> bool:
        wanted = exchange.headers.get(name)
        return wanted is None or wanted == base64.b64encode(digest).decode()

    sha = exchange.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    return (same("content-md5", hashlib.md5(exchange.body, usedforsecurity=False).digest())
            and same("x-amz-checksum-crc32", binascii.crc32(exchange.body).to_bytes(4, "big"))
            and same("x-amz-checksum-sha256", hashlib.sha256(exchange.body).digest())
            and (not re.fullmatch("[0-9a-f]{64}", sha) or sha == hashlib.sha256(exchange.body).hexdigest()))


def operation_of(method: str, key: str, query: dict[str, str]) -> str:
    """S3's name of a request."""
    if "uploadId" in query:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload",
                "GET": "ListParts"}[method]
    if "uploads" in query:
        return {"POST": "CreateMultipartUpload", "GET": "ListMultipartUploads"}[method]
    return f"{method.capitalize()}{'Object' if key else 'Bucket'}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    parent: S3Proxy

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = parts.path.lstrip("/").partition("/")[2]
        exchange = Exchange(operation_of(self.command, key, query), f"{self.command} {self.path}", query,
                            {name.lower(): value for name, value in self.headers.items()}, body)
        try:
            self.parent.exchange(exchange)
        except Hangup:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(exchange.status)
        for name, value in exchange.answer:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(exchange.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(exchange.content[:exchange.send_bytes])
        if exchange.send_bytes is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextmanager
def s3_proxy(emulator_url: str) -> Iterator[S3Proxy]:
    """A proxy for the length of the block."""
    proxy = S3Proxy(emulator_url)
    try:
        yield proxy
    finally:
        proxy.close()


def answer(status: int, code: str) -> Action:
    """A fault that answers with one of S3's errors."""
    return lambda exchange: exchange.refuse(status, code)


def hang_up(exchange: Exchange) -> None:
    """A fault that closes the connection instead of answering."""
    raise Hangup
