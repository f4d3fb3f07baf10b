"""Projects see nothing of each other, and a token may do what its scopes say: over HTTP, against a real feeder, by every route
that the feeder registers."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from nommerd import lifecycle
from nommerd.api.access import Scope
from nommerd.api.auth import OPEN_PATHS, needs_token
from nommerd.api.route import Route
from nommerd.config import load
from nommerd.feeder import _assemble
from nommerd.job import JobState, Key, Output, new_id, utcnow
from nommerd.store import open_store
from nommerd.store.base import Document
from nommerd.watch import this_process
from tests.rig import Rig

MARK = "isolation-mark"  # stands in everything that the first project owns, and in no path or body that the others send
OWN = "own-recipe"  # the name of its preset and pipeline


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        return str(self.json["code"])


@dataclass
class Project:
    """A project's tokens by scope, and what it owns."""

    name: str
    tokens: dict[str, str]
    jobs: dict[str, str]  # pending, finished -> id
    token_id: str
    cursor: str

    def parameter(self, name: str, path: str) -> list[str]:
        """What may stand for {name} in this path so that it names something of this project's."""
        known = {"id": [self.token_id] if path.startswith("/v1/tokens") else list(self.jobs.values()), "n": ["0"],
                 "name": ["no-such-worker"] if path.startswith("/v1/workers") else [OWN]}
        assert name in known, f"{path}: say here what of a project {{{name}}} names, so that the walk covers it"
        return known[name]


