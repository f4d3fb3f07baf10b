"""What the calls on jobs do, apart from HTTP: submit, show, list, cancel, retry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import gevent

from nommerd import lifecycle
from nommerd.api import body as bodies
from nommerd.api.models import Submission, list_query, submission
from nommerd.api.problems import Refusal, from_error, refuse
from nommerd.api.recipes import Recipes, public_inputs
from nommerd.api.waiters import Waiters
from nommerd.errors import InfrastructureError, InputError, NommerdError
from nommerd.job import DEFAULT_PROJECT, Job, JobState, Key, Priority, Webhook, new_id, utcnow
from nommerd.pipeline.destination import is_folder
from nommerd.secrets import Keyring, has_secret, public_uri
from nommerd.sending import Sending
from nommerd.storage import same_place
from nommerd.storage.base import Storage, StorageRegistry
from nommerd.store.base import JobExists, JobPage, Store, UnknownJob

IDEMPOTENCY_KEY_MAX = 255
IDEMPOTENT_ID_DIGITS = 32
EXISTS_SECONDS = 3.0  # for a destination elsewhere to say whether something is there
RECORD_BYTES_AT_SUBMIT = 5 * 1024  # the rest of a record's 8 KB is for attempts, events, outputs, warnings

if TYPE_CHECKING:
    from nommerd.pipeline.recipe import Recipe

@dataclass(slots=True, kw_only=True)
class Jobs:
    """The calls on jobs of one project. They raise Refusal, and StoreUnavailable."""

    store: Store
    sending: Sending
    storage: StorageRegistry
    recipes: Recipes
    keyring: Keyring
    check_notify: Callable[[str], None]  # raises NommerdError for a receiver that is not allowed
    on_change: Callable[[Job], None]  # told of every change of state made here
    waiters: Waiters = field(default_factory=Waiters)
    project: str = DEFAULT_PROJECT

    def of(self, project: str) -> Jobs:
        """The same calls on the jobs of another project."""
        return self if project == self.project else replace(self, project=project)

    # --- submit --------------------------------------------------------------------------------------------------

    def submit(self, raw: bytes, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """The job, durably stored, and whether it is new. The same key and body again give the same job."""
        fields = bodies.parse_object(raw)
        if idempotency_key is None:
            return self._create(new_id(), submission(fields), None, len(raw))
        job_id, canonical = self._identify(idempotency_key, fields)
        earlier = self._find(job_id)
        if earlier is not None:
            return self._same(earlier, canonical), False
        return self._create(job_id, submission(fields), canonical, len(raw))

    def _identify(self, key: str, fields: Mapping[str, Any]) -> tuple[str, str]:
        """The id of this key's job, and the body in one spelling."""
        if not key or len(key) > IDEMPOTENCY_KEY_MAX or bodies.control_characters(key):
            raise refuse(422, "header.Idempotency-Key", "request.invalid",
                         f"Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_MAX} visible characters.")
        digest = sha256(f"{self.project}\0{key}".encode("utf-8", "replace")).hexdigest()
        return digest[:IDEMPOTENT_ID_DIGITS], json.dumps(fields, sort_keys=True, separators=(",", ":"))

    def _same(self, job: Job, canonical: str | None) -> Job:
        """The job that is there already, if it was asked for in these words."""
        if canonical is None or job.request_hash is None or not self.keyring.recognises(job.request_hash, canonical):
            raise refuse(409, "header.Idempotency-Key", "idempotency.conflict",
                         "This Idempotency-Key was used with another body.", "Use a new key for a new job.")
        return job

    def _find(self, job_id: str) -> Job | None:
        try:
            return self.store.get(Key(self.project, job_id))
        except UnknownJob:
            return None

    def submit_recipe(self, wanted: Submission, recipe: Recipe, shape: Callable[[Job], Job], size: int) -> Job:
        """As `submit`, for a recipe at hand and a record that `shape` completes; `size` is the request's, in bytes."""
        self._check_uris(wanted)
        return self._add(new_id(), wanted, recipe, None, size, shape)[0]

    def recipe(self, wanted: Submission) -> Recipe:
        """The recipe a submission asks for."""
        try:
            return self.recipes.get(self.project, wanted)
        except NommerdError as error:
            raise from_error(error) from None

    def checked(self, wanted: Submission) -> Recipe:
        """The recipe of what would be accepted as a job. Nobody looks whether something is at the destination, and it may be
        left out (empty)."""
        self._check_uris(wanted, look=False)
        recipe = self.recipe(wanted)
        if wanted.dest:
            _check_folder(wanted, recipe)
        _webhook(wanted, recipe)
        return recipe

    def _create(self, job_id: str, wanted: Submission, canonical: str | None, size: int) -> tuple[Job, bool]:
        self._check_uris(wanted)
        return self._add(job_id, wanted, self.recipe(wanted), canonical, size)

    def _add(self, job_id: str, wanted: Submission, recipe: Recipe, canonical: str | None, size: int,
             shape: Callable[[Job], Job] = lambda job: job) -> tuple[Job, bool]:
        _check_folder(wanted, recipe)
        request_hash = None if canonical is None else self.keyring.fingerprint(canonical)
        job = shape(self._record(job_id, wanted, recipe, request_hash))
        if size > RECORD_BYTES_AT_SUBMIT // 4:
            _check_size(job)
        self.recipes.store(recipe)
        try:
            self.store.create(job)
        except JobExists as error:
            return self._same(error.job, canonical), False
        self.sending.send(job)
        return job, True

    def _check_uris(self, wanted: Submission, *, look: bool = True) -> None:
        """Refused with every fault found among the URIs. `look`: also where something is at the destination."""
        faults: list[Refusal] = []

        def check(place: str, action: Callable[[], None]) -> None:
            try:
                action()
            except NommerdError as error:
                faults.append(from_error(error, place))

        check("body.source", lambda: self.storage.for_uri(wanted.source).check_source(wanted.source))
        if wanted.dest:
            check("body.dest", lambda: self._check_dest(wanted, look))
        for name, items in wanted.inputs.items():
            for index, item in enumerate(items):
                check(f"body.inputs.{name}.{index}.uri",
                      lambda uri=item.uri: self.storage.for_uri(uri).check_source(uri))  # type: ignore[misc]
        if wanted.notify_url is not None:
            check("body.notify_url", lambda: self.check_notify(wanted.notify_url or ""))
        if faults:
            raise Refusal(faults[0].status, [fault for refusal in faults for fault in refusal.faults])

    def _check_dest(self, wanted: Submission, look: bool) -> None:
        backend = self.storage.for_uri(wanted.dest, "dest")
        if look:
            there = _exists(backend, wanted.dest)
        else:
            backend.check_dest(wanted.dest)
            there = None
        sources = [wanted.source, *(item.uri for items in wanted.inputs.values() for item in items)]
        if any(public_uri(uri) == public_uri(wanted.dest) or (there is not False and same_place(uri, wanted.dest))
               for uri in sources):
            raise InputError("dest.is_source", "The destination is the source, or another input.",
                             "Choose another destination.")
        if there and not wanted.overwrite:
            raise InputError("dest.exists", "There is something at the destination already.",
                             "Set overwrite to true to replace it, or choose another destination.")

    def _record(self, job_id: str, wanted: Submission, recipe: Recipe, request_hash: str | None) -> Job:
        now = utcnow()
        return Job(id=job_id, project=self.project, preset=wanted.preset, pipeline=recipe.pipeline, recipe=recipe.hash,
                   source=public_uri(wanted.source), dest=public_uri(wanted.dest), inputs=public_inputs(wanted),
                   secrets=self._secrets(wanted), params=wanted.params, priority=Priority(wanted.priority),
                   labels=wanted.labels, overwrite=wanted.overwrite, on_damage=wanted.on_damage,
                   notify_url=None if wanted.notify_url is None else public_uri(wanted.notify_url),
                   webhook=_webhook(wanted, recipe), request_hash=request_hash, write_id=new_id(), created=now, updated=now)

    def _secrets(self, wanted: Submission) -> str | None:
        """The complete URIs that hold secrets, encrypted: source, dest, notify_url, and inputs by name."""
        plain = {"source": wanted.source, "dest": wanted.dest, "notify_url": wanted.notify_url}
        hidden: dict[str, Any] = {name: uri for name, uri in plain.items() if uri and has_secret(uri)}
        inputs = {name: [item.uri for item in items] for name, items in wanted.inputs.items()
                  if any(has_secret(item.uri) for item in items)}
        if inputs:
            hidden["inputs"] = inputs
        return self.keyring.encrypt(hidden) if hidden else None

    # --- everything else -----------------------------------------------------------------------------------------

    def show(self, job_id: str, wait_seconds: float = 0.0, after: int | None = None) -> Job:
        """The job; with `wait_seconds`, at its next change beyond event `after`."""
        key = Key(self.project, job_id)
        try:
            return self.waiters.wait(lambda: self.store.get(key), after, wait_seconds)
        except UnknownJob:
            raise unknown(job_id) from None

    def list(self, query: str) -> JobPage:
        """A page of jobs, newest first."""
        try:
            return self.store.list(list_query(query, self.project))
        except InputError as error:
            raise refuse(422, "query.cursor", error.code, error.message, error.hint) from None

    def cancel(self, job_id: str) -> tuple[Job, bool]:
        """The job, and whether this call made a difference or asked its owner to stop; False when it was CANCELLED."""
        before, job = self._change(job_id, lifecycle.cancel(utcnow()))
        return job, before.state is not JobState.CANCELLED

    def retry(self, job_id: str) -> Job:
        """The job, PENDING again and sent."""
        _, job = self._change(job_id, lifecycle.retry(utcnow()))
        self.sending.send(job)
        return job

    def _change(self, job_id: str, change: lifecycle.Change) -> tuple[Job, Job]:
        seen: list[Job] = []

        def watched(job: Job) -> Job:
            seen[:] = [job]
            return change(job)

        try:
            job = self.store.update(Key(self.project, job_id), watched)
        except UnknownJob:
            raise unknown(job_id) from None
        except lifecycle.Refused as error:
            raise refuse(409, "path.id", "request.wrong_state", f"{str(error).capitalize()}.") from None
        if job.event_seq != seen[0].event_seq:
            self.on_change(job)
        return seen[0], job


