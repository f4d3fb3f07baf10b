"""What is no call of the API proper: liveness, readiness, and the dashboard: one page and its files.

The files are those of nommerd/dashboard, read once; a name in a request only ever chooses among them. Browsers keep them, and
ask each time whether they are still the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

from pydantic import BaseModel

from nommerd import logs
from nommerd.api.problems import busy, refuse
from nommerd.api.route import Answer, Call, Route
from nommerd.errors import NommerdError

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
          "media-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
GUARDS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
          "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
          "Permissions-Policy": "camera=(), geolocation=(), microphone=()"}
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".svg": "image/svg+xml"}
PAGE = "index.html"
FOLDERS = ("static", "vendor")  # of nommerd/dashboard; all that is in them is served under /static/


class Status(BaseModel):
    """`ok`, or `ready`."""

    status: str


@dataclass(frozen=True, slots=True)
class File:
    """A file of the dashboard, as it is sent."""

    body: bytes
    content_type: str
    etag: str

    def answer(self, call: Call) -> Answer:
        """The file, or 304 where the browser has it."""
        headers = {**GUARDS, "ETag": self.etag, "Cache-Control": "no-cache"}
        if call.header("If-None-Match") == self.etag:
            return Answer(status=304, body=b"", content_type=self.content_type, headers=headers)
        return Answer(body=self.body, content_type=self.content_type, headers=headers)


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
        return dashboard_files()[PAGE].answer(call)

    def static(call: Call) -> Answer:
        file = dashboard_files().get(call.path["name"])
        if file is None or call.path["name"] == PAGE:
            raise refuse(404, "path", "request.unknown_path", "There is nothing here.")
        return file.answer(call)

    return [
        Route(method="GET", path="/healthz", scope=None, handle=healthz, answers={200: Status},
              summary="Whether the process runs."),
        Route(method="GET", path="/readyz", scope=None, handle=readyz, answers={200: Status},
              summary="Whether the feeder can take jobs."),
        Route(method="GET", path="/", scope=None, handle=dashboard, answers={200: None, 304: None}, summary="The dashboard."),
        Route(method="GET", path="/static/{name}", scope=None, handle=static, answers={200: None, 304: None, 404: None},
              summary="The dashboard's own files."),
    ]


@cache
def dashboard_files() -> dict[str, File]:
    """The dashboard's page and files, by name."""
    root = files("nommerd") / "dashboard"
    found = [root / PAGE, *(entry for folder in FOLDERS for entry in (root / folder).iterdir())]
    return {entry.name: _file(entry.read_bytes(), kind) for entry in found
            if (kind := TYPES.get("." + entry.name.rpartition(".")[2]))}


def _file(body: bytes, content_type: str) -> File:
    return File(body, content_type, f'"{sha256(body).hexdigest()[:32]}"')
