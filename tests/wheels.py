"""`python -m tests.wheels MODULE ARGUMENTS…`: tests with the Python wheels' ffmpeg and ffprobe as the ones in PATH.

Those start ten times as fast as a distribution's. Tests of media run on both all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.media import PATH_BEFORE, _in_wheels


def main(arguments: list[str]) -> int:
    found = _in_wheels()
    if found is None:
        print("no ffmpeg wheels: pip install 'nommerd[ffmpeg]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for name, program in zip(("ffmpeg", "ffprobe"), found, strict=True):
            (Path(folder) / name).symlink_to(program)
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", PATH_BEFORE: os.environ["PATH"]}
        print(f"with {found[0]} and {found[1]}", flush=True)
        return subprocess.run([sys.executable, "-m", *arguments], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