class House:
    """A feeder, and two projects on it that own the same kinds of things."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.first = self._project("studio-a", MARK)
        self.second = self._project("studio-b", "others")

    def call(self, token: str | None, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request. Names of headers are written with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rig.port, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body),
                               {"Content-Type": "application/json", **sent})
            response = connection.getresponse()
            endless = response.getheader("Content-Type", "").startswith("text/event-stream")
            text = response.readline() + response.readline() + response.read1(65536) if endless else response.read()
            return Answer(response.status, text.decode("utf-8", "replace"))
        finally:
            connection.close()

    def make(self, project: str, *scopes: str, name: str = "t") -> Any:
        answer = self.call(self.rig.token, "POST", "/v1/tokens", {"name": name, "scopes": list(scopes), "project": project})
        assert answer.status == 201, answer.text
        return answer.json

    def _project(self, name: str, mark: str) -> Project:
        made = {scope: self.make(name, scope, name=mark) for scope in ("submit", "read", "operate", "admin")}
        tokens = {scope: str(token["token"]) for scope, token in made.items()}
        admin = tokens["admin"]
        stages = ["fetch", {"ffmpeg": {"video": {"codec": "h264"}, "output": {"file": f"{mark}.mp4"}}}, "upload", "notify"]
        for path, document in ((f"/v1/pipelines/{OWN}", {"kind": "pipeline", "description": mark, "stages": stages}),
                               (f"/v1/presets/{OWN}", {"kind": "preset", "description": mark, "pipeline": OWN})):
            answer = self.call(admin, "PUT", path, {"name": OWN, **document})
            assert answer.status == 201, answer.text
        jobs = {kind: self._submit(admin, mark, kind) for kind in ("pending", "finished")}
        self._finish(Key(name, jobs["finished"]), mark)
        cursor = self.call(admin, "GET", "/v1/jobs?limit=1").json["next"]
        assert cursor
        return Project(name, tokens, jobs, str(made["read"]["id"]), cursor)

    def _submit(self, token: str, mark: str, kind: str) -> str:
        answer = self.call(token, "POST", "/v1/jobs", self.submission(mark, kind), Idempotency_Key=f"key-{kind}")
        assert answer.status == 201, answer.text
        return str(answer.json["id"])

    def submission(self, mark: str, kind: str) -> dict[str, Any]:
        """The body that a project submitted its job of this kind with."""
        return {"source": (self.rig.media / "in.mov").as_uri(), "dest": (self.rig.media / f"{mark}-{kind}.mp4").as_uri(),
                "preset": OWN, "labels": {"owner": mark}, "notify_url": f"http://127.0.0.1:1/{mark}"}

    def _finish(self, key: Key, mark: str) -> None:
        """What a worker would leave: an output, events, a log, and webhooks that are due."""
        path = self.rig.media / f"{mark}-finished.mp4"
        path.write_bytes(mark.encode())
        owner = replace(this_process("hand"), claim=new_id())
        output = Output(uri=path.as_uri(), bytes=len(mark), sha256=sha256(mark.encode()).hexdigest())
        log = {"number": 1, "worker": mark, "node": mark, "begun": "2026-01-31T09:00:00Z", "ended": None, "outcome": None,
               "source": None, "outputs": [], "stages": [], "truncated": False}
        with closing(open_store(f"sqlite:///{self.rig.data / 'nommerd.db'}", self.rig.data)) as store:
            for change in (lifecycle.claim(owner, "m", 30.0, utcnow()),
                           lifecycle.advance(owner, JobState.ENCODING, "ffmpeg", 0.5, utcnow()),
                           lifecycle.finish(owner, [output], [], utcnow())):
                store.update(key, change)
            scope = f"{key.project}/{key.id}"
            store.put_document(Document(kind="log", scope=scope, name="000001", body=json.dumps(log)), None)

    def view(self, project: Project) -> dict[str, Any]:
        """All that the project sees of its own. What deliveries change by themselves is left out."""
        paths = ["/v1/jobs", f"/v1/presets/{OWN}", f"/v1/pipelines/{OWN}", "/v1/presets", "/v1/pipelines", "/v1/tokens",
                 f"/v1/jobs/{project.jobs['finished']}/log", f"/v1/jobs/{project.jobs['finished']}/outputs/0"]
        seen = {path: self.call(project.tokens["admin"], "GET", path) for path in paths}
        assert {path: answer.status for path, answer in seen.items()} == dict.fromkeys(paths, 200)
        shown = {path: answer.text for path, answer in seen.items()}
        shown["/v1/jobs"] = json.dumps([{key: value for key, value in job.items() if key not in ("webhook", "updated")}
                                        for job in seen["/v1/jobs"].json["jobs"]])
        return shown


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with Rig(tmp_path_factory.mktemp("projects")) as rig:
        (rig.media / "in.mov").write_bytes(b"never read")
        rig.start_feeder()
        yield House(rig)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[Route]:
    """What a feeder registers."""
    root = tmp_path_factory.mktemp("routes")
    (root / "nommerd.yaml").write_text(f'paths: {{data: "{root}"}}\napi: {{port: 0}}\n')
    with ExitStack() as stack:
        return list(_assemble(load(root / "nommerd.yaml", {}), stack).routes)


def paths(route: Route, owner: Project) -> list[str]:
    """The route's path in each way that names something of the owner's."""
    found = [route.path]
    for name in re.findall(r"{(\w+)}", route.path):
        found = [path.replace(f"{{{name}}}", quote(value)) for path in found for value in owner.parameter(name, route.path)]
    return found


def bodies(route: Route, owner: Project, house: House) -> list[dict[str, Any] | None]:
    """Bodies for the route that name what is the owner's, in each of the ways that its model has fields for."""
    if route.request is None:
        return [None] if route.method in ("GET", "DELETE") else [None, {}]
    place = {"source": (house.rig.media / "in.mov").as_uri(), "dest": (house.rig.media / "stolen.mp4").as_uri()}
    named = [{"job": one} for one in owner.jobs.values()] + [
        {**place, "preset": OWN + "-2", "notify_url": "http://127.0.0.1:1/"}, {**place, "pipeline": "no-such"},
        {"name": "x", "scopes": ["read"], "project": owner.name}, {"name": "x", "scopes": ["admin"]}, {"after": 0},
        {"url": "http://127.0.0.1:1/"}, {}]
    known = set(route.request.model_fields)
    return [body for body in named if set(body) <= known]


