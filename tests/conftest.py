"""What makes the suite cheap and independent of how it was started; it changes nothing that is tested."""

from __future__ import annotations

import functools
import gc
import signal

import botocore.loaders
import botocore.session
import pytest

# Tests open hundreds of sessions, each of which would read AWS's service models anew: three quarters of a client's cost.
botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)

# A shell that starts it in the background has it ignore SIGINT, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What collection made stays to the end: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
