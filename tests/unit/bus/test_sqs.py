"""The bus on SQS, against the emulator behind a proxy that breaks calls and holds AWS's rules."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import pytest
from structlog.testing import capture_logs

from nommerd import lifecycle
from nommerd.bus import open_bus, sqs, sqs_calls
from nommerd.bus.base import BusUnavailable, Delivery, Depth, Queue
from nommerd.bus.sqs import CAP_SECONDS, SqsBus
from nommerd.errors import ConfigError
from nommerd.job import Job, Owner, Priority, new_id, utcnow
from nommerd.messages import ChangeMessage, JobMessage
from nommerd.receipt import REPLACE_AFTER_SECONDS, Receipt
from nommerd.rules import Action, decide
from nommerd.store.memory import MemoryStore
from tests.aws_proxy import Answer, AwsProxy, Call, Forward
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, emulator
from tests.rig import wait_until
from tests.sqs import make_queues, new_prefix
from tests.strict_sqs import StrictSqs

SECONDS = 20.0
PRIORITIES = list(Priority)


@dataclass
class Scene:
    """A bus behind a proxy of its own, and a clock to move."""

    proxy: AwsProxy
    prefix: str
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.strict = StrictSqs()
        self.proxy.rules.append(self.strict)
        self.bus = self.another()

    def another(self) -> SqsBus:
        """Another process's bus on the same queues."""
        clients = emulator().clients(self.proxy.url)
        client = clients("sqs", tries=2, connect_timeout=3.0, read_timeout=5.0)
        return SqsBus(client, self.prefix, clients("sqs", tries=1, read_timeout=24.0), clock=lambda: self.now)

    def name(self, which: str) -> str:
        return f"{self.prefix}-{which}"

    def fields(self, action: str) -> list[dict[str, Any]]:
        """The entries of all requests of this action."""
        return [entry for call in self.proxy.asked(action) for entry in call.json["Entries"]]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with AwsProxy() as proxy:
        made = Scene(proxy, new_prefix())
        yield made
        made.bus.close()


def receive_one(queue: Queue) -> Delivery:
    delivery, = queue.receive(1, SECONDS)
    return delivery


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return sorted(one.message.id for one in deliveries)


def send_many(queue: Queue, count: int) -> list[gevent.Greenlet]:
    return [gevent.spawn(queue.send, JobMessage(id=f"{number:03}")) for number in range(count)]


def failing(name: str, times: float, sender_fault: bool = False) -> Callable[[Call, Forward], Answer]:
    """SQS fails this message's entry of a batch for so many times, and carries out the others."""
    left = [times]

    def rule(call: Call, forward: Forward) -> Answer:
        if call.action != "SendMessageBatch":
            return forward(call)
        fields = call.json
        bad = [entry for entry in fields["Entries"] if f'"{name}"' in entry["MessageBody"] and left[0] > 0]
        if not bad:
            return forward(call)
        left[0] -= 1
        call.body = Answer(0, [], b"").with_json({**fields, "Entries": [e for e in fields["Entries"] if e not in bad]}).body
        said: dict[str, Any] = {"Successful": []}
        if len(fields["Entries"]) > len(bad):
            said = forward(call).json
        said["Failed"] = [{"Id": entry["Id"], "SenderFault": sender_fault, "Code": "InternalError", "Message": "Injected."}
                          for entry in bad]
        return Answer(200, [("Content-Type", "application/x-amz-json-1.0")], b"").with_json(said)

    return rule


