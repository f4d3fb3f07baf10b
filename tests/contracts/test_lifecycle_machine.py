"""A job's life under every order of events: processes that crash between any two steps, pause past their lease, lose answers.

API calls, workers and the sweeper are written as generators that yield where a crash may come; hypothesis chooses who takes
the next step, what becomes of each write, and who dies. Below them a store checks every write that is applied. Beside them
is a destination: what was published, by which token, and which staging was revoked. At the end the faults stop, and every
job must come to its end, and say the truth about its output.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nommerd import lifecycle
from nommerd.bus.base import Bus
from nommerd.errors import Fenced, Problem
from nommerd.job import TRANSITIONS, Attempt, Job, JobState, Key, Output, Owner, Staged, Sweep
from nommerd.lifecycle import Change, NotClaimable, Refused
from nommerd.messages import ChangeMessage, JobMessage
from nommerd.store import base
from nommerd.store.base import JobExists, JobQuery, Store, StoreUnavailable
from tests.contracts.conftest import BUSES, STORES
from tests.contracts.lossy import Fate, LossyStore

MAX_ATTEMPTS = 3
JOBS_MAX = 2
LEASE_SECONDS = 30.0
FOREVER = datetime(2090, 1, 1, tzinfo=UTC).timestamp()
S = JobState
Process = Generator[None, str, None]

ACTIONS = ("renew", "download", "encode", "upload", "stage", "replace_message", "publish", "finish", "fail", "give_back",
           "stop_cancelled")
ENDS = ("finish", "fail", "give_back", "stop_cancelled")
LOST = Problem(code="node.lost", message="lost", retryable=True)
fates = st.lists(st.sampled_from(Fate), max_size=3)
texts = st.sampled_from(["short", "é" * 3000, "\x00" * 2000])
problems = st.builds(Problem, code=st.sampled_from(["encoder.killed", "input.truncated"]), message=texts, hint=texts,
                     retryable=st.booleans())


class CheckedStore(LossyStore):
    """Checks every write that is applied, whoever made it and whatever becomes of its answer."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.claims: dict[tuple[Key, int], str] = {}  # which claim holds a token: for ever the same one
        self.as_owner: str | None = None  # the claim that the write now under way is made under
        self.retrying = self.giving_back = False
        self.spent: Counter[Key] = Counter()  # claims that were not given back, since the beginning or the last retry
        self.newest: dict[Key, Job] = {}  # what was applied last, beside the store's own memory

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        job: Job = arguments[0]
        before = self.newest.get(job.key)

        def applied(*arguments: Any) -> None:
            write(*arguments)
            if before is not None and job.version != before.version:
                self._check(before, job)
            self.newest[job.key] = job

        super()._write(applied, *arguments)

    def _check(self, before: Job, after: Job) -> None:
        assert after.version == before.version + 1
        assert before.token <= after.token <= before.token + 1
        assert after.lease_version >= before.lease_version
        self._check_moves(before, after)
        if after.owner is not None:
            assert self.claims.setdefault((after.key, after.token), after.owner.claim) == after.owner.claim
        if self.as_owner is not None:
            assert before.owner is not None and before.owner.claim == self.as_owner, "written past the fence"
        assert (after.token > before.token) == (after.owner is not None and before.owner is None)
        self.spent[after.key] += after.token - before.token - self.giving_back
        if self.retrying and before.state.final:
            self.spent[after.key] = 0
        assert self.spent[after.key] <= MAX_ATTEMPTS + 1, "one claim more than attempts, to adopt"

    def _check_moves(self, before: Job, after: Job) -> None:
        moved = before.state is not after.state
        assert after.event_seq == before.event_seq + moved
        if moved:
            assert after.state in TRANSITIONS[before.state]
            assert after.events[-1].state is after.state
        if before.state.final:
            assert not moved or self.retrying


