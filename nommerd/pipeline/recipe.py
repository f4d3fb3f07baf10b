"""A recipe: a pipeline with its params filled in, as the job keeps it. A retry replays it, whatever the preset says by then.

Content-addressed: two jobs with the same settings share one row. It holds neither source nor destination.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nommerd.errors import ConfigError, InfrastructureError, InputError, ManyErrors, NommerdError
from nommerd.job import JobState
from nommerd.media.options import check_options
from nommerd.pipeline.allowed import OPTIONS, STAGE_HINT, for_operators, is_open
from nommerd.pipeline.faults import inspect, sentence
from nommerd.pipeline.params import Value, accept, known_hint
from nommerd.pipeline.spec import Finding, InputSpec, Origin, Pipeline, Registry, fill, find_faults
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.ffmpeg import merge_passes
from nommerd.pipeline.structure import Outline, outline, output_ids
from nommerd.pipeline.tree import Faults, load_value

SCHEMA_VERSION = 1
Inputs = Mapping[str, Sequence[Mapping[str, str]]]


class UnknownSchema(InfrastructureError):
    """Written by a newer version: a worker gives the job back, without a charge, for one that knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """A stage of a recipe. `untrusted` are raw options (`options[3]`) that a text from the API went into, in a stage
    that otherwise came from the operator's disk: they pass the allowlist like those of origin `api`."""

    name: str
    id: str
    settings: dict[str, Any] = field(default_factory=dict)
    origin: Origin = "disk"
    untrusted: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Immutable. `inputs` are what the pipeline declares, `params` the values that went in."""

    pipeline: str
    stages: tuple[StageSpec, ...]
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    params: dict[str, Value] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @cached_property
    def document(self) -> str:
        """Canonical JSON: sorted keys, no spaces. Equal recipes have equal documents."""
        body = {"schema_version": self.schema_version, "pipeline": self.pipeline, "params": self.params,
                "inputs": {name: spec.model_dump(mode="json") for name, spec in self.inputs.items()},
                "stages": [asdict(stage) for stage in self.stages]}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the document, hexadecimal."""
        return hashlib.sha256(self.document.encode()).hexdigest()

    @staticmethod
    def decode(document: str | bytes) -> Recipe:
        """The recipe from its document. UnknownSchema for a newer one; InfrastructureError, not retryable, for bytes
        that no version of ours wrote."""
        try:
            body = json.loads(document)
            version = body["schema_version"]
            if type(version) is int and version > SCHEMA_VERSION:
                raise UnknownSchema("internal.newer_recipe", f"A recipe of schema {version}; {SCHEMA_VERSION} is known here.",
                                    "Upgrade the workers first.")
            return _ADAPTER.validate_python(body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            many = f"{error.error_count()} faults" if isinstance(error, ValidationError) else type(error).__name__
            raise InfrastructureError("internal.bad_recipe", f"A stored recipe cannot be read ({many}).",
                                      "Submit the job anew.", retryable=False) from None

    @property
    def notifies(self) -> bool:
        """Whether the pipeline has a `notify` stage: without one a job with a notify_url is refused."""
        return any(stage.name == "notify" for stage in self.stages)

    @property
    def notify_states(self) -> tuple[JobState, ...] | None:
        """The states that are posted; None: each change. Empty without a `notify` stage."""
        for stage in self.stages:
            if stage.name == "notify":
                states = stage.settings.get("states")
                return None if states is None else tuple(JobState(state) for state in states)
        return ()

    @property
    def outputs_count(self) -> int | None:
        """How many outputs are published; None where an operator's own stage makes that unknowable."""
        ids = output_ids(self._outlines)
        return None if ids is None else len(ids)

    @property
    def needs_folder(self) -> bool:
        """Whether the destination must end in `/`."""
        return (self.outputs_count or 0) > 1

    @property
    def _outlines(self) -> list[Outline]:
        return [outline(stage.name, stage.id, stage.settings) for stage in self.stages]

    def complete_inputs(self, given: Inputs) -> dict[str, list[dict[str, str]]]:
        """The job's inputs with defaults filled in. InputError recipe.* for unknown, missing or too many ones."""
        faults = Faults(InputError)
        for name in given.keys() - self.inputs.keys():
            faults.add("unknown_input", f"The pipeline {self.pipeline} has no input called {name!r}.",
                       known_hint(name, self.inputs, "Inputs"), f"inputs.{name}")
        result: dict[str, list[dict[str, str]]] = {}
        for name, spec in self.inputs.items():
            items = [dict(item) for item in given.get(name, ())]
            if not items and spec.default is not None:
                items = [{"uri": spec.default}]
            if not items and spec.required:
                faults.add("missing_input", f"The pipeline {self.pipeline} needs the input {name}.", place=f"inputs.{name}")
            elif len(items) > 1 and not spec.many:
                faults.add("bad_input", f"The input {name} is one file, got {len(items)}.", place=f"inputs.{name}")
            elif items:
                result[name] = items
        faults.check()
        return result


_ADAPTER = TypeAdapter(Recipe)


def make_recipe(pipeline: Pipeline, params: Mapping[str, Any], registry: Registry, *,
                preset: Mapping[str, Value] | None = None, untrusted: frozenset[str] = frozenset(),
                origin: Origin = "api") -> Recipe:
    """The pipeline with these params.

    `params` are the job's, from `origin`; `preset` those of a preset, which the job's override: trusted, as the disk is, but
    for those named in `untrusted`. Raises InputError recipe.* (ManyErrors for several), with `params.NAME` as the place where
    a param is to blame.
    """
    _check_params(pipeline, params)
    values: dict[str, Value] = {**pipeline.defaults, **(preset or {}), **params}
    for name, spec in pipeline.params.items():
        if spec.required and name not in values:
            raise InputError("recipe.missing_param", f"The pipeline {pipeline.name} needs the param {name} ({spec.type}).",
                             spec.description, place=f"params.{name}")
    faults = Faults(InputError)
    for finding in find_faults(pipeline, values, registry, faults):
        faults.add("bad_param", f"With these params, {finding.message}", finding.complaint.hint, _blame(finding, params))
    faults.check()
    theirs = (params.keys() if origin == "api" else set()) | (untrusted - params.keys())
    texts = {name for name in theirs if pipeline.params[name].type == "string"}
    stages = _filled(pipeline, values, texts)
    for stage in stages:
        _check_options(stage)
    return Recipe(pipeline=pipeline.name, stages=stages, inputs=dict(pipeline.document.inputs), params=values)


def build_stages(recipe: Recipe, registry: Registry) -> list[Stage]:
    """The stages to run, made anew; a run of `pass` stages is one.

    Raises ConfigError recipe.unknown_stage for a stage this process does not know, InputError for settings it does not
    take and recipe.forbidden_option for options from the API that are not on the allowlist.
    """
    errors: list[NommerdError] = []
    stages: list[Stage] = []
    for spec in recipe.stages:
        try:
            stages.append(_build(spec, registry))
        except ManyErrors as many:
            errors += many.errors
        except NommerdError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ManyErrors(errors)
    return merge_passes(stages)


def _build(spec: StageSpec, registry: Registry) -> Stage:
    if spec.name not in registry:
        raise ConfigError("recipe.unknown_stage", f"This worker has no stage {spec.name!r}.",
                          "Register it under `stages:` in nommerd.yaml here too.", place=spec.id)
    cls = registry[spec.name]
    if spec.origin == "api" and not is_open(spec.name, cls):
        raise InputError("recipe.forbidden_stage", f"The operator's own stage {spec.name} is not for pipelines from the API.",
                         STAGE_HINT, place=spec.id)
    settings, found = inspect(cls.Settings, load_value(spec.settings, InputError, root=spec.id))
    faults = Faults(InputError)
    for complaint in found:
        faults.add(complaint.code, sentence(spec.id, complaint), complaint.hint, complaint.place)
    faults.check()
    _check_options(spec)
    return cls(spec.id, settings)


def _check_options(spec: StageSpec) -> None:
    """Hold raw options that came from the API, or that a text from there went into, to the allowlist; and leave to the
    operator what decides who may see an output, and what it costs."""
    for key in for_operators(spec.name, spec.settings) if spec.origin == "api" else ():
        raise InputError("recipe.forbidden_option", f"`{key}` in {spec.name} is for the operator's own pipelines.",
                         "Leave it out.", place=f"{spec.id}.{key}")
    for key in OPTIONS:
        pairs = spec.settings.get(key) or []
        touched = [pair for index, pair in enumerate(pairs) if spec.origin == "api" or f"{key}[{index}]" in spec.untrusted]
        check_options(touched, f"{spec.id}.{key}")


def _check_params(pipeline: Pipeline, params: Mapping[str, Any]) -> None:
    faults = Faults(InputError)
    for name, value in params.items():
        if name not in pipeline.params:
            faults.add("unknown_param", f"The pipeline {pipeline.name} has no param called {name!r}.",
                       known_hint(name, pipeline.params, "Params"), f"params.{name}")
            continue
        try:
            accept(pipeline.params[name], value)
        except ValueError as error:
            faults.add("bad_param", f"{name}: {error}.", place=f"params.{name}")
    faults.check()


def _blame(finding: Finding, params: Mapping[str, Any]) -> str:
    names = sorted(finding.params & params.keys())
    return f"params.{names[0]}" if len(names) == 1 else "params"


def _filled(pipeline: Pipeline, values: Mapping[str, Value], texts: set[str]) -> tuple[StageSpec, ...]:
    specs = []
    for entry in pipeline.stages:
        settings, uses = fill(entry, pipeline, values, Faults())
        untrusted = {f"{use.path[0]}[{use.path[1]}]" for use in uses if use.names & texts and use.path[0] in OPTIONS
                     and len(use.path) > 1}
        specs.append(StageSpec(name=entry.name, id=entry.id, settings=settings.plain(), origin=pipeline.origin,
                               untrusted=tuple(sorted(untrusted))))
    return tuple(specs)


