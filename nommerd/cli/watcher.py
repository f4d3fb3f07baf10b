"""The work of `nommerd watch`: what became complete is submitted, what was submitted is followed to its end."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from nommerd.cli.client import AWAY_SECONDS, FINAL, Busy, Client, Missing
from nommerd.cli.options import printable
from nommerd.cli.output import problem_lines
from nommerd.cli.usual import USUAL
from nommerd.cli.watchnames import destination, free, path_of
from nommerd.cli.watchscan import Found, Scanner
from nommerd.cli.watchstate import KNOWN, UNSENT, Entry, State
from nommerd.errors import InfrastructureError, InputError, ManyErrors, NommerdError

CALL_SECONDS = 10.0  # a stop is seen after this long at the latest
ASKED_AT_ONCE = 200  # jobs whose state is asked for in one round
WAITED_MAX_SECONDS = 30.0  # between tries, while the feeder is away


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is wanted. `out` is a URI that ends in `/`; `recipe` are the fields of a submission that are the same for all."""

    folder: Path
    out: str
    recipe: dict[str, Any]
    recursive: bool = False
    overwrite: bool = False
    on_finished: str = "keep"  # keep, delete, move
    move_to: Path | None = None
    marker: str | None = None
    interval_seconds: float = 2.0
    once: bool = False

    def holds(self, path: Path) -> bool:
        """Whether a file there would be looked at."""
        return path.parent == self.folder or (self.recursive and self.folder in path.parents)


