"""gevent's WSGI server with limits of our own: what one client may hold, and for how long.

A greenlet that never waits is never interrupted, and no time-out reaches it: whoever sends faster than we read would have the
process for himself. So connections take turns: after each request, and after every few reads.

Without TCP_NODELAY each request of a kept-alive connection takes 44 ms: the answer's second segment waits for the
client's delayed acknowledgement.
"""

from __future__ import annotations

import io
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import Input, WSGIHandler, WSGIServer

from nommerd import logs
from nommerd.api.body import BODY_BYTES_MAX
from nommerd.api.problems import PROBLEM_HEADERS, Refusal, refuse
from nommerd.errors import ConfigError

CONNECTIONS_MAX = 1024
CONNECTIONS_SPARE = 32  # when fewer are left, those are closed that let us wait the longest
FILES = 4 * CONNECTIONS_MAX  # descriptors: connections, the outputs that some of them send, the store's, those of programs
BACKLOG = 512
IDLE_SECONDS = 75.0  # a kept-alive connection without a request; also any one read or write
READ_BYTES = 64 * 1024  # at once
READS_A_TURN = 4
TURN_SECONDS = 0.002
BUFFER_BYTES = 4096  # what is looked at byte by byte, the frames of chunks, is looked at within a turn
CHUNKED_BYTES_MAX = 2 * BODY_BYTES_MAX  # of a body with its frames
HEADER_SECONDS = 10.0  # from a request's first byte to the end of its header
HEADER_BYTES_MAX = 32 * 1024
HEADER_LINES_MAX = 100
DISCARD_BYTES_MAX = 8 * 1024 * 1024  # of a body nobody reads; a client that still sends then sees a reset
DISCARD_SECONDS = 2.0
DISCARD_PAUSE_SECONDS = 0.01  # after each READ_BYTES of it: nobody needs it soon
PAUSE = "nommerd.pause"  # in the WSGI environment: `pause(seconds)` makes this client wait, and costs nobody a connection

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VERSION = re.compile(r"HTTP/1\.[01]")
_REFUSALS = {
    400: refuse(400, "header", "request.bad_header", "The request's header cannot be read.", "Send HTTP/1.1."),
    408: refuse(408, "header", "request.too_slow", f"The header did not arrive within {HEADER_SECONDS:.0f} s."),
    414: refuse(414, "path", "request.too_large", "The request line is too long."),
    431: refuse(431, "header", "request.too_large",
                f"The header has more than {HEADER_LINES_MAX} lines or {HEADER_BYTES_MAX} bytes."),
}


_Fields = type(WSGIHandler.headers)  # what pywsgi expects: a message, without the parser, which takes most of its time


class _Bad(ValueError):
    """A request that is refused before the application sees it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _answer(refusal: Refusal) -> bytes:
    """What is sent for a request that never reached the application; the connection ends behind it."""
    body = refusal.body()
    lines = [f"HTTP/1.1 {refusal.status} {refusal.json()['title']}", "Connection: close", f"Content-Length: {len(body)}",
             *(f"{name}: {value}" for name, value in PROBLEM_HEADERS.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Turns(io.RawIOBase):
    """The bytes of a connection, as many as `left` allows. Others have their turn every few reads, and after each that was
    followed by work, however much is there to be read."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self.left = 0
        self._connection = connection
        self._reads = 0
        self._since = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._reads += 1
        if self._reads % READS_A_TURN == 0 or time.monotonic() - self._since > TURN_SECONDS:
            gevent.sleep(0)
        count = self._connection.recv_into(memoryview(buffer)[:min(READ_BYTES, self.left)]) if self.left > 0 else 0
        self.left -= count
        self._since = time.monotonic()
        return count


class _Input(Input):  # type: ignore[misc]
    """A body whose unread rest is thrown away only so far; then the connection ends."""

    handler: Handler

    def read(self, length: int | None = None) -> bytes:
        """As theirs. Behind a body that breaks off or is no chunked one, nobody knows where the next request begins."""
        try:
            with self.handler.waiting():
                return super().read(length)  # type: ignore[no-any-return]
        except OSError:
            self._chunked_input_error = self.handler.close_connection = True
            raise

    def _discard(self) -> None:
        if self._chunked_input_error or not (self.chunked_input or self.position < (self.content_length or 0)):
            return
        self.send_100_continue_enabled = False
        if self.socket is not None:  # it waits for our 100 Continue, and will not get it
            self.handler.close_connection = True
            return
        left = DISCARD_BYTES_MAX
        with gevent.Timeout(DISCARD_SECONDS, False):
            while left > 0:
                read = len(self.read(READ_BYTES))
                if not read:
                    return
                left -= read
                gevent.sleep(DISCARD_PAUSE_SECONDS)
        self.handler.close_connection = True


