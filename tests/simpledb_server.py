"""A small SimpleDB that holds its clients to Amazon's documentation (tests.simpledb_service), on the wire.

No emulator knows SimpleDB's conditions and selects, so this one stands in: query protocol, signatures (version 2), errors as
XML, and faults on demand.

    python -m tests.simpledb_server PORT [--upstream URL] [--page N] [--scan N] [--lag SECONDS]

With an upstream (an AWS emulator) it passes on whatever is not for SimpleDB, so that one endpoint serves all services.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit
from xml.sax.saxutils import escape

from tests.emulator import ACCESS_KEY, SECRET_KEY
from tests.quiet_server import QuietServer
from tests.rig import free_port, listening, wait_until
from tests.simpledb_service import ACTIONS, NOT_XML, WITH_RESULT, Fault, Parameters, Refused, SimpleDB

VERSION = "2009-04-15"
NAMESPACE = f"http://sdb.amazonaws.com/doc/{VERSION}/"
BOX_USAGE = "0.0000219907"
REQUEST_BYTES = 1024 * 1024
START_SECONDS = 30.0
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade", "proxy-connection"})


def signature(secret: str, host: str, path: str, parameters: Parameters) -> str:
    """Signature version 2 of a POST."""
    signed = "&".join(f"{quote(name, safe='-_.~')}={quote(parameters[name], safe='-_.~')}"
                      for name in sorted(parameters) if name != "Signature")
    digest = hmac.new(secret.encode(), f"POST\n{host.lower()}\n{path}\n{signed}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: _Listener

    def do_POST(self) -> None:
        body = self._body()
        parameters = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        if parameters.get("Version") == VERSION or self.server.upstream is None:
            self._simpledb(parameters, len(body))
        else:
            self._pass_on(body)

    def _other(self) -> None:
        if self.server.upstream is None:
            self._error(Refused(400, "InvalidAction", "This server takes POST alone."))
        else:
            self._pass_on(self._body())

    do_GET = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = do_PATCH = _other

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def _simpledb(self, parameters: Parameters, size: int) -> None:
        action = parameters.get("Action", "")
        service = self.server.service
        try:
            self._authenticate(parameters)
            if action not in ACTIONS:
                raise Refused(400, "InvalidAction", f"The action {action[:60]} is not valid for this web service.")
            if size > REQUEST_BYTES:
                raise Refused(413, "RequestTooLarge", "The request is larger than 1 MB.")
            fault = service.next_fault(action)
            if fault is Fault.CUT:
                return self._hang_up()
            if fault is not None and fault is not Fault.LOST:
                raise Refused(*fault.value)
            result = service.call(parameters)
            if fault is Fault.LOST:
                return self._hang_up()
        except Refused as error:
            return self._error(error)
        if action in WITH_RESULT:
            result = f"<{action}Result>{result}</{action}Result>"
        self._answer(200, f'<?xml version="1.0"?>\n<{action}Response xmlns="{NAMESPACE}">{result}<ResponseMetadata><RequestId>'
                     f"{os.urandom(8).hex()}</RequestId><BoxUsage>{BOX_USAGE}</BoxUsage></ResponseMetadata></{action}Response>")
        return None

    def _authenticate(self, parameters: Parameters) -> None:
        secret = self.server.keys.get(parameters.get("AWSAccessKeyId", ""))
        if secret is None:
            raise Refused(403, "InvalidClientTokenId", "The AWS Access Key Id you provided does not exist in our records.")
        wanted = signature(secret, self.headers["Host"], self.path or "/", parameters)
        if parameters.get("SignatureVersion") != "2" or not hmac.compare_digest(wanted, parameters.get("Signature", "")):
            raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you "
                          "provided. Check your AWS Secret Access Key and signing method.")

    def _error(self, error: Refused) -> None:
        self._answer(error.status, f'<?xml version="1.0"?>\n<Response><Errors><Error><Code>{error.code}</Code>'
                     f"<Message>{escape(NOT_XML.sub('?', error.message))}</Message><BoxUsage>{BOX_USAGE}</BoxUsage></Error>"
                     f"</Errors><RequestID>{os.urandom(8).hex()}</RequestID></Response>")

    def _answer(self, status: int, xml: str) -> None:
        body = xml.encode()
        self._send(status, {"Content-Type": "text/xml;charset=UTF-8", "Content-Length": str(len(body))}, body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n")  # type: ignore[attr-defined]
        head = b"".join(self._headers_buffer)  # type: ignore[attr-defined]
        self._headers_buffer = []
        self.wfile.write(head + body)  # in one segment: two would wait for one another's acknowledgement

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def handle_expect_100(self) -> bool:
        return True  # `_body` says so, once it is certain that it reads

    def _pass_on(self, body: bytes) -> None:
        parts = urlsplit(self.server.upstream or "")
        upstream = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP | {"expect"}}
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            content = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
            length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self._send(answer.status, {**kept, "Content-Length": length}, content)
        finally:
            upstream.close()


class _Listener(QuietServer):
    def __init__(self, port: int, service: SimpleDB, upstream: str | None, keys: Mapping[str, str]) -> None:
        self.service, self.upstream, self.keys = service, upstream, keys
        super().__init__(("127.0.0.1", port), _Handler)


class SimpleDBServer:
    """The service on a port of 127.0.0.1, within this process, until `stop`. `service` is open to faults and looks."""

    def __init__(self, port: int = 0, *, upstream: str | None = None, keys: Mapping[str, str] | None = None,
                 **options: Any) -> None:
        self.service = SimpleDB(**options)
        self._listener = _Listener(port, self.service, upstream, keys or {ACCESS_KEY: SECRET_KEY})
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join(5)

    def __enter__(self) -> SimpleDBServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class SimpleDBProcess:
    """The same as a process of its own, for daemons; ends with this one. `upstream`: see the module."""

    def __init__(self, *, upstream: str | None = None, **options: float) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "tests.simpledb_server", str(port), "--until-stdin-closes"]
        command += ["--upstream", upstream] if upstream else []
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        wait_until(lambda: listening(port) or self._process.poll() is not None, START_SECONDS, "the SimpleDB server listens")
        assert self._process.poll() is None, "the SimpleDB server did not start"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def main(arguments: list[str] | None = None) -> None:
    """The server as a program: see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.simpledb_server", description="A small SimpleDB for tests.")
    parser.add_argument("port", type=int)
    parser.add_argument("--upstream", help="where to pass on what is not for SimpleDB, http://127.0.0.1:5000 for example")
    parser.add_argument("--page", type=int, default=2500, help="the most items of a page")
    parser.add_argument("--scan", type=int, default=1_000_000, help="how many items are looked at for a page")
    parser.add_argument("--lag", type=float, default=0.0, help="seconds by which inconsistent reads lag")
    parser.add_argument("--key", default=f"{ACCESS_KEY}:{SECRET_KEY}", help="the account's ID:SECRET")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with whoever started this")
    given = parser.parse_args(arguments)
    key_id, _, secret = given.key.partition(":")
    server = SimpleDBServer(given.port, upstream=given.upstream, keys={key_id: secret}, page_items=given.page,
                            scan_items=given.scan, lag_seconds=given.lag)
    print(server.url, flush=True)
    try:
        if given.until_stdin_closes:
            sys.stdin.buffer.read()
        else:
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    server.stop()


if __name__ == "__main__":
    main()
