"""What earlier attempts left at the destination: revoked, recognised, and adopted where nothing is missing."""

from __future__ import annotations

from nommerd.job import Output, Staged
from nommerd.pipeline.context import Context
from nommerd.pipeline.destination import complete


def adopt(context: Context, whole: bool) -> bool:
    """True when an earlier attempt already published everything: its outputs are the job's, nothing is left to do.

    Everything staged is revoked first, so that a late owner cannot publish after we have looked. `whole`: what one token
    staged is all that the pipeline publishes. Where only a part was published, the context remembers it as ours, and so
    does the record until a new upload has replaced it.
    """
    staged = context.task.staged
    if not staged:
        return False
    carried = tuple(entry for entry in staged if _revoked_and_carried(context, entry))
    newest = max(entry.token for entry in staged)
    wanted = [entry for entry in staged if entry.token == newest]
    if whole and all(entry in carried for entry in wanted):
        context.outputs.extend(Output(uri=e.uri, bytes=e.bytes, sha256=e.sha256, probe=e.probe) for e in wanted)
        context.warnings.extend(context.task.warnings)
        return True
    context.published.extend(carried)
    if not carried:  # else the record keeps the list: only the whole of it shows that something is missing
        context.recorder.stage_outputs(())
    return False


def _revoked_and_carried(context: Context, entry: Staged) -> bool:
    context.stop.check()
    uri = complete(context.task.dest, entry.uri)
    backend = context.storage.for_uri(uri, "dest")
    if entry.handle:
        backend.revoke(uri, entry.handle)
    return backend.carries(uri, entry.bytes, entry.sha256, entry.handle)
