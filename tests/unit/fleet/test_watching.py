"""Which nodes must be ended, judged without comparing clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from nommerd.fleet.ec2 import Look, Node
from nommerd.fleet.watching import FORGET_SECONDS, GRACE_SECONDS, NodeWatch
from nommerd.store.base import WorkerRecord

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ONE, TWO = "i-0123456789abcdef0", "i-0123456789abcdef1"


class Bench:
    """A watch on a clock that only moves when told: nodes that must report within 600 s and not fall silent for 300 s."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.watch = NodeWatch(600, 300, 120, lambda: self.seconds)
        self.records: dict[str, WorkerRecord] = {}

    def beat(self, node: str, state: str = "ACTIVE", reported: datetime = NOON) -> None:
        self.records[node] = WorkerRecord(name=node, node=node, state=state, slots=1, active=(), version="1", encoders=(),
                                          reported=reported)

    def pass_by(self, seconds: float, *nodes: str, beats: bool = False) -> dict[str, str]:
        """Look each minute; what must be ended at the last look."""
        found: dict[str, str] = {}
        until = self.seconds + seconds
        while self.seconds < until:
            self.seconds = min(self.seconds + 60, until)
            if beats:
                for node in nodes:
                    self.beat(node, reported=NOON + timedelta(seconds=self.seconds))
            found = self.judge(*nodes)
        return found

    def judge(self, *nodes: str, state: str = "running", age: float = 0.0) -> dict[str, str]:
        return self.watch.judge(self.look(*nodes, state=state, age=age), list(self.records.values()))

    def look(self, *nodes: str, state: str = "running", age: float = 0.0) -> Look:
        now = NOON + timedelta(hours=3)
        return Look(tuple(Node(id=one, state=state, launched=now - timedelta(seconds=age), token="t") for one in nodes), now)


def test_a_node_that_never_reported_is_ended_when_it_is_old_enough_by_ec2s_own_clock() -> None:
    bench = Bench()
    bench.pass_by(300, ONE)
    assert bench.judge(ONE, age=599) == {}
    assert bench.judge(ONE, age=601) == {ONE: "it did not report within 600 s"}
    assert bench.judge(ONE, age=601, state="pending") == {ONE: "it did not report within 600 s"}
    assert bench.judge(ONE, age=601, state="shutting-down") == {}
    bench.beat(ONE)
    assert bench.judge(ONE, age=601) == {}


def test_a_node_that_could_not_report_while_we_did_not_look_gets_the_time_to_do_so() -> None:
    bench = Bench()
    bench.seconds += 5000
    assert bench.judge(ONE, age=5000) == {}
    assert bench.pass_by(240, ONE) == {}
    assert bench.judge(ONE, age=5240) == {}
    bench.pass_by(60, ONE)
    assert bench.judge(ONE, age=5300) == {ONE: "it did not report within 600 s"}


def test_a_node_whose_heartbeat_does_not_change_while_we_look_is_ended_whatever_its_clock_says() -> None:
    bench = Bench()
    bench.beat(ONE, reported=NOON + timedelta(days=300))  # ahead of us
    bench.beat(TWO, reported=NOON - timedelta(days=300))
    bench.judge(ONE, TWO)
    assert bench.pass_by(300, ONE, TWO) == {}
    bench.beat(TWO, reported=NOON - timedelta(days=299))
    assert bench.pass_by(60, ONE, TWO) == {ONE: "silent for 360 s"}


def test_nodes_that_report_stay() -> None:
    bench = Bench()
    assert bench.pass_by(3600, ONE, TWO, beats=True) == {}


def test_nobody_is_silent_because_we_did_not_look() -> None:
    bench = Bench()
    bench.beat(ONE)
    bench.judge(ONE)
    bench.seconds += 1000  # the store was out of reach, or another feeder led
    assert bench.judge(ONE) == {}
    assert bench.pass_by(300, ONE) == {}
    assert bench.pass_by(60, ONE) == {ONE: "silent for 360 s"}


def test_a_node_whose_worker_has_ended_gets_a_grace_and_one_whose_worker_comes_back_stays() -> None:
    bench = Bench()
    for node in (ONE, TWO):
        bench.beat(node, "TERMINATED")
    bench.judge(ONE, TWO)
    assert bench.pass_by(GRACE_SECONDS, ONE, TWO) == {}
    bench.beat(TWO)
    assert bench.pass_by(60, ONE, TWO) == {ONE: "its worker ended 180 s ago"}


def test_records_of_nodes_that_are_gone_are_forgotten_after_a_while_and_those_of_others_are_not() -> None:
    bench = Bench()
    bench.beat(ONE)
    bench.beat(TWO)
    bench.beat("desk-1")
    bench.beat("desk-2", "TERMINATED")
    bench.judge(TWO)
    assert bench.watch.forgettable(bench.look(TWO)) == []
    bench.pass_by(FORGET_SECONDS + 60, TWO)
    assert bench.watch.forgettable(bench.look(TWO)) == [ONE, "desk-2"]
