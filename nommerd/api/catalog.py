"""The calls on presets and pipelines: list, show, put, delete, each within the caller's project."""

from __future__ import annotations

import re
from functools import partial
from urllib.parse import quote

from nommerd.api.access import Scope
from nommerd.api.body import parse_object
from nommerd.api.body import shown as quoted
from nommerd.api.catalog_models import DOCUMENTS, LISTS, SHOWN, ChangeQuery, listed, shown
from nommerd.api.models import validated_query
from nommerd.api.negotiate import changed, check_conditions, conditional, not_modified, preferred
from nommerd.api.problems import Fault, Refusal, busy, from_error, refuse
from nommerd.api.route import JSON, Answer, Call, Route
from nommerd.catalog import Kind
from nommerd.catalog.overlay import KINDS, NAMED_BYTES_MAX, ProjectCatalog
from nommerd.catalog.projects import Catalogs
from nommerd.errors import InputError, ManyErrors, NommerdError
from nommerd.pipeline.loader import BYTES_MAX, load_yaml
from nommerd.pipeline.params import known_hint
from nommerd.pipeline.spec import NAME_PATTERN
from nommerd.pipeline.tree import Node, load_value
from nommerd.pipeline.writer import dump_yaml
from nommerd.runtime import in_pool
from nommerd.store.base import Conflict, Document, Store

YAML_TYPES = ("application/yaml", "text/yaml", "application/x-yaml", "text/x-yaml")
DOCUMENTS_MAX = 500  # of a project, presets and pipelines together
TOTAL_MAX = 2**20  # bytes of them all: what is parsed takes some fifteen times as much of the feeder's memory
FAULTS_MAX = 20  # told in one answer
TRIES = 4  # of a change that depends on no state, where others change the same document
HEADERS = {"If-Match": "Only if its ETag is one of these.", "If-None-Match": "Only if it is none of these; * is any."}


def catalog_routes(catalogs: Catalogs, store: Store) -> list[Route]:
    """GET, PUT and DELETE /v1/presets[/NAME] and /v1/pipelines[/NAME]."""
    calls = _Calls(catalogs, store)
    return [route for kind in KINDS for route in _routes(calls, kind)]


def _routes(calls: _Calls, kind: Kind) -> list[Route]:
    one, path = KINDS[kind], f"/v1/{kind}/{{name}}"
    return [
        Route(method="GET", path=f"/v1/{kind}", scope=Scope.READ, handle=partial(calls.list, kind), answers={200: LISTS[kind]},
              summary=f"List {kind}: those on the feeder's disk, and the project's own."),
        Route(method="GET", path=path, scope=Scope.READ, handle=partial(calls.show, kind),
              answers={200: DOCUMENTS[kind], 304: None, 400: None, 404: None, 422: None},
              produces=(JSON, *YAML_TYPES), headers={"If-None-Match": HEADERS["If-None-Match"]},
              summary=f"Show a {one} as it was written, as JSON or YAML."),
        Route(method="PUT", path=path, scope=Scope.ADMIN, handle=partial(calls.put, kind), request=DOCUMENTS[kind],
              answers={200: SHOWN[kind], 201: SHOWN[kind], 409: None, 412: None, 422: None}, query=ChangeQuery,
              consumes=(JSON, YAML_TYPES[0]), headers=HEADERS,
              summary=f"Make or change a {one} of the project, from JSON or YAML."),
        Route(method="DELETE", path=path, scope=Scope.ADMIN, handle=partial(calls.delete, kind), query=ChangeQuery,
              answers={204: None, 400: None, 404: None, 409: None, 412: None, 422: None},
              headers={"If-Match": HEADERS["If-Match"]}, summary=f"Delete a {one} of the project."),
    ]


