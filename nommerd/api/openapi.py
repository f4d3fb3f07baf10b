"""The API's description as OpenAPI 3.1, made of its routes and their pydantic models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from nommerd import __version__
from nommerd.api.answers import Problem
from nommerd.api.auth import needs_token
from nommerd.api.problems import PROBLEM, phrase
from nommerd.api.route import Answer, Call, Route

OPENAPI_VERSION = "3.1.0"
BEARER = "bearer"
OTHER_TYPES: dict[str, dict[str, Any]] = {
    "text/event-stream": {"type": "object", "properties": {name: {"type": "string"} for name in ("id", "event", "data")}},
    "*/*": {},
}
REFERENCE = "#/components/schemas/{model}"
EVERY_CALL = (400, 403, 404, 405, 408, 414, 429, 431, 500, 503)  # what the server may answer before a call is looked at
WITH_TOKEN = (401, 403)
WITH_BODY = (400, 408, 413, 415, 422)
DESCRIPTION = ("Jobs, presets, pipelines and workers of a nommerd feeder. Send `Authorization: Bearer TOKEN`. What is refused "
               "is answered with a problem document (RFC 9457): one entry in `errors` for each fault, naming its place.")


def openapi_route(routes: Sequence[Route]) -> Route:
    """GET /openapi.json, which describes these routes, and itself once it is one of them."""
    made: list[dict[str, Any]] = []

    def show(call: Call) -> Answer:
        if not made:
            made.append(document(routes))
        return Answer(value=made[0])

    return Route(method="GET", path="/openapi.json", scope=None, handle=show, summary="This description.",
                 answers={200: None})


Models = Mapping[type[BaseModel], dict[str, Any]]  # -> its reference


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    from apispec import APISpec  # few ask for it: it need not be in memory

    described = [route for route in routes if route.path != "/" and not route.path.startswith("/static/")]
    spec = APISpec(title="nommerd", version=__version__, openapi_version=OPENAPI_VERSION,
                   info={"description": DESCRIPTION, "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"}})
    spec.components.security_scheme(BEARER, {"type": "http", "scheme": "bearer"})
    references, schemas = _schemas(described)
    for name, schema in schemas.items():
        spec.components.schema(name, schema)
    for path in dict.fromkeys(route.path for route in described):
        operations = {route.method.lower(): _operation(route, references) for route in described if route.path == path}
        spec.path(path, operations=operations)
    made: dict[str, Any] = spec.to_dict()
    return made


def _schemas(routes: Iterable[Route]) -> tuple[Models, dict[str, Any]]:
    """How each model is referred to, and the schemas of all and of what they hold, by name."""
    from pydantic.json_schema import models_json_schema

    answers = {model for route in routes for model in route.answers.values() if model is not None} | {Problem}
    asked = {model for route in routes for model in (route.request, route.query) if model is not None}
    models: list[Any] = [(model, "serialization") for model in answers]
    models += [(model, "validation") for model in asked - answers]
    models.sort(key=lambda one: (one[0].__module__, one[0].__name__))
    references, defined = models_json_schema(models, ref_template=REFERENCE)
    return {model: references[model, mode] for model, mode in models}, defined["$defs"]


def _operation(route: Route, models: Models) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route), "summary": route.summary, "tags": [_tag(route.path)],
        "parameters": [*_path_parameters(route.path), *_query_parameters(route.query), *_header_parameters(route.headers)],
        "responses": _responses(route, models)}
    if needs_token(route.path):
        operation["security"] = [{BEARER: []}]
    if route.scope is not None:
        operation["description"] = f"Needs the scope `{route.scope}`" + (
            " and a token of the project `default`." if route.installation else ".")
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(models[route.request], route.consumes)}
    return operation


def _operation_id(route: Route) -> str:
    return "_".join([route.method.lower(), *re.findall(r"[A-Za-z0-9]+", route.path)])


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "v1" and len(parts) > 1 else "server"


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in re.findall(r"{(\w+)}", path)]


def _query_parameters(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    """One for each field. A list may repeat."""
    if model is None:
        return []
    schema = model.model_json_schema(ref_template=REFERENCE)
    return [{"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": _plain(one),
             **({"description": one["description"]} if "description" in one else {})}
            for name, one in schema.get("properties", {}).items()]


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A field's schema without null: a parameter that is not sent is left out."""
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default", "title", "description")}
    return {**rest, **options[0]} if len(options) == 1 else {**schema}


def _header_parameters(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in headers.items()]


def _responses(route: Route, models: Models) -> dict[str, Any]:
    """What it answers itself, and what is refused before it is asked."""
    refusals = {*EVERY_CALL, *(WITH_TOKEN if route.path.startswith("/v1/") or route.scope else (401,)),
                *(WITH_BODY if route.request is not None else ()), *((422,) if route.query or route.headers else ()),
                *(status for status in route.answers if status >= 400)}
    responses = {str(status): _response(status, models[Problem], (PROBLEM,)) for status in sorted(refusals)}
    for status, model in route.answers.items():
        if status < 400:
            responses[str(status)] = _response(status, {} if model is None else models[model], route.produces)
    return responses


def _response(status: int, schema: dict[str, Any], media_types: Sequence[str]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": phrase(status)}
    if status not in (204, 304, 307):
        response["content"] = _content(schema, media_types)
    return response


def _content(schema: dict[str, Any], media_types: Sequence[str]) -> dict[str, Any]:
    """The schema describes JSON; other types are texts, but for those that are known."""
    return {media_type: {"schema": schema if media_type.endswith("json") else OTHER_TYPES.get(media_type, {"type": "string"})}
            for media_type in media_types}
