"""What is no call of the API proper: liveness, readiness, and the dashboard's page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.resources import files

from nommerd import logs
from nommerd.api.problems import busy
from nommerd.api.route import Answer, Call, Route
from nommerd.errors import NommerdError


def page_routes(ready: Callable[[], None]) -> list[Route]:
    """`ready` returns when the feeder can take jobs, else raises NommerdError."""

    def healthz(call: Call) -> Answer:
        return Answer(value={"status": "ok"})

    def readyz(call: Call) -> Answer:
        try:
            ready()
        except NommerdError as error:
            logs.get().warning("api.not_ready", why=str(error))
            raise busy("The server cannot take jobs now.") from None
        return Answer(value={"status": "ready"})

    def dashboard(call: Call) -> Answer:
        page, policy = _dashboard()
        return Answer(body=page, content_type="text/html; charset=utf-8", headers={
            "Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin"})

    return [
        Route(method="GET", path="/healthz", scope=None, handle=healthz, summary="Whether the process runs."),
        Route(method="GET", path="/readyz", scope=None, handle=readyz, summary="Whether the feeder can take jobs."),
        Route(method="GET", path="/", scope=None, handle=dashboard, summary="The dashboard."),
    ]


@cache
def _dashboard() -> tuple[bytes, str]:
    """The page and its content security policy, which allows exactly the script and the style that are in it."""
    page = (files("nommerd") / "dashboard" / "index.html").read_text(encoding="utf-8")
    policy = ("default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
              f"script-src {_hash_of(page, 'script')}; style-src {_hash_of(page, 'style')}")
    return page.encode(), policy


def _hash_of(page: str, tag: str) -> str:
    inner = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(sha256(inner.encode()).digest()).decode()}'"
