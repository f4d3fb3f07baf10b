"""`ffmpeg`: one output from one input, by flags (the raw form) or by what it should be (the typed form)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nommerd.errors import EncoderError, InputError
from nommerd.later import Later
from nommerd.media import command, planned, rawform
from nommerd.media.formats import OUTPUTS
from nommerd.media.plan import Plan, Wanted, check_wanted, output_path, resolve
from nommerd.media.probe import Probe, probe, probe_argv
from nommerd.media.progress import Progress
from nommerd.media.targets import Clip, Metadata, OneAudio, Options, Output, Video, fault
from nommerd.media.verify import Expectation
from nommerd.pipeline.context import SOURCE, Context, MediaFile
from nommerd.pipeline.encode import run_command, source_name
from nommerd.pipeline.params import expand
from nommerd.pipeline.stage import Stage, StageSettings

RAW_KEYS = frozenset({"pass", "options", "input_options"})
TYPED_KEYS = frozenset({"video", "audio", "clip", "metadata", "passes", "output"})
TWO_PASS_ENCODERS = frozenset({"libx264"})
OnDamage = Literal["tolerate", "fail"]


class FfmpegSettings(StageSettings):
    """Either the raw form (`pass`, `options`, `input_options`) or the typed one (`video`, `audio`, `output` …)."""

    input: str | None = Field(None, description="`source`, or the id of an earlier stage; the source unless set.")
    on_damage: OnDamage | None = Field(None, description="What mild damage in the source means: a warning, or the job's end. "
                                                         "A job's own `on_damage` comes first.")
    pass_: Annotated[int, Field(ge=1, le=32)] | None = Field(
        default=None, alias="pass", description="Raw: the number in a run of passes, which are stages one after the other.")
    options: Options | None = Field(None, description="Raw: ffmpeg's output options in this order; null is a bare flag.")
    input_options: Options | None = Field(None, description="Raw: what stands before the input.")
    clip: Clip | None = Field(None, description="Which part of the source; all of it unless set.")
    passes: Annotated[int, Field(ge=1, le=2)] = Field(1, description="Two spread a `bitrate` better (libx264 alone).")
    video: Video | None = Field(None, description="The picture; without it there is none.")
    audio: OneAudio = Field(None, description="The sound; without it there is none.")
    metadata: Metadata = Field(Metadata(), description="What is kept of the source's metadata.")
    output: Output = Field(Output(), description="The file.")
    renditions: Later = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name.rstrip("_") for name in self.model_fields_set}
        raw, typed = sorted(given & RAW_KEYS), sorted(given & TYPED_KEYS)
        if raw and typed:
            raise fault("forms", f"`{raw[0]}` belongs to the raw form and `{typed[0]}` to the typed one: use one of them")
        if raw and self.options is None:
            raise fault("forms", "the raw form needs `options`")
        if not raw and self.video is None and self.audio is None:
            raise fault("forms", "nothing to make: give `video`, `audio` or both, or `options` for the raw form")
        if not raw:
            self._check_typed()
        return self

    def _check_typed(self) -> None:
        wrong = check_wanted(self.wanted)
        if wrong is not None:
            raise fault("container", wrong)
        if self.passes == 2:
            _check_two_pass(self.video)

    @property
    def raw(self) -> bool:
        return self.options is not None

    @property
    def wanted(self) -> Wanted:
        """The typed form's parts."""
        return Wanted(video=self.video, audio=self.audio, clip=self.clip, metadata=self.metadata, output=self.output)