class TestPolling:
    @pytest.mark.parametrize("priority", PRIORITIES)
    def test_a_job_of_any_priority_reaches_an_idle_receiver_at_once(self, scene: Scene, priority: Priority) -> None:
        waiting = gevent.spawn(scene.bus.jobs.receive, 1, SECONDS)
        polls = [scene.name(f"jobs-{one}") for one in PRIORITIES]
        wait_until(lambda: all(any(call.json["WaitTimeSeconds"] == 20 for call in scene.proxy.asked("ReceiveMessage", poll))
                               for poll in polls), SECONDS, "a long poll of each")
        begun = time.monotonic()
        scene.bus.jobs.send(JobMessage(id="a", priority=priority))
        assert ids(waiting.get(timeout=SECONDS)) == ["a"]
        assert time.monotonic() - begun < 1

    def test_an_idle_receiver_has_one_long_poll_open_per_queue_however_often_it_is_interrupted(self, scene: Scene) -> None:
        for _ in range(5):
            waiting = gevent.spawn(scene.bus.jobs.receive, 2, SECONDS)
            wait_until(lambda: scene.proxy.count("ReceiveMessage") >= 5, SECONDS, "polls")
            wait_until(lambda: scene.bus.jobs.interrupt() or waiting.ready(), SECONDS, "the wait's end")  # noqa: B023
            assert waiting.get() == []
        asked = [[call.json["WaitTimeSeconds"] for call in scene.proxy.asked("ReceiveMessage", scene.name(f"jobs-{one}"))]
                 for one in ("high", "normal", "low")]
        assert asked == [[0, 20], [0, 20], [20]]

    def test_a_message_that_comes_to_an_abandoned_poll_is_visible_again_long_before_its_time(self, scene: Scene) -> None:
        waiting = gevent.spawn(scene.bus.jobs.receive, 1, SECONDS)
        wait_until(lambda: scene.proxy.count("ReceiveMessage") >= 5, SECONDS, "polls")
        scene.bus.jobs.interrupt()
        assert waiting.get(timeout=SECONDS) == []
        begun = time.monotonic()
        scene.bus.jobs.send(JobMessage(id="a"))
        wait_until(lambda: scene.proxy.count("ChangeMessageVisibilityBatch"), SECONDS, "its release")
        delivery, = scene.another().jobs.receive(1, SECONDS)
        assert delivery.receive_count == 2
        assert time.monotonic() - begun < 5, "the receive visibility is 10 s"

    def test_an_empty_dead_letter_queue_is_looked_at_rarely(self, scene: Scene) -> None:
        for _ in range(20):
            assert scene.bus.jobs.dead_letters(50) == []
            scene.now += 1
        assert scene.proxy.count("ReceiveMessage", scene.name("jobs-dead")) == 1
        assert scene.bus.jobs.dead_letters(50) == []
        assert scene.proxy.count("ReceiveMessage", scene.name("jobs-dead")) == 2


class TestReceipts:
    def test_a_receipt_whose_time_is_over_asks_nothing_of_sqs(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="a"))
        held = receive_one(scene.bus.jobs)
        scene.now += 10
        assert (held.ack(), held.release(), held.extend(60)) == (False, False, False)
        assert scene.proxy.count("DeleteMessageBatch") + scene.proxy.count("ChangeMessageVisibilityBatch") == 0

    def test_a_receipt_that_only_sqs_knows_to_have_lapsed_does_nothing_to_the_newer_one(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="a"))
        stale = receive_one(scene.bus.jobs)
        stale.extend(1)  # and this process's clock stands still
        newer = receive_one(scene.another().jobs)
        stale.ack()
        assert scene.strict.refused == {"DeleteMessageBatch": 1}, "AWS says yes and does nothing"
        assert newer.extend(60) is True
        assert newer.ack() is True

    def test_extending_by_a_lapsed_receipt_that_sqs_refuses_is_false(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="a"))
        stale = receive_one(scene.bus.jobs)
        stale.extend(1)
        newer = receive_one(scene.another().jobs)
        assert (stale.extend(60), stale.extend(60)) == (False, False)
        assert scene.strict.refused == {"ChangeMessageVisibilityBatch": 1}, "asked once"
        assert newer.ack() is True

    def test_no_message_is_hidden_for_more_than_twelve_hours_from_its_receipt(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="a"))
        held = receive_one(scene.bus.jobs)
        assert held.extend(13 * 3600) is True
        scene.now += CAP_SECONDS - 100
        assert held.extend(3600) is True
        scene.now += 99.5
        assert held.extend(3600) is False
        asked = [entry["VisibilityTimeout"] for entry in scene.fields("ChangeMessageVisibilityBatch")]
        assert asked == [CAP_SECONDS, 100]

    def test_fractions_of_seconds_are_rounded_up_and_delays_cut_at_a_quarter_of_an_hour(self, scene: Scene) -> None:
        for delay in (0.0, 0.3, 3600.0):
            scene.bus.jobs.send(JobMessage(id="a"), delay)
        receive_one(scene.bus.jobs).extend(1.2)
        assert [entry.get("DelaySeconds") for entry in scene.fields("SendMessageBatch")] == [None, 1, 900]
        assert [entry["VisibilityTimeout"] for entry in scene.fields("ChangeMessageVisibilityBatch")] == [2]

    def test_a_message_received_for_eleven_hours_is_replaced_and_its_owner_goes_on(self, scene: Scene) -> None:
        store, now = MemoryStore(), utcnow()
        job = Job(id=new_id(), pipeline="p", recipe="r", source="file:///a", dest="file:///b", created=now, updated=now)
        store.create(job)
        scene.bus.jobs.send(JobMessage(id=job.id))
        held = receive_one(scene.bus.jobs)
        owner = Owner(worker="w", node="n", claim=new_id())
        claimed = store.update(job.key, lifecycle.claim(owner, held.message_id, 1.0, utcnow()))
        receipt = Receipt(held, claimed, store, scene.bus.jobs, clock=lambda: scene.now)
        begun = scene.now
        while scene.now < begun + REPLACE_AFTER_SECONDS:
            assert held.extend(3600) is True
            scene.now += 1800
        receipt.keep()
        record = store.get(job.key)
        assert (record.owner, record.token) == (claimed.owner, claimed.token)
        assert record.message_id not in (None, held.message_id)
        assert held.ack() is False, "the old message is gone"
        successor = receive_one(scene.bus.jobs)
        assert successor.message_id == record.message_id
        assert decide(record, successor.message, successor.message_id) is Action.WATCH, "it never runs twice at once"
        assert scene.bus.jobs.depth().in_flight == 1