def walk(house: House, routes: list[Route], token: str, owner: Project) -> list[tuple[str, str, Answer]]:
    """Every route, with the token, as if it were the owner's: paths, queries, bodies and headers name what is his."""
    queries = ["", "?" + urlencode({"cursor": owner.cursor}), "?" + urlencode({"label": f"owner={MARK}"}),
               "?wait=0.1&after=0", f"?project={owner.name}"]
    answers = []
    for route in routes:
        for path in paths(route, owner):
            for body in bodies(route, owner, house):
                for query in queries if route.method == "GET" else [""]:
                    headers = {"Idempotency_Key": "key-finished"} if route.path == "/v1/jobs" else {}
                    answer = house.call(token, route.method, path + query, body, **headers)
                    answers.append((route.method, path + query, answer))
    return answers


def test_no_call_shows_or_changes_anything_of_another_project(house: House, routes: list[Route]) -> None:
    before = house.view(house.first)
    assert MARK in before["/v1/jobs"] and MARK in before["/v1/presets"]
    answers = walk(house, routes, str(house.make("studio-z", "admin")["token"]), house.first)
    assert len(answers) > 60
    for method, path, answer in answers:
        assert answer.status < 500, (method, path, answer.text)
        assert MARK not in answer.text, (method, path)
        named = [one for one in (*house.first.jobs.values(), house.first.token_id, OWN) if f"/{one}" in path]
        about_words = answer.status == 422 and (method == "PUT" or answer.json["errors"][0]["place"].startswith("query."))
        assert not named or answer.status == 404 or about_words, (method, path, answer)
    assert house.view(house.first) == before


def test_the_operators_own_token_sees_no_other_projects_jobs_either(house: House, routes: list[Route]) -> None:
    before = house.view(house.first)
    apart = [route for route in routes if not route.path.startswith("/v1/tokens") and not route.installation]
    for method, path, answer in walk(house, apart, house.rig.token, house.first):
        assert answer.status < 500 and MARK not in answer.text, (method, path, answer)
    assert house.view(house.first) == before


def test_one_key_names_two_jobs_in_two_projects(house: House) -> None:
    assert house.first.jobs["pending"] != house.second.jobs["pending"]
    again = house.call(house.second.tokens["submit"], "POST", "/v1/jobs", house.submission("others", "pending"),
                       Idempotency_Key="key-pending")
    assert (again.status, again.json["id"]) == (200, house.second.jobs["pending"])


def test_a_presets_name_means_what_it_means_in_ones_own_project(house: House) -> None:
    """The first project's names are unknown in a project without any, to explain as to submit."""
    bare = house.make("studio-c", "admin")["token"]
    body = {"source": (house.rig.media / "in.mov").as_uri(), "dest": (house.rig.media / "c.mp4").as_uri()}
    for names in ({"preset": OWN}, {"pipeline": OWN}):
        for path in ("/v1/jobs", "/v1/explain"):
            answer = house.call(bare, "POST", path, {**body, **names})
            assert answer.status in (404, 422) and answer.code.startswith("recipe.unknown_"), (path, answer)
    preset = house.call(bare, "PUT", "/v1/presets/thief", {"kind": "preset", "name": "thief", "pipeline": OWN})
    assert preset.status == 422 and MARK not in preset.text
    extended = house.call(bare, "PUT", "/v1/presets/thief", {"kind": "preset", "name": "thief", "extends": OWN})
    assert extended.status == 422 and MARK not in extended.text


def test_figures_and_lists_are_those_of_ones_own_project(house: House) -> None:
    bare = house.make("studio-d", "admin", name="d")["token"]
    assert house.call(bare, "GET", "/v1/jobs").json == {"jobs": [], "next": None}
    assert [token["name"] for token in house.call(bare, "GET", "/v1/tokens").json["tokens"]] == ["d"]
    stats = house.call(bare, "GET", "/v1/stats").json
    assert (stats["project"], sum(stats["states"].values()), stats["webhooks"]["due"]) == ("studio-d", 0, 0)
    assert [stats[name] for name in ("queue", "dead_letters", "workers", "paused")] == [None] * 4
    hooks = house.call(bare, "GET", "/v1/webhooks").json
    assert (hooks["due"], hooks["failing"], hooks["disabled"]) == (0, [], [])
    assert house.call(house.first.tokens["operate"], "GET", "/v1/webhooks").json["due"] == 1
    secrets = {house.call(project.tokens["admin"], "POST", "/v1/webhooks/secret").json["secret"]
               for project in (house.first, house.second)}
    assert len(secrets) == 2


