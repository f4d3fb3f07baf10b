"""What `nommerd encode` does: one pipeline on one source in this process, without daemon, store or (for files) network."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gevent

from nommerd import logs, runtime
from nommerd.aws.clients import Clients
from nommerd.catalog import Catalog, load_stages
from nommerd.cli.app import DONE, FAILED, USAGE
from nommerd.cli.options import absolute_uri, input_items, pairs
from nommerd.cli.output import ProgressLine, print_json, problem_lines, size
from nommerd.cli.progress import times
from nommerd.config import Settings
from nommerd.config_reader import read
from nommerd.errors import InputError, Problem, ShuttingDown, Stop, WorkStopped
from nommerd.job import JobState, Staged
from nommerd.media import binaries
from nommerd.net.egress import Egress
from nommerd.pipeline.context import Context, Task
from nommerd.pipeline.recipe import Recipe, build_stages
from nommerd.pipeline.runner import problem_of, run_pipeline
from nommerd.pipeline.stage import Stage
from nommerd.storage import open_registry, same_place
from nommerd.storage.base import StorageRegistry
from nommerd.storage.file import path_of, show

JOB_ID = "encode"
Inputs = dict[str, list[dict[str, str]]]


def run(source: str, dest: str, *, preset: str | None, pipeline: str | None, params: tuple[str, ...],
        inputs: tuple[str, ...], overwrite: bool, on_damage: str | None, config_file: Path | None, as_json: bool) -> int:
    """What `nommerd encode` does; returns its exit code."""
    stop = _stoppable()
    logs.configure(level="error")
    settings = read(config_file.absolute() if config_file else None, os.environ)
    given = input_items(inputs)
    catalog = Catalog(settings.paths.pipelines, settings.paths.presets, load_stages(settings.stages))
    recipe = _recipe(catalog, preset, pipeline, pairs(params, "--set"), given)
    task = Task(job_id=JOB_ID, token=1, attempt=1, source=absolute_uri(source), dest=absolute_uri(dest),
                inputs=recipe.complete_inputs(given), overwrite=overwrite, on_damage=on_damage)
    storage = _storage(settings, task)
    _check(task, recipe, storage)
    runtime.self_test()
    with _workspace(settings) as workspace:
        context = Context(task=task, workspace=workspace, storage=storage, stop=stop, recorder=TerminalRecorder(stop),
                          binaries=binaries.find(settings.media.ffmpeg, settings.media.ffprobe))
        problem = _run(build_stages(recipe, catalog.stages), context)
    _report(context, problem, as_json)
    if problem is None:
        return DONE
    return USAGE if problem.code.startswith("config.") else FAILED


def _stoppable() -> Stop:
    """Ctrl-C and the like set it; before anything is started, so that none of them ends us halfway through a start."""
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        gevent.signal_handler(number, stop.set, ShuttingDown("interrupted"))
    return stop


def _recipe(catalog: Catalog, preset: str | None, name: str | None, texts: dict[str, str], inputs: Inputs) -> Recipe:
    """A name without a file of that name is a pipeline of the catalog."""
    if name is not None and ("/" in name or name.endswith((".yaml", ".yml")) or Path(name).is_file()):
        pipeline = catalog.pipeline_from_file(Path(name))
        return catalog.resolve_pipeline(pipeline, catalog.params_from_text(pipeline, texts), inputs, origin="disk")
    params = catalog.params_from_text(catalog.pipeline_of(preset, name), texts)
    return catalog.resolve(preset, name, params, inputs, origin="disk")


def _storage(settings: Settings, task: Task) -> StorageRegistry:
    """The named files are the roots: nothing else on the disk can be read or written. So it is with objects, but for what
    the configuration opens."""
    named = [task.source, task.dest, *(item["uri"] for items in task.inputs.values() for item in items)]
    return open_registry(settings, Egress(settings.net.allow_networks), Clients(settings.aws), named=named)


def _check(task: Task, recipe: Recipe, storage: StorageRegistry) -> None:
    """What would fail at the end had better fail now."""
    storage.for_uri(task.source, "source").check_source(task.source)
    backend = storage.for_uri(task.dest, "dest")
    backend.check_dest(task.dest)
    if same_place(task.source, task.dest):
        raise InputError("dest.is_source", "The destination is the source.", "Name another destination.")
    if recipe.needs_folder and not task.dest.endswith("/"):
        raise InputError("dest.not_a_folder", "This pipeline has several outputs.", "End the destination with a /.")
    if not task.overwrite and not task.dest.endswith("/") and backend.exists(task.dest):
        raise InputError("dest.exists", "There is something at the destination.", "Name another one, or use --overwrite.")


class TerminalRecorder:
    """Shows an attempt's news; nobody else can own this job."""

    def __init__(self, stop: Stop) -> None:
        self._line = ProgressLine()
        self._stop = stop

    def close(self) -> None:
        """Take the progress bar away."""
        self._line.clear()

    def advance(self, state: JobState, stage_id: str, progress: float) -> None:
        """A stage begins."""
        self._line.show(stage_id, progress)

    def progress(self, progress: float, stage_id: str, eta_seconds: float | None, speed: float | None = None) -> None:
        """How far the job is."""
        self._line.show(stage_id, progress, eta_seconds, note=times(speed))

    def stage_outputs(self, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> None:
        """Nothing to note: a run that dies is not continued."""

    def confirm(self) -> None:
        """Ours unless somebody asked to stop."""
        self._stop.check()


def _run(stages: Sequence[Stage], context: Context) -> Problem | None:
    """What went wrong, if anything. Raises WorkStopped."""
    try:
        run_pipeline(stages, context)
    except WorkStopped:
        raise
    except Exception as error:
        context.stop.check()  # a stop explains what failed after it
        return problem_of(error, context)
    finally:
        assert isinstance(context.recorder, TerminalRecorder)
        context.recorder.close()
    return None


@contextmanager
def _workspace(settings: Settings) -> Iterator[Path]:
    """A directory that is gone afterwards. ffmpeg would expand a % in its path."""
    base = settings.worker.workspace
    if "%" in str(base or tempfile.gettempdir()):
        base = Path("/tmp")
    path = Path(tempfile.mkdtemp(prefix="nommerd-encode-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _report(context: Context, problem: Problem | None, as_json: bool) -> None:
    if as_json:
        def shown(items: Sequence[Any]) -> list[dict[str, Any]]:
            return [asdict(item) for item in items]

        print_json({"outputs": shown(context.outputs), "warnings": shown(context.warnings),
                    "error": asdict(problem) if problem else None})
        return
    line = ProgressLine()
    for warning in context.warnings:
        line.say("warning: " + "\n".join(problem_lines(asdict(warning))))
    if problem:
        line.say("\n".join(problem_lines(asdict(problem))))
        return
    for output in context.outputs:
        where = show(path_of(output.uri, "dest")) if output.uri.startswith("file:") else output.uri
        print(f"{where}  {size(output.bytes)}, verified")
