"""SIGHUP: the presets and pipelines on disk are read again, all or none.

Jobs carry their recipes, so none that was accepted changes; the next submissions go by what was read. Where that does not
hold, what was there before stays, and the log names every fault with its place.
"""

from __future__ import annotations

from gevent.event import Event

from nommerd import logs
from nommerd.api.original import check_nommers
from nommerd.catalog import Catalog
from nommerd.catalog.projects import Catalogs
from nommerd.config import Settings
from nommerd.errors import ManyErrors, NommerdError
from nommerd.fleet.userdata import UserData
from nommerd.runtime import in_pool


class Reloading:
    """`ask` from a signal handler; `run` in a greenlet of its own, until it is killed."""

    def __init__(self, settings: Settings, catalogs: Catalogs, user_data: UserData) -> None:
        self._settings, self._catalogs, self._user_data = settings, catalogs, user_data
        self._asked = Event()

    def ask(self) -> None:
        """Only sets a flag."""
        self._asked.set()

    def run(self) -> None:
        """Read again whenever somebody asks; asked for several times meanwhile, it does so once more."""
        while True:
            self._asked.wait()
            self._asked.clear()
            try:
                self.reload()
            except Exception:
                logs.get().exception("catalog.not_reloaded")

    def reload(self) -> bool:
        """Read again now. Whether what was read holds, and counts."""
        old, paths = self._catalogs.disk, self._settings.paths
        new: Catalog = in_pool(Catalog, paths.pipelines, paths.presets, old.stages)
        faults = list(new.errors)
        if not faults:
            try:
                check_nommers(self._settings.api.original.nommers, new.pipelines)
            except ManyErrors as many:
                faults += many.errors
            except NommerdError as error:
                faults.append(error)
        for fault in faults:
            logs.get().error("catalog.fault", code=fault.code, place=fault.place, why=fault.message, hint=fault.hint)
        if faults:
            logs.get().error("catalog.not_reloaded", faults=len(faults), why="the presets and pipelines before stay")
            return False
        self._catalogs.disk = new
        self._user_data.renew()
        told = {kind: len(names) for kind, names in new.names().items()}
        logs.get().info("catalog.reloaded", **told, changed=changes(old, new))
        return True


def changes(old: Catalog, new: Catalog) -> list[str]:
    """What was added, changed or removed, as `presets/NAME`, sorted."""
    texts = [{key: source.text for key, source in catalog.sources.items()} for catalog in (old, new)]
    return sorted(f"{kind}/{name}" for kind, name in texts[0].keys() | texts[1].keys()
                  if texts[0].get((kind, name)) != texts[1].get((kind, name)))