class TestBatches:
    def test_many_sends_at_once_go_out_in_few_requests_and_each_caller_gets_its_own_id(self, scene: Scene) -> None:
        sending = send_many(scene.bus.jobs, 45)
        sent = {number: one.get(timeout=SECONDS) for number, one in enumerate(sending)}
        assert scene.proxy.count("SendMessageBatch") <= 10
        got = {one.message.id: one.message_id for _ in range(5) for one in scene.bus.jobs.receive(10, 0)}
        assert got == {f"{number:03}": message_id for number, message_id in sent.items()}

    def test_a_lone_send_waits_for_nobody(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="first"))
        begun = time.monotonic()
        scene.bus.jobs.send(JobMessage(id="a"))
        took = time.monotonic() - begun
        call = scene.proxy.asked("SendMessageBatch")[-1]
        assert call.at - begun < took, "sent while its caller waits"
        assert len(scene.fields("SendMessageBatch")) == 2 == scene.proxy.count("SendMessageBatch")

    def test_many_acks_go_out_together(self, scene: Scene) -> None:
        gevent.joinall(send_many(scene.bus.jobs, 20), raise_error=True)
        held = [*scene.bus.jobs.receive(20, 0)]
        acks = [gevent.spawn(one.ack) for one in held]
        assert [one.get(timeout=SECONDS) for one in acks] == [True] * 20
        assert scene.proxy.count("DeleteMessageBatch") <= 4
        assert scene.bus.jobs.depth().in_flight == 0

    def test_of_a_batch_only_the_failed_entry_is_sent_again_and_logged(self, scene: Scene) -> None:
        scene.proxy.rules.append(failing("003", times=1))
        with capture_logs() as logs:
            gevent.joinall(send_many(scene.bus.jobs, 10), raise_error=True)
        entries = [entry["MessageBody"] for entry in scene.fields("SendMessageBatch")]
        assert ids(scene.bus.jobs.receive(11, 0)) == [f"{number:03}" for number in range(10)]
        told, = [log for log in logs if log["event"] == "sqs.entry_failed"]
        assert (told["queue"], told["code"], told["again"]) == (scene.name("jobs-normal"), "InternalError", True)
        assert scene.proxy.count("SendMessageBatch") == 2
        assert len(scene.proxy.asked("SendMessageBatch")[1].json["Entries"]) == 1, entries

    def test_an_entry_that_fails_again_and_again_fails_for_its_caller_alone(self, scene: Scene) -> None:
        scene.proxy.rules.append(failing("003", times=float("inf")))
        sending = send_many(scene.bus.jobs, 10)
        gevent.joinall(sending, timeout=SECONDS)
        assert [number for number, one in enumerate(sending) if isinstance(one.exception, BusUnavailable)] == [3]
        assert ids(scene.bus.jobs.receive(11, 0)) == [f"{number:03}" for number in range(10) if number != 3]
        assert scene.proxy.count("SendMessageBatch") == sqs_calls.ENTRY_TRIES

    def test_an_entry_that_is_our_fault_is_not_sent_again(self, scene: Scene) -> None:
        scene.proxy.rules.append(failing("a", times=float("inf"), sender_fault=True))
        with pytest.raises(BusUnavailable, match="Injected"):
            scene.bus.jobs.send(JobMessage(id="a"))
        assert scene.proxy.count("SendMessageBatch") == 1

    def test_a_delete_of_which_one_entry_failed_is_done_for_that_entry(self, scene: Scene) -> None:
        gevent.joinall(send_many(scene.bus.jobs, 3), raise_error=True)
        held = [*scene.bus.jobs.receive(3, 0)]

        def one_fails(call: Call, forward: Forward) -> Answer:
            if call.action != "DeleteMessageBatch" or scene.proxy.count("DeleteMessageBatch") > 1:
                return forward(call)
            first, *rest = call.json["Entries"]
            call.body = Answer(0, [], b"").with_json({**call.json, "Entries": rest}).body
            said = forward(call).json
            said["Failed"] = [{"Id": first["Id"], "SenderFault": False, "Code": "InternalError"}]
            return Answer(200, [("Content-Type", "application/x-amz-json-1.0")], b"").with_json(said)

        scene.proxy.rules.append(one_fails)
        acks = [gevent.spawn(one.ack) for one in held]
        assert [one.get(timeout=SECONDS) for one in acks] == [True, True, True]
        assert scene.bus.jobs.depth().in_flight == 0
        assert [len(call.json["Entries"]) for call in scene.proxy.asked("DeleteMessageBatch")][-1] == 1

    def test_a_batch_holds_no_more_than_sqs_takes(self) -> None:
        sizes: list[int] = []

        def batch(entries: list[dict[str, Any]]) -> dict[str, Any]:
            sizes.append(sum(len(entry["MessageBody"]) for entry in entries))
            return {"Successful": [{"Id": entry["Id"]} for entry in entries]}

        batches = sqs_calls.Batches(batch, "q")
        texts = ["x" * 100_000] * 7
        gevent.joinall([gevent.spawn(batches.add, {"MessageBody": text}, len(text)) for text in texts], raise_error=True)
        assert sum(sizes) == 700_000 and max(sizes) <= 262_144


