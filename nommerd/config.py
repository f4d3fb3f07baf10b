"""nommerd.yaml and the environment -> one frozen Settings. conf/nommerd.yaml documents every key.

The file is the one named by -c, else NOMMERD_CONFIG, else /etc/nommerd/nommerd.yaml, else nothing: every key has a
default. NOMMERD_SECTION__KEY overrides a key. All faults are reported at once, each with its place.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from nommerd.errors import ConfigError
from nommerd.places import SYSTEM_FILE, TOKEN_NAME, default_data_dir
from nommerd.secrets import KEYS_FILE, Secret

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(value: object) -> object:
    """Bytes from `200GB`, `64 MiB` or a plain number; anything else as it was, for the model to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
    if match is None or match[2].upper() not in UNITS:
        raise ValueError("must be a size such as 200GB or 64MiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"must be a network such as 10.0.0.0/8 ({error})") from None


def _dotted(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*", path):
        raise ValueError("must be a dotted path such as mypackage.stages:Watermark")
    return path


FilePath = Annotated[Path, Field(strict=False)]
FilePaths = Annotated[tuple[FilePath, ...], Field(strict=False)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=10**9, allow_inf_nan=False)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
DottedPaths = dict[str, Annotated[str, AfterValidator(_dotted)]]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


class Section(BaseModel):
    """Unknown keys are errors, values are not coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Paths(Section):
    """Where things are. `pipelines` and `presets` are searched before the shipped ones."""

    data: FilePath | None = None
    pipelines: FilePaths = ()
    presets: FilePaths = ()


class Original(Section):
    """The calls of the original system: from which networks they may come without a token."""

    enabled: bool = True
    networks: Networks = ("127.0.0.1/32", "::1/128")
    project: Name = "default"
    nommers: dict[str, str] = Field(default_factory=dict)


class Api(Section):
    """Where the feeder listens, and for which Host names it answers."""

    host: str = "127.0.0.1"
    port: Port = 8001
    hosts: Texts = ()
    token_file: FilePath | None = None
    original: Original = Original()


class Worker(Section):
    """What one worker process does."""

    slots: Annotated[int, Field(ge=1, le=256)] = 2
    threads_per_job: Literal["auto"] | Positive = "auto"
    lease_seconds: Seconds = 30.0
    max_attempts: Positive = 3
    heartbeat_seconds: Seconds = 60.0
    idle_seconds: Seconds = 600.0
    terminate_when_idle: bool = True
    workspace: FilePath | None = None
    keep_failed_workspaces: Count = 0
    health_host: str = "127.0.0.1"
    health_port: Port | None = 8002


class Jobs(Section):
    """How long records live."""

    keep_finished_days: Annotated[float, Field(gt=0, le=36500, allow_inf_nan=False)] = 30.0
    abandon_after_seconds: Seconds = 32400.0


class Net(Section):
    """Private networks that sources, destinations and webhooks may reach."""

    allow_networks: Networks = ()


class StorageSettings(Section):
    """What jobs may read and write, and the operator's own backends (scheme -> dotted path)."""

    file_roots: FilePaths = ()
    s3_read: Texts = ()
    s3_write: Texts = ()
    s3_endpoint_url: str | None = None
    max_source_bytes: Size = 200 * 10**9
    backends: DottedPaths = Field(default_factory=dict)


class Secrets(Section):
    """Keys that encrypt secrets in records: the first encrypts, all decrypt."""

    keys: Annotated[tuple[Secret, ...], Field(strict=False)] = ()


class Webhooks(Section):
    """How webhooks are signed, and how often one is tried."""

    secret: Secret | None = None
    max_tries: Positive = 10


class Aws(Section):
    """The account; boto3's own credential chain applies where keys are null."""

    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    config_bucket: str | None = None


class Fleet(Section):
    """Encoder nodes on EC2."""

    enabled: bool = False
    dry_run: bool = False
    max_nodes: Count = 3
    jobs_per_node: Positive = 2
    overflow: Count = 2
    interval_seconds: Seconds = 60.0
    image_id: str | None = None
    instance_types: Texts = ()
    zones: Texts = ()
    subnets: Texts = ()
    key_name: str | None = None
    security_groups: Texts = ()
    instance_profile: str | None = None
    spot: bool = True
    on_demand_fallback: bool = True
    register_seconds: Seconds = 600.0
    silent_seconds: Seconds = 300.0


class Media(Section):
    """Which ffmpeg, and how it is confined. A name without a slash is looked up in PATH."""

    ffmpeg: str | None = None
    ffprobe: str | None = None
    sandbox: Literal["require", "best", "off"] = "best"


class Settings(Section):
    """Everything an operator can set. Paths are absolute once loaded."""

    cluster: Name = "default"
    store: str = "sqlite:///nommerd.db"
    bus: str = "sqlite:///nommerd.db"
    paths: Paths = Paths()
    api: Api = Api()
    worker: Worker = Worker()
    jobs: Jobs = Jobs()
    net: Net = Net()
    storage: StorageSettings = StorageSettings()
    secrets: Secrets = Secrets()
    webhooks: Webhooks = Webhooks()
    aws: Aws = Aws()
    fleet: Fleet = Fleet()
    media: Media = Media()
    stages: DottedPaths = Field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        """The directory of the database, token, keys, webhook secret and workspaces."""
        return self.paths.data or default_data_dir(os.environ)

    @property
    def token_file(self) -> Path:
        """The API token, readable by its owner alone."""
        return self.api.token_file or self.data_dir / TOKEN_NAME

    @property
    def keys_file(self) -> Path:
        """The keys for secrets in records, where `secrets.keys` names none."""
        return self.data_dir / KEYS_FILE

    @property
    def webhook_secret_file(self) -> Path:
        """The secret webhooks are signed with, where `webhooks.secret` is null."""
        return self.data_dir / "webhook-secret"

    @property
    def work_dir(self) -> Path:
        """Where each job gets its workspace."""
        return self.worker.workspace or self.data_dir / "work"

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Files and folders of nommerd itself, which no job may read or write, whatever storage.file_roots says."""
        databases = (self.database_path(url) for url in (self.store, self.bus) if urlsplit(url).scheme == "sqlite")
        return (self.data_dir, self.work_dir, self.token_file, *databases)

    def make_data_dir(self) -> None:
        """Make the data directory, for its owner alone, where it is missing. Raises ConfigError where that fails."""
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("config.unreadable", f"The data directory {self.data_dir} cannot be made: {error.strerror}.",
                              "Set paths.data to one that this user may write.", place="paths.data") from None

    def database_path(self, url: str) -> Path:
        """The file of a `sqlite:///` URL: relative to the data directory, or absolute with a fourth slash."""
        return self.data_dir / urlsplit(url).path.removeprefix("/")


def find_file(explicit: Path | None, env: Mapping[str, str]) -> Path | None:
    """The configuration file to read, None for defaults alone. ConfigError when a named one is missing."""
    named = explicit or (Path(env["NOMMERD_CONFIG"]) if env.get("NOMMERD_CONFIG") else None)
    if named is None:
        return SYSTEM_FILE if _is_file(SYSTEM_FILE) else None
    if not _is_file(named):
        option = "-c" if explicit else "NOMMERD_CONFIG"
        raise ConfigError("config.missing_file", f"There is no configuration file {named}.",
                          f"It is named by {option}; conf/nommerd.yaml is one to start from.")
    return named.absolute()


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # the machine's own, for example, which lies in a folder for root and the daemons alone
        raise ConfigError("config.unreadable", f"{path} cannot be read: {error.strerror}.",
                          "Ask as a user who may read it, or name another file with -c.") from None


def load(path: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings of a file and the environment. Raises ConfigError, or ManyErrors with every fault found."""
    from nommerd.config_reader import read

    return read(find_file(path, env), env)
