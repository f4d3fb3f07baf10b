"""What pipelines that came through the API may not do: default deny, when they are stored and again on the worker.

Raw options pass the allowlist of nommerd.media.options; what decides who may see an output and what it costs is left to the
operator; and so are the operator's own stages, unless their class says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nommerd.errors import ManyErrors, NommerdError
from nommerd.media.options import check_options
from nommerd.pipeline.spec import Pipeline, StageEntry, fill
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.structure import OURS
from nommerd.pipeline.tree import Faults, Node

OPTIONS = ("input_options", "options")  # the settings with raw ffmpeg options
OPERATORS: Mapping[str, tuple[str, ...]] = {"upload": ("acl", "encryption", "kms_key_id", "storage_class", "tags")}
VALUES_MAX = 1000  # in one pipeline: they are filled in and tried with each job, and with each preset that names it
STAGE_HINT = "Its class must say `from_api = True`; or let the operator put the pipeline on the disk."


def is_short(node: Node, faults: Faults) -> bool:
    """Whether a pipeline from the API is one to be read; reports one that is too long."""
    if node.count() <= VALUES_MAX:
        return True
    faults.add("too_large", f"A pipeline from the API holds at most {VALUES_MAX} values.",
               "Split it, or let the operator put it on the disk.", node.place)
    return False


def is_open(name: str, stage: type[Stage]) -> bool:
    """Whether pipelines from the API may have this stage."""
    return name in OURS or stage.from_api


def for_operators(name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """The settings of this stage that API users may not set."""
    return (key for key in OPERATORS.get(name, ()) if settings.get(key))


def check_allowed(pipeline: Pipeline, stages: Mapping[str, type[Stage]], faults: Faults) -> None:
    """Report what this pipeline from the API may not have. What a param without a default goes into is judged with the job."""
    for name, spec in pipeline.document.inputs.items():
        node = pipeline.node.get("inputs", name, "default")
        if spec.default is not None and node is not None:
            faults.add("forbidden_option", f"inputs.{name}.default: files that a pipeline brings along are the operator's.",
                       "Leave it out, and name the file in the job.", node.key_place)
    for entry in pipeline.stages:
        if entry.name in stages and not is_open(entry.name, stages[entry.name]):
            faults.add("forbidden_stage", f"{entry.path}: an operator's own stage, not for pipelines from the API.",
                       STAGE_HINT, entry.settings.key_place)
        for key in for_operators(entry.name, entry.settings.value if isinstance(entry.settings.value, dict) else {}):
            node = entry.settings.get(key)
            if node is not None and node.value:
                faults.add("forbidden_option", f"{entry.path}.{key}: this is for the operator's own pipelines.",
                           "Leave it out.", node.key_place)
        _check_options(entry, pipeline, faults)


def _check_options(entry: StageEntry, pipeline: Pipeline, faults: Faults) -> None:
    settings, uses = fill(entry, pipeline, pipeline.defaults, Faults())
    unset = {use.path[:2] for use in uses if not use.names <= pipeline.defaults.keys()}
    for key in OPTIONS:
        pairs = settings.get(key)
        for index, pair in enumerate(pairs.value if pairs is not None and isinstance(pairs.value, list) else ()):
            if (key, index) in unset:
                continue
            try:
                check_options([pair.plain()], f"{entry.path}.{key}")
            except (ManyErrors, NommerdError) as error:
                for one in error.errors if isinstance(error, ManyErrors) else [error]:
                    faults.add("forbidden_option", f"{entry.path}.{key}[{index}]: {one.message}", one.hint, pair.place)
