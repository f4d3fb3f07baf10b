"""Where outputs go: the destination itself, or a name under one that ends in `/`."""

from __future__ import annotations

import re
from urllib.parse import quote

from nommerd.secrets import public_uri


def is_folder(dest: str) -> bool:
    """Whether outputs get names of their own under this destination."""
    return public_uri(dest).endswith("/")


def join(dest: str, leaf: str) -> str:
    """The URI of a file under a destination that ends in `/`, keeping credentials and query."""
    head, query = _split_query(dest)
    return head + (leaf if _is_literal(dest) else quote(leaf)) + query


def complete(dest: str, public: str) -> str:
    """The full URI of an output that the record names without secrets. `dest` is the job's destination, complete."""
    base = public_uri(dest)
    if public == base:
        return dest
    if not (base.endswith("/") and public.startswith(base)):
        return public
    head, query = _split_query(dest)
    return head + public[len(base):] + query


def _is_literal(uri: str) -> bool:
    """Whether names stand in it without escapes: the keys of s3: do."""
    return uri[:5].lower() == "s3://"


def _split_query(uri: str) -> tuple[str, str]:
    match = re.search(r"[?#]", uri) if uri.lower().startswith(("http://", "https://")) else None
    return (uri[:match.start()], uri[match.start():]) if match else (uri, "")
