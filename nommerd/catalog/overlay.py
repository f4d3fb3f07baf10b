"""The catalog of a project: the operator's disk, and beneath it the documents that the project keeps in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nommerd.catalog.disk import Catalog, Kind, Source
from nommerd.catalog.linking import Linker, Preset, Written
from nommerd.errors import InputError, NommerdError
from nommerd.pipeline.allowed import check_allowed, is_short
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.spec import Pipeline, read_pipeline, read_preset
from nommerd.pipeline.tree import Faults, Node
from nommerd.store.base import Document

KINDS: dict[Kind, str] = {"pipelines": "pipeline", "presets": "preset"}  # as calls name them -> as documents do
Key = tuple[Kind, str]
NAMED_BYTES_MAX = 2 * 2**20  # of the pipelines that presets name, each as often as it is named: all are tried when one changes


class ProjectCatalog(Catalog):
    """Names on disk win. A document with faults, perhaps because a pipeline on disk changed, takes no other down: it is in
    `broken`, and cannot be named."""

    def __init__(self, disk: Catalog, documents: Iterable[Document], before: ProjectCatalog | None = None,
                 missing: NommerdError | None = None, nodes: Mapping[Key, Node] | None = None,
                 named_bytes_max: float = float("inf")) -> None:
        """`before`: what did not change since is not read again. `missing`: why the documents could not be had; raised where
        a name is not on disk. `nodes`: documents that were parsed already, with places of their own. Over `named_bytes_max`
        it is `too_heavy`, and its presets are not there."""
        self.disk = disk
        self.missing = missing
        self._nodes = nodes or {}
        self.documents = tuple(documents)
        self.stages = disk.stages
        self.errors: list[NommerdError] = []
        self.pipelines, self.presets = dict(disk.pipelines), dict(disk.presets)
        self.sources, self.broken = dict(disk.sources), dict(disk.broken)
        self._written = dict(disk._written)
        self.own: dict[Key, Pipeline | Written] = {}  # the project's own documents, as far as they could be read
        for kind, word in KINDS.items():  # pipelines come first
            for one in self.documents:
                if one.kind == word and (kind, one.name) not in disk.sources:
                    self._take(kind, one, before)
        self.too_heavy = self._named_bytes() > named_bytes_max
        if not self.too_heavy:
            self._link(before)

    def reload(self) -> None:
        """Nothing: another catalog takes its place."""

    def document(self, kind: Kind, name: str) -> Document | None:
        """The project's own document of that name."""
        return next((one for one in self.documents if (one.kind, one.name) == (KINDS[kind], name)), None)

    def with_document(self, kind: Kind, changed: Document, node: Node) -> ProjectCatalog:
        """The catalog as it would be with this document, whose faults stand where the node says. `too_heavy`
        where trying it would take too long."""
        others = self._without(kind, changed.name)
        return ProjectCatalog(self.disk, (*others, changed), self, nodes={(kind, changed.name): node},
                              named_bytes_max=NAMED_BYTES_MAX)

    def without(self, kind: Kind, name: str) -> ProjectCatalog:
        """The catalog as it would be without this document."""
        return ProjectCatalog(self.disk, self._without(kind, name), self)

    def naming(self, kind: Kind, name: str) -> list[str]:
        """The project's own presets that extend this preset, or name this pipeline."""
        presets = [one.document for one in self.own.values() if isinstance(one, Written)]
        return sorted(one.name for one in presets if (one.extends if kind == "presets" else one.pipeline) == name)

    def _without(self, kind: Kind, name: str) -> tuple[Document, ...]:
        return tuple(one for one in self.documents if (one.kind, one.name) != (KINDS[kind], name))

    def _take(self, kind: Kind, one: Document, before: ProjectCatalog | None) -> None:
        key = (kind, one.name)
        source = self.sources[key] = Source(one.body, "api", version=one.version)
        if before is not None and before.sources.get(key) == source and key in before.own:
            found: Pipeline | Written | None = before.own[key]
        else:
            found = self._guarded(kind, one.name, one, self._pipeline if kind == "pipelines" else self._preset, InputError)
        if found is None:
            return
        self.own[key] = found
        if isinstance(found, Pipeline):
            self.pipelines[one.name] = found
        else:
            self._written[one.name] = found

    def _link(self, before: ProjectCatalog | None) -> None:
        linker: Linker = self._linker()
        for (kind, name), written in self.own.items():
            if isinstance(written, Written):
                earlier = before.presets.get(name) if before is not None else None
                preset: Preset | None = self._guarded(
                    kind, name, written, lambda one, faults, earlier=earlier: linker.link(one, faults, earlier), InputError)
                if preset is not None:
                    self.presets[name] = preset

    def _named_bytes(self) -> int:
        """The lengths of the pipelines that the project's own presets name, or what they extend does."""
        found: dict[str, int] = {}
        for (kind, _), written in self.own.items():
            chain: dict[str, None] = {}  # in its order
            at: Written | None = written if kind == "presets" and isinstance(written, Written) else None
            length = 0
            while at is not None and at.document.name not in chain:
                if at.document.name in found:
                    length = found[at.document.name]
                    break
                chain[at.document.name] = None
                if at.document.pipeline is not None:
                    source = self.sources.get(("pipelines", at.document.pipeline))
                    length = len(source.text) if source is not None else 0
                    break
                at = self._written.get(at.document.extends or "")
            found.update(dict.fromkeys(chain, length))
        return sum(length for name, length in found.items() if ("presets", name) in self.own)

    def _named(self, kind: Kind, name: str, known: Any) -> Any:
        if self.missing is not None and name not in known:
            raise self.missing
        return super()._named(kind, name, known)

    def _pipeline(self, one: Document, faults: Faults) -> Pipeline | None:
        node = self._node("pipelines", one, faults)
        found = read_pipeline(node, self.stages, "api", faults) if is_short(node, faults) else None
        if found is not None:
            check_allowed(found, self.stages, faults)
        return found

    def _preset(self, one: Document, faults: Faults) -> Written | None:
        node = self._node("presets", one, faults)
        document = read_preset(node, faults)
        return Written(document, node, "api") if document is not None else None

    def _node(self, kind: Kind, one: Document, faults: Faults) -> Node:
        node = self._nodes.get((kind, one.name)) or load_yaml(one.body, f"{kind}/{one.name}", InputError)
        at = node.get("name")
        if at is not None and isinstance(at.value, str) and at.value != one.name:
            faults.add("bad_name", f"The name is {at.value!r}, and the path's is {one.name!r}.", f"Write name: {one.name}.",
                       at.place)
        return node