def unknown(job_id: str) -> Refusal:
    """404 for a job that is not there."""
    return refuse(404, "path.id", "request.unknown_job", f"There is no job {bodies.shown(job_id)}.",
                  "Finished jobs are deleted after jobs.keep_finished_days.")


def _check_folder(wanted: Submission, recipe: Recipe) -> None:
    if recipe.needs_folder and not is_folder(wanted.dest):
        raise refuse(422, "body.dest", "dest.not_a_folder", f"The pipeline {recipe.pipeline} has several outputs.",
                     "End the destination with /.")


def _exists(backend: Storage, uri: str) -> bool | None:
    """Whether something is there, None where that cannot be told soon: the worker decides when it publishes."""
    if is_folder(uri):
        backend.check_dest(uri)
        return False
    with gevent.Timeout(EXISTS_SECONDS, False):
        try:
            return backend.exists(uri)  # checks it, too
        except InfrastructureError:
            return None
    return None


def _check_size(job: Job) -> None:
    try:
        size = len(job.encode())
    except NommerdError:
        size = RECORD_BYTES_AT_SUBMIT + 1
    if size > RECORD_BYTES_AT_SUBMIT:
        raise refuse(422, "body", "request.too_large", f"What is asked for must fit in {RECORD_BYTES_AT_SUBMIT} bytes.",
                     "Use shorter addresses, fewer labels or parameters.")


def _webhook(wanted: Submission, recipe: Recipe) -> Webhook:
    """Which states are posted: what the pipeline's notify stage says. Without one a notify_url is refused."""
    if wanted.notify_url is None:
        return Webhook()
    if not recipe.notifies:
        raise refuse(422, "body.notify_url", "request.no_notify", f"The pipeline {recipe.pipeline} has no notify stage.",
                     "Add `- notify` to its stages, or leave out notify_url.")
    return Webhook(states=recipe.notify_states)
