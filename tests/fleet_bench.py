"""What tests of the fleet stand on: a cluster in an emulator of EC2 behind a proxy that holds EC2's rules, and as much of a
feeder as the fleet needs, on a clock that moves when told, so that each step can be stopped."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from nommerd.aws import names
from nommerd.config import Fleet as FleetSettings
from nommerd.config import Settings
from nommerd.fleet.ec2 import Ec2
from nommerd.fleet.launch import Ledger
from nommerd.fleet.manager import Fleet
from nommerd.job import Job, Owner, new_id, utcnow
from nommerd.leadership import Leadership
from nommerd.store.base import Store, WorkerRecord
from nommerd.store.memory import MemoryStore
from nommerd.watch import LeaseWatch
from tests.ec2_proxy import Ec2Proxy

IMAGE = "ami-0123456789abcdef0"
TYPES = ("c7i.xlarge", "c6i.xlarge")
ZONES = ("us-east-1a", "us-east-1b")
USER_DATA = "#cloud-config\n{}\n"
Events = list[tuple[str, dict[str, Any]]]


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Feeder:
    """What of a feeder the fleet needs."""

    def __init__(self, bench: Bench, *, store: Store | None = None, tries: int = 3, **fleet: Any) -> None:
        self.bench, self.store = bench, store or bench.store
        me = Owner(worker="feeder", node=new_id())
        self.leadership = Leadership(self.store, me, 15.0, clock=bench.clock, watch=LeaseWatch(bench.clock, me))
        self.user_data = USER_DATA
        self.wall = 1e9
        settings = Settings(cluster=bench.cluster, fleet=FleetSettings(**{
            "enabled": True, "image_id": IMAGE, "instance_types": TYPES, "zones": ZONES, **fleet}))
        self.ec2 = Ec2(bench.proxy.clients("ec2", tries=tries), bench.cluster)
        self.fleet = Fleet(settings, ec2=self.ec2, store=self.store, leadership=self.leadership,
                           user_data=lambda: self.user_data, clock=bench.clock, now=lambda: self.wall)

    def cycle(self) -> None:
        assert self.leadership.tick()
        self.fleet.cycle()

    def take_over(self) -> Feeder:
        """Become the leader after one that was killed."""
        self.leadership.tick()
        self.bench.clock.now += 20
        assert self.leadership.tick()
        return self

    def ledger(self) -> Ledger:
        return Ledger.decode(self.store.leader().launch)


class Bench:
    """A cluster of its own in the emulator, with what `aws setup` makes of it, and a store."""

    def __init__(self, proxy: Ec2Proxy) -> None:
        self.cluster = f"t{uuid4().hex[:10]}"
        self.proxy, self.clock, self.store = proxy, Clock(), MemoryStore()
        self.group = proxy.ec2.create_security_group(GroupName=names.security_group(self.cluster), Description="x")["GroupId"]
        proxy.clients("iam").create_instance_profile(InstanceProfileName=names.node_profile(self.cluster))

    def jobs(self, count: int) -> None:
        for _ in range(count):
            self.store.create(Job(id=new_id(), pipeline="web", recipe="r" * 64, source="file:///in.mov", dest="file:///out.mp4",
                                  created=utcnow(), updated=utcnow(), write_id=new_id()))

    def nodes(self) -> list[dict[str, Any]]:
        return self.proxy.nodes(self.cluster)

    def ids(self) -> list[str]:
        return sorted(one["InstanceId"] for one in self.nodes())

    def pools(self) -> list[tuple[str, str, str]]:
        return sorted((one.get("InstanceLifecycle", "on-demand"), one["InstanceType"], one["Placement"]["AvailabilityZone"])
                      for one in self.nodes())

    def asked(self) -> list[dict[str, Any]]:
        return self.proxy.asked("CreateFleet")

    def beat(self, node: str, state: str = "ACTIVE") -> None:
        self.store.put_worker(WorkerRecord(name=node, node=node, state=state, slots=2, active=(), version="1", encoders=(),
                                           reported=utcnow()))

    def pass_by(self, feeder: Feeder, seconds: float, *beating: str) -> None:
        """A cycle each minute, under a lease that is renewed, while these nodes report."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            minute = min(self.clock.now + 60, until)
            while self.clock.now < minute:
                self.clock.now = min(self.clock.now + 5, minute)
                assert feeder.leadership.tick()
            for node in beating:
                self.beat(node)
            feeder.cycle()

    def close(self) -> None:
        if ids := self.ids():
            self.proxy.ec2.terminate_instances(InstanceIds=ids)


def told(events: Events, name: str) -> list[dict[str, Any]]:
    return [fields for event, fields in events if event == name]
