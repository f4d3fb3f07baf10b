"""The models of pipeline and preset documents, and a pipeline read whole: stages with their ids, every setting tried.

A stage's settings are checked when the document is loaded, with the params' defaults filled in, so that a typo is found
by `config check` and not by the first job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from nommerd.pipeline.faults import WRONG_TYPE, Complaint, inspect, sentence, validate
from nommerd.pipeline.params import (
    ParamName,
    ParamSpec,
    Use,
    Value,
    check_spec,
    describe,
    known_hint,
    name_check,
    samples,
    substitute,
)
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.structure import Outline, check_structure, outline
from nommerd.pipeline.tree import Faults, Node
from nommerd.secrets import has_secret

Origin = Literal["disk", "api"]
Registry = Mapping[str, type[Stage]]
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[
    str, AfterValidator(name_check(NAME_PATTERN, "lower-case letters and digits, then also `.`, `_` and `-`, at most 64")),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN}),
]
LATER = frozenset({"package", "thumbnails", "sprite"})  # stages whose names are kept
STAGES_MAX = 64
TURNS_MAX = 8  # of samples: what none of so many cures is only told where no value could


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InputSpec(_Document):
    """A file besides the source that a job gives (or may, with `required: false` or a default)."""

    type: Literal["media", "image", "captions"] = Field(description="What kind of file it is.")
    description: str = Field("", description="What it is for, in a sentence.")
    many: bool = Field(False, description="Whether a job may give several.")
    required: bool = Field(True, description="Whether a job must give it, where there is no default.")
    default: str | None = Field(None, description="The address of the file that is used where a job gives none.")


class PipelineDocument(_Document):
    """conf/pipelines/NAME.yaml. A stage is a bare name, or one name with its settings."""

    kind: Literal["pipeline"] = Field(description="What this document is.")
    name: Name = Field(description="What presets and jobs call it; on disk also the file's name, without `.yaml`.")
    description: Annotated[str, Field(max_length=500)] = Field("", description="What it makes, in a sentence.")
    inputs: dict[ParamName, InputSpec] = Field({}, description="The files besides the source, by name.")
    params: Annotated[dict[ParamName, ParamSpec], Field(max_length=100)] = Field(
        {}, description="What a preset or a job may set, by name.")
    stages: Annotated[tuple[str | dict[str, dict[str, Any] | None], ...], Field(min_length=1, max_length=STAGES_MAX)] = Field(
        description="The stages in their order: each a bare name, or one name with its settings.")


class PresetDocument(_Document):
    """conf/presets/NAME.yaml: a pipeline (or another preset, which it extends) with values for its params."""

    kind: Literal["preset"] = Field(description="What this document is.")
    name: Name = Field(description="What jobs call it; on disk also the file's name, without `.yaml`.")
    description: Annotated[str, Field(max_length=500)] = Field("", description="What it makes, in a sentence.")
    extends: Name | None = Field(None, description="Another preset, whose pipeline and params are taken unless set here.")
    pipeline: Name | None = Field(None, description="The pipeline that it runs; required unless it extends a preset.")
    params: dict[str, Value] = Field({}, description="Values for the pipeline's params, by name.")


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage as the document has it; `settings` still hold `$name`, and no id. `path` names it in messages."""

    name: str
    id: str
    settings: Node
    path: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a stage's settings once the params are filled in; `params` are those that went in there."""

    stage: StageEntry
    complaint: Complaint
    params: frozenset[str]

    @property
    def message(self) -> str:
        return sentence(self.stage.path, self.complaint)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline document without faults."""

    document: PipelineDocument
    stages: tuple[StageEntry, ...]
    origin: Origin
    node: Node = field(repr=False)

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def params(self) -> dict[str, ParamSpec]:
        return self.document.params

    @property
    def defaults(self) -> dict[str, Value]:
        return {name: spec.default for name, spec in self.params.items() if spec.default is not None}


def read_pipeline(node: Node, registry: Registry, origin: Origin, faults: Faults) -> Pipeline | None:
    """The pipeline in this document; None if it has faults, which are then in `faults`."""
    before = len(faults.errors)
    entries = list(_stage_entries(node, faults))
    document = validate(PipelineDocument, _without_stages(node), faults) or _salvaged(node)
    if document is None:
        return None
    _check_declarations(document, node, faults)
    pipeline = Pipeline(document, _with_ids(entries, registry, faults), origin, node)
    _check_settings(pipeline, registry, faults)
    if len(faults.errors) == before:
        check_structure(pipeline.stages, _outlines(pipeline), faults)
    return pipeline if len(faults.errors) == before else None


def read_preset(node: Node, faults: Faults) -> PresetDocument | None:
    """The preset in this document; None if it has faults. Its params are checked where its pipeline is known."""
    document = validate(PresetDocument, node, faults)
    if document is not None and document.extends is None and document.pipeline is None:
        faults.add("missing_key", "pipeline: missing.", "Name the pipeline, or a preset that it `extends`.", node.place)
        return None
    return document


def fill(entry: StageEntry, pipeline: Pipeline, values: Mapping[str, Value], faults: Faults) -> tuple[Node, list[Use]]:
    """The stage's settings with params filled in, and where."""
    return substitute(entry.settings, values, frozenset(pipeline.params), faults)


