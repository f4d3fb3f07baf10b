"""`verify`: holds every output that was not looked at yet to what its stage promised. It also runs before each upload."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from nommerd.media.command import Command
from nommerd.media.verify import Decode, Expectation, verify_argvs, verify_file
from nommerd.pipeline.context import Context
from nommerd.pipeline.stage import Stage, StageSettings


class VerifySettings(StageSettings):
    """How deep: the key frames, or every frame (about a tenth of an encode's time)."""

    decode: Decode = Field("key_frames", description="What is decoded: key frames, or everything.")


class Verify(Stage):
    """Without an output of its own."""

    name = "verify"
    Settings = VerifySettings
    state = None
    weight = 0.1

    def explain(self, context: Context) -> Sequence[Command]:
        return verify_commands(context, self.id, self.settings.decode)

    def run(self, context: Context) -> None:
        verify_outputs(context, self.settings.decode)


def verify_commands(context: Context, stage_id: str, decode: Decode = "key_frames") -> tuple[Command, ...]:
    """What `verify_outputs` will run for what is planned; nothing for what is not known yet."""
    made: list[Command] = []
    for file in context.unpublished:
        if not file.verified and file.probe is None:
            context.unknown(file.stage_id)
        elif not file.verified and file.probe is not None:
            made += [Command(stage=stage_id, label="verify", argv=argv)
                     for argv in verify_argvs(context.binaries, file.path, file.probe, decode)]
        file.verified = file.examined = True
    return tuple(made)


def verify_outputs(context: Context, decode: Decode = "key_frames") -> None:
    """Verify what is to be published and was not verified yet. Raises what verify_file raises; warnings go to the job."""
    for file in context.unpublished:
        if file.verified:
            continue
        context.stop.check()
        found, warnings = verify_file(context.binaries, file.path, file.expect or Expectation(), file.frames, context.stop,
                                      decode=decode, stall_seconds=context.stall_seconds)
        for code, message, hint in warnings:
            context.warn(code, message, hint)
        file.probe, file.verified = found, True
