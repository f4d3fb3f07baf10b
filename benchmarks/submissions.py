"""Durable submissions a second over HTTP to one feeder, against the same records through the store and bus alone."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import report
from nommerd import runtime

CLIENTS = 2  # processes
CONNECTIONS = 16  # each
SECONDS = 8.0


def client(port: int, token: str, source: str, folder: str, name: str) -> None:
    """POST on keep-alive connections for SECONDS; prints how many were accepted."""
    runtime.patch()
    import gevent

    until = time.monotonic() + SECONDS
    counts = [0] * CONNECTIONS

    def post(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        while time.monotonic() < until:
            body = {"source": source, "dest": f"file://{folder}/{name}-{index}-{counts[index]}.mp4", "preset": "web-480p"}
            connection.request("POST", "/v1/jobs", json.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 201, answer
            counts[index] += 1

    gevent.joinall([gevent.spawn(post, i) for i in range(CONNECTIONS)], raise_error=True)
    print(sum(counts))


def direct(folder: Path) -> float:
    """Records created and sent a second without HTTP, validation or recipes, by as many greenlets."""
    import gevent

    from nommerd.bus import open_bus
    from nommerd.job import Job, new_id, utcnow
    from nommerd.messages import JobMessage
    from nommerd.store import open_store

    url = f"sqlite:///{folder / 'direct.db'}"
    store, bus = open_store(url, folder), open_bus(url, folder)
    until = time.monotonic() + SECONDS / 2
    count = 0

    def create() -> None:
        nonlocal count
        while time.monotonic() < until:
            now = utcnow()
            job = Job(id=new_id(), pipeline="web-mp4", recipe="0" * 64, source="file:///a/b.mp4", dest="file:///a/c.mp4",
                      created=now, updated=now)
            store.create(job)
            bus.jobs.send(JobMessage(id=job.id))
            count += 1

    gevent.joinall([gevent.spawn(create) for _ in range(CLIENTS * CONNECTIONS)], raise_error=True)
    store.close()
    bus.close()
    return count / (SECONDS / 2)


def main() -> None:
    runtime.patch()
    from tests.rig import Rig

    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        source = rig.media / "in.mp4"
        source.write_bytes(b"never read")
        rig.start_feeder()
        argv = [sys.executable, "-m", "benchmarks.submissions", str(rig.port), rig.token, source.as_uri(), str(rig.media)]
        begun = time.monotonic()
        clients = [subprocess.Popen([*argv, f"c{i}"], stdout=subprocess.PIPE, text=True) for i in range(CLIENTS)]
        accepted = sum(int(c.communicate()[0]) for c in clients)
        took = time.monotonic() - begun
        stored = sum(1 for _ in rig.jobs())
        assert stored == accepted, (stored, accepted)
        raw = direct(Path(folder))
    rate = accepted / SECONDS
    report("durable submissions over HTTP", rate, "/s", at_least=1000,
           baseline=f"store and bus alone: {raw:.0f}/s (clients ran {took:.1f} s with their start)")


if len(sys.argv) > 1:
    client(int(sys.argv[1]), *sys.argv[2:6])
else:
    main()
