"""Where the records are. `base` is the contract; one backend a file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from nommerd.aws.clients import Clients
from nommerd.errors import ConfigError
from nommerd.store.base import Store
from nommerd.store.memory import MemoryStore

_MEMORY: dict[str, MemoryStore] = {}
_CONNECT_SECONDS = 2.0  # a store answers within milliseconds, and a lease must outlive a call that hangs and its second try
_READ_SECONDS = 5.0
_SELECT_SECONDS = 7.0  # SimpleDB takes up to five for a page of a select
_HINT = "Use sqlite:///nommerd.db, dynamodb://TABLE, simpledb://DOMAIN, or memory:// within one process."


def open_store(url: str, data_dir: Path, clients: Clients | None = None, *, keep_finished_days: float = 30.0) -> Store:
    """The store a URL names: `sqlite:///FILE` (relative: in `data_dir`), `sqlite:////PATH/FILE`, `dynamodb://TABLE`,
    `simpledb://DOMAIN`, or `memory://[NAME]`. The AWS ones need `clients`. `keep_finished_days` is when a store that can
    deletes finals by itself.

    `memory://` is one store per name and process: what opens it in the same process shares it. Raises ConfigError.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _MEMORY.setdefault(parts.netloc, MemoryStore())
    if parts.scheme == "sqlite":
        from nommerd.sqlite import Database, database_path
        from nommerd.store.sqlite import SqliteStore

        try:
            return SqliteStore(Database.open(database_path(url, data_dir)))
        except ValueError as error:
            raise ConfigError("config.store", str(error), place="store") from None
    if parts.scheme == "dynamodb" and clients is not None:
        from nommerd.store.dynamodb import DynamoStore

        client = clients("dynamodb", connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS)
        return DynamoStore(client, parts.netloc, keep_finished_days=keep_finished_days)
    if parts.scheme == "simpledb" and clients is not None:
        from nommerd.store.simpledb import SimpleStore

        client = clients("sdb", connect_timeout=_CONNECT_SECONDS, read_timeout=_SELECT_SECONDS)
        return SimpleStore(client, parts.netloc)
    raise ConfigError("config.store", f"There is no store of the kind {parts.scheme or '(none)'}.", _HINT, place="store")
