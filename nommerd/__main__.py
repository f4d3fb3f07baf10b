"""The entry point: patches the standard library where a command needs it, before anything else is imported."""

from __future__ import annotations

import sys

PATCHED = frozenset({"feeder", "worker", "encode", "wipe"})  # commands that run ffmpeg, a store or a server in this process


def main() -> int:
    """The `nommerd` command. Returns its exit code: 0 done, 1 the job or the input failed, 2 usage or configuration."""
    command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    if command in PATCHED and not {"--help", "-h"} & set(sys.argv):
        from nommerd import runtime

        runtime.patch()
    from nommerd.cli.app import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
