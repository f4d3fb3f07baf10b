"""Presets and pipelines by name, from the operator's directories and those that came with nommerd; names to recipes.

Everything is read and checked at once, so that `config check` and a starting feeder can tell of every fault.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from nommerd.catalog.linking import Linker, Preset, Written
from nommerd.errors import ConfigError, InputError, ManyErrors, NommerdError
from nommerd.pipeline.loader import BYTES_MAX, load_yaml
from nommerd.pipeline.params import Value, from_text, known_hint
from nommerd.pipeline.recipe import Inputs, Recipe, make_recipe
from nommerd.pipeline.spec import LATER, NAME_PATTERN, Origin, Pipeline, Registry, read_pipeline, read_preset
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages import STAGES
from nommerd.pipeline.tree import Faults, Node

Kind = Literal["pipelines", "presets"]


@dataclass(frozen=True, slots=True)
class Source:
    """A document as it was written. `file`: where it lies on disk; `version`: in the store, rising with each change."""

    text: str
    origin: Literal["shipped", "disk", "api"]
    file: Path | None = None
    version: int | None = None

    @property
    def etag(self) -> str:
        """What names this state of the document, as HTTP writes it."""
        return f'"{self.version or self.origin}-{sha256(self.text.encode("utf-8", "replace")).hexdigest()[:16]}"'


class Catalog:
    """What jobs can name. `errors` holds every fault of every file; a document with faults cannot be named."""

    def __init__(self, pipeline_dirs: Sequence[Path], preset_dirs: Sequence[Path], stages: Registry = STAGES) -> None:
        """The operator's directories, searched in this order and before the shipped ones. Never raises for what is in them."""
        self._dirs: dict[Kind, list[Path]] = {"pipelines": list(pipeline_dirs), "presets": list(preset_dirs)}
        self.stages = stages
        self.reload()

    def reload(self) -> None:
        """Read everything again."""
        self.errors: list[NommerdError] = []
        self.pipelines: dict[str, Pipeline] = {}
        self.presets: dict[str, Preset] = {}
        self.sources: dict[tuple[Kind, str], Source] = {}
        self.broken: dict[tuple[Kind, str], list[NommerdError]] = {}
        self._written: dict[str, Written] = {}
        for name, file in self._files("pipelines").items():
            pipeline = self._guarded("pipelines", name, file, self._read_pipeline)
            if pipeline is not None:
                self.pipelines[name] = pipeline
        read = {name: self._guarded("presets", name, file, self._read_preset) for name, file in self._files("presets").items()}
        self._written = {name: preset for name, preset in read.items() if preset is not None}
        linker = self._linker()
        for name, written in self._written.items():
            preset = self._guarded("presets", name, written, linker.link)
            if preset is not None:
                self.presets[name] = preset

    def names(self) -> dict[str, list[str]]:
        """What can be named: `{"presets": […], "pipelines": […]}`, sorted."""
        return {"presets": sorted(self.presets), "pipelines": sorted(self.pipelines)}

    def resolve(self, preset: str | None = None, pipeline: str | None = None, params: Mapping[str, Any] | None = None,
                inputs: Inputs | None = None, origin: Origin = "api") -> Recipe:
        """The recipe of a job. `origin` says whose the params are: an API caller's, or the operator's own (`disk`).

        Raises InputError recipe.* for unknown names and for params or inputs that do not fit (ManyErrors for several);
        ConfigError where the document that was named has faults.
        """
        if (preset is None) == (pipeline is None):
            raise InputError("recipe.no_name", "Name a preset or a pipeline, one of the two.", place="preset")
        known: Preset | None = None
        if preset is not None:
            known = self._named("presets", preset, self.presets)
        chosen = known.pipeline if known is not None else self._named("pipelines", str(pipeline), self.pipelines)
        return self._recipe(chosen, params or {}, known, inputs, origin)

    def resolve_pipeline(self, pipeline: Pipeline, params: Mapping[str, Any] | None = None, inputs: Inputs | None = None,
                         origin: Origin = "api") -> Recipe:
        """As `resolve`, for a pipeline at hand."""
        return self._recipe(pipeline, params or {}, None, inputs, origin)

    def pipeline_from_file(self, path: Path) -> Pipeline:
        """The pipeline in a file of the operator's, by path. Raises ConfigError or ManyErrors with file:line:column."""
        faults = Faults()
        pipeline = self._read_pipeline(path, faults, check_name=False)
        faults.check()
        assert pipeline is not None
        return pipeline

    def params_from_text(self, pipeline: Pipeline, texts: Mapping[str, str]) -> dict[str, Value]:
        """Params from a command line's `--set NAME=TEXT`. InputError recipe.* (ManyErrors for several)."""
        faults, values = Faults(InputError), {}
        for name, text in texts.items():
            if name not in pipeline.params:
                faults.add("unknown_param", f"The pipeline {pipeline.name} has no param called {name!r}.",
                           known_hint(name, pipeline.params, "Params"), f"params.{name}")
                continue
            try:
                values[name] = from_text(pipeline.params[name], text)
            except ValueError as error:
                faults.add("bad_param", f"{name}: {error}.", place=f"params.{name}")
        faults.check()
        return values

    def pipeline_of(self, preset: str | None = None, pipeline: str | None = None) -> Pipeline:
        """The pipeline that a preset names, or of that name. Raises as `resolve`."""
        found: Pipeline = self._named("presets", preset, self.presets).pipeline if preset is not None \
            else self._named("pipelines", str(pipeline), self.pipelines)
        return found

    # --- reading -------------------------------------------------------------------------------------------------

    def _recipe(self, pipeline: Pipeline, params: Mapping[str, Any], preset: Preset | None, inputs: Inputs | None,
                origin: Origin) -> Recipe:
        recipe = make_recipe(pipeline, params, self.stages, preset=preset.params if preset else {},
                             untrusted=preset.untrusted if preset else frozenset(), origin=origin)
        recipe.complete_inputs(inputs or {})
        return recipe

    def _named(self, kind: Kind, name: str, known: Mapping[str, Any]) -> Any:
        if name in known:
            return known[name]
        one = kind.removesuffix("s")
        if (kind, name) in self.broken:
            errors = self.broken[kind, name]
            raise errors[0] if len(errors) == 1 else ManyErrors(errors)
        raise InputError(f"recipe.unknown_{one}", f"There is no {one} called {str(name)[:80]!r}.",
                         known_hint(str(name)[:80], known, f"{kind.capitalize()} here"), place=one)

    def _files(self, kind: Kind) -> dict[str, Path]:
        """Files by the name they stand for, the first directory's first."""
        found: dict[str, Path] = {}
        for directory in self._dirs[kind]:
            if not directory.is_dir():
                self.errors.append(ConfigError("config.no_directory", f"{directory} is no directory.",
                                               f"paths.{kind} names it.", place=f"paths.{kind}"))
        for directory in (*self._dirs[kind], shipped(kind)):
            for file in documents(directory):
                found.setdefault(file.stem, file)
        return found

    def _linker(self) -> Linker:
        broken: dict[Kind, set[str]] = {"presets": set(), "pipelines": set()}
        for kind, name in self.broken:
            broken[kind].add(name)
        return Linker(self._written, self.pipelines, self.stages, broken["presets"], broken["pipelines"])

    def _guarded(self, kind: Kind, name: str, file: Any, read: Any, raises: type[NommerdError] = ConfigError) -> Any:
        """What `read` makes of the file; its faults are noted, and found again by name."""
        faults = Faults(raises)
        value = None
        try:
            value = read(file, faults)
        except ManyErrors as many:
            faults.errors += many.errors
        except (ConfigError, InputError) as error:
            faults.errors.append(error)
        faults.sort()
        if faults.errors:
            self.errors += faults.errors
            self.broken[kind, name] = faults.errors
            return None
        return value

    def _read_pipeline(self, file: Path, faults: Faults, check_name: bool = True) -> Pipeline | None:
        node = self._read("pipelines", file)
        pipeline = read_pipeline(node, self.stages, "disk", faults)
        if check_name:
            _check_name(node, file, faults)
        return pipeline

    def _read_preset(self, file: Path, faults: Faults) -> Written | None:
        node = self._read("presets", file)
        document = read_preset(node, faults)
        _check_name(node, file, faults)
        return Written(document, node, "disk", file) if document is not None else None

    def _read(self, kind: Kind, file: Path) -> Node:
        try:
            with file.open("rb") as stream:
                content = stream.read(BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError("config.unreadable", f"{file} cannot be read: {error.strerror}.",
                              "Let the user read it whom the feeder runs as.", place=str(file)) from None
        origin: Literal["shipped", "disk"] = "shipped" if file.parent == shipped(kind) else "disk"
        self.sources[kind, file.stem] = Source(content.decode("utf-8", "replace"), origin, file)
        return load_yaml(content, str(file))


def shipped(kind: Kind) -> Path:
    """Where nommerd's own documents lie: in the installed package, else in the checkout beside it."""
    package = Path(str(files("nommerd")))
    inside = package / "conf" / kind
    return inside if inside.is_dir() else package.parent / "conf" / kind


def load_stages(paths: Mapping[str, str]) -> dict[str, type[Stage]]:
    """Our stages and the operator's, from name -> `package.module:Class` (or `package.module.Class`).

    Raises ConfigError config.stage (ManyErrors for several) for what cannot be imported, is no Stage, or has a name of ours.
    """
    found: dict[str, type[Stage]] = dict(STAGES)
    errors: list[NommerdError] = []
    for name, path in paths.items():
        try:
            found[name] = _stage(name, path)
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ManyErrors(errors)
    return found


def _stage(name: str, path: str) -> type[Stage]:
    place = f"stages.{name}"
    if name in STAGES or name in LATER or not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError("config.stage", f"A stage of your own cannot be called {name!r}.",
                          "Choose lower-case letters, digits and dashes, and no name of ours.", place=place)
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the operator's module may raise anything
        raise ConfigError("config.stage", f"{path} cannot be imported: {type(error).__name__}: {error}",
                          "Is it installed where nommerd runs? Write package.module:Class.", place=place) from error
    if not (isinstance(cls, type) and issubclass(cls, Stage)):
        raise ConfigError("config.stage", f"{path} is no class derived from nommerd.pipeline.Stage.", place=place)
    return cls


def documents(directory: Path) -> Iterable[Path]:
    """The files in it that are read; none where there is no such directory."""
    if not directory.is_dir():
        return []
    return sorted(file for file in directory.iterdir() if file.suffix in (".yaml", ".yml") and not file.name.startswith("."))


def _check_name(node: Node, file: Path, faults: Faults) -> None:
    at = node.get("name")
    if at is not None and isinstance(at.value, str) and at.value != file.stem:
        faults.add("bad_name", f"The name is {at.value!r}, and the file's is {file.name!r}.",
                   f"Call the file {at.value}.yaml, or write name: {file.stem}.", at.place)