def find_faults(pipeline: Pipeline, values: Mapping[str, Value], registry: Registry, faults: Faults) -> list[Finding]:
    """What the stages say to their settings with these values. Faults of `$name` itself go to `faults`."""
    findings = []
    for entry in pipeline.stages:
        if entry.name in registry:
            settings, uses = fill(entry, pipeline, values, faults)
            for complaint in inspect(registry[entry.name].Settings, settings)[1]:
                findings.append(Finding(entry, complaint, _params_at(uses, complaint.at)))
    return findings


def try_samples(pipeline: Pipeline, given: Mapping[str, Value], registry: Registry, faults: Faults) -> list[Finding]:
    """The faults that no choice of values for the params that are still unset can cure."""
    known = {**pipeline.defaults, **given}
    unset = {name: samples(spec) for name, spec in pipeline.params.items() if name not in known and spec.required}
    unset = {name: tries for name, tries in unset.items() if tries}
    first: list[Finding] = []
    for turn in range(min(TURNS_MAX, max(map(len, unset.values()), default=1))):
        values = {**known, **{name: tries[turn % len(tries)] for name, tries in unset.items()}}
        found = find_faults(pipeline, values, registry, faults)
        if not found:
            return []
        first = first or found
    return [f for f in first if not f.params & unset.keys() or f.complaint.code not in ("bad_setting", "two_pass")]


def _params_at(uses: list[Use], at: tuple[str | int, ...]) -> frozenset[str]:
    """The params that went into this value, into what it holds, or into what holds it."""
    touching = [use for use in uses if use.path[: len(at)] == at or at[: len(use.path)] == use.path]
    return frozenset(name for use in touching for name in use.names)


# --- reading the list of stages ----------------------------------------------------------------------------------


def _stage_entries(node: Node, faults: Faults) -> Iterator[StageEntry]:
    """The entries that have the right shape; the others are reported."""
    stages = node.get("stages")
    for index, entry in enumerate(stages.value if stages and isinstance(stages.value, list) else ()):
        path = f"stages[{index}]"
        if isinstance(entry.value, str):
            yield StageEntry(entry.value, "", Node({}, entry.place, entry.key_place), f"{path}.{entry.value}")
        elif not isinstance(entry.value, dict) or not entry.value:
            faults.add(WRONG_TYPE, f"{path}: expected a stage, got {describe(entry.plain())}.", _SHAPE, entry.place)
        elif len(entry.value) > 1:
            name = next(iter(entry.value))
            faults.add("bad_stage", f"{path}: expected one stage, got the keys {', '.join(entry.value)}.",
                       f"Indent the settings of {name} further than its name." if entry.value[name].value is None else
                       "Begin each stage with a dash of its own.", entry.place)
        else:
            [(name, settings)] = entry.value.items()
            if settings.value is None:
                settings = settings.replace({})
            if isinstance(settings.value, dict):
                yield StageEntry(name, "", settings, f"{path}.{name}")
            else:
                faults.add(WRONG_TYPE, f"{path}.{name}: expected a mapping of settings, got {describe(settings.plain())}.",
                           _SHAPE, settings.place)


_SHAPE = "A stage is a bare name, or one name with its settings: `- ffmpeg: {passes: 2}`."


def _without_stages(node: Node) -> Node:
    """The document with its stages left to `_stage_entries`, so that each fault is reported once."""
    stages = node.get("stages")
    if not isinstance(node.value, dict) or stages is None or not isinstance(stages.value, list) or not stages.value:
        return node
    return node.replace({**node.value, "stages": stages.replace([stages.replace("-")] * len(stages.value))})


