"""How a node gets the operator's configuration: the feeder puts it into a bucket, the node fetches exactly that version."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pin:
    """One object, exactly: where it is, its version there, and the SHA-256 (hexadecimal) of its bytes."""

    uri: str
    version: str
    sha256: str