class TestFaults:
    @pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "ServiceUnavailable"),
                                                  (400, "ThrottlingException"), (403, "RequestThrottled")])
    def test_a_refused_receive_is_told_and_the_next_one_works(self, scene: Scene, status: int, code: str) -> None:
        scene.proxy.fail("ReceiveMessage", status=status, code=code, times=2, resource=scene.name("changes"))
        scene.bus.changes.send(ChangeMessage(id="a"))
        with pytest.raises(BusUnavailable, match=code):
            scene.bus.changes.receive(1, SECONDS)
        with pytest.raises(BusUnavailable):
            scene.bus.changes.receive(1, SECONDS)
        assert receive_one(scene.bus.changes).message.id == "a"

    def test_a_send_rides_over_one_failure(self, scene: Scene) -> None:
        scene.proxy.fail("SendMessageBatch")
        scene.bus.jobs.send(JobMessage(id="a"))
        assert receive_one(scene.bus.jobs).message.id == "a"

    def test_a_send_whose_answer_is_lost_may_come_twice_but_never_not(self, scene: Scene) -> None:
        scene.proxy.lose_answer("SendMessageBatch")
        scene.bus.jobs.send(JobMessage(id="a"))
        got = scene.bus.jobs.receive(5, 0)
        assert set(ids(got)) == {"a"} and len(got) <= 2

    def test_a_received_message_whose_answer_was_lost_comes_again(
            self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs, "RECEIVE_VISIBILITY_SECONDS", 1.0)
        scene.bus.changes.send(ChangeMessage(id="a"))
        scene.proxy.lose_answer("ReceiveMessage")
        with pytest.raises(BusUnavailable):
            scene.bus.changes.receive(1, SECONDS)
        assert receive_one(scene.bus.changes).receive_count == 2

    def test_a_delete_whose_answer_was_lost_is_done(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="a"))
        held = receive_one(scene.bus.jobs)
        scene.proxy.lose_answer("DeleteMessageBatch")
        assert held.ack() is True
        assert scene.bus.jobs.depth().in_flight == 0

    def test_a_delete_that_did_not_take_is_told(self, scene: Scene) -> None:
        scene.bus.jobs.send(JobMessage(id="a"))
        held = receive_one(scene.bus.jobs)
        scene.proxy.fail("DeleteMessageBatch", times=2)
        with pytest.raises(BusUnavailable):
            held.ack()
        assert held.ack() is True

    def test_an_outage_ends_waits_and_what_was_sent_meanwhile_is_received_after_it(
            self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs, "RECEIVE_VISIBILITY_SECONDS", 2.0)
        waiting = gevent.spawn(scene.bus.jobs.receive, 1, SECONDS)
        wait_until(lambda: scene.proxy.count("ReceiveMessage") >= 5, SECONDS, "polls")
        direct = SqsBus(emulator().client("sqs"), scene.prefix)
        with scene.proxy.dark():
            with pytest.raises(BusUnavailable):
                waiting.get(timeout=SECONDS / 2)
            direct.jobs.send(JobMessage(id="a"))
            for call in (lambda: scene.bus.jobs.send(JobMessage(id="b")), scene.bus.jobs.depth,
                         lambda: scene.bus.jobs.receive(1, 0), lambda: scene.bus.changes.dead_letters(1)):
                with pytest.raises(BusUnavailable):
                    call()
        assert receive_one(scene.bus.jobs).message.id == "a"  # maybe late: the poll that was cut off may have got it

    def test_a_silent_outage_holds_a_caller_for_a_bounded_time_and_nobody_else(
            self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs_calls, "CALL_SECONDS", 0.5)
        scene.bus.jobs.send(JobMessage(id="a"))
        held = receive_one(scene.bus.jobs)
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                gevent.sleep(0.01)

        ticking = gevent.spawn(tick)
        with scene.proxy.dark(silent=True):
            for call in (lambda: scene.bus.jobs.send(JobMessage(id="b")), held.ack, lambda: held.extend(30),
                         scene.bus.jobs.depth):
                begun = time.monotonic()
                with pytest.raises(BusUnavailable, match="within"):
                    call()
                assert time.monotonic() - begun < 5
        ticking.kill()
        assert ticks > 50, "the loop went on"

    def test_what_cannot_be_buried_is_not_lost(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs, "RECEIVE_VISIBILITY_SECONDS", 4.0)  # more than two tries take
        scene.bus.changes.sources[0].ask("send_message", MessageBody="nonsense")  # type: ignore[attr-defined]
        scene.proxy.fail("SendMessage", times=2, resource=scene.name("changes-dead"))
        assert scene.bus.changes.receive(1, 0) == []
        assert scene.bus.changes.depth().dead == 0
        changes = scene.bus.changes
        wait_until(lambda: not changes.receive(1, 0) and changes.depth().dead == 1, SECONDS, "buried later")

    def test_a_buried_message_is_kept_for_people_and_looked_at_once(self, scene: Scene) -> None:
        scene.bus.changes.sources[0].ask("send_message", MessageBody="nonsense")  # type: ignore[attr-defined]
        assert scene.bus.changes.receive(1, 0) == []
        for _ in range(2):
            assert scene.bus.changes.dead_letters(10) == []
            scene.now += 60
        assert scene.bus.changes.depth().dead == 1
        hidden, = scene.proxy.asked("ChangeMessageVisibility")
        assert hidden.json["VisibilityTimeout"] == CAP_SECONDS


