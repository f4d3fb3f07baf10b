"""What the fleet needs of the settings besides being switched on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nommerd.config import Settings
from nommerd.fleet.launch import POOLS_MAX, pools

REACHED_BY_NODES = {"store": ("dynamodb", "simpledb"), "bus": ("sqs",)}


class Fault(NamedTuple):
    """The key it stands at, what is wrong and what would be right."""

    key: str
    message: str
    hint: str


def faults(settings: Settings) -> Iterator[Fault]:
    """All that keeps this fleet from working, none where it is off."""
    if not settings.fleet.enabled:
        return
    yield from _missing(settings)
    yield from _out_of_reach(settings)
    fleet, beat = settings.fleet, settings.worker.heartbeat_seconds
    if fleet.zones and fleet.subnets:
        yield Fault("fleet.subnets", "fleet.zones and fleet.subnets exclude each other: a subnet is in a zone.",
                    "Leave one empty.")
    if (count := len(set(pools(fleet)))) > POOLS_MAX:
        yield Fault("fleet.instance_types", f"{count} combinations of types and places are more than one launch asks for.",
                    f"List fewer: at most {POOLS_MAX}.")
    if fleet.silent_seconds < 2 * beat:
        yield Fault("fleet.silent_seconds", f"Nodes report every {beat:g} s: one that is silent for "
                    f"{fleet.silent_seconds:g} s may be well.",
                    "Set fleet.silent_seconds to twice worker.heartbeat_seconds or more.")


def _missing(settings: Settings) -> Iterator[Fault]:
    fleet = settings.fleet
    for key, value, example in (("fleet.image_id", fleet.image_id, "ami-0123456789abcdef0"),
                                ("fleet.instance_types", fleet.instance_types, "[c7i.2xlarge, c6i.2xlarge]"),
                                ("aws.config_bucket", settings.aws.config_bucket, "example-nommerd-config")):
        if not value:
            yield Fault(key, f"fleet.enabled needs {key}.", f"For example {key}: {example}.")


def _out_of_reach(settings: Settings) -> Iterator[Fault]:
    for key, schemes in REACHED_BY_NODES.items():
        scheme = str(getattr(settings, key)).partition("://")[0]
        if scheme not in schemes:
            yield Fault(key, f"{key} is {scheme}://, which nodes cannot reach.",
                        "fleet.enabled needs " + " or ".join(f"{key}: {name}://NAME" for name in schemes) + ".")
