"""The one process that sweeps, delivers webhooks and runs the fleet."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from nommerd.errors import InfrastructureError
from nommerd.job import Key, Owner, new_id
from nommerd.store.base import Conflict, Leader, Store, StoreUnavailable
from nommerd.watch import MARGIN, Clock, LeaseWatch, boot_clock

LEADER_KEY = Key("", "leader")  # no job has an empty project


class Leadership:
    """At most one process leads. Call `tick` every third of the lease or so, and look at `leads` before each act."""

    def __init__(self, store: Store, owner: Owner, lease_seconds: float, *, clock: Clock = boot_clock,
                 watch: LeaseWatch | None = None) -> None:
        self._store, self._clock = store, clock
        self._owner = owner if owner.claim else replace(owner, claim=new_id())
        self._seconds = lease_seconds
        self._watch = watch or LeaseWatch(me=owner)
        self._sent: float | None = None
        self.token = 0  # raised at each take-over: the fence for what a leader decides

    @property
    def leads(self) -> bool:
        """Whether this process leads now, by its own clock; never waits."""
        return self._sent is not None and self._clock() < self._sent + self._seconds * (1 - MARGIN)

    def tick(self) -> bool:
        """Renew, or take over from nobody or from the dead. Returns `leads`. An unavailable store changes nothing."""
        with contextlib.suppress(Conflict, StoreUnavailable):  # somebody was first, or unknown: the next tick reads it
            self._tick()
        return self.leads

    def resign(self) -> None:
        """Let another lead at once; best effort."""
        led, self._sent = self._sent is not None, None
        if not led:
            return
        with contextlib.suppress(Conflict, InfrastructureError):  # then they see the lease end
            leader = self._store.leader()
            if self._is_ours(leader):
                self._write(leader, owner=None)

    def _tick(self) -> None:
        leader = self._store.leader()
        if self._is_ours(leader):
            sent = self._clock()
            self.token = leader.token
            self._write(leader, owner=self._owner)
            self._sent = sent
            return
        self._sent = None
        if leader.owner is None or self._watch.silent(LEADER_KEY, leader.owner, leader.lease_version, leader.lease_seconds):
            sent = self._clock()
            self._write(leader, owner=self._owner, token=leader.token + 1)
            self.token, self._sent = leader.token + 1, sent

    def _is_ours(self, leader: Leader) -> bool:
        return leader.owner is not None and leader.owner.claim == self._owner.claim

    def _write(self, leader: Leader, *, owner: Owner | None, token: int | None = None) -> None:
        self._store.swap_leader(replace(leader, owner=owner, token=leader.token if token is None else token,
                                        lease_version=leader.lease_version + 1, lease_seconds=self._seconds,
                                        version=leader.version + 1, write_id=new_id()), leader.version)