class TestPurge:
    def test_a_queue_purged_a_moment_ago_is_emptied_all_the_same(self, scene: Scene) -> None:
        scene.bus.jobs.purge()
        gevent.joinall(send_many(scene.bus.jobs, 25), raise_error=True)
        scene.bus.jobs.purge()
        refused = [call.status for call in scene.proxy.asked("PurgeQueue", scene.name("jobs-normal"))]
        assert len(refused) == 2 and refused[0] == 200 != refused[1], "once a minute, says AWS"
        assert scene.bus.jobs.depth().visible == 0

    def test_what_is_hidden_then_goes_as_soon_as_sqs_purges_again(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs, "PURGE_RETRY_SECONDS", 0.1)
        scene.bus.jobs.send(JobMessage(id="hidden"))
        receive_one(scene.bus.jobs)
        scene.bus.jobs.send(JobMessage(id="delayed"), 60)
        scene.bus.jobs.send(JobMessage(id="visible"))
        normal = scene.name("jobs-normal")
        scene.proxy.fail("PurgeQueue", times=3, status=403, resource=normal,
                         code="AWS.SimpleQueueService.PurgeQueueInProgress")
        scene.bus.jobs.purge()
        assert scene.proxy.count("PurgeQueue", normal) == 4
        assert scene.bus.jobs.depth() == Depth()


