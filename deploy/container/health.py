"""Whether what this container runs can work: exit 0 or 1. A worker answers on worker.health_port, all else on api.port."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 4


def port() -> str:
    """Where the daemon listens, as its command line and environment say; ports set in the file are not seen."""
    if b"worker" in Path("/proc/1/cmdline").read_bytes().split(b"\0"):
        return os.environ.get("NOMMERD_WORKER__HEALTH_PORT", "8002")
    return os.environ.get("NOMMERD_API__PORT", "8001")


def main() -> int:
    """0 where /readyz answers 200; else 1, and why in a line for the engine's log."""
    url = f"http://127.0.0.1:{port()}/readyz"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=TIMEOUT_SECONDS):
            return 0
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"{url}: {' '.join(str(error).split())}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