def test_each_scope_opens_its_own_calls_and_no_others(house: House, routes: list[Route]) -> None:
    """Every route with a token of each single scope, of a project and of the installation; and without any."""
    tokens = {(project, scope): str(house.make(project, scope)["token"])
              for project in ("default", "studio-e") for scope in Scope}
    nothing = Project("studio-e", {}, {"none": "no-such-job"}, "no-such-token", "")
    for route in routes:
        [path] = paths(route, nothing)
        body = None if route.method in ("GET", "DELETE") else {}
        refused = house.call(None, route.method, path, body)
        assert needs_token(route.path) == (refused.status == 401), (route.method, path, refused)
        for (project, scope), token in tokens.items():
            answer = house.call(token, route.method, path, body)
            may = route.scope is None or scope in (route.scope, Scope.ADMIN)
            may = may and (project == "default" or not route.installation)
            forbidden = answer.status == 403 and answer.code == "request.forbidden_scope"
            assert may != forbidden and answer.status < 500, (route.method, path, project, scope, answer)


def test_a_route_without_a_scope_is_one_that_tells_nothing_of_a_project(routes: list[Route]) -> None:
    """Whoever adds one must say so here."""
    assert {route.path for route in routes if route.scope is None} <= {
        *OPEN_PATHS, "/static/{name}", "/v1/token", "/openapi.json", "/metrics"}


def nommerd(house: House, *arguments: str, token: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NOMMERD_URL": f"http://127.0.0.1:{house.rig.port}", "NOMMERD_TOKEN": token}
    return subprocess.run([sys.executable, "-m", "nommerd", *arguments], capture_output=True, text=True, env=env, timeout=60)


def test_the_command_line_makes_lists_and_revokes_tokens(house: House) -> None:
    admin = house.make("studio-f", "admin", name="boss")["token"]
    made = nommerd(house, "tokens", "create", "ci", "--scope", "read", "--scope", "submit", "--expires", "90d", token=admin)
    assert made.returncode == 0 and made.stdout.startswith("nommerd_") and made.stdout.count("\n") == 1
    text = made.stdout.strip()
    assert text not in made.stderr and "studio-f" in made.stderr
    own = house.call(text, "GET", "/v1/token").json
    assert own == {"name": "ci", "project": "studio-f", "scopes": ["read", "submit"]}
    listed = json.loads(nommerd(house, "tokens", "ls", "--json", token=admin).stdout)
    assert {(token["name"], token["project"]) for token in listed} == {("boss", "studio-f"), ("ci", "studio-f")}
    [token_id] = [token["id"] for token in listed if token["name"] == "ci"]
    revoked = nommerd(house, "tokens", "revoke", token_id, token=admin)
    assert (revoked.returncode, revoked.stdout) == (0, f"{token_id}  revoked\n")
    assert house.call(text, "GET", "/v1/token").status == 401
    again = nommerd(house, "tokens", "revoke", token_id, "--json", token=admin)
    assert again.returncode == 1 and json.loads(again.stdout)["errors"][0]["code"] == "request.unknown_token"
    other = nommerd(house, "tokens", "create", "x", "--scope", "read", "--project", "studio-a", token=admin)
    assert other.returncode != 0 and "request.forbidden_project" in other.stderr
    assert nommerd(house, "tokens", "create", "x", "--scope", "root", token=admin).returncode == 2


def test_no_token_stands_in_the_logs_or_the_database(house: House) -> None:
    texts = [*house.first.tokens.values(), *house.second.tokens.values()]
    log = (house.rig.logs / "feeder.log").read_text(errors="replace")
    for database in Path(house.rig.data).glob("nommerd.db*"):
        content = database.read_bytes()
        assert not [text for text in texts if text.encode() in content]
    assert not [text for text in texts if text in log]
