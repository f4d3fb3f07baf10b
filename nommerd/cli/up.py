"""`nommerd up`: a feeder and workers in one terminal, on this machine's disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nommerd.cli.options import Command, config_option, examples
from nommerd.cli.output import drop_output
from nommerd.cli.supervisor import Child, Supervisor
from nommerd.errors import ConfigError, NommerdError
from nommerd.places import DEFAULT_URL, TOKEN_NAME, default_data_dir

if TYPE_CHECKING:
    from nommerd.config import Settings

LOCK_NAME = "up.lock"
READY_SECONDS = 60.0
NOBODY_READS = frozenset({errno.EPIPE, errno.EIO})  # the pipe or the terminal is gone
PREFIX_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


@click.command(cls=Command, epilog=examples("nommerd up", "nommerd up -c nommerd.yaml --workers 2"))
@config_option
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many worker processes.")
def up(config_file: Path | None, workers: int) -> int:
    """Run a feeder and workers until Ctrl-C. Makes the data directory and the API token; jobs may read and write files
    below the current folder, unless storage.file_roots says otherwise."""
    from nommerd.config import find_file, load
    from nommerd.mounts import refuse_network

    env = dict(os.environ)
    file = find_file(config_file, env)
    settings = load(file, env)
    if not settings.storage.file_roots:
        env["NOMMERD_STORAGE__FILE_ROOTS"] = json.dumps([str(Path.cwd())])
    for url in (settings.store, settings.bus):
        if url.startswith("memory:"):
            raise ConfigError("config.bad_value", "memory:// cannot be shared by the processes of `up`.",
                              "Use sqlite:///nommerd.db.", place="store")
        if url.startswith("sqlite:"):
            refuse_network(settings.database_path(url))
    settings.make_data_dir()
    with _alone(settings.data_dir):
        _check_port(settings)
        _make_secrets(settings)
        return _run(settings, file, env, workers)


# --- what must hold before anything starts -----------------------------------------------------------------------


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """The only `up` on this data directory. ConfigError otherwise."""
    try:
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError("config.unreadable", f"The data directory {data_dir} cannot be used: {error.strerror}.",
                          "Set paths.data to one that this user may write.", place="paths.data") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError("config.in_use", f"Another `nommerd up` runs on {data_dir}.",
                          "Stop it first, or set paths.data to another directory.") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _check_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.api.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.api.host, settings.api.port))
        except OSError as error:
            where = f"{settings.api.host}:{settings.api.port}"
            raise ConfigError("config.port_taken", f"{where} cannot be used: {error.strerror}.",
                              "Something else listens there? Set api.port to another one.", place="api.port") from None


def _make_secrets(settings: Settings) -> None:
    from nommerd.secrets import Keyring, new_webhook_secret, secret_file

    secret_file(settings.token_file, make=True)
    Keyring.load_or_make(settings.data_dir, settings.secrets.keys, make=True)
    if settings.webhooks.secret is None:
        secret_file(settings.webhook_secret_file, make=True, generate=new_webhook_secret)


# --- children ----------------------------------------------------------------------------------------------------


def child_argv(command: str, file: Path | None, log_style: str, *more: str) -> list[str]:
    """`nommerd COMMAND` in this Python. -P: nothing in the current folder stands in for our modules."""
    config = ["-c", str(file)] if file is not None else []
    return [sys.executable, "-P", "-m", "nommerd", command, *more, *config, "--log", log_style]


def feeder_child(file: Path | None, env: Mapping[str, str], log_style: str) -> Child:
    """The feeder, stopped last."""
    return Child("feeder", child_argv("feeder", file, log_style), env, stop_order=1)


def worker_child(number: int, file: Path | None, env: Mapping[str, str], log_style: str, health_port: int | None) -> Child:
    """Worker `number` (from 1); its health port is the first one's plus number - 1."""
    own = {**env, "NOMMERD_WORKER__HEALTH_PORT": str(health_port + number - 1) if health_port else "null"}
    name = f"worker-{number}"
    return Child(name, child_argv("worker", file, log_style, "--local", "--name", name), own)


