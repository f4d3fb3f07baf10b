"""Stores in SimpleDB for the contract suites: each a domain of its own on servers that a test run shares."""

from __future__ import annotations

from functools import cache
from typing import Any

from nommerd.aws.clients import Clients
from nommerd.job import new_id
from nommerd.store.base import RECIPE_GRACE_SECONDS
from nommerd.store.simpledb import SimpleStore
from nommerd.store.simpledb_domain import domain
from tests.emulator import account
from tests.simpledb_server import SimpleDBServer

HARD = {"page_items": 3, "scan_items": 4, "lag_seconds": 3600.0}  # pages end early, and only consistent reads see anything


@cache
def client(**options: Any) -> Any:
    """A client of a server with these options; it runs in this process, until that ends."""
    return Clients(account(SimpleDBServer(**options).url))("sdb")


def new_store(grace: float = RECIPE_GRACE_SECONDS, **options: Any) -> SimpleStore:
    """An empty store on the server with these options."""
    name = f"nommerd-{new_id()}"
    sdb = client(**options)
    sdb.create_domain(**domain(name))
    return SimpleStore(sdb, name, grace)
