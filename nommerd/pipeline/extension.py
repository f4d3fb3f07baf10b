"""How the file that a recipe makes is called, for whoever has to name a destination for it."""

from __future__ import annotations

from nommerd.media.command import RawPass
from nommerd.media.formats import OUTPUTS
from nommerd.media.rawform import muxer_for
from nommerd.pipeline.recipe import Recipe, build_stages
from nommerd.pipeline.spec import Registry
from nommerd.pipeline.stages.ffmpeg import Ffmpeg

DEFAULT = "mp4"  # where an operator's own stage makes the file


def extension_of(recipe: Recipe, registry: Registry) -> str | None:
    """The extension of the recipe's output, without a dot; None for several outputs, whose destination is a folder.

    Raises as build_stages.
    """
    if recipe.needs_folder:
        return None
    made = [stage for stage in build_stages(recipe, registry) if isinstance(stage, Ffmpeg)]
    if not made:
        return DEFAULT
    last = made[-1]
    if not last.settings.raw:
        return OUTPUTS[last.settings.wanted.container][1]
    final = last.passes[-1]
    return muxer_for(RawPass(options=final.options or (), input_options=final.input_options or ()), "")[1]
