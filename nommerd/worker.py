"""The worker: receives messages as far as it has free slots, keeps its heartbeat, and gives its work back when it stops.

Each message is handled in a greenlet of its own (see nommerd.handling); one that claims holds a slot until its job is
settled, one whose job somebody else holds gives its slot back and watches that lease. While the installation is paused it
begins nothing; one that is drained finishes its jobs and ends (see nommerd.control).

On an EC2 node it also ends: when AWS wants the node back, it gives back its work at once; when nothing has happened for long
enough, and one last poll has brought nothing, it stops as for SIGTERM, says so in its heartbeat, and ends its own instance.
If that does not work it takes work again: better than to idle and be paid for.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from nommerd import __version__, hangup, logs, metrics
from nommerd.attempt import Tools, threads_per_job
from nommerd.aws.clients import Clients
from nommerd.bus import open_bus
from nommerd.bus.base import Bus
from nommerd.catalog import load_stages
from nommerd.config import Settings
from nommerd.control import Control, Heed
from nommerd.errors import ConfigError, InfrastructureError, ManyErrors, NommerdError, ShuttingDown
from nommerd.fleet.node import LOCAL_ID, Life
from nommerd.greenlets import Greenlets
from nommerd.handling import Handling
from nommerd.health import serve
from nommerd.job import Key, utcnow
from nommerd.lease import this_process
from nommerd.media import binaries
from nommerd.metrics import Gauge, Who
from nommerd.net.egress import Egress
from nommerd.nodelife import EMBEDDED, find_life
from nommerd.parting import LAST_RECEIVE_SECONDS, Parting, Reason
from nommerd.runtime import self_test
from nommerd.secrets import Keyring
from nommerd.starting import Start, answer, process_age
from nommerd.storage import open_registry
from nommerd.store import open_store
from nommerd.store.base import Store, WorkerRecord
from nommerd.workspace import Workspaces

if TYPE_CHECKING:
    from nommerd.boot import Booted

RECEIVE_SECONDS = 20.0  # one receive waits at most this long
NOTICE_SECONDS = 5.0  # between looks for a notice of AWS
BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 15.0  # so that work resumes well within half a minute after the bus does
CLEAN_SECONDS = 10.0  # how often workspaces of dead processes are looked for
STOP_SECONDS = 4.0  # what running work gets to end and be given back: the process is gone within five
KILL_SECONDS = 0.15
SETTLE_SECONDS = 3.0  # for the last polls of an idle node, which wait for LAST_RECEIVE_SECONDS
DRAIN_TRIES = 8  # so many times as long for those of a drained worker, which wait for RECEIVE_SECONDS
BEAT_SECONDS = 0.5  # what the last heartbeat may take
REST_SECONDS = 1.0  # while nothing is begun: between looks whether there is anything left to live for
EXIT_FAILED, EXIT_CONFIG = 1, 2


class Worker:
    """`run` works until `stop`. `embedded`: the store is on this machine and cheap to read. `life`: that of the EC2 node it
    runs on, where it runs on one."""

    def __init__(self, *, tools: Tools, bus: Bus, name: str, node: str | None = None, slots: int = 2,
                 lease_seconds: float = 30.0, max_attempts: int = 3, heartbeat_seconds: float = 60.0,
                 embedded: bool = True, life: Life | None = None) -> None:
        self._tools, self._store, self._bus = tools, tools.store, bus
        self._me = this_process(name, node or (life.node.instance_id if life else None))
        self._slots, self._heartbeat_seconds = slots, heartbeat_seconds
        self._started = utcnow()
        self._orders = Heed(Control(tools.store), name, self._started)
        self._receiving = False
        self._asked, self._stopping, self._slot_free = Event(), Event(), Event()
        self._parting = Parting(life, tools.store, self._me, heartbeat_seconds=heartbeat_seconds, stop=self._stopping.set,
                                asked=self._asked)
        self._handling = Handling(tools, bus, self._me, self._stopping, lease_seconds=lease_seconds,
                                  max_attempts=max_attempts, embedded=embedded, on_activity=self._parting.touch,
                                  held=lambda: self._orders.held)
        self._busy = Greenlets(on_end=self._slot_free.set)  # one per message that holds a slot
        self._log = logs.get(worker=name)

    @property
    def active(self) -> tuple[Key, ...]:
        """The jobs in its slots."""
        return tuple(sorted({key for key, _ in self._handling.active}))

    def ready(self) -> bool:
        """Whether it takes work: it is not stopping or draining, and the store can be written."""
        if self._stopping.is_set() or self._orders.draining:
            return False
        try:
            self._store.ping()
        except NommerdError:
            return False
        return True

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """For Prometheus: the text and its content type."""
        free, total = self._tools.workspaces.disk()
        disk = {str(self._tools.workspaces.root): (free, total)} if free is not None and total is not None else {}
        return metrics.exposition(Who.WORKER, [
            Gauge.of("worker_slots", "Slots of this worker", self._slots),
            Gauge.of("worker_slots_busy", "Of those, the ones with a job", len(self.active)),
            Gauge.of("worker_held", "Whether it begins nothing: paused, or draining", self._orders.held),
            *metrics.disks(disk)], accept)

    def stop(self) -> None:
        """Ask `run` to end; running work is given back. Only sets flags."""
        self._asked.set()
        self._stopping.set()

    def nothing_to_reload(self) -> None:
        """What SIGHUP is answered."""
        self._log.info("worker.nothing_to_reload", why="recipes come with jobs; the feeder reads presets and pipelines")

    def run(self) -> None:
        """Work until `stop`, or until the node ends; returns within STOP_SECONDS and a little of either."""
        self._log.info("worker.started", node=self._me.node, slots=self._slots, version=__version__)
        hub_watch = gevent.spawn(metrics.watch_hub)
        self._work()
        while not self._parting.end():
            self._stopping.clear()
            self._log.info("worker.resumed")
            self._work()
        hub_watch.kill(block=False)
        self._log.info("worker.stopped")

    def _work(self) -> None:
        """Until something stops it. What AWS said before comes first: nothing is begun then."""
        self._parting.look_for_notice()
        self._orders.look()
        self._beat(self._state)
        loops = [gevent.spawn(loop) for loop in (self._receive_loop, self._heartbeat_loop, self._clean_loop,
                                                 self._notice_loop, self._orders_loop)]
        self._stopping.wait()
        self._shut_down(loops)
        if self._parting.reason in (Reason.IDLE, Reason.DRAINED) and not self._settled(self._parting.reason):
            self._log.warning("polls.not_settled")
        with gevent.Timeout(BEAT_SECONDS, False):
            self._beat("TERMINATED")

    def _settled(self, reason: Reason) -> bool:
        """Whether the last polls have ended, so that none of them hides a message. Those from before a drain are long ones."""
        for _ in range(1 if reason is Reason.IDLE else DRAIN_TRIES):
            if self._bus.jobs.settle(SETTLE_SECONDS):
                return True
            if self._asked.is_set():
                break
        return False

    def _receive_loop(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            if self._orders.held:
                self._rest()
                continue
            free = self._slots - len(self._busy)
            if free <= 0:
                self._slot_free.clear()
                self._slot_free.wait()
                continue
            last = not self._busy and self._parting.may_end()
            patience = LAST_RECEIVE_SECONDS if last else self._patience()
            self._receiving = True
            try:
                deliveries = self._bus.jobs.receive(free, patience)
                failures = 0
            except Exception as error:
                failures += 1
                self._log.warning("receive.failed", why=str(error), exc_info=not isinstance(error, InfrastructureError))
                self._stopping.wait(backoff_seconds(failures))
                continue
            finally:
                self._receiving = False
            for delivery in deliveries:
                self._busy.spawn(self._handling.handle, delivery)
            if last and not deliveries:
                self._parting.leave(Reason.IDLE)

    def _rest(self) -> None:
        """While nothing is begun. Without jobs a drained worker leaves, and so does an idle node: it is paid for."""
        if not self._busy:
            if self._orders.draining:
                self._parting.leave(Reason.DRAINED)
                return
            if self._parting.may_end():
                self._parting.leave(Reason.IDLE)
                return
        self._slot_free.clear()
        self._slot_free.wait(REST_SECONDS)

    def _orders_loop(self) -> None:
        while not self._stopping.wait(self._orders.look_seconds):
            if not self._orders.look():
                continue
            self._slot_free.set()
            while self._orders.held and self._receiving and not self._stopping.wait(0.05):
                self._bus.jobs.interrupt()  # again and again: one may come just before the wait it should end
            if self._orders.draining:
                self._beat(self._state)

    def _heartbeat_loop(self) -> None:
        """As often as told, and soon after jobs came or went: who looks at workers sees them as they are."""
        told, due = self.active, time.monotonic() + self._heartbeat_seconds
        while not self._stopping.wait(min(self._orders.look_seconds, self._heartbeat_seconds)):
            if self.active != told or time.monotonic() >= due:
                told, due = self.active, time.monotonic() + self._heartbeat_seconds
                self._beat(self._state)

    def _clean_loop(self) -> None:
        """Remove the workspaces that dead neighbours left, and those of this worker's earlier life."""
        while True:
            self._clean()
            if self._stopping.wait(min(CLEAN_SECONDS, self._heartbeat_seconds)):
                return

    def _notice_loop(self) -> None:
        while not self._stopping.wait(NOTICE_SECONDS):
            try:
                self._parting.look_for_notice()
            except Exception:
                self._log.exception("notice.failed")

    def _patience(self) -> float:
        return RECEIVE_SECONDS if self._busy else self._parting.receive_seconds(RECEIVE_SECONDS)

    @property
    def _state(self) -> str:
        return "DRAINING" if self._orders.draining else "ACTIVE"

    def _beat(self, state: str) -> None:
        try:
            free, total = self._tools.workspaces.disk()
            self._store.put_worker(WorkerRecord(
                name=self._me.worker, node=self._me.node, state=state, slots=self._slots, active=self.active,
                version=__version__, encoders=tuple(sorted(self._tools.binaries.encoders)), reported=utcnow(),
                started=self._started, heartbeat_seconds=self._heartbeat_seconds, disk_free_bytes=free,
                disk_total_bytes=total))
        except Exception as error:
            self._log.warning("heartbeat.failed", why=str(error), exc_info=not isinstance(error, InfrastructureError))

    def _clean(self) -> None:
        try:
            removed = self._tools.workspaces.clean()
        except Exception as error:
            self._log.warning("workspaces.not_cleaned", why=str(error), exc_info=not isinstance(error, OSError))
            return
        if removed:
            self._log.info("workspaces.cleaned", removed=removed)

    def _shut_down(self, loops: list[gevent.Greenlet]) -> None:
        """First no more messages, then the work, then what was sent aside for it."""
        until = time.monotonic() + STOP_SECONDS
        for stop in list(self._handling.active.values()):
            stop.set(ShuttingDown("the worker is stopping"))
        self._slot_free.set()
        while not loops[0].ready() and time.monotonic() < until:
            self._bus.jobs.interrupt()  # again and again: one may come just before the wait it should end
            gevent.joinall(loops, timeout=0.05)
        groups = (self._busy, self._handling.watching, self._handling.aside)
        for group in groups:
            while not group.join(max(0.0, min(0.5, until - time.monotonic()))) and time.monotonic() < until:
                pass
        if any(len(group) for group in groups):
            self._log.warning("worker.cut_short", jobs=[key.id for key in self.active])
        gevent.killall(loops, timeout=KILL_SECONDS)
        for group in groups:
            group.kill(KILL_SECONDS)


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, with jitter."""
    most: float = min(BACKOFF_FIRST_SECONDS * 2 ** min(failures - 1, 10), BACKOFF_MAX_SECONDS)
    return most * (0.5 + random.random() / 2)


def main(settings: Settings | Callable[[], Booted], *, name: str | None = None, local: bool = True,
         ready_within: float | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT, or until its node ends. 0 when it stopped, 2 for a configuration that must be
    changed, 1 otherwise, also where it is not ready within so many seconds. SIGHUP changes nothing: recipes come with jobs.

    `settings`: or what fetches them, for an EC2 node. `local`: this is none, and nobody is asked. It makes nothing but its
    workspaces: data directory and keys are the feeder's to make. The process is patched already.
    """
    try:
        with Start(ready_within, process_age()) as start:
            _run(settings, name, local, start)
        return 0
    except (ConfigError, ManyErrors) as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG
    except NommerdError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_FAILED


