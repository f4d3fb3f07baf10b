"""`nommerd aws` imports boto3 only when it has something to ask, or an address to look up."""

from __future__ import annotations

import pytest

from tests.unit.cli.test_startup import loaded


@pytest.mark.parametrize("arguments", [["aws", "--help"], ["aws", "setup", "--help"], ["aws", "watch", "--help"],
                                       ["aws", "watch"]], ids=" ".join)
def test_help_and_usage_import_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(*arguments) == []