def is_ready(url: str) -> bool:
    """Whether a feeder answers there."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    connection = HTTPConnection(urlsplit(url).hostname or "", urlsplit(url).port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _run(settings: Settings, file: Path | None, env: dict[str, str], workers: int) -> int:
    console = Console()
    supervisor = Supervisor(console.line, console.event)
    supervisor.heed_signals()
    url = api_url(settings)
    try:
        supervisor.start(feeder_child(file, env, console.log_style))
        deadline = time.monotonic() + READY_SECONDS
        code = supervisor.watch(until=lambda: is_ready(url) or time.monotonic() > deadline)
        if code or supervisor.asked:
            return code
        begun = datetime.now(UTC)
        for number in range(1, workers + 1):
            supervisor.start(worker_child(number, file, env, console.log_style, settings.worker.health_port))
        deadline = time.monotonic() + READY_SECONDS
        code = supervisor.watch(until=lambda: _reported(settings, url, begun) >= workers or time.monotonic() > deadline)
        if code or supervisor.asked:
            return code
        console.event(_greeting(settings, url, workers, env))
        return supervisor.watch()
    finally:
        if supervisor.asked:
            console.event("stopping; running work goes back to the queue.")
        supervisor.stop()


def _reported(settings: Settings, url: str, since: datetime) -> int:
    """How many workers have reported to the store after they were started."""
    from nommerd.cli.client import Client
    from nommerd.cli.credentials import token_of_feeder

    try:
        token = token_of_feeder(settings.token_file, settings.data_dir)
        found = Client(url, token).call("GET", "/v1/workers")["workers"]
    except (NommerdError, OSError):  # the feeder may be on its way, too
        return 0
    return sum(datetime.fromisoformat(one["reported"]) > since and one["state"] == "ACTIVE" for one in found)


def api_url(settings: Settings) -> str:
    """Where clients on this machine reach the API."""
    host = settings.api.host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.api.port}"


def _greeting(settings: Settings, url: str, workers: int, env: Mapping[str, str]) -> str:
    roots = [str(root) for root in settings.storage.file_roots] or json.loads(env["NOMMERD_STORAGE__FILE_ROOTS"])
    here = roots[0]
    token = shlex.quote(str(settings.token_file))
    body = json.dumps({"source": Path(here, "in.mov").as_uri(), "dest": Path(here, "out.mp4").as_uri(), "preset": "web-720p"})
    return f"""ready: {url}, {workers} worker{"s" if workers > 1 else ""} of {settings.worker.slots} slots
  token       {settings.token_file}
  data        {settings.data_dir}
  file roots  {", ".join(roots)}
  a job by curl, from another terminal:
    curl -sS {url}/v1/jobs -H "Authorization: Bearer $(cat {token})" \\
      -d {shlex.quote(body)}
  or: {_client_settings(settings, url)}nommerd submit in.mov out.mp4 -p web-720p --wait
  Ctrl-C stops everything."""


def _client_settings(settings: Settings, url: str) -> str:
    """What a client command must be told because the feeder is not where it looks by itself."""
    told = f"NOMMERD_URL={url} " if url != DEFAULT_URL else ""
    if settings.token_file != default_data_dir(os.environ) / TOKEN_NAME:
        told += f'NOMMERD_TOKEN="$(cat {shlex.quote(str(settings.token_file))})" '
    return told


class Console:
    """Children's lines with their names in front, for people; as they are (JSON) where nobody watches."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._lock = threading.Lock()
        self._colours: dict[str, str] = {}

    @property
    def log_style(self) -> str:
        return "text" if self._live else "json"

    def line(self, name: str, text: str) -> None:
        """Something a child said."""
        if self._live or not text.startswith("{"):
            colour = self._colours.setdefault(name, PREFIX_COLOURS[len(self._colours) % len(PREFIX_COLOURS)])
            self._print(f"{click.style(f'{name:<9}', fg=colour) if self._live else f'{name:<9}'} | {text}")
        else:
            self._print(_with_process(name, text))

    def event(self, text: str) -> None:
        """Something `up` says itself."""
        self._print(text)

    def _print(self, text: str) -> None:
        with self._lock:
            try:
                print(text, flush=True)
            except (OSError, ValueError) as error:  # the work goes on
                if getattr(error, "errno", None) in NOBODY_READS:
                    drop_output()


def _with_process(name: str, text: str) -> str:
    try:
        event: dict[str, Any] = json.loads(text)
    except ValueError:
        return text
    return json.dumps({**event, "process": name}, ensure_ascii=False)
