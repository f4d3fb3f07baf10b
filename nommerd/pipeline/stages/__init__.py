"""The stages that come with nommerd, by the name a pipeline calls them. Operators add theirs in nommerd.yaml."""

from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.fetch import Fetch
from nommerd.pipeline.stages.notify import Notify
from nommerd.pipeline.stages.upload import Upload

STAGES: dict[str, type[Stage]] = {
    "fetch": Fetch,
    "upload": Upload,
    "notify": Notify,
}

__all__ = ["STAGES"]
