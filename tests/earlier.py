"""Data directories as earlier versions left them; see tests/unit/data/README.md."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

SCHEMA_1 = Path(__file__).parent / "unit" / "data" / "schema-1.tar.xz"
MEDIA = "/srv/v1/media"  # where its jobs have their files


def schema_1(data: Path, media: Path | None = None) -> dict[str, str]:
    """Unpack it into `data`, with its jobs' files in `media`; the ids of its jobs by state."""
    data.mkdir(mode=0o700, exist_ok=True)
    with tarfile.open(SCHEMA_1) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)  # Python 3.11.2 has none
        tar.extractall(data)
    names = data / "ids.json"
    ids: dict[str, str] = json.loads(names.read_text())
    names.unlink()
    if media is not None:
        with closing(sqlite3.connect(data / "nommerd.db")) as db, db:
            for column, table in (("body", "jobs"), ("document", "recipes")):
                db.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (MEDIA, str(media)))
    return ids
