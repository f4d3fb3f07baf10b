"""Where the outputs of watched files go: names that belong to one file each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from nommerd.cli.watchstate import State


def destination(state: State, out: str, path: str, extension: str | None) -> tuple[str, bool]:
    """The destination of a file under `out`, and whether what is there is ours to replace: an output of the same file before
    it changed. Files of one stem get different ones, and so does one that came by a name after another was gone."""
    produced, before = state.produced.get(path), state.latest.get(path)
    if produced is not None and produced.startswith(out):
        return produced, True
    if before is not None and not before.gone and before.body.get("dest", "").startswith(out):
        return before.body["dest"], False
    return next(dest for leaf in _leaves(out, path, extension) if (dest := out + leaf).casefold() not in state.dests), False


def _leaves(out: str, path: str, extension: str | None) -> Iterator[str]:
    """STEM.EXT, then NAME.EXT, then those with numbers; folders alike."""
    stem = os.path.splitext(path)[0]  # noqa: PTH122 - relative, as text
    end = f".{extension}" if extension else "/"
    yield _quoted(out, stem) + end
    yield _quoted(out, path) + end
    number = 2
    while True:
        yield f"{_quoted(out, stem)}-{number}{end}"
        number += 1


def _quoted(out: str, path: str) -> str:
    """The keys of s3: are literal."""
    return path if out[:5].lower() == "s3://" else quote_from_bytes(os.fsencode(path))


def path_of(uri: str) -> Path:
    """The path of a file: URI."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))


def free(path: Path) -> Path:
    """The path, or the first of STEM-2, STEM-3 … that is free: nothing is overwritten."""
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found
