"""The feeder: takes jobs over HTTP, keeps what a crash left from being lost, and tells applications of every change."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

import gevent
from gevent.event import Event
from gevent.pool import Pool

from nommerd import hangup, logs, metrics, sqlite
from nommerd.api.app import create_app
from nommerd.api.auth import EVERYBODY, Gate, Hosts, Networks
from nommerd.api.catalog import catalog_routes
from nommerd.api.events import event_routes
from nommerd.api.explain import explain_routes
from nommerd.api.job_routes import job_routes
from nommerd.api.jobs import Jobs
from nommerd.api.log import log_routes
from nommerd.api.media import media_routes
from nommerd.api.metrics import metrics_route
from nommerd.api.openapi import openapi_route
from nommerd.api.operator import operator_routes
from nommerd.api.original import Original, check_nommers
from nommerd.api.pages import page_routes
from nommerd.api.recipes import Recipes
from nommerd.api.route import Route
from nommerd.api.server import Server, allow_files
from nommerd.api.stats import Stats
from nommerd.api.tokens import token_routes
from nommerd.api.waiters import Waiters
from nommerd.api.webhooks import Webhooks, webhook_routes
from nommerd.api.workers import forget_gone
from nommerd.attempt import threads_per_job
from nommerd.aws.clients import Clients
from nommerd.bus import open_bus
from nommerd.bus.base import Bus, Delivery
from nommerd.catalog import Catalog, load_stages
from nommerd.catalog.projects import Catalogs
from nommerd.config import Settings
from nommerd.control import Control
from nommerd.deliveries import Deliveries
from nommerd.errors import ConfigError, InfrastructureError, ManyErrors, NommerdError
from nommerd.fleet.ec2 import Ec2
from nommerd.fleet.manager import Fleet
from nommerd.fleet.userdata import UserData
from nommerd.job import DEFAULT_PROJECT, Job, utcnow
from nommerd.lease import Leadership, LeaseWatch, this_process
from nommerd.media.binaries import find as find_binaries
from nommerd.messages import ChangeMessage
from nommerd.net.egress import Egress
from nommerd.reloading import Reloading
from nommerd.secrets import Keyring, Secret, secret_file
from nommerd.sending import Sending
from nommerd.starting import Start, answer, process_age
from nommerd.storage import open_registry
from nommerd.storage.base import StorageRegistry
from nommerd.store import open_store
from nommerd.store.base import Store
from nommerd.sweeper import Sweeper
from nommerd.tokens import Tokens
from nommerd.watching import Submit, Watching
from nommerd.webhook import Reply, deliver, load_or_make_secret
from nommerd.webhook_secrets import WebhookSecrets

EXIT_CONFIG = 2
STOP_SECONDS = 5.0  # for running requests, once asked to stop
LEADER_LEASE_SECONDS = 15.0
LEAD_SECONDS = 4.0  # between renewals of the leader record
WATCH_SECONDS = 2.0  # between questions whether it is time to look for watches
FLEET_SECONDS = 2.0  # between questions whether it is time to look after nodes
LAUNCH_SECONDS = 60.0  # EC2 may take so long over a launch
MARK_SECONDS = 0.5
RETENTION_SECONDS = 3600.0
RETENTION_PAGE = 200
POLL_SECONDS = 20.0
CHANGES_AT_ONCE = 32
BACKOFF_SECONDS = 0.5  # doubled with each failure of a loop in a row
BACKOFF_MAX_SECONDS = 15.0

MakeWatching = Callable[[Submit, Callable[[], bool], Callable[[], Catalog]], Watching]


class Feeder:
    """One feeder on parts made elsewhere. `start`, `wait`, `stop`; `tokens` are those the API takes."""

    def __init__(self, settings: Settings, *, store: Store, bus: Bus, storage: StorageRegistry, catalog: Catalog,
                 keyring: Keyring, egress: Egress, tokens: list[Secret], webhook_secret: Secret,
                 user_data: UserData, watch: MakeWatching | None = None,
                 fleet: Callable[[Leadership], Fleet] | None = None) -> None:
        self._settings = settings
        self._user_data = user_data
        self._store = store
        self._bus = bus
        self._stopping = Event()
        self._greenlets: list[gevent.Greenlet[..., object]] = []
        self._acks = Pool(8)
        self._hub_watch = gevent.Greenlet()
        me = this_process("feeder")
        self.leadership = Leadership(store, me, LEADER_LEASE_SECONDS)
        self.fleet = fleet(self.leadership) if fleet is not None else None
        self.sending = Sending(store, bus)
        self.waiters = Waiters(store.look_seconds)
        hook_secrets = WebhookSecrets(store, keyring, webhook_secret, file=settings.webhook_secret_file,
                                      fixed=settings.webhooks.secret is not None)

        def send(project: str, url: str, id: str, body: bytes, kind: str) -> Reply:
            return deliver(egress, url, hook_secrets.of(project).at(utcnow()), id, body, utcnow(), content_type=kind)

        self.deliveries = Deliveries(store, keyring, send, max_tries=settings.webhooks.max_tries,
                                     leads=lambda: self.leadership.leads)
        self.sweeper = Sweeper(store, bus, self.sending, LeaseWatch(me=me), self.changed,
                               max_attempts=settings.worker.max_attempts,
                               abandon_after_seconds=settings.jobs.abandon_after_seconds)
        catalogs = Catalogs(store, catalog)
        jobs = Jobs(store=store, sending=self.sending, storage=storage, recipes=Recipes(store, catalogs.of, catalogs.look),
                    keyring=keyring, check_notify=lambda url: egress.check(url, "webhook"), on_change=self.changed,
                    waiters=self.waiters)
        self.reloading = Reloading(settings, catalogs, user_data)
        self.watching = watch(jobs.submit, lambda: self.leadership.leads, lambda: catalogs.disk) if watch is not None else None
        old = settings.api.original
        original = Original(jobs=replace(jobs, project=old.project), nommers=old.nommers) if old.enabled else None
        self.tokens = Tokens(store, (DEFAULT_PROJECT, old.project))
        gate = Gate(tokens, Hosts(settings.api.host, settings.api.hosts), stored=self.tokens,
                    original=Networks(old.networks) if old.enabled else EVERYBODY,  # switched off, it is not there for anybody
                    project=old.project)
        control = Control(store)
        self.stats = Stats(store, bus, control)
        self.routes: list[Route] = [
            *job_routes(jobs),
            *log_routes(store),
            *explain_routes(jobs, catalog.stages, lambda: find_binaries(settings.media.ffmpeg, settings.media.ffprobe),
                            threads_per_job(settings.worker.threads_per_job, settings.worker.slots)),
            *event_routes(jobs, store, self.waiters),
            *webhook_routes(Webhooks(store=store, secrets=hook_secrets, check=lambda url: egress.check(url, "webhook"),
                                     send=send, kick=self.deliveries.kick)),
            *token_routes(self.tokens),
            *catalog_routes(catalogs, store),
            *media_routes(jobs),
            *operator_routes(store, control, self.stats),
            metrics_route(self.stats, projects=self.tokens.projects, leads=lambda: self.leadership.leads,
                          disk=settings.data_dir, watches=lambda: self.watching.counts if self.watching is not None else {},
                          nodes=lambda: self.fleet.nodes if self.fleet is not None else None),
            *page_routes(self._check_ready),
        ]
        self.routes.append(openapi_route(self.routes))
        allow_files()
        self._server = Server(settings.api.host, settings.api.port, create_app(self.routes, gate, original))
        self._next_retention = time.monotonic()

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Publish the configuration of nodes, look after what the last run left, start the loops, listen. ConfigError where
        it cannot be published for what the settings say."""
        try:
            self._user_data.publish()
        except InfrastructureError as error:  # its loop tries again: the API and the sweeper can do without
            logs.get().warning("config.not_published", why=str(error))
        self._attempt("sweep", self._first_sweep)
        look = self._store.look_seconds  # hints come within milliseconds; a dead lease shows within 33 s and two looks
        loops: Mapping[str, tuple[Callable[[], None], float]] = {
            "changes": (self._receive_changes, 0.0),
            "lead": (lambda: void(self.leadership.tick()), LEAD_SECONDS),
            "sweep": (self._sweep, look),
            "webhooks": (lambda: void(self.deliveries.run_due(utcnow())), look),
            "mark": (lambda: void(self.sending.mark_old()), MARK_SECONDS),
            "retention": (self._delete_old, 60.0),
            "config": (self._user_data.publish, 60.0),
        }
        if self.watching is not None:
            loops = {**loops, "watches": (self.watching.look, WATCH_SECONDS)}
        if self.fleet is not None:
            loops = {**loops, "fleet": (self._tend_fleet, FLEET_SECONDS)}
        self._greenlets = [gevent.spawn(self._loop, name, work, pause) for name, (work, pause) in loops.items()]
        self._greenlets.append(gevent.spawn(self.reloading.run))
        self._hub_watch = gevent.spawn(metrics.watch_hub)
        self._server.start()
        logs.get().info("feeder.listening", url=self.url)

    @property
    def url(self) -> str:
        """Where it listens."""
        host = str(self._server.server_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    def ask_to_stop(self) -> None:
        """Only sets a flag: safe in a signal handler."""
        self._stopping.set()

    def wait(self) -> None:
        """Until somebody asks to stop."""
        self._stopping.wait()

    def stop(self) -> None:
        """Stop listening, let running requests end, let go of everything but store and bus."""
        self._stopping.set()
        self.waiters.close()
        self._bus.changes.interrupt()
        if self.watching is not None:
            self.watching.stop()
        self._server.finish(STOP_SECONDS)
        self.deliveries.stop(0.5)
        self._acks.join(timeout=0.5)
        self._hub_watch.kill(block=False)
        gevent.joinall(self._greenlets, timeout=0.5)
        gevent.killall(self._greenlets, timeout=1)
        self.leadership.resign()
        logs.get().info("feeder.stopped")

    # --- loops ---------------------------------------------------------------------------------------------------

    def _loop(self, name: str, work: Callable[[], None], pause_seconds: float) -> None:
        """Again and again; a failure is logged, and the loop goes on after a while that grows with failures in a row."""
        failures = 0
        while not self._stopping.is_set():
            failures = 0 if self._attempt(name, work) else failures + 1
            wait = min(BACKOFF_SECONDS * 2 ** min(failures - 1, 10), BACKOFF_MAX_SECONDS) if failures else pause_seconds
            if wait:
                self._stopping.wait(wait)

    def _attempt(self, name: str, work: Callable[[], None]) -> bool:
        try:
            work()
            return True
        except InfrastructureError as error:
            logs.get().warning("loop.unavailable", loop=name, why=str(error))
        except Exception:
            logs.get().exception("loop.failed", loop=name)
        return False

    def _receive_changes(self) -> None:
        for delivery in self._bus.changes.receive(CHANGES_AT_ONCE, POLL_SECONDS):
            message = delivery.message
            if isinstance(message, ChangeMessage):
                self.waiters.wake(message.key)
                self.deliveries.kick(message.key)
            self._acks.spawn(self._attempt, "changes", _acknowledge(delivery))

    def _first_sweep(self) -> None:
        if self.leadership.tick():
            self._tell(starting=True)

    def _sweep(self) -> None:
        if self.leadership.leads:
            self._tell(starting=False)

    def _tell(self, starting: bool) -> None:
        swept = self.sweeper.sweep(utcnow(), starting)
        if swept:
            logs.get().info("swept", starting=starting, broken=len(swept.broken), sent=len(swept.sent),
                            abandoned=len(swept.abandoned), dead_letters=swept.dead_letters)

    def _tend_fleet(self) -> None:
        if self.fleet is not None:
            self.fleet.tick(self.sending.sent)

    def _delete_old(self) -> None:
        if not self.leadership.leads or time.monotonic() < self._next_retention:
            return
        forget_gone(self._store, utcnow())
        before = utcnow() - timedelta(days=self._settings.jobs.keep_finished_days)
        deleted = 0
        while not self._stopping.is_set():
            page = self._store.delete_finals(before, RETENTION_PAGE)
            deleted += page
            if page < RETENTION_PAGE:
                break
            gevent.sleep(0.05)  # others write too
        self._next_retention = time.monotonic() + RETENTION_SECONDS
        if deleted:
            logs.get().info("jobs.deleted", count=deleted)

    # --- for the API ---------------------------------------------------------------------------------------------

    def changed(self, job: Job) -> None:
        """This feeder changed the job's state: tell who waits here, and other feeders by a hint."""
        if job.state.final:
            metrics.job_ended(job.state.value, job.error.code if job.error else None)
        self.waiters.wake(job.key)
        self.deliveries.kick(job.key)
        self.sending.announce(job)

    def ready(self) -> bool:
        """Whether it listens and its store answers."""
        try:
            self._check_ready()
        except NommerdError:
            return False
        return bool(self._server.started)

    def can_work(self) -> bool:
        """Whether it is ready, and its bus answers too."""
        return self.ready() and answer(self._store, self._bus.changes)

    def _check_ready(self) -> None:
        if self._stopping.is_set():
            raise InfrastructureError("node.stopping", "The feeder is stopping.")
        self._store.ping()


def void(_: object) -> None:
    """For loops whose work returns something."""


def _acknowledge(delivery: Delivery) -> Callable[[], None]:
    return lambda: void(delivery.ack())


def main(settings: Settings, ready_within: float | None = None) -> int:
    """Run a feeder until SIGTERM or SIGINT; SIGHUP makes it read presets and pipelines again. 0 when it stopped, 2 for a
    configuration that must be changed, 1 otherwise, also where it is not ready within so many seconds."""
    try:
        with Start(ready_within, process_age()) as start:
            _run(settings, start)
        return 0
    except (ConfigError, ManyErrors) as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG
    except NommerdError as error:
        print(error, file=sys.stderr, flush=True)
        return 1


def _run(settings: Settings, start: Start) -> None:
    with ExitStack() as stack:
        feeder = _assemble(settings, stack)
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, feeder.ask_to_stop)
        hangup.heed(feeder.reloading.ask, feeder.ask_to_stop)
        feeder.start()
        start.running(feeder.can_work, feeder.ask_to_stop)
        feeder.wait()
        feeder.stop()


