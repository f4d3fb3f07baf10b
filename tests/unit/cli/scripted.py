"""A feeder that answers from a script, and the command line against it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

TOKEN = "canary-token-77"


def job(**more: Any) -> dict[str, Any]:
    return {"id": "j1", "state": "PENDING", "stage": None, "progress": 0.0, "eta_seconds": None, "source": "file:///m/in%20it.mov",
            "inputs": {}, "dest": "file:///m/out.mp4", "preset": "web-720p", "pipeline": "web-mp4", "recipe": "r",
            "params": {}, "priority": "normal", "labels": {}, "owner": None, "attempts": [], "error": None,
            "warnings": [], "outputs": [],
            "event_seq": 0, "events": [], "created": "2026-01-31T09:00:00Z", "updated": "2026-01-31T09:00:00Z",
            "finished": None} | more


def event(seq: int, state: str, attempt: int = 1) -> dict[str, Any]:
    return {"seq": seq, "state": state, "at": f"2026-01-31T09:00:0{seq}.000000Z", "attempt": attempt}


class Feeder:
    """Answers each request with the next of `script` and keeps what it was asked."""

    def __init__(self) -> None:
        self.script: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, Any, dict[str, str]]] = []
        self.connections = 0
        self.headers: dict[str, str] = {}  # of each answer, besides
        feeder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                feeder.connections += 1

            def _answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                feeder.asked.append((self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                status, answer = feeder.script.pop(0)
                text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                for name, value in feeder.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = _answer

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def nommerd(feeder: Feeder | None, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NOMMERD_")}
    here = {"NOMMERD_URL": feeder.url, "NOMMERD_TOKEN": TOKEN} if feeder else {}
    ended = subprocess.run([sys.executable, "-m", "nommerd", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd,
                           env=clean | here | env, stdin=subprocess.DEVNULL)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert TOKEN not in ended.stdout + ended.stderr
    return ended


def here(feeder: Feeder | None, *arguments: str, stdin: io.StringIO | None = None,
         **env: str) -> subprocess.CompletedProcess[str]:
    """As `nommerd`, in this process: quick."""
    from nommerd.cli.app import run

    clean = {k: v for k, v in os.environ.items() if not k.startswith("NOMMERD_")}
    told = {"NOMMERD_URL": feeder.url, "NOMMERD_TOKEN": TOKEN} if feeder else {}
    out, err = io.StringIO(), io.StringIO()
    with (patch.dict(os.environ, clean | told | env, clear=True), patch("sys.stdin", stdin or io.StringIO()),
          redirect_stdout(out), redirect_stderr(err)):
        code = run(list(arguments))
    assert TOKEN not in out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())
