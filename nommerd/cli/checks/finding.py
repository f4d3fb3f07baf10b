"""What a check says, and what it stands on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nommerd.catalog import Catalog
    from nommerd.config import Settings

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `ok`, `warning` or `fault`, and what to do."""

    check: str
    status: str
    message: str
    hint: str = ""


@dataclass(slots=True, kw_only=True)
class Patient:
    """What the checks look at. `settings` and `catalog` are there once the configuration was read without a fault in it."""

    config_file: Path | None = None
    url: str | None = None
    token: str | None = None
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    settings: Settings | None = None
    catalog: Catalog | None = None
    binaries: Any = None  # Binaries, once they were found

    @property
    def known(self) -> Settings:
        """The settings; for checks that are only run where there are any."""
        assert self.settings is not None
        return self.settings


Check = Callable[[Patient], Iterator[Finding]]


def within(seconds: float, name: str, check: Check, patient: Patient) -> list[Finding]:
    """What the check says; a fault where it takes longer (its thread is left behind) or fails in a way nobody foresaw."""
    found: list[Finding] = []

    def work() -> None:
        try:
            for one in check(patient):
                found.append(one)
        except Exception as error:
            found.append(failed(name, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*found, Finding(name, FAULT, f"This check did not end within {seconds:.0f} s.",
                                "Something it asks hangs: a disk, a network file system, a service.")]
    return found


def failed(name: str, error: Exception) -> Finding:
    """What is said of an error that a check did not expect."""
    from nommerd.errors import NommerdError

    if isinstance(error, NommerdError):
        return Finding(name, FAULT, f"{error.code}: {error.message}", error.hint)
    return Finding(name, FAULT, f"This check failed: {type(error).__name__}: {error}")
