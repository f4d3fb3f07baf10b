"""The application on real parts in memory, called through WSGI without a socket."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from nommerd.api.app import create_app
from nommerd.api.auth import Gate, Hosts
from nommerd.api.catalog import catalog_routes
from nommerd.api.explain import explain_routes
from nommerd.api.job_routes import job_routes
from nommerd.api.jobs import Jobs
from nommerd.api.log import log_routes
from nommerd.api.media import media_routes
from nommerd.api.operator import operator_routes
from nommerd.api.pages import page_routes
from nommerd.api.recipes import Recipes
from nommerd.api.stats import Stats
from nommerd.api.tokens import token_routes
from nommerd.api.waiters import Waiters
from nommerd.bus.base import Bus
from nommerd.bus.memory import MemoryBus
from nommerd.catalog import Catalog
from nommerd.catalog.projects import Catalogs
from nommerd.control import Control
from nommerd.errors import ConfigError, NommerdError
from nommerd.job import Job
from nommerd.media.binaries import Binaries
from nommerd.net.egress import Egress
from nommerd.pipeline.context import Context
from nommerd.pipeline.stage import Stage, StageSettings
from nommerd.pipeline.stages import STAGES
from nommerd.secrets import Keyring, Secret, new_key
from nommerd.sending import Sending
from nommerd.storage import build_registry
from nommerd.store.base import Store
from nommerd.store.memory import MemoryStore
from nommerd.tokens import Tokens

TOKEN = "a-token-for-tests"
COPY = """\
kind: pipeline
name: copy
params:
  width: {type: integer, default: 640, min: 16, max: 7680}
stages: [fetch, stamp: {width: $width}, upload, notify]
"""
SILENT = """\
kind: pipeline
name: silent
stages: [fetch, stamp, upload]
"""


class StampSettings(StageSettings):
    width: int = 640


class Stamp(Stage):
    """An operator's own media stage, so that these tests stand on no encoder."""

    name = "stamp"
    Settings = StampSettings

    def run(self, context: Context) -> None:
        raise NotImplementedError("nothing runs here")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        return [error["code"] for error in self.json["errors"]]

    @property
    def places(self) -> list[str]:
        return [error["place"] for error in self.json["errors"]]


@dataclass
class Api:
    """What tests need of the application and of what it stands on."""

    root: Path
    store: Store = field(default_factory=MemoryStore)
    bus: Bus = field(default_factory=MemoryBus)
    waiters: Waiters = field(default_factory=Waiters)
    changed: list[Job] = field(default_factory=list)
    not_ready: NommerdError | None = None
    binaries: Binaries | None = None  # those of the feeder's own machine

    def __post_init__(self) -> None:
        pipelines = self.root / "pipelines"
        self.media = self.root / "media"
        for folder in (pipelines, self.media):
            folder.mkdir()
        (pipelines / "copy.yaml").write_text(COPY)
        (pipelines / "silent.yaml").write_text(SILENT)
        self.source = self.media / "in.mov"
        self.source.write_bytes(b"media")
        self.keyring = Keyring([Secret(new_key())])
        self.sending = Sending(self.store, self.bus)
        egress = Egress(())
        self.catalog = Catalog([pipelines], [], {**STAGES, "stamp": Stamp})
        self.catalogs = Catalogs(self.store, self.catalog)
        self.jobs = Jobs(store=self.store, sending=self.sending, storage=build_registry([self.media], egress, 10**9),
                         recipes=Recipes(self.store, self.catalogs.of, self.catalogs.look), keyring=self.keyring,
                         waiters=self.waiters,
                         check_notify=lambda url: egress.check(url, "webhook"), on_change=self.changed.append)
        self.tokens = Tokens(self.store)
        self.control = Control(self.store)
        self.stats = Stats(self.store, self.bus, self.control)
        gate = Gate([Secret(TOKEN)], Hosts("127.0.0.1", ["media.example:8001", "other.example"]), stored=self.tokens)
        self.app = create_app([*job_routes(self.jobs), *token_routes(self.tokens), *catalog_routes(self.catalogs, self.store),
                               *log_routes(self.store), *explain_routes(self.jobs, self.catalog.stages, self._find, 2),
                               *media_routes(self.jobs), *operator_routes(self.store, self.control, self.stats),
                               *page_routes(self._ready)], gate)

    def _find(self) -> Binaries:
        if self.binaries is None:
            raise ConfigError("config.no_ffmpeg", "There is no ffmpeg.")
        return self.binaries

    def _ready(self) -> None:
        if self.not_ready is not None:
            raise self.not_ready

    def body(self, **more: Any) -> dict[str, Any]:
        """A submission that is right, changed by `more`; None leaves a field out."""
        fields = {"source": self.source.as_uri(), "dest": (self.media / "out.mp4").as_uri(), "pipeline": "copy", **more}
        return {name: value for name, value in fields.items() if value is not None}

    def call(self, method: str, path: str, body: object = None, *, token: str | None = TOKEN, query: str = "",
             **environ: str) -> Answer:
        """One request. `body` is sent as it is when it is bytes, else as JSON."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        seen: list[Any] = []
        env: dict[str, Any] = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "SCRIPT_NAME": "", "SERVER_NAME": "x",
            "SERVER_PORT": "8001", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost:8001", "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(raw)), "CONTENT_TYPE": "application/x-www-form-urlencoded", "wsgi.input": BytesIO(raw),
            "wsgi.errors": BytesIO(), "wsgi.url_scheme": "http"}
        if token is not None:
            env["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        env.update(environ)
        chunks = self.app(env, lambda status, headers, exc_info=None: seen.extend((status, headers)))
        return Answer(int(seen[0].split()[0]), {name.lower(): value for name, value in seen[1]}, b"".join(chunks))

    def submit(self, key: str | None = None, **more: Any) -> Answer:
        return self.call("POST", "/v1/jobs", self.body(**more), **({"HTTP_IDEMPOTENCY_KEY": key} if key else {}))
