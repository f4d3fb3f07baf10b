"""A worker's own port: is it alive, is it ready for work."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer

from nommerd.errors import ConfigError

HOST = "127.0.0.1"


def serve(port: int, ready: Callable[[], bool]) -> WSGIServer:
    """Answer GET /healthz (always, while the process runs) and /readyz (200 or 503) on this port of the machine itself.

    Stop it with `stop(timeout)`. ConfigError when the port is taken.
    """
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, body = _answer(environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""), ready)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ConfigError("config.port_taken", f"The worker's health port {port} cannot be used: {error.strerror}.",
                          "Give each worker of a machine its own, or null.", place="worker.health_port") from None
    listener.listen(16)
    server = WSGIServer(listener, application, log=None, error_log=None)
    server.start()
    return server


def _answer(method: str, path: str, ready: Callable[[], bool]) -> tuple[str, bytes]:
    if path not in ("/healthz", "/readyz"):
        return "404 Not Found", b"not found\n"
    if method not in ("GET", "HEAD"):
        return "405 Method Not Allowed", b"GET only\n"
    if path == "/readyz" and not ready():
        return "503 Service Unavailable", b"not ready\n"
    return "200 OK", b"ok\n"
