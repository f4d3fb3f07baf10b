"""The catalogs of projects as they are now: the disk's, with what each project keeps in the store.

Asked for with every submission, so the store is read every FRESH_SECONDS at most, by one greenlet for all that wait; a change
made here is seen at once, one made through another feeder by FRESH_SECONDS later, or when an unknown name is asked for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from nommerd.catalog.disk import Catalog
from nommerd.catalog.overlay import KINDS, ProjectCatalog
from nommerd.runtime import in_pool
from nommerd.store.base import Document, Store, StoreUnavailable

FRESH_SECONDS = 2.0
RETRY_SECONDS = 1.0  # after a store that was out of reach
PROJECTS_KEPT = 32
ORDER = tuple(reversed(KINDS.values()))  # presets first: a pipeline that is put before its presets is then seen, too
LONG = 32 * 1024  # bytes of documents that are worth a thread of their own


@dataclass(slots=True)
class _Known:
    """What is known of one project. `dropped`: a change was made here since."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    changing: threading.Lock = field(default_factory=threading.Lock)
    catalog: ProjectCatalog | None = None
    looks: int = 0  # how often the store was asked
    error: StoreUnavailable | None = None  # what came of the last look
    until: float = float("-inf")
    dropped: bool = False


class Catalogs:
    """`of` a project, for submissions; `look` for what must not be old. A catalog never changes: as long as nothing did, the
    same object comes back."""

    def __init__(self, store: Store, disk: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._projects: OrderedDict[str, _Known] = OrderedDict()
        self._disk = disk

    @property
    def disk(self) -> Catalog:
        """The operator's own. Another one may be put in its place: what projects have is then made anew."""
        return self._disk

    @disk.setter
    def disk(self, disk: Catalog) -> None:
        self._disk = disk
        for known in self._projects.values():
            known.dropped = True

    def of(self, project: str) -> ProjectCatalog:
        """The catalog, at most FRESH_SECONDS old. With a store out of reach the last known one; without any, one that raises
        StoreUnavailable for names that are not on disk."""
        known, now = self._known(project), self._clock()
        if known.catalog is not None and not known.dropped and (now < known.until or known.lock.locked()):
            return known.catalog
        try:
            return self._looked(project, known)
        except StoreUnavailable as error:
            known.until = self._clock() + RETRY_SECONDS
            if known.catalog is None:
                known.catalog = ProjectCatalog(self._disk, (), missing=error)
            return known.catalog

    def look(self, project: str) -> ProjectCatalog:
        """The catalog as it is now. Raises StoreUnavailable."""
        return self._looked(project, self._known(project))

    def changing(self, project: str) -> threading.Lock:
        """To be held over a change of this project's documents: each is judged by all the others."""
        return self._known(project).changing

    def changed(self, project: str) -> None:
        """A document of this project was changed here."""
        self._known(project).dropped = True

    def _known(self, project: str) -> _Known:
        known = self._projects.setdefault(project, _Known())
        self._projects.move_to_end(project)
        if len(self._projects) > PROJECTS_KEPT:
            self._projects.popitem(last=False)
        return known

    def _looked(self, project: str, known: _Known) -> ProjectCatalog:
        """Ask the store, unless somebody began to do so while this one waited."""
        asked = known.looks
        with known.lock:
            if known.looks == asked or known.dropped:
                known.looks += 1
                known.dropped, known.error, known.until = False, None, float("-inf")
                try:
                    documents = [one for kind in ORDER for one in self._store.documents(kind, project)]
                    known.catalog = self._catalog(documents, known.catalog)
                    known.until = self._clock() + FRESH_SECONDS
                except StoreUnavailable as error:
                    known.error = error
            if known.error is not None:
                raise known.error
            assert known.catalog is not None
            return known.catalog

    def _catalog(self, documents: list[Document], before: ProjectCatalog | None) -> ProjectCatalog:
        if before is not None and before.disk is not self._disk:  # nothing that was made of the old one counts
            before = None
        if before is not None and before.missing is None and before.documents == tuple(documents):
            return before
        if sum(len(one.body) for one in documents) < LONG:
            return ProjectCatalog(self._disk, documents, before)
        return in_pool(ProjectCatalog, self._disk, documents, before)
