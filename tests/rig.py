"""A whole nommerd on this machine for tests: a feeder and workers as real processes, HTTP, a webhook receiver.

`Rig` writes a configuration, starts and kills daemons and speaks to the API; `invariants` says what must hold
after any fault. Everything it starts ends with it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")
FINAL = {"FINISHED", "ERROR", "ABANDONED", "CANCELLED"}
CANARY = "canary-7f3a91"  # stands in every secret a test uses; must be seen nowhere


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], T], seconds: float, what: str | Callable[[], str]) -> T:
    """The condition's first true value; fails after `seconds`, saying `what` was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


class Daemon:
    """One process of ours, its output in a log file."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9, and reap."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM; the exit code. Fails if it takes longer."""
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {seconds} s") from None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class Receiver:
    """A webhook receiver; keeps what it accepted, and refuses the first `refuse` deliveries with 500."""

    def __init__(self, refuse: int = 0) -> None:
        self.accepted: list[tuple[str, dict[str, Any], dict[str, str], bytes]] = []
        self.refused = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                refuse = receiver.refused < refuse_first
                receiver.refused += refuse
                if not refuse:
                    receiver.accepted.append((self.headers["webhook-id"], json.loads(body), dict(self.headers), body))
                self.send_response(500 if refuse else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        refuse_first = refuse
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def ids(self, job_id: str, state: str) -> set[str]:
        """The distinct webhook-ids accepted for this state of the job."""
        return {i for i, body, _, _ in self.accepted if body["data"]["id"] == job_id and body["data"]["state"] == state}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Rig:
    """A feeder and workers on one data directory. Use as a context manager."""

    def __init__(self, root: Path, *, config: str = "", lease_seconds: float = 30, max_attempts: int = 3, slots: int = 2,
                 env: dict[str, str] | None = None) -> None:
        self.root = root
        self.data = root / "data"
        self.media = root / "media"
        self.logs = root / "logs"
        for folder in (self.data, self.media, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.config = root / "nommerd.yaml"
        self.config.write_text(f"""\
paths: {{data: "{self.data}"{config and ", pipelines: [pipelines], presets: [presets]"}}}
api: {{port: {self.port}}}
worker: {{slots: {slots}, lease_seconds: {lease_seconds}, max_attempts: {max_attempts}, health_port: null}}
net: {{allow_networks: [127.0.0.1/32]}}
storage: {{file_roots: ["{self.media}"]}}
""" + config, encoding="utf-8")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("NOMMERD_")} | (env or {})
        self.daemons: list[Daemon] = []
        self.feeder: Daemon | None = None
        self.answers: list[str] = []

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        for daemon in self.daemons:
            with suppress(ProcessLookupError):
                daemon.signal(signal.SIGCONT)
            daemon.kill()

    def start(self, *command: str, name: str | None = None) -> Daemon:
        """`nommerd COMMAND… -c CONFIG` in the background."""
        name = name or command[0]
        argv = [sys.executable, "-m", "nommerd", *command, "-c", str(self.config)]
        daemon = Daemon(name, argv, self.env, self.logs / f"{name}.log")
        self.daemons.append(daemon)
        return daemon

    def start_feeder(self, seconds: float = 30) -> Daemon:
        self.feeder = self.start("feeder")
        wait_until(self._ready, seconds, lambda: f"feeder ready; its log: {self.tail('feeder')}")
        return self.feeder

    def start_worker(self, name: str) -> Daemon:
        return self.start("worker", "--local", "--name", name, name=name)

    def tail(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def events(self, name: str, event: str | None = None) -> list[dict[str, Any]]:
        """What a daemon has logged, all of it or one kind of event."""
        lines = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in found if event is None or one["event"] == event]

    def _ready(self) -> bool:
        if self.feeder is not None and not self.feeder.alive:
            raise AssertionError(f"the feeder exited with {self.feeder.process.returncode}: {self.tail('feeder')}")
        try:
            return self.call("GET", "/readyz", token=False)[0] == 200
        except OSError:
            return False

    @property
    def token(self) -> str:
        return (self.data / "token").read_text().strip()

    def call(self, method: str, path: str, body: object = None, *, token: bool = True, timeout: float = 40,
             headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """One request; the status and the decoded JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {self.token}"
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json", **sent})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        self.answers.append(text)
        return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    def submit(self, source: Path, dest: Path, **more: object) -> str:
        body = {"source": source.as_uri(), "dest": dest.as_uri(), **more}
        status, answer = self.call("POST", "/v1/jobs", body)
        assert status == 201, answer
        return str(answer["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        status, job = self.call("GET", f"/v1/jobs/{job_id}")
        assert status == 200, job
        return dict(job)

    def wait_state(self, job_id: str, states: set[str], seconds: float) -> dict[str, Any]:
        """The job once it is in one of these states; fails early in another final one."""
        def there() -> dict[str, Any] | None:
            job = self.job(job_id)
            if job["state"] in states:
                return job
            assert job["state"] not in FINAL, (job["state"], job["error"])
            return None
        job = wait_until(there, seconds, lambda: f"job {job_id} in {states}: {self.job(job_id)}")
        assert job is not None
        return job

    def wait_finished(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        return self.wait_state(job_id, {"FINISHED"}, seconds)

    def jobs(self) -> list[dict[str, Any]]:
        jobs, cursor = [], ""
        while True:
            status, page = self.call("GET", f"/v1/jobs?limit=500{cursor}")
            assert status == 200, page
            jobs += page["jobs"]
            if not page["next"]:
                return jobs
            cursor = f"&cursor={page['next']}"

    def processes(self, word: str = "ffmpeg") -> list[int]:
        """Pids of processes whose arguments name this rig's data directory and start with a program named `word`."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                argv = entry.read_bytes().split(b"\0")
                if word.encode() in Path(os.fsdecode(argv[0])).name.encode() and str(self.data).encode() in b" ".join(argv):
                    found.append(int(entry.parent.name))
        return found

    def queued(self) -> int:
        """Messages on the jobs queue, hidden ones too."""
        from nommerd.bus import open_bus

        bus = open_bus(f"sqlite:///{self.data / 'nommerd.db'}", self.data)
        try:
            depth = bus.jobs.depth()
            return depth.visible + depth.in_flight + depth.delayed + depth.dead
        finally:
            bus.close()


def scratch(rig: Rig) -> list[Path]:
    """What is in the workspaces' directory besides its own lock."""
    return [path for path in (rig.data / "work").glob("*") if path.name != ".lock"]


def path_of(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def invariants(rig: Rig, *, outputs: Iterable[Path], seconds: float = 45, secrets: Iterable[str] = (CANARY,)) -> None:
    """What must hold after every fault, once the jobs have had their time.

    1. every accepted job is final; 2. each FINISHED one has exactly its recorded output, and nothing partial is visible
    in the folders of `outputs`; 3. no orphaned ffmpeg, no scratch, empty queues; 4. no secret in logs, answers, the
    database or process arguments.
    """
    jobs = rig.jobs()
    assert {job["id"]: job["state"] for job in jobs if job["state"] not in FINAL} == {}
    seen: set[Path] = set()
    for job in jobs:
        if job["state"] != "FINISHED":
            assert job["error"] or job["state"] in {"CANCELLED", "ABANDONED"}, job
            continue
        assert len(job["outputs"]) >= 1, job
        for output in job["outputs"]:
            path = path_of(output["uri"])
            assert path not in seen, f"two jobs published {path}"
            seen.add(path)
            assert path.stat().st_size == output["bytes"]
            assert digest(path) == output["sha256"], path
    for folder in {path.parent for path in outputs}:
        strays = sorted(p for p in folder.iterdir() if p not in seen)
        assert strays == [], strays
    wait_until(lambda: not rig.processes("ff"), seconds, lambda: f"no ffmpeg left: {rig.processes('ff')}")
    wait_until(lambda: not scratch(rig), seconds, lambda: f"no scratch left: {scratch(rig)}")
    wait_until(lambda: rig.queued() == 0, seconds, lambda: f"empty queues: {rig.queued()}")
    for secret in secrets:
        for log in rig.logs.iterdir():
            assert secret not in log.read_text(errors="replace"), log
        assert not any(secret in answer for answer in rig.answers)
        for database in rig.data.glob("nommerd.db*"):
            assert secret.encode() not in database.read_bytes(), database
