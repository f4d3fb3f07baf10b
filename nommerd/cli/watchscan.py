"""Which files of a folder are complete: pure looking, nothing is changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

MEDIA = ("3g2 3gp aac aif aiff asf avi flac flv m2ts m2v m4a m4v mka mkv mov mp3 mp4 mpeg mpg mts mxf oga ogg ogv opus ts vob "
         "wav webm wma wmv y4m")
PATTERNS = tuple(f"*.{extension}" for extension in MEDIA.split())
UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".filepart", ".swp", "~")


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it was seen. `path` is relative to the folder."""

    path: str
    size: int
    mtime_ns: int


class Scanner:
    """Looks at a folder again and again. A file is complete when its size and its time of change stood still for
    `settle_seconds`, or, with a `marker`, when a file of its name and that suffix is there; one that was complete before and
    changed must stand still in any case.

    Never seen: symbolic links and what is behind them, anything but regular files, empty files, hidden names, those of
    unfinished downloads, and markers.
    """

    def __init__(self, folder: Path, *, patterns: Sequence[str] = PATTERNS, recursive: bool = False,
                 settle_seconds: float = 5.0, marker: str | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.unreadable: dict[str, str] = {}  # folders below it -> why
        self.present: set[str] = set()  # what the last look saw, complete or not
        self._patterns = [pattern.lower() for pattern in patterns]
        self._recursive = recursive
        self._settle_seconds = settle_seconds
        self._marker = marker
        self._clock = clock
        self._since: dict[str, tuple[Found, float]] = {}
        self._complete: set[str] = set()

    @property
    def unsettled(self) -> int:
        """Files that were seen and are not complete yet."""
        return len(self.present - self._complete)

    def look(self) -> list[Found]:
        """What is complete now, the oldest first. Raises OSError where the folder itself cannot be read."""
        now = self._clock()
        self.unreadable = {}
        found = list(self._files(""))
        self.present = {one.path for one in found}
        self._since = {one.path: self._stood(one, now) for one in found}
        ready = [one for one in found if self._is_complete(one, now)]
        self._complete = {one.path for one in ready} | (self._complete & self.present)
        return sorted(ready, key=lambda one: (one.mtime_ns, one.path))

    def _stood(self, one: Found, now: float) -> tuple[Found, float]:
        before = self._since.get(one.path)
        return before if before is not None and before[0] == one else (one, now)

    def _is_complete(self, one: Found, now: float) -> bool:
        still = now - self._since[one.path][1] >= self._settle_seconds
        if self._marker is None:
            return still
        marked = os.path.lexists(self.folder / (one.path + self._marker))
        return marked and (still or one.path not in self._complete)

    def _files(self, below: str) -> Iterator[Found]:
        """Depth first. Raises OSError for the folder itself; those below it are noted."""
        with os.scandir(self.folder / below) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.name.startswith(".") or entry.name.lower().endswith(UNFINISHED):
                continue
            path = os.path.join(below, entry.name)  # noqa: PTH118 - relative, as text
            try:
                if entry.is_dir(follow_symlinks=False):
                    if self._recursive:
                        yield from self._files(path)
                elif entry.is_file(follow_symlinks=False) and self._fits(path):
                    about = entry.stat(follow_symlinks=False)
                    if about.st_size:
                        yield Found(path, about.st_size, about.st_mtime_ns)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError as error:
                self.unreadable[path] = error.strerror or "it cannot be read"

    def _fits(self, path: str) -> bool:
        """A pattern with a slash is for the path, others for the name; capital or small letters are the same."""
        if self._marker is not None and path.endswith(self._marker):
            return False
        path = path.lower()
        name = path.rpartition("/")[2]
        return any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in self._patterns)