def make_tools(settings: Settings, store: Store, clients: Clients) -> Tools:
    """What the settings give each attempt to work with. Raises ConfigError."""
    media = settings.media
    keyring = Keyring.load_or_make(settings.data_dir, settings.secrets.keys, make=False)
    logs.register(*keyring.keys)
    storage = open_registry(settings, Egress(settings.net.allow_networks), clients)
    return Tools(store=store, storage=storage, stages=load_stages(settings.stages), keyring=keyring,
                 binaries=binaries.find(media.ffmpeg, media.ffprobe),
                 workspaces=Workspaces(settings.work_dir, settings.worker.keep_failed_workspaces),
                 threads=threads_per_job(settings.worker.threads_per_job, settings.worker.slots),
                 keep_days=settings.jobs.keep_finished_days)


def _run(given: Settings | Callable[[], Booted], name: str | None, local: bool, start: Start) -> None:
    if isinstance(given, Settings):
        settings, booted = given, None
    else:
        fetched = given()
        settings, booted = fetched.settings, fetched.clients
    if not settings.data_dir.is_dir():
        raise ConfigError("config.no_data", f"The data directory {settings.data_dir} is missing.",
                          "`nommerd up` and `nommerd feeder` make it; start one first, or set paths.data.", place="paths.data")
    self_test()
    wanted = settings.worker
    logs.get().info("worker.starting", store=settings.store, bus=settings.bus)  # what is asked next may take its time
    with ExitStack() as parts:
        clients = booted or Clients(settings.aws)
        store = open_store(settings.store, settings.data_dir, clients,
                           keep_finished_days=settings.jobs.keep_finished_days)
        parts.callback(store.close)
        bus = open_bus(settings.bus, settings.data_dir, clients)
        parts.callback(bus.close)
        life = None if local else find_life(settings, clients, booted is not None)
        own_name = life.node.instance_id if life else f"{socket.gethostname()}-{os.getpid()}"
        tools = make_tools(settings, store, clients)
        worker = Worker(tools=tools, bus=bus, name=name or own_name, node=LOCAL_ID if local else None,
                        slots=wanted.slots, lease_seconds=wanted.lease_seconds, max_attempts=wanted.max_attempts,
                        heartbeat_seconds=wanted.heartbeat_seconds, embedded=urlsplit(settings.store).scheme in EMBEDDED,
                        life=life)
        if wanted.health_port is not None:
            parts.callback(serve(wanted.health_host, wanted.health_port, worker.ready, worker.metrics).stop, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, worker.stop)
        hangup.heed(worker.nothing_to_reload, worker.stop)
        start.running(lambda: answer(store, bus.jobs), worker.stop)
        worker.run()
