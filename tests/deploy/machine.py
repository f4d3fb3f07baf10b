"""A provisioned root whose supervisor runs, as its operator and its applications see it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from tests.deploy.root import Root
from tests.rig import FINAL, wait_until

API = "http://127.0.0.1:8001"
DAEMONS = {"nommerd-feeder", "nommerd-worker", "nommerd-feeder-health", "nommerd-worker-health"}
STARTING_SECONDS = 90.0  # a daemon counts as RUNNING after 15
# some ten seconds on one core
LASTING = """\
kind: pipeline
name: lasting
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, veryslow], [threads, "1"], [c:a, aac], [f, mp4]]}
  - faststart
  - upload
  - notify
"""


class Machine:
    """The root, switched on."""

    def __init__(self, root: Root) -> None:
        self.root = root
        root.run("service", "supervisor", "start")

    def states(self) -> dict[str, str]:
        """Program -> state, as supervisorctl tells."""
        told = self.root.run("supervisorctl", "status", check=False).stdout
        return {line.split()[0]: line.split()[1] for line in told.splitlines() if line.startswith("nommerd-")}

    def wait_running(self, *names: str) -> None:
        """Until these programs (or all) are RUNNING."""
        wanted = set(names) or DAEMONS
        wait_until(lambda: all(self.states().get(name) == "RUNNING" for name in wanted), STARTING_SECONDS,
                   lambda: f"{wanted} RUNNING: {self.states()}\n{self.log('feeder')}\n{self.log('worker')}")

    def wait_listening(self) -> None:
        """Until the API answers, which is before the feeder counts as RUNNING."""
        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"{API}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False
        wait_until(answers, STARTING_SECONDS, lambda: f"the API answers: {self.states()}\n{self.log('feeder')}")

    def pid(self, name: str) -> int:
        """The process of a program, as the root numbers it; 0 where there is none."""
        return int(self.root.run("supervisorctl", "pid", name, check=False).stdout.strip() or 0)

    def signal(self, name: str, signal: str) -> int:
        """Signal a program's process; its id."""
        pid = self.pid(name)
        self.root.run("kill", f"-{signal}", str(pid))
        return pid

    def log(self, name: str, lines: int = 30) -> str:
        """The end of a log in /var/log/nommerd."""
        path = self.root.path / f"var/log/nommerd/{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """A daemon's log lines of one event."""
        lines = (self.root.path / f"var/log/nommerd/{name}.log").read_text(errors="replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in found if one["event"] == event]

    def put(self, media: Path, name: str) -> str:
        """A file into /srv/media, as an upload would leave it; its path there."""
        where = f"/srv/media/{name}"
        (self.root.path / "tmp" / name).write_bytes(media.read_bytes())
        self.root.run("install", "-o", "nommerd", "-g", "nommerd", f"/tmp/{name}", where)
        return where

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One request to the API, with the operator's token."""
        token = (self.root.path / "var/lib/nommerd/token").read_text().strip()
        request = urllib.request.Request(API + path, None if body is None else json.dumps(body).encode(), method=method,
                                         headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def submit(self, source: str, dest: str, **more: object) -> str:
        """A job; its id."""
        return str(self.call("POST", "/v1/jobs", {"source": f"file://{source}", "dest": f"file://{dest}", **more})["id"])

    def job(self, id: str) -> dict[str, Any]:
        """The job as it is now."""
        job: dict[str, Any] = self.call("GET", f"/v1/jobs/{id}")
        return job

    def wait_state(self, id: str, *states: str, seconds: float = 90.0) -> dict[str, Any]:
        """Until the job is in one of these; it must not end in another."""
        def there() -> dict[str, Any] | None:
            job = self.job(id)
            assert job["state"] in states or job["state"] not in FINAL, job
            return job if job["state"] in states else None
        return wait_until(there, seconds, lambda: f"{id} in {states}: {self.job(id)}\n{self.log('worker')}")
