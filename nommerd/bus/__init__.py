"""How work travels. `base` is the contract; one backend a file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from nommerd.aws.clients import Clients
from nommerd.bus.base import Bus
from nommerd.bus.memory import MemoryBus
from nommerd.errors import ConfigError

_MEMORY: dict[str, MemoryBus] = {}
_HINT = "Use sqlite:///nommerd.db, sqs://PREFIX, or memory:// within one process."


def open_bus(url: str, data_dir: Path, clients: Clients | None = None) -> Bus:
    """The bus a URL names: `sqlite:///FILE` (relative: in `data_dir`), `sqlite:////PATH/FILE`, `sqs://PREFIX` (which needs
    `clients`), or `memory://[NAME]`.

    `memory://` is one bus per name and process: what opens it in the same process shares it. Raises ConfigError.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _MEMORY.setdefault(parts.netloc, MemoryBus())
    if parts.scheme == "sqlite":
        from nommerd.bus.sqlite import SqliteBus
        from nommerd.sqlite import Database, database_path

        try:
            return SqliteBus(Database.open(database_path(url, data_dir)))
        except ValueError as error:
            raise ConfigError("config.bus", str(error), place="bus") from None
    if parts.scheme == "sqs" and clients is not None:
        from nommerd.bus.sqs import SqsBus

        # A poll is open for 20 s, and its loop has a back-off of its own; everything else must answer soon.
        return SqsBus(clients("sqs", tries=2, connect_timeout=3.0, read_timeout=5.0), parts.netloc,
                      polls=clients("sqs", tries=1, read_timeout=24.0))
    raise ConfigError("config.bus", f"There is no bus of the kind {parts.scheme or '(none)'}.", _HINT, place="bus")
