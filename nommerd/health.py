"""A worker's own port: is it alive, is it ready for work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nommerd.api.server import Server
from nommerd.errors import ConfigError

HOST = "127.0.0.1"
CONNECTIONS_MAX = 32  # under the API server's limits: nobody on this machine can hold the worker by its health port


def serve(port: int, ready: Callable[[], bool]) -> Server:
    """Answer GET /healthz (always, while the process runs) and /readyz (200 or 503) on this port of the machine itself.

    Stop it with `stop(timeout)`. ConfigError when the port is taken.
    """
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, body = _answer(environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""), ready)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    try:
        server = Server(HOST, port, application, CONNECTIONS_MAX)
    except ConfigError as error:
        raise ConfigError("config.port_taken", f"The worker's health port {port} cannot be used: {error.message}",
                          "Give each worker of a machine its own, or null.", place="worker.health_port") from None
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