class Handler(WSGIHandler):  # type: ignore[misc]
    """One connection."""

    _held: bytearray | None = None  # of an answer, until its first piece is complete

    def __init__(self, connection: socket.socket, address: Any, server: Server) -> None:
        self._raw = _Turns(connection)
        self._cut = Event()
        super().__init__(connection, address, server, rfile=io.BufferedReader(self._raw, BUFFER_BYTES))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the client is to do something: read, or send. It may have to give way."""
        self.server.waiting[self] = None
        try:
            yield
        finally:
            self.server.waiting.pop(self, None)

    def handle(self) -> None:
        """Serve its requests until it ends, is idle for too long, or has to give way."""
        self.socket.settimeout(IDLE_SECONDS)
        with suppress(OSError):  # the client went away in the middle of a refusal
            super().handle()

    def pause(self, seconds: float) -> None:
        """Answer this client so much later."""
        self._cut = Event()
        with self.waiting():
            self._cut.wait(seconds)

    def cut_off(self) -> None:
        """End the connection, whatever it waits for."""
        with suppress(OSError):  # closed already
            self.socket.shutdown(socket.SHUT_RDWR)
        self._cut.set()

    def hurry(self) -> None:
        """End a pause that it is in."""
        self._cut.set()

    def read_requestline(self) -> str:
        """The request line; idle until its first byte."""
        self.server.idle[self] = self.socket
        try:
            first = self.rfile.peek(1)
        finally:
            self.server.idle.pop(self, None)
        if not first:
            return ""
        self._header_until = time.monotonic() + HEADER_SECONDS
        with gevent.Timeout(HEADER_SECONDS, TimeoutError):
            return super().read_requestline()  # type: ignore[no-any-return]

    def read_request(self, raw_requestline: str) -> bool:
        """The header, in time and of a bounded size."""
        words = raw_requestline.split()
        if len(words) != 3 or not _VERSION.fullmatch(words[2]):
            raise _Bad(400)
        with gevent.Timeout(max(0.001, self._header_until - time.monotonic()), _Bad(408)):
            self._block = self._read_block()
        self.server.waiting.pop(self, None)
        _check_framing(self._block)
        return super().read_request(raw_requestline)  # type: ignore[no-any-return]

    def MessageClass(self, *args: Any) -> Any:
        """The header fields from the lines that were read under our limits: none is folded, each has its colon."""
        message = _Fields()
        for line in self._block.decode("latin-1").split("\n"):
            name, colon, value = line.partition(":")
            if colon:
                message[name] = value.strip(" \t\r")
        return message

    def _read_block(self) -> bytes:
        lines: list[bytes] = []
        left = HEADER_BYTES_MAX
        while left > 0 and len(lines) <= HEADER_LINES_MAX:
            line = self.rfile.readline(left + 1)
            left -= len(line)
            lines.append(line)
            if line in (b"\r\n", b"\n"):
                return b"".join(lines)
            if not line.endswith(b"\n") and left >= 0:
                raise _Bad(400)  # it ended in the middle
            if line[:1] in b" \t" or b":" not in line or _CONTROL.search(line.rstrip(b"\r\n")):
                raise _Bad(400)  # no folded lines, nothing that is not a field, no other line ends
        raise _Bad(431)

    def get_environ(self) -> dict[str, Any]:
        """The WSGI environment, its body reader ours."""
        environ: dict[str, Any] = super().get_environ()
        theirs: Input = environ["wsgi.input"]
        mine = _Input(self.rfile, self.content_length, socket=theirs.socket, chunked_input=theirs.chunked_input)
        mine.handler = self
        if theirs.chunked_input:
            self._raw.left = CHUNKED_BYTES_MAX
        self.wsgi_input = environ["wsgi.input"] = mine
        environ[PAUSE] = self.pause
        return environ

    def handle_one_request(self) -> Any:
        """True to go on with the connection; else a last answer, or None."""
        gevent.sleep(0)  # the next request may be here already
        self._raw.left = READ_BYTES + HEADER_BYTES_MAX + DISCARD_BYTES_MAX
        with self.waiting():
            self.server.make_room()
            result = super().handle_one_request()
        return ("414", _answer(_REFUSALS[414])) if isinstance(result, tuple) and result[0] == "414" else result

    def _connection_upgrade_requested(self) -> bool:
        """Never: asking for a WebSocket gives nobody another body reader than ours."""
        return False

    def _write_with_headers(self, data: bytes) -> None:
        """Header and body in one send."""
        self._held = bytearray()
        try:
            super()._write_with_headers(data)
        finally:
            held, self._held = self._held, None
        self._sendall(held)

    def _sendall(self, data: bytes | bytearray) -> None:
        if self._held is None:
            with self.waiting():
                super()._sendall(data)
        else:
            self._held += data

    def log_request(self) -> None:
        """No access log."""

    def log_error(self, msg: str, *args: Any) -> None:
        """What a client did wrong is no error of ours."""

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        if isinstance(v, TimeoutError):
            return  # it did not read our answer, or send its body, in time
        logs.get().error("api.connection_failed", exc_info=(t, v, tb))

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        status = ex.status if isinstance(ex, _Bad) else 408 if isinstance(ex, TimeoutError) else 400
        if not isinstance(ex, ValueError | OSError):
            logs.get().error("api.request_failed", exc_info=ex)
        self.close_connection = True
        return f"{status}", _answer(_REFUSALS[status])


def _check_framing(block: bytes) -> None:
    """Refuse a header that says in two ways, or unclearly, where its body ends: another reader may see it elsewhere."""
    fields = [line.split(b":", 1) for line in block.splitlines() if line]
    if any(name != name.strip() for name, _ in fields):
        raise _Bad(400)
    framing = [(name.lower(), value.strip().lower()) for name, value in fields
               if name.lower() in (b"content-length", b"transfer-encoding")]
    if len(framing) > 1:
        raise _Bad(400)
    for name, value in framing:
        if not (value.isdigit() if name == b"content-length" else value == b"chunked"):
            raise _Bad(400)


class Server(WSGIServer):  # type: ignore[misc]
    """Serves an application on an address. `start` listens; `finish` stops within a time."""

    handler_class = Handler

    def __init__(self, host: str, port: int, application: Callable[..., Any], connections_max: int = CONNECTIONS_MAX) -> None:
        self.idle: dict[Handler, socket.socket] = {}  # between requests
        self.waiting: dict[Handler, None] = {}  # for the client, idle or slow: who does so for the longest stands first
        self._spare = min(CONNECTIONS_SPARE, connections_max // 4)
        super().__init__(_listener(host, port), application, spawn=Pool(connections_max), log=None, error_log=None,
                         environ={"SERVER_NAME": host})  # else it asks the name service for our name

    def make_room(self) -> None:
        """Cut off whoever lets us wait the longest when hardly any connections are left for others; called as each begins to
        wait."""
        if self.pool.free_count() < self._spare and len(self.waiting) > 1:
            handler = next(iter(self.waiting))
            del self.waiting[handler]
            handler.cut_off()

    def finish(self, within_seconds: float) -> None:
        """Accept nothing more, close idle connections, and let running requests end for so long."""
        self.close()
        for handler in list(self.waiting):
            handler.hurry()
        deadline = time.monotonic() + within_seconds
        while len(self.pool) and time.monotonic() < deadline:
            for connection in list(self.idle.values()):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.pool.join(timeout=0.05)
        self.pool.kill(block=True, timeout=1)


def allow_files() -> None:
    """Let this process open FILES files, as far as the hard limit goes: 1024, the usual one, are its connections alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send at once. ConfigError when the address is taken or not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError("config.bad_address", f"Cannot listen on {host}: {error.strerror}.", place="api.host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError("config.bad_address", f"Cannot listen on {host}:{port}: {error.strerror}.",
                          "Is another feeder running? Set api.port to a free one.", place="api.port") from None
    return listener