class TestOpening:
    def test_missing_queues_are_named_and_the_hint_says_what_makes_them(self) -> None:
        client, prefix = emulator().client("sqs"), f"gone-{new_id()}"
        make_queues(client, prefix)
        client.delete_queue(QueueUrl=client.get_queue_url(QueueName=f"{prefix}-jobs-low")["QueueUrl"])
        with pytest.raises(ConfigError, match="nommerd aws setup") as caught:
            open_bus(f"sqs://{prefix}", Path("/nonexistent"), emulator().clients())
        assert f"no SQS queue {prefix}-jobs-low in" in caught.value.message

    @pytest.mark.parametrize("daemon", ["feeder", "worker"])
    def test_a_daemon_without_its_queues_exits_2(self, tmp_path: Path, daemon: str) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "c.yaml").write_text(
            "store: memory://\nbus: sqs://no-such-queues\npaths: {data: data}\napi: {port: 0}\nworker: {health_port: null}\n"
            f"aws: {{region: {REGION}, endpoint_url: '{emulator().url}', access_key_id: {ACCESS_KEY}, "
            f"secret_access_key: '{SECRET_KEY}'}}\n", encoding="utf-8")
        ran = subprocess.run([sys.executable, "-m", "nommerd", daemon, "-c", str(tmp_path / "c.yaml"),
                              *(["--local"] if daemon == "worker" else [])],
                             capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
        assert ran.returncode == 2, ran.stderr
        assert "no-such-queues-jobs-high" in ran.stderr and "nommerd aws setup" in ran.stderr
        assert SECRET_KEY not in ran.stdout + ran.stderr

    def test_a_refusal_is_the_operators_to_mend(self, scene: Scene) -> None:
        scene.proxy.fail("GetQueueUrl", status=403, code="AccessDenied", times=float("inf"))
        with pytest.raises(ConfigError, match="AccessDenied"):
            scene.another()

    def test_an_outage_at_start_passes(self, scene: Scene) -> None:
        with scene.proxy.dark():
            bus = scene.another()
            with pytest.raises(BusUnavailable):
                bus.jobs.receive(1, SECONDS)
        bus.jobs.send(JobMessage(id="a"))
        assert receive_one(bus.jobs).message.id == "a"
        bus.close()

    def test_a_queue_that_vanishes_later_is_told_with_the_hint(self, scene: Scene) -> None:
        client = emulator().client("sqs")
        client.delete_queue(QueueUrl=client.get_queue_url(QueueName=scene.name("changes"))["QueueUrl"])
        with pytest.raises(BusUnavailable, match="nommerd aws setup"):
            scene.bus.changes.send(ChangeMessage(id="a"))
        with pytest.raises(BusUnavailable, match="nommerd aws setup"):
            scene.bus.changes.receive(1, 1)
