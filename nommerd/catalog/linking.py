"""Presets to pipelines: `extends` followed, params brought together, and the pipeline tried with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nommerd.pipeline.params import Value, accept, known_hint
from nommerd.pipeline.spec import Origin, Pipeline, PresetDocument, Registry, try_samples
from nommerd.pipeline.tree import Faults, Node


@dataclass(frozen=True, slots=True)
class Written:
    """A preset document whose names are not looked up yet. `file`: where it lies on disk."""

    document: PresetDocument
    node: Node
    origin: Origin = "disk"
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset with everything it extends brought together; `untrusted` are those of its params that came through the API."""

    document: PresetDocument
    pipeline: Pipeline
    params: dict[str, Value]
    chain: tuple[Written, ...]
    untrusted: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def origin(self) -> Origin:
        return self.chain[0].origin

    @property
    def file(self) -> Path | None:
        return self.chain[0].file


@dataclass(frozen=True, slots=True)
class Linker:
    """Looks up what presets name, in these documents. `broken` are names of documents with faults of their own."""

    written: Mapping[str, Written]
    pipelines: Mapping[str, Pipeline]
    stages: Registry
    broken_presets: Collection[str]
    broken_pipelines: Collection[str]

    def link(self, preset: Written, faults: Faults, before: Preset | None = None) -> Preset | None:
        """The preset as a whole; None if something is wrong, which is then in `faults`. `before`, made of the same documents,
        is taken as it is."""
        if before is not None and self._unchanged(preset, before):
            return before
        chain = tuple(self._chain(preset, faults))
        if faults.errors:
            return None
        owner = next((link for link in chain if link.document.pipeline is not None), None)
        if owner is None:
            faults.add("missing_key", "pipeline: missing here and in what it extends.", "Name a pipeline.", preset.node.place)
            return None
        pipeline = self._pipeline(owner, faults)
        if pipeline is None:
            return None
        params = {key: value for link in reversed(chain) for key, value in link.document.params.items()}
        self._check_params(preset, pipeline, params, faults)
        if faults.errors:
            return None
        return Preset(preset.document, pipeline, params, chain, _untrusted(chain))

    def _unchanged(self, preset: Written, before: Preset) -> bool:
        return (before.chain[0] is preset and all(self.written.get(one.document.name) is one for one in before.chain)
                and self.pipelines.get(before.pipeline.name) is before.pipeline)

    def _pipeline(self, owner: Written, faults: Faults) -> Pipeline | None:
        name = str(owner.document.pipeline)
        if name not in self.pipelines:
            at = owner.node.get("pipeline")
            hint = "It has faults of its own." if name in self.broken_pipelines else \
                known_hint(name, self.pipelines, "Pipelines here")
            faults.add("unknown_pipeline", f"There is no pipeline called {name!r}.", hint, at.place if at else None)
            return None
        return self.pipelines[name]

    def _chain(self, preset: Written, faults: Faults) -> Iterator[Written]:
        """The preset, what it extends, and so on."""
        seen = {preset.document.name}
        while True:
            yield preset
            parent = preset.document.extends
            if parent is None:
                return
            at = preset.node.get("extends")
            place = at.place if at else None
            if parent in seen:
                faults.add("bad_preset", f"{parent} extends itself.", "Break the circle.", place)
                return
            if parent not in self.written:
                hint = "It has faults of its own." if parent in self.broken_presets else \
                    known_hint(parent, self.written, "Presets here")
                faults.add("unknown_preset", f"There is no preset called {parent!r}.", hint, place)
                return
            seen.add(parent)
            preset = self.written[parent]

    def _check_params(self, preset: Written, pipeline: Pipeline, params: Mapping[str, Value], faults: Faults) -> None:
        def place(name: str) -> str:
            at = preset.node.get("params", name) or preset.node.get("params") or preset.node
            return at.key_place if name not in pipeline.params else at.place

        for name, value in params.items():
            if name not in pipeline.params:
                faults.add("unknown_param", f"The pipeline {pipeline.name} has no param called {name!r}.",
                           known_hint(name, pipeline.params, "Params"), place(name))
                continue
            try:
                accept(pipeline.params[name], value)
            except ValueError as error:
                faults.add("bad_param", f"params.{name}: {error}.", place=place(name))
        if faults.errors:
            return
        for finding in try_samples(pipeline, params, self.stages, faults):
            names = sorted(finding.params & params.keys())
            faults.add("bad_param", f"With these params, {pipeline.name}: {finding.message}", finding.complaint.hint,
                       place(names[0] if names else ""))


def _untrusted(chain: tuple[Written, ...]) -> frozenset[str]:
    """The params whose value the API had the last word on."""
    last: dict[str, Origin] = {key: link.origin for link in reversed(chain) for key in link.document.params}
    return frozenset(key for key, origin in last.items() if origin == "api")
