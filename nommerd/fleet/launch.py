"""A launch as it is decided, stored on the leader's token, and carried out: pure values.

The decision holds the whole request. EC2 answers a client token that it knows with what it did the first time, but only if
all other parameters are the same: so what is repeated after a crash is read from the store, not made anew.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nommerd.config import Fleet
from nommerd.errors import InfrastructureError
from nommerd.fleet.template import LAUNCH_TAG, node_tags, tag_list
from nommerd.job import new_id

POOLS_MAX = 120  # in one request: EC2 takes 300, but the decision with its request must fit into the leader's record
SPOT, ON_DEMAND = "spot", "on-demand"


class Pool(NamedTuple):
    """Where a node can come from: an instance type in a zone or subnet; in any zone where `place` is empty."""

    type: str
    place: str


@dataclass(frozen=True, slots=True)
class Template:
    """A version of the launch template, by number."""

    id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """To start `count` nodes by this request, under its client token. `decided` in epoch seconds."""

    token: str
    count: int
    market: str
    decided: float
    request: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What Leader.launch holds: the decision whose outcome is not known, and nodes that EC2 named in its answer to an earlier
    one and does not list yet. Both count as nodes."""

    decision: Decision | None = None
    unseen: tuple[str, ...] = ()

    def encode(self) -> str:
        """As text; empty where there is nothing to keep."""
        if self.decision is None and not self.unseen:
            return ""
        decision = None if self.decision is None else {
            "token": self.decision.token, "count": self.decision.count, "market": self.decision.market,
            "decided": self.decision.decided, "request": self.decision.request}
        return json.dumps({"v": 1, "decision": decision, "unseen": self.unseen}, separators=(",", ":"))

    @staticmethod
    def decode(text: str) -> Ledger:
        """Raises InfrastructureError for what no version up to this one wrote: then nothing may be launched."""
        if not text:
            return Ledger()
        try:
            raw = json.loads(text)
            if raw["v"] != 1:
                raise ValueError(raw["v"])
            found = raw["decision"]
            return Ledger(decision=None if found is None else Decision(**found), unseen=tuple(raw["unseen"]))
        except (ValueError, KeyError, TypeError):
            raise InfrastructureError("internal.bad_record", "The stored launch decision cannot be read: nothing is launched.",
                                      "A newer version may have written it; let that one lead.") from None

    def answered(self, ids: Sequence[str]) -> Ledger:
        """The decision is carried out: these nodes came of it."""
        return Ledger(unseen=tuple(dict.fromkeys((*self.unseen, *ids))))

    def without(self, ids: Collection[str]) -> Ledger:
        """These nodes are listed now, or given up."""
        return replace(self, unseen=tuple(one for one in self.unseen if one not in ids))


def pools(fleet: Fleet) -> list[Pool]:
    """All that the settings allow, the preferred types first."""
    return [Pool(kind, place) for kind in fleet.instance_types for place in fleet.subnets or fleet.zones or ("",)]


def decide(count: int, market: str, template: Template, fleet: Fleet, cluster: str, poor: Collection[Pool],
           now: float) -> Decision:
    """The decision to start `count` nodes from any pool; those in `poor`, which had none lately, come behind all others."""
    token = new_id()
    return Decision(token=token, count=count, market=market, decided=now,
                    request=_request(token, count, market, template, fleet, cluster, poor))


def _request(token: str, count: int, market: str, template: Template, fleet: Fleet, cluster: str,
             poor: Collection[Pool]) -> dict[str, Any]:
    """CreateFleet's arguments. Type instant answers at once with the nodes, and leaves nothing that would start more later."""
    tags = tag_list({**node_tags(cluster), LAUNCH_TAG: token})
    request: dict[str, Any] = {
        "Type": "instant",
        "ClientToken": token,
        "LaunchTemplateConfigs": [{
            "LaunchTemplateSpecification": {"LaunchTemplateId": template.id, "Version": str(template.version)},
            "Overrides": _overrides(fleet, poor)}],
        "TargetCapacitySpecification": {"TotalTargetCapacity": count, "DefaultTargetCapacityType": market},
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in ("fleet", "instance", "volume")],
    }
    if market == SPOT:
        # Of the strategies that mind the risk of interruption (an encode begins again), the one that also minds our order:
        # price-capacity-optimized knows no priorities.
        request["SpotOptions"] = {"AllocationStrategy": "capacity-optimized-prioritized",
                                  "InstanceInterruptionBehavior": "terminate"}
    else:
        request["OnDemandOptions"] = {"AllocationStrategy": "prioritized"}
    return request


def _overrides(fleet: Fleet, poor: Collection[Pool]) -> list[dict[str, Any]]:
    """A lower number goes first; zones of one type are equal, so that capacity decides among them."""
    types = list(dict.fromkeys(fleet.instance_types))
    ranked = [(types.index(pool.type) + (len(types) if pool in poor else 0), pool) for pool in dict.fromkeys(pools(fleet))]
    key = "SubnetId" if fleet.subnets else "AvailabilityZone"
    return [{"InstanceType": pool.type, **({key: pool.place} if pool.place else {}), "Priority": rank}
            for rank, pool in sorted(ranked, key=lambda pair: pair[0])[:POOLS_MAX]]
