"""Which nodes must be ended: those that never reported, that fell silent, or that are done and still run.

Nobody compares two machines' clocks. How long a node runs is told by EC2's clock on both sides; how long a worker has been
silent is measured here, as the time for which its heartbeat has not changed while we looked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nommerd.fleet.ec2 import Look, Node
from nommerd.store.base import WorkerRecord

Clock = Callable[[], float]

TERMINATED = "TERMINATED"
GRACE_SECONDS = 120.0  # from a worker's TERMINATED to its node's end: a restarted worker is back within it
FORGET_SECONDS = 3600.0  # after this long, the record of a worker whose node is gone goes too
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")


@dataclass(slots=True)
class _Sight:
    """A heartbeat as it was first seen, and when."""

    record: WorkerRecord
    since: float


class NodeWatch:
    """Judges nodes by their workers' heartbeats. Ask it at each look: it remembers. After `gap_seconds` without a look (we did
    not lead, the store was out of reach, so that no worker could report) all spans begin anew."""

    def __init__(self, register_seconds: float, silent_seconds: float, gap_seconds: float, clock: Clock) -> None:
        self._register_seconds, self._silent_seconds, self._gap_seconds = register_seconds, silent_seconds, gap_seconds
        self._clock = clock
        self._looked = self._begun = clock()
        self._sights: dict[str, _Sight] = {}

    def judge(self, look: Look, workers: Sequence[WorkerRecord]) -> dict[str, str]:
        """Ids of nodes that must be ended, with the reason."""
        self._see(workers)
        found = {node.id: self._why(node, look, [one for one in workers if one.node == node.id])
                 for node in look.nodes if node.alive}
        return {node_id: why for node_id, why in found.items() if why}

    def forgettable(self, look: Look) -> list[str]:
        """Workers whose records are of no more use: done, or on an instance, unchanged for FORGET_SECONDS, and their node
        does not live."""
        now = self._clock()
        alive = {node.id for node in look.nodes if node.alive}
        return [name for name, sight in self._sights.items()
                if now - sight.since > FORGET_SECONDS and sight.record.node not in alive
                and (sight.record.state == TERMINATED or _INSTANCE.fullmatch(sight.record.node))]

    def _see(self, workers: Sequence[WorkerRecord]) -> None:
        now = self._clock()
        if now - self._looked > self._gap_seconds:
            self._sights.clear()
            self._begun = now
        self._looked = now
        kept = {}
        for record in workers:
            sight = self._sights.get(record.name)
            kept[record.name] = sight if sight is not None and sight.record == record else _Sight(record, now)
        self._sights = kept

    def _why(self, node: Node, look: Look, records: Sequence[WorkerRecord]) -> str:
        """Why this node must be ended; empty where it need not."""
        if not records:
            age = (look.now - node.launched).total_seconds()
            watched = self._clock() - self._begun  # it may have been unable to: then it gets the time of a silent one
            late = age > self._register_seconds and watched >= min(self._register_seconds, self._silent_seconds)
            return f"it did not report within {self._register_seconds:g} s" if late else ""
        quiet = self._clock() - max(self._sights[record.name].since for record in records)
        if all(record.state == TERMINATED for record in records):
            return f"its worker ended {quiet:.0f} s ago" if quiet > GRACE_SECONDS else ""
        return f"silent for {quiet:.0f} s" if quiet > self._silent_seconds else ""