def _check_two_pass(video: Video | None) -> None:
    """Other encoders, and crf, write an empty log in the first pass and exit 0."""
    if video is None or video.codec != "h264" or not set(video.encoder or TWO_PASS_ENCODERS) <= TWO_PASS_ENCODERS:
        raise fault("two_pass", f"`passes: 2` works with {', '.join(sorted(TWO_PASS_ENCODERS))} only: use `passes: 1`")
    if video.bitrate is None:
        raise fault("two_pass", "`passes: 2` spreads a bit rate: give `bitrate` instead of `crf`" if video.crf is not None
                    else "`passes: 2` spreads a bit rate: give `bitrate`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage does with its input: its commands, and what the output must be."""

    commands: tuple[command.Command, ...]
    output: Path
    expect: Expectation
    pass_log: Path | None = None
    warnings: tuple[tuple[str, str, str], ...] = ()
    plan: Plan | None = None  # of the typed form
    muxer: str = ""  # of the raw form


class Ffmpeg(Stage):
    """The input is the source, or an earlier stage's file. `passes` are the further ones of a raw run of passes."""

    name = "ffmpeg"
    Settings: ClassVar[type[StageSettings]] = FfmpegSettings
    weight = 1.0
    settings: FfmpegSettings

    def __init__(self, id: str, settings: Any, passes: Sequence[FfmpegSettings] = ()) -> None:
        super().__init__(id, settings)
        self.passes: tuple[FfmpegSettings, ...] = (settings, *passes)

    def explain(self, context: Context) -> Sequence[command.Command]:
        """The commands. The input is examined, if nobody did before; nothing where it is yet to be made."""
        file = context.planned(self._input_id, decoded=not self.settings.raw)
        if file is None:
            context.add(self._unknown(context))
            return ()
        source = self._probe(context)
        work = self.work(context)
        notes = tuple(planned.notes(self.settings.wanted, work.plan, source)) if work.plan is not None else ()
        for code, message, hint in (*work.warnings, *notes):
            context.warn(code, message, hint)
        context.add(self._planned(context, work, source))
        if file.examined or file.path.exists():
            return work.commands
        file.examined = True
        look = command.Command(stage=self.id, label="probe", argv=tuple(probe_argv(context.binaries, file.path)))
        return (look, *work.commands)

    def _unknown(self, context: Context) -> MediaFile:
        """The output while nobody knows of what it will be made."""
        if self.settings.raw:
            return MediaFile(path=output_path(context.workspace, self.id, "unknown"), stage_id=self.id)
        path = output_path(context.workspace, self.id, OUTPUTS[self.settings.wanted.container][1])
        return MediaFile(path=path, stage_id=self.id, leaf=self._leaf(context, path))

    def _planned(self, context: Context, work: Work, source: Probe) -> MediaFile:
        """The output as it should turn out."""
        if work.plan is not None:
            made: Probe | None = planned.typed(work.plan, source, work.output)
            first = work.plan.fast_start
        else:
            last = _raw_pass(self.passes[-1])
            made = planned.raw(last, work.muxer, source, work.output, work.expect.duration_seconds)
            first = planned.says_fast_start(last)
        return MediaFile(path=work.output, stage_id=self.id, probe=made, expect=work.expect, fast_start=first,
                         leaf=self._leaf(context, work.output))

    def run(self, context: Context) -> None:
        work = self.work(context)
        for code, message, hint in work.warnings:
            context.warn(code, message, hint)
        context.take(self._input_id)
        last = Progress()
        for number, one in enumerate(work.commands):
            last = run_command(context, one, context.files[self._input_id].path, part=(number, len(work.commands)),
                               fails_on_damage=self._fails_on_damage(context))
            if work.pass_log is not None and number == 0:
                _check_pass_log(work.pass_log)
        context.add(MediaFile(path=work.output, stage_id=self.id, expect=work.expect, frames=last.frame,
                              leaf=self._leaf(context, work.output)))

    # --- what to do ---

    @property
    def _input_id(self) -> str:
        return self.settings.input or SOURCE

    def work(self, context: Context) -> Work:
        """Hold the settings against the input. Raises what `plan.resolve` raises."""
        source = self._probe(context)
        return self._raw_work(context, source) if self.settings.raw else self._typed_work(context, source)

    def _probe(self, context: Context) -> Probe:
        file = context.files[self._input_id]
        if file.probe is None:
            file.probe = probe(context.binaries, file.path, stop=context.stop, name=source_name(context))
        return file.probe

    def _job(self, context: Context, source: Probe, extension: str) -> command.Job:
        """ffmpeg itself would not stop at damage alone, but also at the end of a WAV file from a pipe."""
        output = output_path(context.workspace, self.id, extension)
        return command.Job(ffmpeg=context.binaries.ffmpeg, stage=self.id, source=source.path, output=output,
                           pass_log=output.with_suffix(".pass"), threads=context.threads,
                           fail_on_damage=self._fails_on_damage(context) and source.container != "wav")

    def _fails_on_damage(self, context: Context) -> bool:
        return (context.task.on_damage or self.settings.on_damage) == "fail"

    def _typed_work(self, context: Context, source: Probe) -> Work:
        plan = resolve(self.settings.wanted, source, context.binaries, source_name(context))
        job = self._job(context, source, OUTPUTS[plan.container][1])
        passes = self.settings.passes if plan.video is not None else 1
        return Work(commands=command.typed(plan, job, passes), output=job.output, expect=plan.expect, warnings=plan.warnings,
                    pass_log=job.pass_log if passes > 1 else None, plan=plan)

    def _raw_work(self, context: Context, source: Probe) -> Work:
        passes = [_raw_pass(one) for one in self.passes]
        rawform.check_tracks(passes, source, source_name(context))
        muxer, extension = rawform.muxer_for(passes[-1], context.task.dest)
        job = self._job(context, source, extension)
        expect = rawform.expectation(passes, source, source_name(context))
        frames = _frames(source, expect.duration_seconds)
        commands = command.raw(passes, job, muxer, total_seconds=expect.duration_seconds, total_frames=frames)
        logs_itself = any(one.says("pass", "passlogfile", "x264-params", "x265-params") for one in passes)
        return Work(commands=commands, output=job.output, expect=expect,
                    pass_log=job.pass_log if len(passes) > 1 and not logs_itself else None, muxer=muxer)

    def _leaf(self, context: Context, output: Path) -> str:
        """Its name under a destination that ends in `/`."""
        stem = PurePosixPath(source_name(context)).stem or "output"
        if self.settings.output.file is None:
            return f"{stem}{'' if self.id == self.name else '-' + self.id}{output.suffix}"
        try:
            return expand(self.settings.output.file, {"source.stem": stem})
        except ValueError as error:
            raise InputError("recipe.bad_setting", f"The file name of {self.id} cannot be made: {error}.") from None


def _raw_pass(one: FfmpegSettings) -> command.RawPass:
    return command.RawPass(options=one.options or (), input_options=one.input_options or ())


def _check_pass_log(prefix: Path) -> None:
    """An encoder that does not do passes writes an empty log, exits 0, and the second pass would be a first one."""
    logs = [path for path in prefix.parent.glob(f"{prefix.name}*.log") if path.stat().st_size > 0]
    if not logs:
        raise EncoderError("encoder.empty_pass_log", "The first pass measured nothing: its log is empty.",
                           "Two passes need a picture, a bit rate (no crf) and an encoder that supports them, as libx264.")


def _frames(source: Probe, seconds: float | None) -> int | None:
    rate = source.video[0].average_frame_rate if source.video else None
    return round(seconds * rate) if seconds and rate else None


def merge_passes(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with each run of raw `pass` stages as one: passes 1, 2 … under the id of the first."""
    merged: list[Stage] = []
    for stage in stages:
        before = merged[-1] if merged else None
        if _continues(before, stage):
            assert isinstance(before, Ffmpeg) and isinstance(stage, Ffmpeg)
            merged[-1] = Ffmpeg(before.id, before.settings, (*before.passes[1:], *stage.passes))
        else:
            merged.append(stage)
    return merged


def _continues(before: Stage | None, stage: Stage) -> bool:
    """Whether `stage` is the pass after `before`."""
    if not isinstance(before, Ffmpeg) or not isinstance(stage, Ffmpeg):
        return False
    last, here = before.passes[-1].pass_, stage.settings.pass_
    return last is not None and here is not None and here == last + 1