def _assemble(settings: Settings, stack: ExitStack) -> Feeder:
    """The feeder that the settings describe; what must be closed goes on the stack. Makes missing secrets."""
    data = settings.data_dir
    settings.make_data_dir()
    if urlsplit(settings.store).scheme == "sqlite":
        stack.callback(sqlite.exclusive(settings.database_path(settings.store)).close)
    catalog = Catalog(settings.paths.pipelines, settings.paths.presets, load_stages(settings.stages))
    if catalog.errors:
        raise ManyErrors(catalog.errors)
    check_nommers(settings.api.original.nommers, catalog.pipelines)
    egress = Egress(settings.net.allow_networks, agent="nommerd-feeder")
    keyring = Keyring.load_or_make(data, settings.secrets.keys, make=True)
    token = secret_file(settings.token_file, make=True)
    signing = load_or_make_secret(settings.webhook_secret_file, settings.webhooks.secret, make=True)
    logs.register(token, signing, *keyring.keys)
    logs.get().info("feeder.starting", store=settings.store, bus=settings.bus)  # what is asked next may take its time
    clients = Clients(settings.aws)
    storage = open_registry(settings, egress, clients)
    store = open_store(settings.store, data, clients, keep_finished_days=settings.jobs.keep_finished_days)
    stack.callback(store.close)
    bus = open_bus(settings.bus, data, clients)
    stack.callback(bus.close)
    user_data = UserData(settings, clients, keyring)
    return Feeder(settings, store=store, bus=bus, storage=storage, catalog=catalog, keyring=keyring, egress=egress,
                  tokens=[token], webhook_secret=signing, user_data=user_data, watch=_watch(settings, clients),
                  fleet=_fleet(settings, clients, store, user_data))


def _watch(settings: Settings, clients: Clients) -> MakeWatching | None:
    """What reads the watches of buckets: they need queues, so the bus is SQS."""
    bus = urlsplit(settings.bus)
    if bus.scheme != "sqs":
        return None
    return lambda submit, leads, disk: Watching(clients("sqs"), bus.netloc, settings.cluster, disk, submit, leads)


def _fleet(settings: Settings, clients: Clients, store: Store, user_data: UserData) -> Callable[[Leadership], Fleet] | None:
    """What starts and ends nodes, where the settings want any."""
    if not settings.fleet.enabled:
        return None
    ec2 = Ec2(clients("ec2", read_timeout=LAUNCH_SECONDS), settings.cluster)
    return lambda leadership: Fleet(settings, ec2=ec2, store=store, leadership=leadership, user_data=user_data)
