"""`python -m tests.wheels TESTS…`: pytest with the Python wheels' ffmpeg and ffprobe as the ones in PATH."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.media import _in_wheels


def main(tests: list[str]) -> int:
    found = _in_wheels()
    if found is None:
        print("no ffmpeg wheels: pip install 'nommerd[ffmpeg]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for name, program in zip(("ffmpeg", "ffprobe"), found, strict=True):
            (Path(folder) / name).symlink_to(program)
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        print(f"with {found[0]} and {found[1]}", flush=True)
        return subprocess.run([sys.executable, "-m", "pytest", *tests], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
