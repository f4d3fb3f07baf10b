"""An instance metadata service of our own, as AWS documents version 2: for daemons that are to think they run on EC2.

Point AWS_EC2_METADATA_SERVICE_ENDPOINT at `url`. What it says, and how badly, can be changed while it runs.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY
from tests.rig import CANARY

ROLE = "nommerd-node"
HTML = "<html><body>It works!</body></html>"


class Mood(Enum):
    """How it behaves."""

    WELL = "well"
    VERSION_1_ONLY = "version 1 only"  # no tokens; GETs answer without one
    FORBIDDEN = "forbidden"  # switched off for the instance: 403 to all
    SLOW = "slow"  # one byte in a while, for ever
    SILENT = "silent"  # takes the connection and says nothing
    BROKEN = "broken"  # 500 to all
    GARBAGE = "garbage"  # HTML with status 200 to all, as a captive portal does


STUBBORN = {Mood.BROKEN: 500, Mood.FORBIDDEN: 403, Mood.GARBAGE: 200}  # the same status to all


@dataclass
class Imds:
    """`with Imds(instance_id) as imds:`. `items` holds what is below meta-data/; other paths answer 404."""

    instance_id: str = field(default_factory=lambda: f"i-{uuid4().hex[:17]}")
    zone: str = f"{REGION}a"
    mood: Mood = Mood.WELL
    items: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, tuple[int, str]] = field(default_factory=dict)  # path -> exactly this answer
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path
    tokens: dict[str, float] = field(default_factory=dict)  # token -> when it ends
    ttls: list[int] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.items |= {"instance-id": self.instance_id, "placement/availability-zone": self.zone,
                       "placement/region": self.zone[:-1], "iam/security-credentials/": ROLE,
                       f"iam/security-credentials/{ROLE}": json.dumps(role_credentials())}
        self.over = threading.Event()

    def __enter__(self) -> Imds:
        imds = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                imds.answer(self)

            def do_GET(self) -> None:
                imds.answer(self)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.url, "AWS_EC2_METADATA_DISABLED": "false"}

    def interrupt(self, action: str = "terminate") -> None:
        """AWS takes the spot instance back in two minutes."""
        self.items["spot/instance-action"] = json.dumps({"action": action, "time": _soon()})

    def recommend(self) -> None:
        """AWS recommends to rebalance."""
        self.items["events/recommendations/rebalance"] = json.dumps({"noticeTime": _soon()})

    def asked(self, path: str) -> int:
        return sum(one.endswith(path) for _, one in self.requests)

    # --- answers -------------------------------------------------------------------------------------------------

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.command, handler.path))
        if self.mood is Mood.SILENT:
            self.over.wait(60)
        elif self.mood is Mood.SLOW:
            self._drip(handler)
        else:
            _send(handler, *self._answer(handler))

    def _answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, str]:
        path = handler.path.removeprefix("/latest/")
        if self.mood in STUBBORN:
            return STUBBORN[self.mood], HTML
        if handler.command == "PUT":
            return self._token(handler) if self.mood is Mood.WELL and path == "api/token" else (405, HTML)
        if path in self.bodies:
            return self.bodies[path]
        if self.mood is Mood.WELL and self.tokens.get(handler.headers.get("X-aws-ec2-metadata-token", ""), 0) <= self.clock():
            return 401, HTML
        item = self.items.get(path.removeprefix("meta-data/"))
        return (200, item) if item is not None else (404, HTML)

    def _token(self, handler: BaseHTTPRequestHandler) -> tuple[int, str]:
        ttl = handler.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600 or "X-Forwarded-For" in handler.headers:
            return 400, HTML
        token = secrets.token_urlsafe(40) + "=="
        self.ttls.append(int(ttl))
        self.tokens[token] = self.clock() + int(ttl)
        return 200, token

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not self.over.wait(0.2):
                handler.wfile.write(b"i")
        except OSError:
            handler.close_connection = True


def _send(handler: BaseHTTPRequestHandler, status: int, text: str) -> None:
    body = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "text/html" if body.startswith(b"<") else "text/plain")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def role_credentials() -> dict[str, Any]:
    """Those that the service gives to who may use the instance's role: canaries."""
    return {"Code": "Success", "LastUpdated": _soon(), "Type": "AWS-HMAC", "AccessKeyId": ACCESS_KEY,
            "SecretAccessKey": SECRET_KEY, "Token": f"{CANARY}-session-token", "Expiration": _soon(6 * 3600)}


def _soon(seconds: float = 120) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
