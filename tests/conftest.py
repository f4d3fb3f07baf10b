"""What makes the suite cheap and changes nothing that it tests."""

from __future__ import annotations

import functools
import gc

import botocore.loaders
import botocore.session
import pytest

# Tests open hundreds of sessions, each of which would read AWS's service models anew: three quarters of a client's cost.
botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What collection made stays to the end: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
