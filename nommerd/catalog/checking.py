"""Files of presets and pipelines, checked together as if they lay in the operator's directories already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nommerd.catalog.disk import Catalog, Kind
from nommerd.catalog.linking import Written
from nommerd.errors import ConfigError, NommerdError
from nommerd.pipeline.loader import BYTES_MAX, load_yaml
from nommerd.pipeline.spec import Pipeline, read_pipeline, read_preset
from nommerd.pipeline.tree import Faults, Node

KIND_OF: dict[str, Kind] = {"pipeline": "pipelines", "preset": "presets"}
Key = tuple[Kind, str]


class CheckedFiles(Catalog):
    """A catalog with these files in place of documents of the same names. `errors` are theirs, and those of other documents
    that were right without them; `held` is what the files hold; `misnamed` are files, each with the name in it, that would
    have to be called otherwise in the operator's directories."""

    def __init__(self, disk: Catalog, files: Sequence[Path], expected: Kind) -> None:
        """A document that does not say its `kind` is taken for `expected`."""
        self.stages = disk.stages
        self.errors: list[NommerdError] = []
        self.pipelines, self.sources, self.broken = dict(disk.pipelines), dict(disk.sources), dict(disk.broken)
        self.presets = {}
        self._written = dict(disk._written)
        self.held: list[Key] = []
        self.misnamed: list[tuple[Path, str]] = []
        read = [(file, node) for file in files if (node := self._node(file)) is not None]
        for kind in ("pipelines", "presets"):
            for file, node in read:
                if kind_of(node, expected) == kind:
                    self._take(kind, file, node)
        self._relink(disk)

    def reload(self) -> None:
        """Nothing: what is checked is checked once."""

    def _node(self, file: Path) -> Node | None:
        try:
            return read_file(file)
        except NommerdError as error:
            self.errors += getattr(error, "errors", [error])
            return None

    def _take(self, kind: Any, file: Path, node: Node) -> None:
        at = node.get("name")
        name = at.value if at is not None and isinstance(at.value, str) else f"({file})"
        if (kind, name) in self.held:
            self.errors.append(ConfigError("recipe.bad_name", f"Another of these files is called {name} too.",
                                           place=at.place if at else str(file)))
            return
        self.held.append((kind, name))
        if at is not None and name != file.stem:
            self.misnamed.append((file, name))
        known: dict[str, Any] = self.pipelines if kind == "pipelines" else self._written
        known.pop(name, None)
        self.broken.pop((kind, name), None)
        found = self._guarded(kind, name, node, self._pipeline if kind == "pipelines" else _preset(file))
        if found is not None:
            known[name] = found

    def _pipeline(self, node: Node, faults: Faults) -> Pipeline | None:
        return read_pipeline(node, self.stages, "disk", faults)

    def _relink(self, disk: Catalog) -> None:
        linker = self._linker()
        for name, written in self._written.items():
            if ("presets", name) in disk.broken and ("presets", name) not in self.held:
                continue  # wrong before, for reasons of its own
            earlier = disk.presets.get(name)
            preset = self._guarded("presets", name, written,
                                   lambda one, faults, earlier=earlier: linker.link(one, faults, earlier))
            if preset is not None:
                self.presets[name] = preset


def _preset(file: Path) -> Any:
    def read(node: Node, faults: Faults) -> Written | None:
        document = read_preset(node, faults)
        return Written(document, node, "disk", file) if document is not None else None

    return read


def read_file(file: Path) -> Node:
    """The YAML in a file. ConfigError (ManyErrors for several) with file:line:column."""
    try:
        with file.open("rb") as stream:
            content = stream.read(BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError("config.unreadable", f"{file} cannot be read: {error.strerror}.", place=str(file)) from None
    return load_yaml(content, str(file))


def kind_of(node: Node, expected: Kind) -> Kind:
    """What the document says it is."""
    at = node.get("kind")
    return KIND_OF.get(str(at.value) if at is not None else "", expected)