class _Calls:
    def __init__(self, catalogs: Catalogs, store: Store) -> None:
        self._catalogs = catalogs
        self._store = store

    # --- looking -------------------------------------------------------------------------------------------------

    def list(self, kind: Kind, call: Call) -> Answer:
        return Answer(value=listed(self._catalogs.look(call.access.project), kind))

    def show(self, kind: Kind, call: Call) -> Answer:
        name, catalog = call.path["name"], self._catalogs.look(call.access.project)
        source = catalog.sources.get((kind, name))
        if source is None:
            raise _unknown(catalog, kind, name)
        headers = {"ETag": source.etag, "Vary": "Accept"}
        if not_modified(call, source.etag):
            return Answer(status=304, body=b"", headers=headers)
        wanted = preferred(call.header("Accept"), (JSON, *YAML_TYPES))
        if wanted != JSON:
            return Answer(body=source.text.encode(), headers=headers, content_type=f"{wanted}; charset=utf-8")
        try:
            value = load_yaml(source.text, f"{kind}/{name}", InputError).plain()
        except NommerdError as error:  # stored before the reader became stricter
            raise from_error(error) from None
        return Answer(value=value, headers=headers)

    # --- changing ------------------------------------------------------------------------------------------------

    def put(self, kind: Kind, call: Call) -> Answer:
        dry_run = validated_query(ChangeQuery, call.query).dry_run
        name = call.path["name"]
        _check_name(kind, name)
        self._check_disk(kind, name)
        node, text = _parsed(call)
        with self._catalogs.changing(call.access.project):
            for _ in range(TRIES):
                try:
                    return self._put(kind, call, node, text, dry_run)
                except Conflict:  # through another feeder
                    if conditional(call):
                        break
        raise _lost_race(call)

    def _put(self, kind: Kind, call: Call, node: Node, text: str, dry_run: bool) -> Answer:
        project, name = call.access.project, call.path["name"]
        now = self._catalogs.look(project)
        found = now.document(kind, name)
        check_conditions(call, now.sources[kind, name].etag if found else None)
        document = Document(kind=KINDS[kind], scope=project, name=name, body=text, version=found.version + 1 if found else 1)
        if found is not None and found.body == text:
            document = found
        then = in_pool(now.with_document, kind, document, node)
        _check_faults(then, kind, name)
        _check_others(now, then)
        _check_limits(then)
        if not dry_run and document != found:
            try:
                self._store.put_document(document, found.version if found else 0)
            finally:
                self._catalogs.changed(project)
        value, etag = shown(then, kind, name), then.sources[kind, name].etag
        if dry_run:
            return Answer(value=value)
        if found is not None:
            return Answer(value=value, headers={"ETag": etag})
        return Answer(value=value, status=201, headers={"ETag": etag, "Location": f"/v1/{kind}/{quote(name)}"})

    def delete(self, kind: Kind, call: Call) -> Answer:
        dry_run = validated_query(ChangeQuery, call.query).dry_run
        project, name = call.access.project, call.path["name"]
        self._check_disk(kind, name)
        with self._catalogs.changing(call.access.project):
            for _ in range(TRIES):
                now = self._catalogs.look(project)
                found = now.document(kind, name)
                check_conditions(call, now.sources[kind, name].etag if found else None)
                if found is None:
                    raise _unknown(now, kind, name)
                _check_unused(now, kind, name)
                if dry_run:
                    return Answer(status=204, body=b"")
                try:
                    self._store.delete_document(KINDS[kind], project, name, found.version)
                    return Answer(status=204, body=b"")
                except Conflict:
                    if conditional(call):
                        break
                finally:
                    self._catalogs.changed(project)
        raise _lost_race(call)

    def _check_disk(self, kind: Kind, name: str) -> None:
        if (kind, name) in self._catalogs.disk.sources:
            raise refuse(409, "path.name", "recipe.on_disk", f"The {KINDS[kind]} {name} lies on the feeder's disk.",
                         "Choose another name: what is on the disk is the operator's, and comes first.")


def _lost_race(call: Call) -> Refusal:
    """Somebody else was first: a caller with conditions must look again, one without may say the same once more."""
    if conditional(call):
        return changed("If-Match", "Somebody changed it meanwhile.")
    return busy("The document kept changing.")


def _unknown(catalog: ProjectCatalog, kind: Kind, name: str) -> Refusal:
    names = [known for one, known in catalog.sources if one == kind]
    return refuse(404, "path.name", f"recipe.unknown_{KINDS[kind]}", f"There is no {KINDS[kind]} called {quoted(name)}.",
                  known_hint(name[:80], names, f"{kind.capitalize()} here"))


def _check_name(kind: Kind, name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise refuse(422, "path.name", "recipe.bad_name", f"{quoted(name)} is no name for a {KINDS[kind]}.",
                     "Lower-case letters and digits, then also `.`, `_` and `-`, at most 64.")


def _parsed(call: Call) -> tuple[Node, str]:
    """The document, and the YAML that is kept: the caller's own, or what says the same as the caller's JSON."""
    raw = call.body()
    if len(raw) > BYTES_MAX:
        raise refuse(413, "body:1:1", "request.too_large", f"A document has at most {BYTES_MAX} bytes.", "Split it.")
    media_type = (call.header("Content-Type") or "").partition(";")[0].strip().lower()
    try:
        if media_type != JSON and not media_type.endswith("+json"):
            return in_pool(load_yaml, raw, "body", InputError), raw.decode("utf-8-sig")
        node = load_value(parse_object(raw), InputError, root="body")
        text = dump_yaml(node.plain())
        load_yaml(text, "body", InputError)  # what is longer as YAML, or cannot be written as such
        return node, text
    except NommerdError as error:
        raise from_error(error) from None


def _check_faults(then: ProjectCatalog, kind: Kind, name: str) -> None:
    errors = then.broken.get((kind, name))
    if errors:
        raise from_error(errors[0] if len(errors) == 1 else ManyErrors(errors))


def _check_others(now: ProjectCatalog, then: ProjectCatalog) -> None:
    """Refused where documents of the project that were right would no longer be."""
    harmed = sorted(key for key in then.broken if key not in now.broken)
    if harmed:
        raise Refusal(409, [_harmed(*key, then.broken[key][0]) for key in harmed[:FAULTS_MAX]])


def _harmed(kind: Kind, name: str, why: NommerdError) -> Fault:
    return Fault("body", "recipe.in_use", f"The {KINDS[kind]} {name} would no longer be right: {why.message}",
                 f"Change {name} first, or choose another name.")


def _check_unused(now: ProjectCatalog, kind: Kind, name: str) -> None:
    users = now.naming(kind, name)
    if users:
        verb = "extends" if kind == "presets" else "names"
        raise Refusal(409, [Fault("path.name", "recipe.in_use", f"The preset {user} {verb} it.",
                                  f"Delete or change {user} first.") for user in users[:FAULTS_MAX]])


def _check_limits(then: ProjectCatalog) -> None:
    if then.too_heavy:
        raise refuse(409, "body", "request.too_many_documents",
                     f"The pipelines that the project's presets name, each counted as often as it is named, have more than "
                     f"{NAMED_BYTES_MAX >> 20} MiB.", "Let fewer presets name long pipelines.")
    count, total = len(then.documents), sum(len(one.body.encode()) for one in then.documents)
    if count > DOCUMENTS_MAX or total > TOTAL_MAX:
        raise refuse(409, "body", "request.too_many_documents",
                     f"A project keeps at most {DOCUMENTS_MAX} presets and pipelines, of {TOTAL_MAX >> 20} MiB together.",
                     "Delete some that are not used.")
