"""How work travels. `base` is the contract; one backend a file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from nommerd.bus.base import Bus
from nommerd.bus.memory import MemoryBus
from nommerd.errors import ConfigError

_MEMORY: dict[str, MemoryBus] = {}
_PLANNED = frozenset({"sqs"})
_HINT = "Use sqlite:///nommerd.db, or memory:// within one process."


def open_bus(url: str, data_dir: Path) -> Bus:
    """The bus a URL names: `sqlite:///FILE` (relative: in `data_dir`), `sqlite:////PATH/FILE`, or `memory://[NAME]`.

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
    if parts.scheme in _PLANNED:
        raise ConfigError("config.bus", f"{parts.scheme}:// is not yet supported as a bus.", _HINT, place="bus")
    raise ConfigError("config.bus", f"There is no bus of the kind {parts.scheme or '(none)'}.", _HINT, place="bus")
