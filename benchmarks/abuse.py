"""What one client of the API waits while others abuse it, against the same calls undisturbed: slow headers, slow bodies, slow
readers, a flood of wrong tokens, some of it pipelined, and huge bodies."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

from benchmarks.report import quantile, report
from nommerd import runtime

JOBS = 1000
QUIET_SECONDS = 5.0
ABUSE_SECONDS = 9.0
SLOW = 50  # clients, a third each with a slow header, a slow body, slow reading
FLOODING = 12  # connections that send wrong tokens as fast as they are refused
PIPELINING = 2  # connections that do so without waiting for an answer
HUGE = 4  # connections that send bodies far over the limit
DRIP_SECONDS = 0.25
HUGE_BYTES = 32 * 1024 * 1024
TARGET_MS = 100.0
HEAD = "{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n"


def victim(port: int, token: str, ids: list[str], source: str, folder: str, seconds: float,
           name: str) -> dict[str, list[float]]:
    """List, show and submit in turn on one connection; the seconds that each call took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {token}"}
    took: dict[str, list[float]] = {"list": [], "show": [], "submit": []}
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        number += 1
        body = json.dumps({"source": source, "dest": f"file://{folder}/{name}-{number}.mp4", "preset": "web-480p"})
        for kind, method, path, payload in (("list", "GET", "/v1/jobs", None), ("submit", "POST", "/v1/jobs", body),
                                            ("show", "GET", f"/v1/jobs/{ids[number % len(ids)]}", None)):
            begun = time.perf_counter()
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            answer = response.read()
            took[kind].append(time.perf_counter() - begun)
            assert response.status in (200, 201), answer
    return took


class Attacks:
    """Each method is one client's attack, until it is cut off."""

    def __init__(self, port: int, token: str) -> None:
        import gevent

        self._port, self._token = port, token
        self._sleep, self._spawn = gevent.sleep, gevent.spawn
        self.counts: dict[str, int] = {}

    def begin(self) -> None:
        """All of them at once, each again and again."""
        for kind, attack, number in (
                ("slow header", self.slow_header, SLOW // 3 + 1), ("slow body", self.slow_body, SLOW // 3 + 1),
                ("slow reader", self.slow_reader, SLOW // 3), ("flood", self.flood, FLOODING),
                ("pipelined flood", self.pipeline, PIPELINING), ("huge body", self.huge, HUGE)):
            for _ in range(number):
                self._spawn(self._again, kind, attack)

    def _again(self, kind: str, attack: Callable[[], None]) -> None:
        while True:
            with suppress(OSError):
                attack()
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self._sleep(0)

    def _connect(self, head: str = "", receive_bytes: int = 0) -> socket.socket:
        connection = socket.socket()
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self._port))
        connection.sendall(head.encode())
        return connection

    def slow_header(self) -> None:
        with self._connect("GET /v1/jobs HTTP/1.1\r\n") as connection:
            while True:
                self._sleep(DRIP_SECONDS)
                connection.sendall(b"X: y\r\n")

    def slow_body(self) -> None:
        with self._connect(HEAD.format("POST /v1/jobs", self._token) + "Content-Length: 100000\r\n\r\n") as connection:
            while True:
                self._sleep(DRIP_SECONDS)
                connection.sendall(b" ")

    def slow_reader(self) -> None:
        with self._connect(HEAD.format("GET /v1/jobs?limit=500", self._token) + "\r\n", 4096) as connection:
            while connection.recv(1024):
                self._sleep(DRIP_SECONDS)

    def flood(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            connection.request("GET", "/v1/jobs", headers={"Authorization": f"Bearer {wrong()}"})
            assert connection.getresponse().read()
            self.counts["flood"] = self.counts.get("flood", 0) + 1

    def pipeline(self) -> None:
        with self._connect() as connection:
            reading = self._spawn(drain, connection)
            many = (HEAD.format("GET /v1/jobs", wrong()) + "\r\n").encode() * 500
            while not reading.dead:
                connection.sendall(many)

    def huge(self) -> None:
        with self._connect(HEAD.format("POST /v1/jobs", self._token) + f"Content-Length: {HUGE_BYTES}\r\n\r\n") as connection:
            for _ in range(HUGE_BYTES // 65536):
                connection.sendall(b" " * 65536)


def abuse(port: int, token: str) -> None:
    """The attacks, in a process of their own. Prints `ready` once they have begun and, at the end of its input, how many were
    answered or cut off."""
    runtime.patch()
    import gevent

    attacks = Attacks(port, token)
    attacks.begin()
    gevent.sleep(1)
    print("ready", flush=True)
    gevent.get_hub().threadpool.apply(sys.stdin.read)
    print(json.dumps(attacks.counts))


def drain(connection: socket.socket) -> None:
    """Read all that comes."""
    with suppress(OSError):
        while connection.recv(65536):
            pass


def wrong() -> str:
    """A token that is well formed, and none of the feeder's: a guess that cannot be told from a right one."""
    from nommerd.tokens import new_text

    return new_text()


def main() -> None:
    runtime.patch()
    from benchmarks.filled import fill
    from tests.rig import Rig

    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        ids = fill(rig.data, JOBS)
        source = rig.media / "in.mp4"
        source.write_bytes(b"never read")
        rig.start_feeder(60)
        status, made = rig.call("POST", "/v1/tokens", {"name": "victim", "scopes": ["read", "submit"]})
        assert status == 201, made

        def calls(seconds: float, name: str) -> dict[str, list[float]]:
            return victim(rig.port, made["token"], ids, source.as_uri(), str(rig.media), seconds, name)

        calls(1, "warm")
        quiet = calls(QUIET_SECONDS, "quiet")
        attackers = subprocess.Popen([sys.executable, "-m", "benchmarks.abuse", str(rig.port), rig.token],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert attackers.stdout is not None
        assert attackers.stdout.readline() == "ready\n"
        abused = calls(ABUSE_SECONDS, "abused")
        counts = attackers.communicate("")[0].strip()
    for kind, took in abused.items():
        report(f"{kind} under abuse, p99", quantile(took, 0.99) * 1000, "ms", at_most=TARGET_MS,
               baseline=f"undisturbed: {quantile(quiet[kind], 0.99) * 1000:.1f} ms (medians {median(took) * 1000:.1f} and "
                        f"{median(quiet[kind]) * 1000:.1f}; {len(took)} calls)")
    print(f"meanwhile, attacks that ended: {counts}")


if len(sys.argv) > 1:
    abuse(int(sys.argv[1]), sys.argv[2])
else:
    main()
