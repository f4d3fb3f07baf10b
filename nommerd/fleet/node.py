"""The life of the EC2 instance that a worker runs on, as far as the worker decides it: when it has been idle for long
enough, what AWS wants of it, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nommerd import logs
from nommerd.aws.clients import explain, is_transient
from nommerd.errors import ConfigError, InfrastructureError, NommerdError
from nommerd.fleet.metadata import LOOKUP_SECONDS, Metadata, Node, Notice, identify
from nommerd.watch import Clock, boot_clock

__all__ = ["BOOT_SECONDS", "LOCAL_ID", "LOOKUP_SECONDS", "Life", "Metadata", "Node", "Notice", "identify", "is_ec2_hardware",
           "terminate"]

LOCAL_ID = "local-dev"  # the node of workers started with --local
BOOT_SECONDS = 30.0  # for the look-up of who was booted as a node: its metadata service may need a moment
RETRY_SECONDS = 30.0  # before ending itself is tried again, doubled with each failure; meanwhile it works
RETRY_MAX_SECONDS = 600.0
_DMI = Path("/sys/devices/virtual/dmi/id")


class Life:
    """`touch` at all that happens to jobs; `idle_left` says when the node has nothing to live for; `end` ends it."""

    def __init__(self, node: Node, notice: Callable[[], Notice | None], *, idle_seconds: float | None,
                 terminate: Callable[[], None], shut_down: Callable[[], None] | None = None,
                 clock: Clock = boot_clock) -> None:
        """`idle_seconds` None: it stays until somebody else ends it. `terminate` raises InfrastructureError where a later try
        may succeed, and ConfigError where it is refused: then `shut_down`, if there is one, ends the machine from inside."""
        self.node, self.notice = node, notice
        self._idle_seconds, self._terminate, self._shut_down, self._clock = idle_seconds, terminate, shut_down, clock
        self._active_at = clock()
        self._not_before = -math.inf
        self._failures = 0

    @property
    def ends_itself(self) -> bool:
        return self._idle_seconds is not None

    def touch(self) -> None:
        """Something happened to a job."""
        self._active_at = self._clock()

    def idle_left(self) -> float:
        """Seconds until it may end, if nothing happens; never positive once it may. Infinite for one that stays."""
        if self._idle_seconds is None:
            return math.inf
        return max(self._active_at + self._idle_seconds, self._not_before) - self._clock()

    def end(self, why: str) -> bool:
        """End the instance. False where that did not work: it is logged, and `idle_left` grows by a while."""
        log = logs.get(instance=self.node.instance_id)
        log.info("node.ending", why=why)
        try:
            self._end()
        except Exception as error:
            wait = min(RETRY_SECONDS * 2 ** min(self._failures, 10), RETRY_MAX_SECONDS)
            self._failures += 1
            self._not_before = self._clock() + wait
            log.error("node.not_ended", why=str(error), failures=self._failures, again_seconds=wait,
                      exc_info=not isinstance(error, NommerdError))
            return False
        return True

    def _end(self) -> None:
        try:
            self._terminate()
        except ConfigError as error:
            if self._shut_down is None:
                raise
            logs.get().warning("node.shut_down", why=str(error))
            self._shut_down()


def terminate(ec2: Any, instance_id: str) -> None:
    """Ask EC2 to terminate this instance. Raises InfrastructureError where a later try may succeed, else ConfigError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        ec2.terminate_instances(InstanceIds=[instance_id])
    except (ClientError, BotoCoreError) as error:
        if is_transient(error):
            raise InfrastructureError("node.not_terminated", explain(error), "It is tried again.") from None
        raise ConfigError("config.aws", explain(error), "Allow the node's role ec2:TerminateInstances on itself; "
                          "`nommerd aws setup` does.") from None


def is_ec2_hardware() -> bool:
    """Whether the machine's firmware says that it is Amazon's: only there may a worker shut it down."""
    for name in ("sys_vendor", "bios_vendor", "bios_version"):
        try:
            if "amazon" in (_DMI / name).read_text(encoding="ascii", errors="replace").lower():
                return True
        except OSError:
            continue
    return False
