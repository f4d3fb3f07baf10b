"""`fetch`: brings the source and the job's other inputs into the workspace, and looks at what the source is."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from nommerd.errors import InfrastructureError
from nommerd.job import JobState
from nommerd.media.command import Command
from nommerd.media.probe import probe, probe_argv
from nommerd.pipeline.context import SOURCE, Context, MediaFile
from nommerd.pipeline.stage import Stage
from nommerd.storage.base import name_of

NAME_CHARACTERS_MAX = 100


def plain_name(uri: str) -> str:
    """The file name in a URI as a harmless one: no path, control or pattern characters, no leading dot or dash."""
    name = "".join(one if _harmless(one) else "_" for one in name_of(uri)).lstrip(".- ")
    stem, dot, extension = name.rpartition(".")
    kept = f"{stem[:NAME_CHARACTERS_MAX]}{dot}{extension[:8]}" if dot and stem else name[:NAME_CHARACTERS_MAX]
    return kept or SOURCE


def _harmless(character: str) -> bool:
    """Letters and digits of any script with their marks, emoji, and plain punctuation."""
    return unicodedata.category(character)[0] in "LMN" or unicodedata.category(character) == "So" or character in " ._()+-,'&"


def safe_extension(uri: str) -> str:
    """`.mp4` of a URI that ends so, empty without one that is short and plain."""
    match = re.search(r"\.[A-Za-z0-9]{1,8}$", plain_name(uri))
    return match[0].lower() if match else ""


def source_path(workspace: Path, uri: str) -> Path:
    """Where the source is put."""
    return workspace / f"{SOURCE}{safe_extension(uri)}"


class Fetch(Stage):
    """Always a copy under a name of our own: a source that changes meanwhile, or is called oddly, hurts nothing."""

    name = "fetch"
    state = JobState.DOWNLOADING
    weight = 0.1

    def explain(self, context: Context) -> Sequence[Command]:
        path = source_path(context.workspace, context.task.source)
        return (Command(stage=self.id, label="probe", argv=tuple(probe_argv(context.binaries, path))),)

    def run(self, context: Context) -> None:
        inputs = [(name, number, item["uri"]) for name, items in sorted(context.task.inputs.items())
                  for number, item in enumerate(items)]
        share = 1 / (1 + len(inputs))
        source = self._bring(context, context.task.source, "source", 0.0, share)
        for position, (name, number, uri) in enumerate(inputs, 1):
            path = self._bring(context, uri, f"input-{_plain(name)}-{number}", position * share, share)
            file = MediaFile(path=path, stage_id=f"{name}-{number}", leaf=plain_name(uri))
            context.inputs.setdefault(name, []).append(file)
        name = plain_name(context.task.source)
        found = probe(context.binaries, source, stop=context.stop, name=name)
        context.files[SOURCE] = MediaFile(path=source, stage_id=SOURCE, leaf=name, probe=found)

    def _bring(self, context: Context, uri: str, stem: str, begin: float, share: float) -> Path:
        """Fetch one file; it takes `share` of the stage's progress from `begin` on."""
        target = context.workspace / f"{stem}{safe_extension(uri)}"
        checked = False

        def on_bytes(done: int, total: int | None) -> None:
            nonlocal checked
            if total is None:
                return
            if not checked:
                checked = True
                _room_for(total - done, context.workspace)
            context.progress(begin + share * done / max(total, 1))

        return context.storage.for_uri(uri).fetch(uri, target, on_bytes, context.stop).path


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _room_for(bytes_left: int, workspace: Path) -> None:
    """Refuse at once what the disk cannot hold, instead of filling it first."""
    free = shutil.disk_usage(workspace).free
    if bytes_left > free:
        raise InfrastructureError("node.disk_full", f"{bytes_left} bytes are to come, the worker's disk has room for {free}.",
                                  "Give it more space, fewer slots, or another worker.workspace.")
