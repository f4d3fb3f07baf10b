"""The fleet: starts nodes when jobs wait, and ends those that are lost. They end themselves when they have been idle.

One cycle: carry out what was decided and not yet answered, look, end what must be ended, count, decide, launch. A decision is
stored on the leader's token before its call (see nommerd.fleet.launch); until its outcome is known it counts as nodes and
nothing else is decided. So however often a feeder dies in between, and whoever leads then, it comes to the same nodes. While
the installation is paused no node is started, and an open decision stays open.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from nommerd import logs
from nommerd.aws import names
from nommerd.config import Settings
from nommerd.control import Control
from nommerd.errors import ConfigError, Fenced
from nommerd.fleet import launch
from nommerd.fleet.ec2 import Answer, Ec2, Look, Shortage
from nommerd.fleet.launch import Decision, Ledger, Pool, Template
from nommerd.fleet.policy import nodes_to_start
from nommerd.fleet.refusals import MISMATCH, NO_TEMPLATE, NOT_NOW, SHORT, Ec2Refused, Ec2Unavailable, setting
from nommerd.fleet.template import fingerprint, launch_template_data, node_tags
from nommerd.fleet.watching import Clock, NodeWatch
from nommerd.store.base import Store
from nommerd.watch import boot_clock

POOR_SECONDS = 600.0  # how long a pool without capacity comes behind all others
HOLD_SECONDS = 300.0  # without launches, after EC2 refused one for what the settings say
UNSEEN_SECONDS = 300.0  # a launched node that EC2 does not list for so long is not there
STALE_SECONDS = 6 * 3600.0  # EC2 keeps client tokens for a day: what is older is looked for, not repeated
GAP_SECONDS = 60.0  # two cycles, and at least this, without a look: see NodeWatch


class Leads(Protocol):
    """nommerd.leadership.Leadership."""

    @property
    def leads(self) -> bool: ...
    def launch(self) -> str: ...
    def set_launch(self, text: str) -> None: ...


class Fleet:
    """The fleet of one cluster, on the feeder that leads. Call `tick` every other second or so."""

    def __init__(self, settings: Settings, *, ec2: Ec2, store: Store, leadership: Leads, user_data: Callable[[], str],
                 clock: Clock = boot_clock, now: Callable[[], float] = time.time) -> None:
        """`user_data` gives the text that new nodes boot with; asked before each launch, it may raise."""
        self._settings, self._fleet = settings, settings.fleet
        self._ec2, self._store, self._leadership, self._user_data = ec2, store, leadership, user_data
        self._control = Control(store)
        self._clock, self._now = clock, now
        fleet = self._fleet
        self._watch = NodeWatch(fleet.register_seconds, fleet.silent_seconds,
                                max(2 * fleet.interval_seconds, GAP_SECONDS), clock)
        self._template: tuple[str, Template] | None = None
        self._groups: list[str] = []
        self._poor: dict[tuple[str, Pool], float] = {}  # market and pool -> since when
        self._unseen: dict[str, float] = {}  # node -> since when we know of it
        self._next, self._hold_until = clock(), clock()
        self._idle, self._sent = False, 0
        self.nodes = 0  # at the last look: pending, running, or about to be

    def tick(self, sent: int = 0) -> None:
        """A cycle where one is due: every fleet.interval_seconds, and at once where the last one saw neither nodes nor jobs
        and a job was sent since (`sent` counts them). Does nothing unless this feeder leads."""
        if not self._leadership.leads or not (self._clock() >= self._next or (self._idle and sent != self._sent)):
            return
        self._sent = sent
        self.cycle()
        self._next = self._clock() + self._fleet.interval_seconds

    def cycle(self) -> None:
        """One look at nodes and jobs, and what follows from it. What the operator must change is logged. Raises
        StoreUnavailable and Ec2Unavailable; the next cycle goes on where this one ended."""
        try:
            self._cycle()
        except Fenced:
            logs.get().info("fleet.not_leading")
        except ConfigError as error:
            self._hold(error)

    def _cycle(self) -> None:
        ledger, unavailable = Ledger.decode(self._leadership.launch()), None
        paused = self._control.switch().paused
        if ledger.decision is not None and not (self._fleet.dry_run or paused):
            try:
                ledger = self._resume(ledger, ledger.decision)
            except Ec2Unavailable as error:
                unavailable = error
        look = self._ec2.look()
        alive = self._end_lost(look)
        ledger = self._seen(ledger, look)
        self.nodes = _count(ledger, alive, look)
        if unavailable is not None:
            raise unavailable
        if not paused:
            self._start(ledger)

    # --- nodes that are there ------------------------------------------------------------------------------------

    def _end_lost(self, look: Look) -> set[str]:
        """End the nodes that are lost; returns the others that live."""
        workers = self._store.workers()
        alive = {node.id for node in look.nodes if node.alive}
        for node_id, why in self._watch.judge(look, workers).items():
            if self._fleet.dry_run:
                logs.get().info("fleet.would_terminate", node=node_id, why=why)
                continue
            try:
                self._ec2.terminate(node_id)
            except Ec2Refused as error:
                logs.get().error("fleet.not_terminated", node=node_id, why=str(error))
                continue
            logs.get().warning("fleet.terminated", node=node_id, why=why)
            alive.discard(node_id)
        if not self._fleet.dry_run:
            for name in self._watch.forgettable(look):
                self._store.delete_worker(name)
        return alive

    def _seen(self, ledger: Ledger, look: Look) -> Ledger:
        """Without the launched nodes that EC2 lists by now, and those that it will not list any more."""
        now = self._clock()
        self._unseen = {node_id: self._unseen.get(node_id, now) for node_id in ledger.unseen}
        listed = {node.id for node in look.nodes}
        late = {node_id for node_id, since in self._unseen.items() if now - since > UNSEEN_SECONDS} - listed
        for node_id in sorted(late):
            logs.get().warning("fleet.never_listed", node=node_id)
        after = ledger.without(listed | late)
        if after != ledger and not self._fleet.dry_run:
            self._leadership.set_launch(after.encode())
        return after

    # --- nodes to start ------------------------------------------------------------------------------------------

    def _start(self, ledger: Ledger) -> None:
        fleet = self._fleet
        self._idle = False
        enough = (fleet.max_nodes + 1) * fleet.jobs_per_node + fleet.overflow  # more jobs make no difference
        jobs = self._store.unfinished(enough)
        wanted = nodes_to_start(jobs, self.nodes, fleet.jobs_per_node, fleet.overflow, fleet.max_nodes)
        self._idle = not jobs and not self.nodes
        if not wanted or self._clock() < self._hold_until:
            return
        if fleet.dry_run:
            logs.get().info("fleet.would_launch", nodes=wanted, jobs=jobs, running=self.nodes)
            return
        logs.get().info("fleet.launching", nodes=wanted, jobs=jobs, running=self.nodes)
        missing, ledger = self._launch(wanted, launch.SPOT if fleet.spot else launch.ON_DEMAND, ledger)
        if missing and fleet.spot and fleet.on_demand_fallback:
            self._launch(missing, launch.ON_DEMAND, ledger)

    def _launch(self, count: int, market: str, ledger: Ledger) -> tuple[int, Ledger]:
        """Decide, store, call. Returns how many nodes are missing for want of capacity, and what is to be kept."""
        decision = launch.decide(count, market, self._current_template(), self._fleet, self._settings.cluster,
                                 self._poor_pools(market), self._now())
        open_ledger = Ledger(decision=decision, unseen=ledger.unseen)
        self._leadership.set_launch(open_ledger.encode())
        return self._carry_out(open_ledger, decision)

    def _resume(self, ledger: Ledger, decision: Decision) -> Ledger:
        """Carry out what was decided before: by us, when the answer did not come, or by a leader before us."""
        logs.get().info("fleet.resuming", launch=decision.token, nodes=decision.count, market=decision.market)
        if self._now() - decision.decided > STALE_SECONDS:
            ledger = ledger.answered(())  # what came of it, if anything, has its tags and is counted by them
            self._leadership.set_launch(ledger.encode())
            return ledger
        return self._carry_out(ledger, decision)[1]

    def _carry_out(self, ledger: Ledger, decision: Decision) -> tuple[int, Ledger]:
        """The call. Raises Ec2Unavailable, with the decision still open, where its outcome is not known."""
        if not self._leadership.leads:
            raise Fenced("not leading any longer")
        try:
            answer = self._ec2.launch(decision.request)
        except Ec2Refused as error:
            answer = self._refused(ledger, decision, error)
        self.nodes += len(answer.ids)
        self._unseen |= dict.fromkeys(answer.ids, self._clock())
        ledger = ledger.answered(answer.ids)
        self._leadership.set_launch(ledger.encode())
        missing = max(decision.count - len(answer.ids), 0)
        if answer.ids:
            logs.get().info("fleet.launched", launch=decision.token, market=decision.market, nodes=answer.ids, missing=missing)
        fault = self._note(decision, answer.shortages)
        if missing and fault is not None:
            raise fault
        return missing, ledger

    def _refused(self, ledger: Ledger, decision: Decision, error: Ec2Refused) -> Answer:
        """What came of a decision that EC2 refuses as a whole: nothing, but for one case."""
        if error.aws_code == MISMATCH:  # the token is known: the call was applied, in other words
            found = tuple(node.id for node in self._ec2.look().nodes if node.token == decision.token)
            logs.get().error("fleet.mismatch", launch=decision.token, nodes=found)
            return Answer(found, ())
        self._leadership.set_launch(ledger.answered(()).encode())
        if error.aws_code in NOT_NOW:
            return Answer((), (Shortage(error.aws_code, error.message, None),))
        raise error

    def _note(self, decision: Decision, shortages: Sequence[Shortage]) -> ConfigError | None:
        """Log why nodes are missing, and remember pools without capacity. Returns a fault of the settings, if it was nothing
        else in any pool."""
        now, known = self._clock(), set(launch.pools(self._fleet))
        why = {one.code: one.message for one in reversed(shortages)}
        for code, count in Counter(one.code for one in shortages).items():
            logs.get().warning("fleet.no_capacity" if code in NOT_NOW else "fleet.pool_refused", launch=decision.token,
                               market=decision.market, code=code, why=why[code], pools=count)
        for one in shortages:
            if one.pool is not None and one.code in SHORT:
                pool = one.pool if one.pool in known else Pool(one.pool.type, "")
                self._poor[decision.market, pool] = now
        if not shortages or any(one.code in NOT_NOW for one in shortages):
            return None
        return Ec2Refused(shortages[0].code, f"{shortages[0].code}: {shortages[0].message}")

    def _poor_pools(self, market: str) -> set[Pool]:
        now = self._clock()
        self._poor = {key: since for key, since in self._poor.items() if now - since < POOR_SECONDS}
        return {pool for of, pool in self._poor if of == market}

    def _current_template(self) -> Template:
        """The version of the launch template that holds what the settings say now, made where it is missing."""
        settings, tags = self._settings, node_tags(self._settings.cluster)
        if not self._groups:
            wanted = self._fleet.security_groups or (names.security_group(settings.cluster),)
            self._groups = self._ec2.group_ids(wanted, next(iter(self._fleet.subnets), None))
        data = launch_template_data(settings, self._user_data(), tags, security_group_ids=self._groups)
        mark = fingerprint(data)
        if self._template is None or self._template[0] != mark:
            self._template = (mark, self._ec2.template(data, tags))
            logs.get().info("fleet.template", id=self._template[1].id, version=self._template[1].version)
        return self._template[1]

    def _hold(self, error: ConfigError) -> None:
        """What the operator must change is told, and launches wait a while: asking again each cycle would change nothing."""
        code = error.aws_code if isinstance(error, Ec2Refused) else error.code
        gone = code.startswith(NO_TEMPLATE)  # somebody deleted it: the next cycle makes it again
        self._template, self._groups = None, []
        if not gone:
            self._hold_until = self._clock() + HOLD_SECONDS
        logs.get().error("fleet.not_launched", setting=error.place or setting(code), code=code, why=error.message,
                         hint=error.hint)


def _count(ledger: Ledger, alive: set[str], look: Look) -> int:
    """Nodes that are there, nodes that will be listed, and those of a launch whose outcome is not known."""
    count = len(alive | set(ledger.unseen))
    if ledger.decision is not None:
        shown = {node.id for node in look.nodes if node.token == ledger.decision.token}
        count += max(ledger.decision.count - len(shown & alive), 0)
    return count
