"""The life of the EC2 node that a worker runs on: which one that is, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from nommerd import logs
from nommerd.aws.clients import Clients
from nommerd.config import Settings
from nommerd.errors import InfrastructureError, Stop
from nommerd.fleet.node import BOOT_SECONDS, LOOKUP_SECONDS, Life, Metadata, identify, is_ec2_hardware, terminate
from nommerd.media import process

SHUTDOWN, SUDO = ("/usr/sbin/shutdown", "-h", "now"), ("/usr/bin/sudo", "-n")  # as a node's user-data allows it
SHUTDOWN_SECONDS = 20.0
EMBEDDED = frozenset({"sqlite", "memory"})  # stores that cost nothing to look at


def find_life(settings: Settings, clients: Clients, booted: bool) -> Life | None:
    """The life of the EC2 instance that this is, None where it is none.

    It does not end itself where the operator says so, nor where the records are on its own disk, unless it was booted as a
    node: that would end more than a worker.
    """
    metadata = Metadata.from_environment(os.environ)
    node = identify(metadata, BOOT_SECONDS if booted else LOOKUP_SECONDS)
    if node is None or metadata is None:
        return None
    at_home = urlsplit(settings.store).scheme in EMBEDDED and not booted
    stays = at_home or not settings.worker.terminate_when_idle
    logs.get().info("node.found", instance=node.instance_id, zone=node.zone, ends_itself=not stays,
                    idle_seconds=None if stays else settings.worker.idle_seconds)
    return Life(node, metadata.notice, idle_seconds=None if stays else settings.worker.idle_seconds,
                terminate=lambda: terminate(clients("ec2"), node.instance_id),
                shut_down=shut_down if metadata.is_ec2s_own and is_ec2_hardware() else None)


def shut_down() -> None:
    """Shut this machine down: for an EC2 instance, that is its termination where its launch template says so. Raises
    ConfigError or InfrastructureError."""
    argv = list(SHUTDOWN) if os.geteuid() == 0 else [*SUDO, *SHUTDOWN]
    exit, said = process.output(argv, cwd=Path("/"), stop=Stop(), timeout_seconds=SHUTDOWN_SECONDS, max_bytes=4096)
    if not exit.ok:
        why = (exit.stderr or said.decode(errors="replace")).strip()[-300:]
        raise InfrastructureError("node.not_terminated", f"The machine does not shut down: {why}")
