"""What the container's health check makes of what it is answered."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

HEALTH = Path(__file__).parents[2] / "deploy" / "container" / "health.py"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as made:
        yield made


def ended(server: socket.socket, answer: bytes | None) -> tuple[int, str]:
    """The check's exit code and what it says, where the daemon answers so; None: where it does not listen."""
    env = {**os.environ, "NOMMERD_API__PORT": str(server.getsockname()[1]), "http_proxy": "http://127.0.0.1:9"}
    check = [sys.executable, "-I", str(HEALTH)]
    if answer is None:
        server.close()
        done = subprocess.run(check, env=env, capture_output=True, text=True, timeout=20)
        return done.returncode, done.stdout

    def serve() -> None:
        taken = server.accept()[0]
        assert taken.recv(65536).startswith(b"GET /readyz ")
        taken.sendall(answer)
        taken.close()

    thread = Thread(target=serve)
    thread.start()
    done = subprocess.run(check, env=env, capture_output=True, text=True, timeout=20)
    thread.join(20)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("answer", "code", "why"), [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, ""),
    (b"HTTP/1.1 503 Not Yet\r\nContent-Length: 0\r\n\r\n", 1, "503"),
    (b"", 1, "closed connection"), (b"SSH-2.0-OpenSSH\r\n", 1, "SSH-2.0"), (None, 1, "refused")])
def test_it_is_healthy_only_where_it_says_that_it_can_work(server: socket.socket, answer: bytes | None, code: int,
                                                            why: str) -> None:
    returned, said = ended(server, answer)
    assert (returned, why in said, said.count("\n")) == (code, True, code)
