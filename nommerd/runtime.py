"""The only place that patches the standard library for gevent, and that keeps `sh` working under it."""

from __future__ import annotations


def patch() -> None:
    """Make the standard library cooperative. Must run before anything imports ssl, requests or boto3."""
    from gevent import monkey

    monkey.patch_all()
