"""Presets and pipelines as the API shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from nommerd.catalog import Catalog, Kind
from nommerd.catalog.linking import Preset
from nommerd.pipeline.params import ParamSpec, Value
from nommerd.pipeline.spec import InputSpec, Pipeline, PipelineDocument, PresetDocument


class FaultShown(BaseModel):
    """One thing wrong with a document that was right when it was stored."""

    place: str
    code: str
    message: str
    hint: str


class _Shown(BaseModel):
    name: str
    description: str
    origin: Literal["shipped", "disk", "api"] = Field(description="nommerd's own, on the operator's disk, or from the API.")
    version: int | None = Field(description="Of a document from the API: rises with each change.")
    etag: str = Field(description="For If-Match and If-None-Match.")
    errors: list[FaultShown] = Field(description="Why it cannot be named; usually empty.")


class PresetShown(_Shown):
    """A preset; `params` with those it inherits, `pipeline` null while it has errors."""

    pipeline: str | None
    params: dict[str, Value]


class PresetList(BaseModel):
    """The answer of GET /v1/presets."""

    presets: list[PresetShown]


class PipelineShown(_Shown):
    """A pipeline: the params and inputs that it declares."""

    params: dict[str, ParamSpec]
    inputs: dict[str, InputSpec]


class PipelineList(BaseModel):
    """The answer of GET /v1/pipelines."""

    pipelines: list[PipelineShown]


class ChangeQuery(BaseModel):
    """The query of PUT and DELETE."""

    dry_run: bool = Field(False, description="Check only, change nothing.")


SHOWN: dict[Kind, type[BaseModel]] = {"presets": PresetShown, "pipelines": PipelineShown}
LISTS: dict[Kind, type[BaseModel]] = {"presets": PresetList, "pipelines": PipelineList}
DOCUMENTS: dict[Kind, type[BaseModel]] = {"presets": PresetDocument, "pipelines": PipelineDocument}


def shown(catalog: Catalog, kind: Kind, name: str) -> dict[str, Any]:
    """The entry of a list."""
    source = catalog.sources[kind, name]
    faults = [{"place": one.place or "", "code": one.code, "message": one.message, "hint": one.hint}
              for one in catalog.broken.get((kind, name), ())]
    about = {"name": name, "description": "", "origin": source.origin, "version": source.version, "etag": source.etag,
             "errors": faults}
    if kind == "presets":
        return {**about, **_preset(catalog.presets.get(name))}
    return {**about, **_pipeline(catalog.pipelines.get(name))}


def _preset(preset: Preset | None) -> dict[str, Any]:
    if preset is None:
        return {"pipeline": None, "params": {}}
    return {"description": preset.document.description, "pipeline": preset.pipeline.name, "params": preset.params}


def _pipeline(pipeline: Pipeline | None) -> dict[str, Any]:
    if pipeline is None:
        return {"params": {}, "inputs": {}}
    document = pipeline.document
    return {"description": document.description,
            "params": {name: spec.model_dump(mode="json") for name, spec in document.params.items()},
            "inputs": {name: spec.model_dump(mode="json") for name, spec in document.inputs.items()}}


def listed(catalog: Catalog, kind: Kind) -> dict[str, Any]:
    """All of a kind, by name."""
    return {kind: [shown(catalog, kind, name) for one, name in sorted(catalog.sources) if one == kind]}
