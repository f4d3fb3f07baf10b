"""The WSGI application: every answer is JSON or problem+json, and no fault of ours shows its insides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request, response

from nommerd import logs, metrics
from nommerd.api.access import Access, Scope
from nommerd.api.auth import ORIGINAL_PATHS, Gate
from nommerd.api.original import Original, refused
from nommerd.api.problems import PROBLEM, PROBLEM_HEADERS, SAFE_HEADERS, Refusal, busy, from_error, refuse
from nommerd.api.route import Answer, Call, Route
from nommerd.errors import InfrastructureError, InputError, ManyErrors, NommerdError

ACCESS = "nommerd.access"  # in the WSGI environment: who asks
ROUTE = "nommerd.route"  # which call it is, by its path as OpenAPI has it
NO_ROUTE = "none"  # of what was refused before it came to one
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def create_app(routes: Sequence[Route], gate: Gate, original: Original | None = None) -> Wsgi:
    """The application, for any WSGI server. `original`: the original system's call, where it is wanted."""
    app = Bottle()
    app.config["catchall"] = False
    app.default_error_handler = _bottle_error
    for route in routes:
        app.route(route.path.replace("{", "<").replace("}", ">"), route.method, _handler(route))
    if original is not None:
        _add_original(app, original)

    def application(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        start_response = _measured(environ, start)
        try:
            environ[ACCESS] = gate.check(environ)
            return app.wsgi(environ, start_response)  # type: ignore[no-any-return]
        except Refusal as error:
            if original is not None and error.status in (401, 429) and environ["PATH_INFO"] in ORIGINAL_PATHS:
                answer = Answer(value=refused(error))
                made = _response(answer)
                start_response(made.status_line, made.headerlist)
                return [made.body]
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


def _handler(route: Route) -> Callable[..., HTTPResponse]:
    def handle(**path: str) -> HTTPResponse:
        environ = request.environ
        environ[ROUTE] = route.path
        access: Access = environ[ACCESS]
        check_scope(route, access)
        return _response(route.handle(Call(environ, access, path)))

    return handle


def _measured(environ: dict[str, Any], start: StartResponse) -> StartResponse:
    """`start`, that also counts the request and, unless it waits for news, measures how long its answer took to begin."""
    begun = time.perf_counter()

    def start_response(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        route, method = environ.get(ROUTE, NO_ROUTE), environ["REQUEST_METHOD"]
        metrics.HTTP_REQUESTS.add(route, method if method in METHODS else "other", status[:3])
        if "wait=" not in environ.get("QUERY_STRING", ""):
            metrics.HTTP_SECONDS.observe(time.perf_counter() - begun, route)
        return start(status, headers, *exc_info)

    return start_response


def check_scope(route: Route, access: Access) -> None:
    """Refused with 403 where this token may not make this call."""
    if route.scope is not None and not access.allows(route.scope):
        raise _lacking(route.scope)
    if route.installation and not access.installation:
        raise refuse(403, "header.Authorization", "request.forbidden_scope", "This call concerns all projects.",
                     "Use a token of the project default.")


def _lacking(scope: Scope) -> Refusal:
    return refuse(403, "header.Authorization", "request.forbidden_scope", f"This token lacks the scope {scope}.",
                  "Use one that has it: `nommerd tokens create` makes it.")


def _add_original(app: Bottle, original: Original) -> None:
    def submit() -> HTTPResponse:
        request.environ[ROUTE] = request.path.rstrip("/")
        access: Access = request.environ[ACCESS]
        if not access.allows(Scope.SUBMIT):
            return _response(Answer(value=refused(_lacking(Scope.SUBMIT))))
        answer, headers = original.of(access.project).submit(Call(request.environ, access, {}).body)
        return _response(Answer(value=answer, headers=headers))

    for path in ORIGINAL_PATHS:
        app.route(path, "POST", submit)


def _response(answer: Answer) -> HTTPResponse:
    return HTTPResponse(answer.encoded(), answer.status, {"Content-Type": answer.content_type, **SAFE_HEADERS,
                                                          **answer.headers})


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
