"""Who a node is, what AWS wants of it, and when and how it ends; against a metadata service of our own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from botocore.exceptions import EndpointConnectionError

from nommerd.errors import ConfigError, InfrastructureError
from nommerd.fleet import metadata as service
from nommerd.fleet import node as nodes
from nommerd.fleet.metadata import Metadata, Node, Notice, identify
from nommerd.fleet.node import Life, terminate
from tests.emulator import emulator
from tests.imds import Imds, Mood
from tests.logged import captured
from tests.rig import free_port


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def imds() -> Iterator[Imds]:
    with Imds() as made:
        yield made


@pytest.fixture
def told() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged."""
    with captured() as out:
        yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]


# --- identity ----------------------------------------------------------------------------------------------------


def test_an_instance_learns_who_it_is_under_a_token(imds: Imds) -> None:
    assert identify(Metadata(imds.url)) == Node(imds.instance_id, "us-east-1a")
    assert imds.requests == [("PUT", "/latest/api/token"), ("GET", "/latest/meta-data/instance-id"),
                             ("GET", "/latest/meta-data/placement/availability-zone")]


def test_the_address_is_botocores_own_variable_and_can_be_switched_off() -> None:
    assert (made := Metadata.from_environment({})) is not None and made.is_ec2s_own
    other = Metadata.from_environment({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1/"})
    assert other is not None and not other.is_ec2s_own
    assert Metadata.from_environment({"AWS_EC2_METADATA_DISABLED": "True"}) is None


@pytest.mark.parametrize("mood", [mood for mood in Mood if mood is not Mood.WELL], ids=lambda mood: mood.value)
def test_without_version_2_this_is_no_node_which_is_said_once_and_quickly(mood: Mood, imds: Imds, told: Any) -> None:
    imds.mood = mood
    begun = time.monotonic()
    assert identify(Metadata(imds.url)) is None
    assert time.monotonic() - begun < 2.6, "two seconds, on a busy machine"
    assert [line["event"] for line in told()] == ["node.none"]
    assert "GET" not in {method for method, _ in imds.requests[:1]}
    if mood is not Mood.GARBAGE:
        assert {method for method, _ in imds.requests} == {"PUT"}, "version 1 is never used"


def test_where_nothing_listens_the_answer_is_there_at_once(told: Any) -> None:
    begun = time.monotonic()
    assert identify(Metadata(f"http://127.0.0.1:{free_port()}"), patience_seconds=30) is None
    assert time.monotonic() - begun < 1
    assert "nothing listens" in told()[0]["why"]


@pytest.mark.parametrize("address", ["https://127.0.0.1/", "127.0.0.1:80", "http://", "http://[", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_no_metadata_service(address: str) -> None:
    assert identify(Metadata(address)) is None


def test_a_service_that_comes_up_late_is_waited_for_by_who_was_booted_as_a_node(imds: Imds) -> None:
    imds.mood = Mood.BROKEN
    waiting = gevent.spawn(identify, Metadata(imds.url), 20.0)
    deadline = time.monotonic() + 10
    while not imds.requests:
        assert time.monotonic() < deadline
        gevent.sleep(0.01)
    imds.mood = Mood.WELL
    assert waiting.get(timeout=15) == Node(imds.instance_id, "us-east-1a")


def test_the_patience_for_a_silent_service_is_bounded_however_often_it_is_asked(imds: Imds) -> None:
    imds.mood = Mood.SILENT
    begun = time.monotonic()
    assert identify(Metadata(imds.url), patience_seconds=2.5) is None
    assert time.monotonic() - begun < 3.5
    assert len(imds.requests) > 1


def test_no_proxy_is_asked_for_the_metadata(imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert identify(Metadata(imds.url)) is not None


@pytest.mark.parametrize("text", ["", "i-", "vm-0123456789", "i-0123456789abcdef0; rm", "<html>", "i-0123456789abcdef0\ni-1"])
def test_an_instance_id_that_is_none_is_not_taken(text: str, imds: Imds) -> None:
    imds.items["instance-id"] = text
    assert identify(Metadata(imds.url)) is None


def test_a_token_is_renewed_before_it_ends(imds: Imds) -> None:
    clock = Clock()
    imds.clock = clock
    metadata = Metadata(imds.url, clock)
    metadata.node()
    metadata.notice()
    assert len(imds.ttls) == 1
    clock.now += imds.ttls[0] * 0.79
    metadata.notice()
    assert len(imds.ttls) == 1
    clock.now += imds.ttls[0] * 0.02
    imds.interrupt()
    assert metadata.notice() is Notice.SPOT
    assert len(imds.ttls) == 2


def test_a_token_that_the_service_forgot_is_asked_for_anew(imds: Imds) -> None:
    metadata = Metadata(imds.url)
    metadata.node()
    imds.tokens.clear()
    imds.interrupt()
    assert metadata.notice() is Notice.SPOT
    assert len(imds.ttls) == 2


# --- notices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_an_interruption_is_a_notice_whatever_becomes_of_the_instance(action: str, imds: Imds) -> None:
    metadata = Metadata(imds.url)
    assert metadata.notice() is None
    imds.interrupt(action)
    assert metadata.notice() is Notice.SPOT


def test_a_recommendation_to_rebalance_is_another_and_an_interruption_goes_before_it(imds: Imds) -> None:
    metadata = Metadata(imds.url)
    imds.recommend()
    assert metadata.notice() is Notice.REBALANCE
    imds.interrupt()
    assert metadata.notice() is Notice.SPOT


WELL_FORMED = ('{"action": "terminate", "time": "2026-11-24T08:22:00Z"}', '{"noticeTime": "2026-11-24T08:22:00Z"}')


@pytest.mark.parametrize(("status", "texts"), [
    *[(status, WELL_FORMED) for status in (201, 204, 206, 301, 400, 401, 403, 404, 429, 500, 502, 503)],
    *[(200, (text, text)) for text in (
        "", "<html></html>", "null", "[]", "{}", '"terminate"', "terminate", '{"action": "terminate"}',
        '{"action": "none", "time": "2026-11-24T08:22:00Z"}', '{"action": ["terminate"], "time": "2026-11-24T08:22:00Z"}',
        '{"action": "terminate", "time": "soon"}', '{"action": "terminate", "time": 1}', '{"noticeTime": null}',
        '{"noticeTime": "x"}', '{"action": "terminate", "time": "2026-11-24T08:22:00Z"', "[" * 3000, "\xff\xfe")],
])
def test_what_is_no_well_formed_answer_is_no_notice(status: int, texts: tuple[str, str], imds: Imds) -> None:
    for path, text in zip(("spot/instance-action", "events/recommendations/rebalance"), texts, strict=True):
        imds.bodies[f"meta-data/{path}"] = (status, text)
    assert Metadata(imds.url).notice() is None
    assert imds.asked("rebalance") >= 1


@pytest.mark.parametrize("mood", [mood for mood in Mood if mood is not Mood.WELL], ids=lambda mood: mood.value)
def test_a_service_that_fails_later_is_never_taken_for_a_notice(mood: Mood, imds: Imds,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "ANSWER_SECONDS", 0.3)
    metadata = Metadata(imds.url)
    metadata.node()
    imds.mood = mood
    assert metadata.notice() is None
    imds.mood = Mood.WELL
    imds.interrupt()
    assert metadata.notice() is Notice.SPOT, "and it is asked again"


# --- the end -----------------------------------------------------------------------------------------------------


class Ending:
    """What is done to end a node."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.done: list[str] = []

    def terminate(self) -> None:
        self.done.append("terminate")
        if self.errors:
            raise self.errors.pop(0)

    def shut_down(self) -> None:
        self.done.append("shut down")


def life(ending: Ending, clock: Clock, idle_seconds: float | None = 600, **more: Any) -> Life:
    return Life(Node("i-0123456789abcdef0"), lambda: None, idle_seconds=idle_seconds, terminate=ending.terminate, clock=clock,
                **more)


def test_a_node_may_end_when_nothing_has_happened_for_long_enough() -> None:
    clock = Clock()
    made = life(Ending(), clock)
    assert made.idle_left() == 600, "its start counts"
    clock.now += 599
    assert made.idle_left() == 1
    made.touch()
    assert made.idle_left() == 600
    clock.now += 601
    assert made.idle_left() <= 0


def test_a_node_that_is_to_stay_never_may() -> None:
    clock = Clock()
    made = life(Ending(), clock, idle_seconds=None)
    clock.now += 10**9
    assert made.idle_left() == float("inf")
    assert not made.ends_itself


def test_an_end_that_fails_is_tried_again_after_a_while_that_grows(told: Any) -> None:
    clock, trouble = Clock(), InfrastructureError("node.not_terminated", "throttled")
    ending = Ending(*[trouble] * 9)
    made = life(ending, clock, shut_down=ending.shut_down)
    clock.now += 700
    waits = []
    for _ in range(9):
        assert made.end("idle") is False
        waits.append(made.idle_left())
        clock.now += made.idle_left()
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600, 600]
    assert made.end("idle") is True
    assert "shut down" not in ending.done
    assert [line["level"] for line in told() if line["event"] == "node.not_ended"] == ["error"] * 9


def test_where_ec2_refuses_for_good_the_machine_is_shut_down_from_inside() -> None:
    ending = Ending(ConfigError("config.aws", "UnauthorizedOperation"))
    assert life(ending, Clock(), shut_down=ending.shut_down).end("idle") is True
    assert ending.done == ["terminate", "shut down"]


def test_where_the_machine_is_not_amazons_it_is_never_shut_down() -> None:
    ending = Ending(ConfigError("config.aws", "UnauthorizedOperation"))
    assert life(ending, Clock()).end("idle") is False
    assert ending.done == ["terminate"]


def test_a_fault_of_ours_in_ending_does_not_end_the_worker(told: Any) -> None:
    assert life(Ending(ZeroDivisionError()), Clock()).end("idle") is False
    assert "ZeroDivisionError" in told()[-1]["exception"]


def test_amazons_firmware_is_recognised(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_DMI", tmp_path)
    assert not nodes.is_ec2_hardware()
    (tmp_path / "sys_vendor").write_text("QEMU\n")
    assert not nodes.is_ec2_hardware()
    (tmp_path / "bios_version").write_text("4.11.amazon\n")
    assert nodes.is_ec2_hardware()


def test_terminating_names_this_one_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    ec2 = emulator().client("ec2")
    ids = [one["InstanceId"] for one in ec2.run_instances(ImageId="ami-12c6146b", MinCount=2, MaxCount=2)["Instances"]]
    terminate(ec2, ids[0])
    states = {one["InstanceId"]: one["State"]["Name"] for group in ec2.describe_instances(InstanceIds=ids)["Reservations"]
              for one in group["Instances"]}
    assert states == {ids[0]: "terminated", ids[1]: "running"}


@pytest.mark.parametrize(("code", "kind"), [
    ("UnauthorizedOperation", ConfigError), ("OperationNotPermitted", ConfigError),
    ("InvalidInstanceID.NotFound", ConfigError), ("RequestLimitExceeded", InfrastructureError),
    ("InternalError", InfrastructureError)])
def test_what_ec2_answers_says_whether_a_later_try_may_help(code: str, kind: type[Exception]) -> None:
    from botocore.stub import Stubber

    ec2 = emulator().client("ec2")
    with Stubber(ec2) as stub:
        stub.add_client_error("terminate_instances", code, "no", 500 if code == "InternalError" else 400,
                              expected_params={"InstanceIds": ["i-0123456789abcdef0"]})
        with pytest.raises(kind):
            terminate(ec2, "i-0123456789abcdef0")


def test_an_ec2_that_cannot_be_reached_may_be_later() -> None:
    class Away:
        def terminate_instances(self, **asked: Any) -> None:
            raise EndpointConnectionError(endpoint_url="https://ec2.us-east-1.amazonaws.com")

    with pytest.raises(InfrastructureError):
        terminate(Away(), "i-0123456789abcdef0")
