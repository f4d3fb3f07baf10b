"""The cluster that each test of the fleet has for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nommerd import logs
from tests.ec2_proxy import Ec2Proxy
from tests.fleet_bench import Bench, Events


@pytest.fixture(scope="module")
def shared() -> Iterator[Ec2Proxy]:
    with Ec2Proxy() as proxy:
        yield proxy


@pytest.fixture
def bench(shared: Ec2Proxy) -> Iterator[Bench]:
    shared.calls.clear()
    shared.rules.clear()
    shared.unknown_images.clear()
    bench = Bench(shared)
    yield bench
    bench.close()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What is logged, as event and fields."""
    found: Events = []

    class Log:
        def __getattr__(self, level: str) -> Any:
            return lambda event, **fields: found.append((event, {"level": level, **fields}))

    monkeypatch.setattr(logs, "get", lambda **fields: Log())
    return found