class Life(RuleBasedStateMachine):
    """The rules; a subclass names the backends."""

    backend: str
    bus_backend: str

    def __init__(self) -> None:
        super().__init__()
        self._backoff, base.BACKOFF_SECONDS = base.BACKOFF_SECONDS, 0.0
        self._folder = tempfile.TemporaryDirectory()
        self.store = CheckedStore(STORES[self.backend](Path(self._folder.name)))
        self.bus: Bus = BUSES[self.bus_backend](Path(self._folder.name))
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.numbers = itertools.count(1)
        self.keys: list[Key] = []
        self.processes: dict[int, Process] = {}
        self.killed: list[Process] = []
        self.claims: list[tuple[Key, Owner]] = []  # all that were ever tried
        self.seen: dict[Key, int] = {}  # lease versions as an observer saw them, perhaps long ago
        self.dest: dict[Key, int] = {}  # the token under which the output was published
        self.staged_by: dict[tuple[Key, int], str] = {}  # which claim noted its staging under this token
        self.revoked: set[tuple[Key, str]] = set()
        self.last_look_lost: set[Key] = set()  # nobody came to see whether the last attempt published

    def teardown(self) -> None:
        try:
            self.everything_comes_to_its_end()
        finally:
            self.bus.close()
            self.store.close()
            self._folder.cleanup()
            base.BACKOFF_SECONDS = self._backoff

    # --- what processes do; each `yield` is a place to crash -----------------------------------------------------

    def submit(self, job: Job) -> Process:
        while True:
            try:
                self.store.create(job)
                break
            except StoreUnavailable:
                yield
            except JobExists as found:  # ours, and somebody has worked on it since its answer was lost
                assert found.job.key == job.key
                return
        self.keys.append(job.key)
        yield
        yield from self.send(job.key)

    def send(self, key: Key) -> Process:
        message_id = self.bus.jobs.send(JobMessage(id=key.id))
        yield
        self.store.update(key, lifecycle.sent(message_id, self.now))

    def work(self, owner: Owner) -> Process:
        found = self.bus.jobs.receive(1, 0)
        if not found:
            return
        key, message_id = found[0].message.key, found[0].message_id
        yield
        self.claims.append((key, owner))
        try:
            self.store.update(key, lifecycle.claim(owner, message_id, LEASE_SECONDS, self.now))
        except NotClaimable as refused:
            if refused.job.state.final or refused.job.message_id != message_id:
                found[0].ack()
            return
        try:
            yield from self.adopt(key, owner)
            if self.store.newest[key].owner == owner:
                yield from self.encode(key, owner)
        except Fenced:
            return
        self.bus.changes.send(ChangeMessage(id=key.id))
        yield
        found[0].ack()

    def adopt(self, key: Key, owner: Owner) -> Process:
        """Whoever claims revokes first what was staged, and is done if that was published; when attempts are used up, it is
        done in any case."""
        job = self.store.newest[key]
        if not job.staged:
            return
        self.revoke(job)
        choice = yield
        if choice not in ("give_back", "stop_cancelled"):
            choice = "adopt" if self.published(job) else "fail" if job.adopt_only else "unstage"
        while True:
            try:
                self.act(key, owner, choice)
                return
            except StoreUnavailable:
                yield

    def revoke(self, job: Job) -> None:
        self.revoked |= {(job.key, staged.handle) for staged in job.staged}

    def published(self, job: Job) -> bool:
        return any(staged.token == self.dest.get(job.key) for staged in job.staged)

    def encode(self, key: Key, owner: Owner) -> Process:
        choice = ""
        while choice not in ENDS:
            choice = yield
            token = self.store.newest[key].token
            if choice == "publish":  # without a look at the record: only revoking stops one who was paused
                if (key, f".o.{token}.part") not in self.revoked and self.staged_by.get((key, token)) == owner.claim:
                    self.dest[key] = token
                continue
            if choice == "finish" and self.dest.get(key) != token:
                choice = "renew"
            try:
                self.act(key, owner, choice)
            except StoreUnavailable:
                choice = ""

    def act(self, key: Key, owner: Owner, choice: str) -> None:
        """What an owner may write: it succeeds while it is the owner, and is Fenced ever after."""
        now = self.store.newest[key]
        token, ours = now.token, now.owner is not None and now.owner.claim == owner.claim
        many = [self.problem] * 20
        output = Output(uri="file:///" + "o" * 300, bytes=1, sha256="5" * 64, probe={"streams": ["x" * 100] * 5})
        staged = Staged(uri=output.uri, handle=f".o.{token}.part", bytes=1, sha256="5" * 64, token=token, probe=output.probe)
        changes: dict[str, Callable[[], Change]] = {
            "renew": lambda: lifecycle.renew(owner, 0.5, "encode", 3.0),
            "download": lambda: lifecycle.advance(owner, S.DOWNLOADING, "fetch", 0.1, self.now),
            "encode": lambda: lifecycle.advance(owner, S.ENCODING, "encode", 0.2, self.now),
            "upload": lambda: lifecycle.advance(owner, S.UPLOADING, "upload", 0.9, self.now),
            "stage": lambda: lifecycle.stage(owner, [staged], many),
            "publish": lambda: lifecycle.renew(owner, 0.95, "upload", None),
            "unstage": lambda: lifecycle.stage(owner, []),
            "adopt": lambda: lifecycle.finish(owner, [output], many, self.now),
            "replace_message": lambda: lifecycle.replace_message(owner, "m-new"),
            "finish": lambda: lifecycle.finish(owner, [output], many, self.now),
            "fail": lambda: lifecycle.fail(owner, self.problem, many, MAX_ATTEMPTS, self.now),
            "give_back": lambda: lifecycle.give_back(owner, "stopping " * 100, self.now),
            "stop_cancelled": lambda: lifecycle.stop_cancelled(owner, self.now),
        }
        self.store.as_owner, self.store.giving_back = owner.claim, choice == "give_back"
        try:
            self.store.update(key, changes[choice](), tries=3)
            assert ours, "written past the fence"
            uncharged = choice == "give_back" and not now.adopt_only
            assert self.store.newest[key].attempts_charged == now.attempts_charged - uncharged
            if choice == "stage":
                self.staged_by[key, token] = owner.claim
        except Fenced:
            assert not ours, "fenced from its own job"
            raise
        finally:
            self.store.as_owner, self.store.giving_back = None, False

    problem = Problem(code="encoder.killed", message="", retryable=True)

    # --- who takes the next step, and what becomes of it ---------------------------------------------------------

    @initialize(hooked=st.booleans(), size=st.sampled_from([10, 3000]))
    def first_job(self, hooked: bool, size: int) -> None:
        self.begin_submit(hooked, size, 3, [])

    @precondition(lambda self: len(self.store.newest) < JOBS_MAX)
    @rule(hooked=st.booleans(), size=st.sampled_from([10, 3000]), steps=st.integers(1, 3), fates=fates)
    def begin_submit(self, hooked: bool, size: int, steps: int, fates: list[Fate]) -> None:
        number = next(self.numbers)
        job = Job(id=f"job-{number}", pipeline="web", recipe="r" * 64, source="file:///" + "s" * size, dest="file:///out",
                  labels={"n": str(number % 2)}, created=self.now, updated=self.now, write_id=f"w{number}",
                  notify_url="https://h/x" if hooked else None)
        self.processes[number] = self.submit(job)
        self.run(number, [None, *ACTIONS][:steps], fates)

    @precondition(lambda self: len(self.processes) < 4)
    @rule(steps=st.integers(1, 3), fates=fates)
    def begin_work(self, steps: int, fates: list[Fate]) -> None:
        number = next(self.numbers)
        self.processes[number] = self.work(Owner(worker=f"w{number}", node="n", claim=f"claim-{number}"))
        self.run(number, [None, "renew", "download"][:steps], fates)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), choices=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3), fates=fates, problem=problems)
    def go_on(self, data: st.DataObject, choices: list[str | None], fates: list[Fate], problem: Problem) -> None:
        self.problem = problem
        self.run(data.draw(st.sampled_from(sorted(self.processes))), choices, fates)

    def run(self, number: int, choices: list[str | None], fates: list[Fate]) -> None:
        """Some steps of a process; it may come to its end, or give up because the store does not answer."""
        self.store.fates = iter(fates)
        try:
            for choice in choices:
                self.processes[number].send(choice)  # type: ignore[arg-type]  # None begins it
        except (StopIteration, StoreUnavailable):
            del self.processes[number]
        finally:
            self.store.fates = iter(())

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        process = self.processes.pop(data.draw(st.sampled_from(sorted(self.processes))))
        self.killed.append(process)  # kept alive: closing a generator runs what kill -9 does not

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), stage=st.booleans(), publish=st.booleans(), times=st.integers(1, MAX_ATTEMPTS + 1))
    def workers_are_lost_one_after_the_other(self, data: st.DataObject, stage: bool, publish: bool, times: int) -> None:
        key = data.draw(st.sampled_from(self.keys))
        for _ in range(times):
            owner = Owner(worker="lost", node="n", claim=f"lost-{next(self.numbers)}")
            try:
                job = self.store.update(key, lifecycle.claim(owner, "m", LEASE_SECONDS, self.now))
            except NotClaimable:
                return
            for _ in self.adopt(key, owner):
                pass
            if self.store.newest[key].owner == owner:
                if stage:
                    self.act(key, owner, "stage")
                if stage and publish:
                    self.dest[key] = job.token
                self.problem = LOST
                self.sweep(self.store.newest[key])

    @rule(seconds=st.sampled_from([1, 31, 600]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), choice=st.sampled_from(ACTIONS), problem=problems)
    def a_write_comes_late(self, data: st.DataObject, choice: str, problem: Problem) -> None:
        self.problem = problem
        self.try_to_write(*data.draw(st.sampled_from(self.claims)), choice)

    def try_to_write(self, key: Key, owner: Owner, choice: str) -> None:
        before = self.store.get(key)
        if before.owner == owner:
            return  # not late: what an owner does in its turn is the business of its process
        try:
            self.act(key, owner, choice)
        except Fenced:
            assert self.store.get(key) == before

    @rule(steps=st.integers(2, 3), choice=st.sampled_from(ACTIONS), problem=problems)
    def another_takes_over(self, steps: int, choice: str, problem: Problem) -> None:
        """A lease is broken and the job claimed anew, while its older owners, who only paused, still try to write."""
        older = list(self.claims)
        self.sweep_all(False, problem)
        self.begin_work(steps, [])
        for key, owner in older:
            self.try_to_write(key, owner, choice)

    # --- what others do to a job ---------------------------------------------------------------------------------

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def observe_lease(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.keys))
        self.seen[key] = self.store.get(key).lease_version

    @rule(wait=st.booleans(), problem=problems)
    def sweep_all(self, wait: bool, problem: Problem) -> None:
        """The sweeper: breaks every lease, unless it waits, and sends what is overdue. Owners that only paused live on."""
        self.problem = problem
        self.now += timedelta(seconds=61)
        for job in self.due(self.now.timestamp()):
            if not (wait and job.claimed):
                self.sweep(job)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), fates=fates, problem=problems)
    def break_lease(self, data: st.DataObject, fates: list[Fate], problem: Problem) -> None:
        key = data.draw(st.sampled_from(sorted(self.seen)))
        before = self.store.get(key)
        self.other(key, lifecycle.break_lease(self.seen[key], problem, MAX_ATTEMPTS, self.now), fates)
        if before.lease_version != self.seen[key]:
            assert self.store.get(key) == before
        self.note_lost_look(before)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), fates=fates, what=st.sampled_from(["cancel", "retry", "abandon", "sent", "dead_lettered", "unstaged",
                                                             "accepted", "postponed", "given_up"]))
    def somebody_else_writes(self, data: st.DataObject, fates: list[Fate], what: str) -> None:
        key = data.draw(st.sampled_from(self.keys))
        job = self.store.get(key)
        changes: dict[str, Callable[[], Change]] = {
            "cancel": lambda: lifecycle.cancel(self.now),
            "retry": lambda: lifecycle.retry(self.now),
            "abandon": lambda: lifecycle.abandon(self.now),
            "sent": lambda: lifecycle.sent("m-other", self.now),
            "dead_lettered": lambda: lifecycle.dead_lettered(job.message_id or "none", self.now),
            "unstaged": lambda: self.unstaged(job),
            "accepted": lambda: lifecycle.events_accepted(job.event_seq),
            "postponed": lambda: lifecycle.event_postponed(job.event_seq, self.now),
            "given_up": lambda: lifecycle.event_postponed(job.event_seq, None),
        }
        self.store.retrying = what == "retry"
        self.other(key, changes[what](), fates)
        self.store.retrying = False

    def other(self, key: Key, change: Change, fates: list[Fate]) -> None:
        self.store.fates = iter(fates)
        try:
            self.store.update(key, change, tries=2)
        except (Refused, StoreUnavailable):
            pass
        finally:
            self.store.fates = iter(())

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def every_record_is_sound(self) -> None:
        due = {job.key for job in self.due(FOREVER)}
        hooks = {job.key for job in self.store.webhooks_due(FOREVER, 100)}
        for key in self.keys:
            job = self.store.get(key)
            assert job == self.store.newest[key]
            assert len(job.encode()) <= 8 * 1024
            assert 0 <= job.attempts_charged <= MAX_ATTEMPTS
            assert not (job.claimed and job.state.final)
            assert (job.finished is not None) == job.state.final
            assert not job.claimed or job.sweep_at == 0
            assert (job.key in due) == (job.sweep_at is not None) == (not job.state.final or bool(job.revocable))
            assert not job.adopt_only or job.attempts_charged == MAX_ATTEMPTS
            assert job.error is None or job.state not in (S.FINISHED, S.CANCELLED)
            assert (job.key in hooks) == (job.webhook_at is not None)
            assert [event.seq for event in job.events] == list(range(job.event_seq - len(job.events) + 1, job.event_seq + 1))
            assert not job.events or job.events[-1].state is job.state
            assert all(done.ended is not None for done in self.past_attempts(job))
            for labels in ({}, job.labels):
                assert job in self.store.list(JobQuery(states=frozenset({job.state}), labels=labels)).jobs
        assert sum(self.store.count("default").values()) == len(self.store.newest)

    @staticmethod
    def past_attempts(job: Job) -> tuple[Attempt, ...]:
        return job.attempts[:-1] if job.claimed else job.attempts

    def everything_comes_to_its_end(self) -> None:
        """No more faults: a sweeper, and a worker that finishes each first job and for ever fails at each second."""
        self.problem = LOST
        for _ in range(10):
            due = self.due(self.now.timestamp() + 3600)
            if not due:
                break
            for job in due:
                self.sweep(job)
            while found := self.bus.jobs.receive(10, 0):
                for delivery in found:
                    self.settle(delivery.message.key, Owner(worker="last", node="n", claim=f"last-{next(self.numbers)}"))
                    delivery.ack()
            self.every_record_is_sound()
        left = {key: job.state for key in self.store.newest if not (job := self.store.get(key)).state.final}
        assert left == {}
        assert self.due(FOREVER) == []
        for key in self.keys:
            self.the_truth_is_told(self.store.get(key))

    def the_truth_is_told(self, job: Job) -> None:
        """A finished job has its output. One that ended for want of attempts has none: else it would have been adopted."""
        if job.state is S.FINISHED:
            assert job.key in self.dest
        if job.state is S.ERROR and job.error is not None and job.error.retryable and job.key not in self.last_look_lost:
            assert not self.published(job)

    def due(self, at: float) -> list[Job]:
        return [job for kind in Sweep for job in self.store.due_for_sweep(kind, at, 100)]

    def unstaged(self, job: Job) -> Change:
        """As a worker that was told of a settled job does."""
        if job.state.final:
            self.revoke(job)
        return lifecycle.unstaged([staged.handle for staged in job.staged], self.published(job))

    def note_lost_look(self, before: Job) -> None:
        if before.claimed and before.adopt_only and not self.store.get(before.key).claimed:
            self.last_look_lost.add(before.key)

    def sweep(self, job: Job) -> None:
        if job.claimed:
            before, change = job, lifecycle.break_lease(job.lease_version, self.problem, MAX_ATTEMPTS, self.now)
            job = self.store.update(job.key, change)
            self.note_lost_look(before)
        if job.state.final:
            self.store.update(job.key, self.unstaged(job))
        else:
            for _ in self.send(job.key):
                pass

    def settle(self, key: Key, owner: Owner) -> None:
        try:
            self.store.update(key, lifecycle.claim(owner, "m", LEASE_SECONDS, self.now))
        except NotClaimable:
            return
        for _ in self.adopt(key, owner):
            pass
        job = self.store.newest[key]
        if job.owner == owner and key.id == self.keys[0].id:
            self.act(key, owner, "stage")
            self.dest[key] = job.token
            self.act(key, owner, "finish")
        elif job.owner == owner:
            self.act(key, owner, "fail")


class MemoryLife(Life):
    backend = bus_backend = "memory"


class SqliteLife(Life):
    backend = bus_backend = "sqlite"


class DynamoLife(Life):
    backend, bus_backend = "dynamodb", "memory"


class SimpleLife(Life):
    backend, bus_backend = "simpledb", "memory"


_HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
TestMemoryLife = MemoryLife.TestCase
TestMemoryLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=_HEALTH)
TestSqliteLife = SqliteLife.TestCase
TestSqliteLife.settings = settings(max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=_HEALTH)
TestDynamoLife = DynamoLife.TestCase  # each step asks a hundred questions of a server
TestDynamoLife.settings = settings(max_examples=2, stateful_step_count=15, deadline=None, suppress_health_check=_HEALTH)
TestSimpleLife = SimpleLife.TestCase
TestSimpleLife.settings = settings(max_examples=4, stateful_step_count=25, deadline=None, suppress_health_check=_HEALTH)
