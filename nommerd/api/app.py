"""The WSGI application: every answer is JSON or problem+json, and no fault of ours shows its insides."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request, response

from nommerd import logs
from nommerd.api.auth import ORIGINAL_PATHS, Gate
from nommerd.api.body import read_body
from nommerd.api.jobs import Jobs
from nommerd.api.models import wait_query
from nommerd.api.original import Original, refused
from nommerd.api.problems import PROBLEM, PROBLEM_HEADERS, SAFE_HEADERS, Refusal, busy, from_error, refuse
from nommerd.api.view import job_json
from nommerd.errors import InfrastructureError, InputError, ManyErrors, NommerdError

JSON = "application/json"

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


@dataclass(slots=True, kw_only=True)
class Deps:
    """What the application stands on. `ready` returns when the feeder can take jobs, else raises NommerdError."""

    jobs: Jobs
    gate: Gate
    ready: Callable[[], None]
    original: Original | None = None  # the original system's call


def create_app(deps: Deps) -> Wsgi:
    """The application, for any WSGI server."""
    app = Bottle()
    app.config["catchall"] = False
    app.default_error_handler = _bottle_error
    _add_jobs(app, deps.jobs)
    _add_pages(app, deps.ready)
    if deps.original is not None:
        _add_original(app, deps.original)
    check = deps.gate.check

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            check(environ)
            return app.wsgi(environ, start_response)  # type: ignore[no-any-return]
        except Refusal as error:
            if deps.original is not None and error.status in (401, 429) and environ["PATH_INFO"] in ORIGINAL_PATHS:
                answer = _json(refused(error))
                start_response(answer.status_line, answer.headerlist)
                return [answer.body]
            refusal = error
        except (NommerdError, ManyErrors) as error:
            refusal = _our_error(error)
        except Exception:
            logs.get().exception("api.internal_error", method=environ.get("REQUEST_METHOD"), path=environ.get("PATH_INFO"))
            refusal = refuse(500, "request", "internal.error", "Something went wrong in the server.",
                             "The server's log has the details.")
        body = _begin(refusal, start_response)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]  # a body would be read as the next answer

    return application


def _add_jobs(app: Bottle, jobs: Jobs) -> None:
    def submit() -> HTTPResponse:
        environ = request.environ
        job, new = jobs.submit(read_body(environ), environ.get("HTTP_IDEMPOTENCY_KEY"))
        return _json(job_json(job), 201 if new else 200, Location=f"/v1/jobs/{job.id}")

    def listing() -> HTTPResponse:
        page = jobs.list(request.environ.get("QUERY_STRING", ""))
        return _json({"jobs": [job_json(job) for job in page.jobs], "next": page.next})

    def show(job_id: str) -> HTTPResponse:
        wait_seconds, after = wait_query(request.environ.get("QUERY_STRING", ""))
        return _json(job_json(jobs.show(job_id, wait_seconds, after)))

    def cancel(job_id: str) -> HTTPResponse:
        job, changed = jobs.cancel(job_id)
        return _json(job_json(job), 202 if changed else 200)

    def retry(job_id: str) -> HTTPResponse:
        return _json(job_json(jobs.retry(job_id)), 202)

    app.route("/v1/jobs", "POST", submit)
    app.route("/v1/jobs", "GET", listing)
    app.route("/v1/jobs/<job_id>", "GET", show)
    app.route("/v1/jobs/<job_id>/cancel", "POST", cancel)
    app.route("/v1/jobs/<job_id>/retry", "POST", retry)


def _add_original(app: Bottle, original: Original) -> None:
    def submit() -> HTTPResponse:
        environ = request.environ
        answer, headers = original.submit(lambda: read_body(environ))
        return _json(answer, 200, **headers)

    for path in ORIGINAL_PATHS:
        app.route(path, "POST", submit)


def _add_pages(app: Bottle, ready: Callable[[], None]) -> None:
    def healthz() -> HTTPResponse:
        return _json({"status": "ok"})

    def readyz() -> HTTPResponse:
        try:
            ready()
        except NommerdError as error:
            logs.get().warning("api.not_ready", why=str(error))
            raise busy("The server cannot take jobs now.") from None
        return _json({"status": "ready"})

    def dashboard() -> HTTPResponse:
        page, policy = _dashboard()
        return HTTPResponse(page, 200, {
            "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin", **SAFE_HEADERS})

    app.route("/healthz", "GET", healthz)
    app.route("/readyz", "GET", readyz)
    app.route("/", "GET", dashboard)


def _json(value: Any, status: int = 200, **headers: str) -> HTTPResponse:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return HTTPResponse(body, status, {"Content-Type": JSON, **SAFE_HEADERS, **headers})


def _our_error(error: NommerdError) -> Refusal:
    """What a NommerdError that no call dealt with looks like from outside."""
    if isinstance(error, InputError):
        return from_error(error)
    logs.get().warning("api.unavailable" if isinstance(error, InfrastructureError) else "api.error", why=str(error))
    if isinstance(error, InfrastructureError) and error.retryable:
        return busy("The job store is out of reach.")
    return refuse(500, "request", error.code, "Something went wrong in the server.", "The server's log has the details.")


def _begin(refusal: Refusal, start_response: StartResponse) -> bytes:
    """Send status and headers; returns the body."""
    body = refusal.body()
    phrase = refusal.json()["title"]
    start_response(f"{refusal.status} {phrase}", [("Content-Length", str(len(body))), *PROBLEM_HEADERS.items(),
                                                  *refusal.headers.items()])
    return body


def _bottle_error(error: HTTPError) -> bytes:
    """404, 405 and what else the router refuses."""
    code, message = {404: ("request.unknown_path", "There is nothing here."),
                     405: ("request.bad_method", "This call does not know that method.")}.get(
                         error.status_code, ("request.invalid", "The request cannot be read."))
    response.content_type = PROBLEM
    for name, value in SAFE_HEADERS.items():
        response.set_header(name, value)
    return refuse(error.status_code, "path", code, message).body()


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
