"""The stages that come with nommerd, by the name a pipeline calls them. Operators add theirs in nommerd.yaml."""

from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.faststart import Faststart
from nommerd.pipeline.stages.fetch import Fetch
from nommerd.pipeline.stages.ffmpeg import Ffmpeg
from nommerd.pipeline.stages.notify import Notify
from nommerd.pipeline.stages.upload import Upload
from nommerd.pipeline.stages.verify import Verify

STAGES: dict[str, type[Stage]] = {
    "fetch": Fetch,
    "ffmpeg": Ffmpeg,
    "faststart": Faststart,
    "verify": Verify,
    "upload": Upload,
    "notify": Notify,
}

__all__ = ["STAGES"]
