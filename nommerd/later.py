"""The mark of settings whose place is kept and that are refused until they work."""

from __future__ import annotations

from typing import Annotated, Any, Never

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def not_yet_supported(value: Any) -> Never:
    """Refuse a setting (or a value of one) whose place is kept: the loader reports it as recipe.not_yet_supported."""
    raise PydanticCustomError("not_yet_supported", "not yet supported")


Later = Annotated[Any, BeforeValidator(not_yet_supported)]  # `renditions: Later = None`: known, and refused when set
