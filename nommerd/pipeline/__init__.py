"""A job's recipe as a list of stages. Operators' stages import `Stage` and `StageSettings` from here."""

from nommerd.pipeline.stage import Stage, StageSettings

__all__ = ["Stage", "StageSettings"]