class Tell:
    """What happens, a line each: for people, or JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, event: str, file: str | None = None, text: str = "", **fields: Any) -> None:
        if self._as_json:
            named = {"file": file.encode(errors="surrogateescape").decode(errors="replace")} if file is not None else {}
            print(json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **named, **fields}),
                  flush=True)
        else:
            words = [time.strftime("%H:%M:%S"), *([printable(file)] if file is not None else []), f"{event}{text}"]
            print("  ".join(words), flush=True)


@dataclass(kw_only=True)
class Watcher:
    """One watched folder. `run` returns when `stop` is set, or, once, when all is done."""

    plan: Plan
    client: Client
    state: State
    scanner: Scanner
    tell: Tell
    stop: threading.Event = field(default_factory=threading.Event)
    failed: int = 0
    _extension: str | None = None
    _asked: bool = False  # the feeder, for the extension
    _refused: dict[str, str] = field(default_factory=dict)  # path -> key
    _dealt: dict[str, Found] = field(default_factory=dict)  # what was submitted, refused, or known, by path
    _turn: int = 0
    _away_since: float | None = None
    _told: set[str] = field(default_factory=set)  # what need not be said again
    _first: set[str] | None = None  # what the first look found

    def run(self) -> int:
        """Exit code: once, 1 when a job failed; 0 otherwise."""
        wait = 0.0
        while not self.stop.wait(wait):
            wait = self._round()
            if self.plan.once and self._done():
                break
        left = sum(entry.open for entry in self.state.entries.values())
        self.tell("stopped", text=f"; {left} jobs go on, the next watch follows them" if left else "", open=left)
        return 1 if self.plan.once and self.failed else 0

    def _round(self) -> float:
        """Look, submit, ask; how long to wait until the next one."""
        try:
            ready = self._look()
            self._learn_extension()
            for found in ready:
                if self.stop.is_set():
                    return 0.0
                self._submit(found)
            self._ask()
        except InfrastructureError as error:
            return self._away(error)
        if self._away_since is not None:
            self._away_since = None
            self.tell("back", text=": the feeder answers again")
        return self.plan.interval_seconds

    def _away(self, error: InfrastructureError) -> float:
        """The feeder will be back: nothing is lost meanwhile. Once, somebody waits: raises after a while."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self.tell("waiting", text=f": {error.message}", code=error.code)
        if self.plan.once and now - self._away_since > AWAY_SECONDS:
            raise error
        asked_for = (error.seconds or 0.0) if isinstance(error, Busy) else 0.0
        return min(WAITED_MAX_SECONDS, max(self.plan.interval_seconds, asked_for))

    def _done(self) -> bool:
        """Whether all that the first look found was dealt with, and no job is open."""
        return (self._first is not None and not (self._first & self.scanner.present) - self._dealt.keys()
                and not any(entry.open for entry in self.state.entries.values()))

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look(self) -> list[Found]:
        """What is complete. A folder that is away (a share) is waited for."""
        try:
            ready = self.scanner.look()
        except OSError as error:
            self._once_only(f"folder {error.errno}", "unreadable", text=f": {self.plan.folder}: {error.strerror}")
            return []
        self._told -= {key for key in self._told if key.startswith("folder ")}
        for path, why in self.scanner.unreadable.items():
            self._once_only(f"below {path} {why}", "unreadable", path, f": {why}")
        if self._first is None:  # with markers, what has none is not waited for
            self._first = set(self.scanner.present) if self.plan.marker is None else {found.path for found in ready}
        for path, entry in list(self.state.latest.items()):
            if path not in self.scanner.present and not entry.gone:
                if not entry.open:
                    self.state.put(entry, sync=False, gone=True)
                elif entry.job is None:
                    self.state.put(entry, state=UNSENT, gone=True)
        return ready

    def _once_only(self, key: str, event: str, file: str | None = None, text: str = "") -> None:
        if key not in self._told:
            self._told.add(key)
            self.tell(event, file, text)

    # --- submitting --------------------------------------------------------------------------------------------------

    def _learn_extension(self) -> None:
        """How outputs are called, from the feeder; None where there are several, or it cannot tell. Raises InputError for a
        recipe or a folder that it would refuse."""
        if self._asked:
            return
        body = {name: value for name, value in self.plan.recipe.items() if name in ("preset", "pipeline", "params")}
        try:
            body |= {"source": (self.plan.folder / "film.mov").as_uri(), "probe": USUAL}
            made = self._call("POST", "/v1/explain", body)
            names = [output["name"] or "" for output in made["outputs"]]
            self._extension = os.path.splitext(names[0])[1][1:] or None if len(names) == 1 else None  # noqa: PTH122
        except Missing:
            pass  # a feeder of an older version
        except InputError as error:
            if error.code == "source.outside_roots":  # of the folder: nobody knows the file that was asked about
                raise InputError(error.code, f"{self.plan.folder} is outside the folders that file: URIs may reach.",
                                 error.hint) from None
            if not error.code.startswith("config."):  # that the feeder's own ffmpeg lacks something: workers may have it
                raise
        self._asked = True

    def _submit(self, found: Found) -> None:
        if self._dealt.get(found.path) == found:
            return
        key = self._key(found)
        entry, before = self.state.entries.get(key), self.state.latest.get(found.path)
        if self._refused.get(found.path) != key and (entry is None or entry.state == UNSENT):
            if before is not None and before.open:  # an older version is at work: two jobs would race for one destination
                if before.job is None:  # or it may be: only the feeder knows whether it got that
                    self._send(before, found)
                return
            entry = self._planned(key, found)
        if entry is not None and entry.open and entry.job is None:
            self._send(entry, found)
        self._dealt[found.path] = found

    def _send(self, entry: Entry, found: Found) -> None:
        try:
            job = self._call("POST", "/v1/jobs", entry.body, {"Idempotency-Key": entry.key})
        except InputError as error:
            if error.code == "idempotency.conflict":
                self.state.put(entry, state=KNOWN)
                self.tell("known", found.path, ": it was submitted before, with other options")
            else:
                self.state.put(entry, state=UNSENT)
                self._refuse(entry.key, found, error)
            return
        except ManyErrors as error:
            self.state.put(entry, state=UNSENT)
            self._refuse(entry.key, found, error)
            return
        self.state.put(entry, job=job["id"])
        self.tell("submitted", found.path, f" as {job['id']} to {entry.body['dest']}", job=job["id"], dest=entry.body["dest"])

    def _key(self, found: Found) -> str:
        """The same for the same content under the same recipe, and for nothing else."""
        recipe = {name: self.plan.recipe.get(name) for name in ("preset", "pipeline", "params", "on_damage")}
        told = [str(self.plan.folder), found.path, found.size, found.mtime_ns, recipe, self.plan.out]
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _planned(self, key: str, found: Found) -> Entry | None:
        """The submission, remembered before it is sent; None where its output would be looked at in its turn."""
        dest, ours = destination(self.state, self.plan.out, found.path, self._extension)
        if dest.startswith("file:") and self.plan.holds(path_of(dest)):
            self._refuse(key, found, InputError("dest.bad_uri", f"Its output {dest} would lie in the watched folder.",
                                                "Choose another -o."))
            return None
        body = {**self.plan.recipe, "source": (self.plan.folder / found.path).as_uri(), "dest": dest}
        if ours or self.plan.overwrite:
            body["overwrite"] = True
        return self.state.put(Entry(key=key, path=found.path, size=found.size, mtime_ns=found.mtime_ns, body=body))

    def _refuse(self, key: str, found: Found, error: NommerdError) -> None:
        """Said once; tried again when the file has changed, or by the next watch."""
        self._refused[found.path] = key
        self.failed += 1
        faults = error.errors if isinstance(error, ManyErrors) else [error]
        self.tell("refused", found.path, ": " + " ".join(str(fault) for fault in faults),
                  errors=[{"place": e.place, "code": e.code, "message": e.message, "hint": e.hint} for e in faults])

    # --- following -----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """How the submitted jobs are; of many, some in each round."""
        waiting = [entry for entry in self.state.entries.values() if entry.job is not None and (
            entry.open or (entry.state == "FINISHED" and not entry.cared_for))]
        start = self._turn % len(waiting) if waiting else 0
        self._turn = start + ASKED_AT_ONCE if len(waiting) > ASKED_AT_ONCE else 0
        for entry in (waiting[start:] + waiting[:start])[:ASKED_AT_ONCE]:
            if self.stop.is_set():
                return
            self._follow(entry)

    def _follow(self, entry: Entry) -> None:
        try:
            job = self._call("GET", f"/v1/jobs/{entry.job}")
        except Missing:
            self.state.put(entry, state=entry.state or KNOWN, cared_for=True)
            self.tell("lost", entry.path, f": the feeder has no record of {entry.job} any longer", job=entry.job)
            return
        if job["state"] not in FINAL:
            return
        if entry.open:
            entry = self.state.put(entry, state=job["state"])
            self._tell_end(entry, job)
        if job["state"] == "FINISHED":
            self._care(entry, job)

    def _tell_end(self, entry: Entry, job: dict[str, Any]) -> None:
        outputs = [output["uri"] for output in job["outputs"]]
        self.failed += job["state"] != "FINISHED"
        text = " ".join(map(str.strip, problem_lines(job["error"]))) if job["error"] else ", ".join(outputs)
        said = f": {text}" if text else ""
        self.tell(job["state"].lower(), entry.path, said, job=job["id"], state=job["state"], outputs=outputs,
                  error=job["error"], warnings=job["warnings"])

    def _care(self, entry: Entry, job: dict[str, Any]) -> None:
        """Do with a finished source what is to be done, if it still is what was encoded. One whose job has warnings is never
        deleted: it may have been damaged."""
        source, gone = self.plan.folder / entry.path, False
        try:
            about = source.lstat()
            same = (about.st_size, about.st_mtime_ns) == (entry.size, entry.mtime_ns)
            if same and self.plan.on_finished == "delete" and job["warnings"]:
                self.tell("left", entry.path, ": its job has warnings")
            elif same and self.plan.on_finished != "keep":
                self._put_away(source, entry.path)
                gone = True
        except FileNotFoundError:
            pass
        except OSError as error:
            self.failed += 1
            self.tell("left", entry.path, f": {error.strerror or error}")
        self.state.put(entry, cared_for=True, gone=entry.gone or gone)

    def _put_away(self, source: Path, path: str) -> None:
        if self.plan.on_finished == "delete":
            source.unlink()
            self.tell("deleted", path)
        else:
            assert self.plan.move_to is not None
            target = free(self.plan.move_to / path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
            self.tell("moved", path, f" to {printable(str(target))}", to=str(target))
        if self.plan.marker is not None:
            with suppress(FileNotFoundError):
                source.with_name(source.name + self.plan.marker).unlink()

    def _call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Any:
        return self.client.call(method, path, body, timeout=CALL_SECONDS, headers=headers)
