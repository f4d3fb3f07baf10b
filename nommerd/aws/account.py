"""What makers of resources share: clients, how results are told, bounded waits, and whose a thing is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from nommerd.aws import names
from nommerd.aws.clients import Clients
from nommerd.aws.faults import is_missing, told
from nommerd.aws.plan import Resource
from nommerd.aws.policies import Place
from nommerd.errors import InfrastructureError

T = TypeVar("T")
PAUSE_SECONDS = 2.0  # between looks at something that takes its time
STACK_TAG = "aws:cloudformation:stack-name"


class Status(StrEnum):
    """What became of one resource."""

    MADE = "made"
    EXISTS = "exists"  # as it should be
    CHANGED = "changed"  # it was there, and is now as it should be
    DIFFERS = "differs"  # it is there, is not as it should be, and was left alone: somebody must act
    SKIPPED = "skipped"  # not made, and nothing that is asked for needs it
    REMOVED = "removed"
    ABSENT = "absent"
    LEFT = "left"  # not removed


@dataclass(frozen=True, slots=True)
class Outcome:
    """One resource, and what became of it. `detail` is a sentence or two: what changed, or what to do."""

    type: str
    name: str
    status: Status
    detail: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)  # for Fn::GetAtt

    def json(self) -> dict[str, str]:
        return {"type": self.type, "name": self.name, "status": str(self.status), "detail": self.detail}


@dataclass(slots=True)
class Account:
    """The account while a command works in it. `say` tells people that something takes its time."""

    clients: Clients
    place: Place
    cluster: str
    say: Callable[[str], None] = lambda text: None
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def wait(self, what: str, look: Callable[[], T | None], seconds: float) -> T:
        """The first thing `look` finds. Raises InfrastructureError when that takes longer than `seconds`."""
        deadline = self.clock() + seconds
        said = False
        while True:
            found = look()
            if found is not None:
                return found
            if self.clock() >= deadline:
                raise InfrastructureError("node.aws_slow", f"Not within {seconds:.0f} seconds: {what}.",
                                          "Run the command again: it goes on where it was.")
            if not said:
                self.say(f"waiting: {what} (up to {seconds:.0f} s)")
                said = True
            self.pause(PAUSE_SECONDS)

    def not_ours(self, tags: Mapping[str, str]) -> str | None:
        """Why a thing with these tags is not ours to change; None where it is ours."""
        owner = tags.get(names.CLUSTER_TAG)
        if owner == self.cluster:
            return None
        if owner is not None:
            return f"It belongs to the cluster {owner}: choose another name."
        return f"It is not marked as this cluster's: choose another name, or tag it {names.CLUSTER_TAG}={self.cluster}."

    def left(self, tags: Mapping[str, str]) -> str | None:
        """Why a teardown leaves a thing with these tags; None where it is ours to remove."""
        stack = tags.get(STACK_TAG)
        return f"CloudFormation made it: delete the stack {stack}." if stack else self.not_ours(tags)


class Maker(Protocol):
    """Makes and removes resources of one type."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        """Make it, or make it what it should be. A second call changes nothing."""

    def remove(self, account: Account, resource: Resource) -> Outcome:
        """Remove it, if it is this cluster's."""


def identity(clients: Clients) -> Place:
    """Whose credentials these are, from STS. Raises ConfigError where there are none, or no region."""
    with told():
        region = clients.region
        who = clients("sts").get_caller_identity()
    return Place(who["Arn"].split(":")[1], region, who["Account"])


def found(call: Callable[[], T]) -> T | None:
    """The call's answer, None where AWS says that there is no such thing."""
    from botocore.exceptions import ClientError

    try:
        return call()
    except ClientError as error:
        if is_missing(error):
            return None
        raise


def tag_map(tags: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    """`[{Key, Value}]` as a dict."""
    return {tag["Key"]: tag["Value"] for tag in tags or ()}


def outcome(resource: Resource, status: Status, detail: str = "", **attributes: Any) -> Outcome:
    return Outcome(resource.type, resource.name, status, detail, attributes)