def _salvaged(node: Node) -> PipelineDocument | None:
    """What is needed to look at the stages of a document with faults elsewhere: they are told of in the same go."""
    kept = {key: child for key, child in _mapping(_without_stages(node)).items() if key in ("params", "stages")}
    names = {"kind": node.replace("pipeline"), "name": node.replace("salvaged")}
    return inspect(PipelineDocument, node.replace({**names, **kept}))[0]


def _with_ids(entries: list[StageEntry], registry: Registry, faults: Faults) -> tuple[StageEntry, ...]:
    """Each stage with its id and without the key. The passes of one run share the id of the first."""
    explicit = {_explicit_id(entry) for entry in entries}
    taken: set[str] = {"source"}
    result: list[StageEntry] = []
    for index, entry in enumerate(entries):
        _check_name(entry, registry, faults)
        id = _explicit_id(entry)
        if index and 1 < _pass(entry) == _pass(entries[index - 1]) + 1:
            if id is not None:
                faults.add("bad_stage", f"{entry.path}.id: a run of passes is one stage, with the id of its first pass.",
                           "Move the id there.", _place_of(entry, "id"))
            id = result[-1].id
        elif id is None:
            names = (entry.name if n == 1 else f"{entry.name}-{n}" for n in range(1, STAGES_MAX * 2))
            id = next(name for name in names if name not in taken and name not in explicit)
        elif id in taken:
            faults.add("bad_stage", f"{entry.path}.id: {id} is taken.", "Ids are unique, and `source` is the source.",
                       _place_of(entry, "id"))
        taken.add(id)
        settings = {key: value for key, value in _mapping(entry.settings).items() if key != "id"}
        result.append(StageEntry(entry.name, id, entry.settings.replace(settings), entry.path))
    return tuple(result)


def _pass(entry: StageEntry) -> int:
    """The number of a raw pass, 0 for any other stage."""
    node = entry.settings.get("pass")
    return node.value if entry.name == "ffmpeg" and node is not None and type(node.value) is int else 0


def _explicit_id(entry: StageEntry) -> str | None:
    node = entry.settings.get("id")
    return node.value if node is not None and isinstance(node.value, str) else None


def _check_name(entry: StageEntry, registry: Registry, faults: Faults) -> None:
    place = entry.settings.key_place
    if entry.name in LATER:
        faults.add("not_yet_supported", f"{entry.path}: not yet supported.", "Remove it, or wait for a later version.", place)
    elif entry.name not in registry:
        faults.add("unknown_stage", f"{entry.path}: no stage is called {entry.name!r}.",
                   known_hint(entry.name, registry, "Stages"), place)
    for key in ("pass", "input"):
        node = entry.settings.get(key)
        if node is not None and isinstance(node.value, str) and "$" in node.value:
            faults.add("bad_stage", f"{entry.path}.{key}: a param cannot stand here.", "Write it out.", node.place)
    node = entry.settings.get("id")
    if node is not None and inspect(_Id, Node({"id": node}, node.place, node.place))[1]:
        faults.add("bad_stage", f"{entry.path}.id: {describe(node.plain())} is no id.",
                   "Lower-case letters, digits, dots, dashes and underscores.", node.place)


class _Id(_Document):
    id: Name


def _mapping(node: Node) -> dict[str, Node]:
    return node.value if isinstance(node.value, dict) else {}


def _place_of(entry: StageEntry, key: str) -> str:
    return (entry.settings.get(key) or entry.settings).place


def _check_declarations(document: PipelineDocument, node: Node, faults: Faults) -> None:
    for name, spec in document.params.items():
        at = node.get("params", name)
        assert at is not None
        check_spec(name, at, spec, faults)
    for name, declared in document.inputs.items():
        at = node.get("inputs", name, "default")
        if declared.default is not None and at is not None and has_secret(declared.default):
            faults.add("bad_input", f"inputs.{name}.default: an address with credentials or a query.",
                       "Recipes are stored in clear: name a file instead.", at.place)


def _check_settings(pipeline: Pipeline, registry: Registry, faults: Faults) -> None:
    findings = try_samples(pipeline, {}, registry, faults)
    reported = {error.place for error in faults.errors}
    for finding in findings:
        if finding.complaint.place not in reported:  # not twice: an unknown $name fits no setting
            faults.add(finding.complaint.code, finding.message, finding.complaint.hint, finding.complaint.place)


def _outlines(pipeline: Pipeline) -> list[Outline]:
    """The stages' outlines, which no param changes: ids, inputs and passes are plain."""
    return [outline(entry.name, entry.id, entry.settings.plain()) for entry in pipeline.stages]
