"""An AWS emulator (moto's server) as a process of its own, for whoever needs an account.

It is more lenient than AWS in places; what must hold there is held by the proxies of tests/. Names are made unique by
each test, so one emulator serves a whole run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import Any

from nommerd.aws.clients import Clients
from nommerd.config import Aws
from nommerd.secrets import Secret
from tests.rig import free_port, listening, wait_until

REGION = "us-east-1"
ACCESS_KEY = "AKIACANARY7F3A91TEST"
SECRET_KEY = "canary-7f3a91/secret+access/key"
START_SECONDS = 30.0


class Emulator:
    """moto's server on a free port of 127.0.0.1, until `stop` or the end of this process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {**os.environ, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}
        # Its parent's death ends it, however that came: it reads from our end of the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(self.port)], env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        wait_until(lambda: listening(self.port) or self._process.poll() is not None, START_SECONDS, "the AWS emulator listens")
        if self._process.poll() is not None:
            raise AssertionError("the AWS emulator did not start: is moto[server] installed?")

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def account(self, url: str | None = None) -> Aws:
        """Settings that reach it, or a proxy in front of it."""
        return account(url or self.url)

    def clients(self, url: str | None = None) -> Clients:
        return Clients(self.account(url))

    def client(self, service: str, url: str | None = None) -> Any:
        return self.clients(url)(service)


def account(url: str) -> Aws:
    """Settings that reach an emulator at this address, with keys that are canaries."""
    return Aws(region=REGION, endpoint_url=url, access_key_id=Secret(ACCESS_KEY), secret_access_key=Secret(SECRET_KEY))


@cache
def emulator() -> Emulator:
    """The one that the tests of this process share; started at first use."""
    import atexit

    started = Emulator()
    atexit.register(started.stop)
    return started


def running() -> set[int]:
    """The pid of the shared one, if any test has started it."""
    return {emulator().pid} if emulator.cache_info().currsize else set()


_SERVE = """
import os, sys, threading
def until_parent_ends():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=until_parent_ends, daemon=True).start()
from moto.dynamodb.models import DynamoDBBackend
one_at_a_time = threading.RLock()  # moto looks at a condition and then writes: two threads of its server may both have looked
def atomic(method):
    def call(*arguments, **named):
        with one_at_a_time:
            return method(*arguments, **named)
    return call
for name in ("put_item", "update_item", "delete_item"):
    setattr(DynamoDBBackend, name, atomic(getattr(DynamoDBBackend, name)))
import functools, gc, logging
import moto.core.responses
moto.core.responses.method_names_from_class = functools.cache(moto.core.responses.method_names_from_class)  # else at each call
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # nobody reads its line for each call
from moto.server import main
gc.freeze()
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""
