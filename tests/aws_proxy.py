"""A proxy in front of the AWS emulator: counts what is asked, breaks what a test wants broken, and holds rules of AWS that
the emulator does not.

`with AwsProxy() as proxy:` then clients use `proxy.url`. An action is AWS's name for the operation, whatever the protocol says
it in: `ReceiveMessage`, `PutItem`, `UploadPart`. Faults of one action are used up in the order they were asked for:

    proxy.fail("ReceiveMessage", times=3, status=503)
    proxy.lose_answer("SendMessageBatch")          # carried out, the connection closed instead of an answer
    with proxy.dark(): ...                         # nobody is answered, not even those who ask already
    proxy.count("ReceiveMessage", "prefix-jobs-high")
    proxy.rules.append(rule)                       # rule(call, forward) -> Answer, around every call
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from threading import Event, Thread
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.emulator import emulator
from tests.quiet_server import QuietServer

HELD_SECONDS = 120.0  # a caller in a silent outage is held so long at most
UPSTREAM_SECONDS = 60.0
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


@dataclass
class Call:
    """One request. `resource`: the queue's, table's or domain's name, or `bucket/key`; empty where there is none."""

    service: str  # as credentials name it: sqs, dynamodb, s3, sdb, ec2
    action: str
    resource: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)
    status: int | None = None  # of the answer; None: not answered (yet)

    @property
    def json(self) -> dict[str, Any]:
        """The fields of the JSON protocols (SQS, DynamoDB)."""
        return dict(json.loads(self.body or b"{}"))

    @property
    def form(self) -> dict[str, str]:
        """The fields of the query protocols (EC2, SimpleDB, IAM)."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body or b"{}"))

    def with_json(self, value: object) -> Answer:
        return replace(self, body=json.dumps(value).encode())


Forward = Callable[[Call], Answer]
Rule = Callable[[Call, Forward], "Answer | None"]  # None: the connection is closed without an answer


class AwsProxy:
    """Until `close`. `calls` holds every request, the newest last."""

    def __init__(self, upstream: str | None = None) -> None:
        self.upstream = urlsplit(upstream or emulator().url)
        self.calls: list[Call] = []
        self.rules: list[Rule] = []
        self._faults: list[_Fault] = []
        self._dark: _Dark | None = None
        self.open: set[socket.socket] = set()  # connections of clients
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def __enter__(self) -> AwsProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.light()
        self._server.shutdown()
        self._server.server_close()

    # --- what was asked ------------------------------------------------------------------------------------------

    def asked(self, action: str | None = None, resource: str | None = None) -> list[Call]:
        """The calls of this action on this resource."""
        return [call for call in self.calls if action in (None, call.action) and resource in (None, call.resource)]

    def count(self, action: str | None = None, resource: str | None = None) -> int:
        return len(self.asked(action, resource))

    # --- faults --------------------------------------------------------------------------------------------------

    def fail(self, action: str, *, times: float = 1, status: int = 503, code: str = "ServiceUnavailable",
             message: str = "Injected.", resource: str | None = None, when: Callable[[Call], bool] | None = None) -> None:
        """Answer the next `times` calls of this action (float("inf"): all) with this error; nothing is carried out."""
        self._add(action, times, resource, when, lambda call, forward: error_answer(call, status, code, message))

    def throttle(self, action: str, *, times: float = 1, when: Callable[[Call], bool] | None = None) -> None:
        self.fail(action, times=times, status=400, code="ThrottlingException", message="Rate exceeded", when=when)

    def lose_answer(self, action: str, *, times: float = 1, resource: str | None = None,
                    when: Callable[[Call], bool] | None = None) -> None:
        """The call is carried out, and the connection closed instead of the answer."""
        def rule(call: Call, forward: Forward) -> None:
            forward(call)

        self._add(action, times, resource, when, rule)

    def reset(self, action: str, *, times: float = 1, resource: str | None = None) -> None:
        """The connection is closed; nothing is carried out."""
        self._add(action, times, resource, None, lambda call, forward: None)

    def alter(self, action: str, change: Callable[[Call, Answer], Answer], *, times: float = 1, resource: str | None = None,
              when: Callable[[Call], bool] | None = None) -> None:
        """The call is carried out, and its answer changed."""
        self._add(action, times, resource, when, lambda call, forward: change(call, forward(call)))

    def clear(self) -> None:
        """No more faults."""
        self._faults.clear()

    @contextmanager
    def dark(self, silent: bool = False) -> Iterator[None]:
        """An outage: every connection is closed, or with `silent` never answered. Calls under way get no answer either."""
        self.go_dark(silent)
        try:
            yield
        finally:
            self.light()

    def go_dark(self, silent: bool = False) -> None:
        self._dark = _Dark(silent)
        if not silent:
            for connection in list(self.open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def light(self) -> None:
        """The end of the outage; who was held is let go, unanswered."""
        dark, self._dark = self._dark, None
        if dark is not None:
            dark.over.set()

    def _add(self, action: str, times: float, resource: str | None, when: Callable[[Call], bool] | None, rule: Rule) -> None:
        self._faults.append(_Fault(action, times, resource, when, rule))

    # --- one call ------------------------------------------------------------------------------------------------

    def serve(self, call: Call, forward: Forward) -> Answer | None:
        """The answer, or None where there is to be none."""
        self.calls.append(call)
        if self._hidden():
            return None
        fault = next((fault for fault in self._faults if fault.fits(call)), None)
        if fault is not None:
            fault.times -= 1
            answer = fault.rule(call, forward)
        else:
            answer = self._by_rules(call, forward, list(self.rules))
        if answer is None or self._hidden():
            return None
        call.status = answer.status
        return answer

    def _by_rules(self, call: Call, forward: Forward, rules: list[Rule]) -> Answer | None:
        if not rules:
            return forward(call)
        return rules[0](call, lambda changed: self._by_rules(changed, forward, rules[1:]) or error_answer(
            changed, 500, "InternalFailure", "no answer"))

    def _hidden(self) -> bool:
        dark = self._dark
        if dark is not None and dark.silent:
            dark.over.wait(HELD_SECONDS)
        return dark is not None


@dataclass(eq=False)
class _Dark:
    silent: bool
    over: Event = field(default_factory=Event)


@dataclass(eq=False)
class _Fault:
    action: str
    times: float
    resource: str | None
    when: Callable[[Call], bool] | None
    rule: Rule

    def fits(self, call: Call) -> bool:
        return (self.times > 0 and call.action == self.action and self.resource in (None, call.resource)
                and (self.when is None or self.when(call)))


class _Server(QuietServer):
    proxy: AwsProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _connection: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        body = self._body()
        call = parsed(self.command, self.path, dict(self.headers.items()), body)
        answer = self.server.proxy.serve(call, self._forward)
        if answer is None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.command == "HEAD":
            length = next((value for name, value in answer.headers if name.lower() == "x-proxied-length"), "0")
        else:
            length = str(len(answer.body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def setup(self) -> None:
        super().setup()
        self.server.proxy.open.add(self.connection)

    def finish(self) -> None:
        self.server.proxy.open.discard(self.connection)
        if self._connection is not None:
            self._connection.close()
        super().finish()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, call: Call) -> Answer:
        for fresh in (False, True):
            try:
                return self._ask(call, fresh)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if fresh:
                    raise
        raise AssertionError

    def _ask(self, call: Call, fresh: bool) -> Answer:
        upstream = self.server.proxy.upstream
        if self._connection is None or fresh:
            assert upstream.hostname is not None
            self._connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=UPSTREAM_SECONDS)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {name: value for name, value in call.headers.items()
                   if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect")}
        self._connection.request(call.method, call.path, call.body, {**headers, "Content-Length": str(len(call.body))})
        response = self._connection.getresponse()
        body = response.read()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP]
        if call.method == "HEAD":
            kept.append(("X-Proxied-Length", response.getheader("Content-Length", "0")))
        return Answer(response.status, kept, body)


# --- what a request is -------------------------------------------------------------------------------------------

_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/[^/]*/([^/]+)/aws4_request")
_S3: tuple[tuple[str, frozenset[str], str, str], ...] = tuple(
    (method, frozenset(words.split()), of_bucket, of_key) for method, words, of_bucket, of_key in (
        ("POST", "uploads", "", "CreateMultipartUpload"), ("POST", "uploadId", "", "CompleteMultipartUpload"),
        ("POST", "delete", "DeleteObjects", ""), ("PUT", "partNumber", "", "UploadPart"),
        ("PUT", "tagging", "", "PutObjectTagging"),
        ("PUT", "", "CreateBucket", "PutObject"), ("GET", "uploadId", "", "ListParts"),
        ("GET", "uploads", "ListMultipartUploads", ""), ("GET", "tagging", "", "GetObjectTagging"),
        ("GET", "versions", "ListObjectVersions", ""), ("GET", "", "ListObjectsV2", "GetObject"),
        ("HEAD", "", "HeadBucket", "HeadObject"), ("DELETE", "uploadId", "", "AbortMultipartUpload"),
        ("DELETE", "", "DeleteBucket", "DeleteObject")))


def parsed(method: str, path: str, headers: dict[str, str], body: bytes) -> Call:
    """The request with its service, action and resource."""
    lower = {name.lower(): value for name, value in headers.items()}
    scope = _SCOPE.search(lower.get("authorization", ""))
    service = scope[1] if scope else ""
    call = Call(service, "", "", method, path, headers, body)
    if target := lower.get("x-amz-target"):
        call.action = target.rpartition(".")[2]
        fields = call.json
        call.resource = str(fields.get("QueueUrl", "")).rpartition("/")[2] or str(
            fields.get("QueueName") or fields.get("TableName") or "")
    elif service == "s3" or (not body.startswith(b"Action=") and b"&Action=" not in body):
        _s3(call)
    else:
        form = call.form
        call.action = form["Action"]
        call.resource = form.get("DomainName") or form.get("QueueUrl", "").rpartition("/")[2]
    return call


def _s3(call: Call) -> None:
    parts = urlsplit(call.path)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    words = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    call.service, call.resource = "s3", f"{bucket}/{key}" if key else bucket
    for method, wanted, of_bucket, of_key in _S3:
        name = of_key if key else of_bucket
        if method == call.method and wanted <= words and name:
            copies = name in ("PutObject", "UploadPart") and any(n.lower() == "x-amz-copy-source" for n in call.headers)
            call.action = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}[name] if copies else name
            if name in ("CreateBucket", "ListObjectsV2", "DeleteBucket") and words - {"list-type", "prefix", "delimiter",
                                                                                      "continuation-token", "max-keys",
                                                                                      "encoding-type", "start-after"}:
                call.action = f"{call.method} ?{sorted(words)[0]}"
            return
    call.action = f"{call.method} {call.path}"


def error_answer(call: Call, status: int, code: str, message: str) -> Answer:
    """An error as this call's protocol says it."""
    kind = "application/xml"
    headers = [("x-amzn-RequestId", "injected")]
    if any(name.lower() == "x-amz-target" for name in call.headers):
        kind, body = "application/x-amz-json-1.0", json.dumps({"__type": f"com.amazonaws.x#{code}", "message": message})
        if call.service == "sqs":
            headers.append(("x-amzn-query-error", f"{code};{'Sender' if status < 500 else 'Receiver'}"))
    elif call.service == "s3":
        body = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    elif call.service in ("ec2", "sdb"):
        body = (f"<Response><Errors><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error></Errors>"
                "<RequestID>injected</RequestID></Response>")
    else:
        body = f"<ErrorResponse><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error></ErrorResponse>"
    return Answer(status, [*headers, ("Content-Type", kind)], b"" if call.method == "HEAD" else body.encode())
