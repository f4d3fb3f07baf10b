"""How a node comes to its settings: a boot file, written from its user-data, pins the configuration that it fetches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from nommerd import logs
from nommerd.aws.clients import Clients
from nommerd.config import Aws, FilePath, Name, Section, Settings, load
from nommerd.errors import ConfigError, InfrastructureError, ManyErrors, NommerdError
from nommerd.fleet.distribution import Pin, fetch
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.tree import Node
from nommerd.places import default_data_dir

PATIENCE_SECONDS = 120.0  # while network and role of a new node come up
PAUSE_SECONDS, PAUSE_MAX_SECONDS = 1.0, 15.0
CONFIG_FOLDER = "config"  # in the data directory


class Config(Section):
    """The pin."""

    uri: str = Field(pattern=r"^s3://[^/@]+/.+$")
    version: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Boot(Section):
    """A boot file."""

    cluster: Name
    config: Config
    data: FilePath | None = None
    region: str | None = None
    endpoint_url: str | None = None


@dataclass(frozen=True, slots=True)
class Booted:
    """What a node starts with. `clients` are those of its settings: one of S3, once made, is not small."""

    settings: Settings
    clients: Clients


def read(file: Path) -> Boot:
    """The boot file. Raises ConfigError, or ManyErrors with every fault, each with its place."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("config.missing_file", f"There is no boot file {file}.",
                          "It is named by --boot; a node's user-data writes it.") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError("config.unreadable", f"The boot file {file} cannot be read: {why}.") from None
    root = load_yaml(text, str(file), ConfigError, "config")
    try:
        return Boot.model_validate(root.plain())
    except ValidationError as error:
        faults: list[NommerdError] = [_fault(root, detail["loc"], detail["type"], detail["msg"])
                                      for detail in error.errors(include_input=False, include_url=False)]
    raise faults[0] if len(faults) == 1 else ManyErrors(faults)


def _fault(root: Node, location: tuple[str | int, ...], kind: str, message: str) -> ConfigError:
    path, place = ".".join(map(str, location)), root.place
    for end in range(len(location), 0, -1):
        node = root.get(*location[:end])
        if node is not None:
            place = node.key_place
            break
    if kind == "extra_forbidden":
        return ConfigError("config.unknown_key", f"A boot file has no key {path}.", place=place)
    if kind == "missing":
        return ConfigError("config.bad_value", f"{path} is missing in the boot file.", place=place)
    return ConfigError("config.bad_value", f"{path or 'The boot file'}: {message}.", place=place)


def start(file: Path, env: Mapping[str, str], *, sleep: Callable[[float], object] = time.sleep,
          clock: Callable[[], float] = time.monotonic) -> Booted:
    """The settings that a boot file pins, fetched into its data directory, which is made.

    Variables of the environment go before what was fetched, as before any file. Raises ConfigError (ManyErrors) for what
    must be changed, InfrastructureError where the bucket was out of reach for PATIENCE_SECONDS.
    """
    boot = read(file)
    data = boot.data or default_data_dir(env)
    pin = Pin(boot.config.uri, boot.config.version, boot.config.sha256)
    account = Aws(region=boot.region, endpoint_url=boot.endpoint_url)
    clients = Clients(account)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("config.unreadable", f"The data directory {data} cannot be made: {error.strerror}.",
                          "Set `data` in the boot file to one that this user may write.", place=str(file)) from None
    config = _patiently(lambda: fetch(pin, clients, data / CONFIG_FOLDER), sleep, clock)
    found = load(config, {"NOMMERD_PATHS__DATA": str(data), **env})
    if found.cluster != boot.cluster:
        raise ConfigError("config.bad_bundle", f"The boot file is of the cluster {boot.cluster}, the configuration of "
                          f"{found.cluster}.", "A node belongs to one cluster.", place=str(file))
    logs.get().info("config.fetched", uri=pin.uri, version=pin.version, file=str(config))
    same = found.aws.model_copy(update={"config_bucket": None}) == account
    return Booted(found, clients if same else Clients(found.aws))


def _patiently(work: Callable[[], Path], sleep: Callable[[float], object], clock: Callable[[], float]) -> Path:
    until, pause = clock() + PATIENCE_SECONDS, PAUSE_SECONDS
    while True:
        try:
            return work()
        except InfrastructureError as error:
            if clock() + pause > until:
                raise
            logs.get().warning("config.not_fetched", why=str(error))
        sleep(pause)
        pause = min(pause * 2, PAUSE_MAX_SECONDS)
