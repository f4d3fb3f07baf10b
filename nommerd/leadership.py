"""The one process that sweeps, delivers webhooks and runs the fleet."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from nommerd.errors import Fenced, InfrastructureError
from nommerd.job import Key, Owner, new_id
from nommerd.store.base import Conflict, Leader, Store, StoreUnavailable
from nommerd.watch import MARGIN, Clock, LeaseWatch, boot_clock

LEADER_KEY = Key("", "leader")  # no job has an empty project
SWAP_TRIES = 5  # of one decision, against renewals of our own


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

    def launch(self) -> str:
        """The launch decision that stands in the leader's record. Raises Fenced where another process leads."""
        return self._ours().launch

    def set_launch(self, text: str) -> None:
        """Store a launch decision under our token; renews the lease as well.

        Raises Fenced where another process leads, and StoreUnavailable where it is not known whether it is stored: then
        nothing may be done on it.
        """
        for _ in range(SWAP_TRIES):
            leader = self._ours()
            if leader.launch == text:
                return
            sent = self._clock()
            try:
                self._write(leader, owner=self._owner, launch=text)
            except Conflict:  # a tick of ours came between, or we were replaced
                continue
            self._sent = sent
            return
        raise StoreUnavailable("The leader's record keeps changing.")

    def _ours(self) -> Leader:
        leader = self._store.leader()
        if not self._is_ours(leader) or leader.token != self.token:
            self._sent = None
            raise Fenced("another feeder leads")
        return leader

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

    def _write(self, leader: Leader, **changes: Any) -> None:
        self._store.swap_leader(replace(leader, lease_version=leader.lease_version + 1, lease_seconds=self._seconds,
                                        version=leader.version + 1, write_id=new_id(), **changes), leader.version)
