"""Print what is installed, as JSON: `manifest.py FFMPEG [ROLE...]`, by the Python of nommerd's environment."""

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def first_line(*argv: str) -> str:
    """What a command says first."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def main(ffmpeg: str, roles: list[str]) -> None:
    """Print it."""
    from nommerd.media import binaries

    found = binaries.find(None, None)
    packages = ("supervisor", "bubblewrap", "ffmpeg", "python3", "openssl", "libc6")
    shown = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages], check=False, capture_output=True,
                           text=True).stdout
    print(json.dumps({
        "nommerd": metadata.version("nommerd"), "roles": roles, "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "machine": platform.machine(), "python": platform.python_version(), "ffmpeg_from": ffmpeg,
        "ffmpeg": first_line(str(found.ffmpeg), "-version"), "environment": str(Path(sys.prefix).resolve()),
        "system_packages": dict(line.split(" ", 1) for line in shown.splitlines() if not line.endswith(" ")),
        "python_packages": dict(sorted((dist.metadata["Name"], dist.version) for dist in metadata.distributions())),
    }, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
