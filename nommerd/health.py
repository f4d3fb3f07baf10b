"""A worker's own port: is it alive, is it ready for work, and what Prometheus wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nommerd.api.server import Server
from nommerd.errors import ConfigError

CONNECTIONS_MAX = 32  # under the API server's limits: nobody can hold the worker by its health port
TEXT = "text/plain; charset=utf-8"

Metrics = Callable[[str], tuple[bytes, str]]  # Accept -> text and content type


def serve(host: str, port: int, ready: Callable[[], bool], metrics: Metrics) -> Server:
    """Answer GET /healthz (always, while the process runs), /readyz (200 or 503) and /metrics on this address. No token is
    asked for, and nothing here is secret.

    Stop it with `stop(timeout)`. ConfigError when the address cannot be used.
    """
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, body, content_type = _answer(environ, ready, metrics)
        start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body))),
                                ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    try:
        server = Server(host, port, application, CONNECTIONS_MAX)
    except ConfigError as error:
        raise ConfigError("config.port_taken", f"The worker's health port {port} cannot be used: {error.message}",
                          "Give each worker of a machine its own, or null.", place="worker.health_port") from None
    server.start()
    return server


def _answer(environ: dict[str, Any], ready: Callable[[], bool], metrics: Metrics) -> tuple[str, bytes, str]:
    path = environ.get("PATH_INFO", "")
    if path not in ("/healthz", "/readyz", "/metrics"):
        return "404 Not Found", b"not found\n", TEXT
    if environ.get("REQUEST_METHOD", "") not in ("GET", "HEAD"):
        return "405 Method Not Allowed", b"GET only\n", TEXT
    if path == "/metrics":
        return "200 OK", *metrics(environ.get("HTTP_ACCEPT", ""))
    if path == "/readyz" and not ready():
        return "503 Service Unavailable", b"not ready\n", TEXT
    return "200 OK", b"ok\n", TEXT
