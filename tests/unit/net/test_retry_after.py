"""What Retry-After asks for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nommerd.net.retry_after import retry_after_seconds

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("Wed, 01 May 2024 12:01:00 GMT", 60.0), ("Wed, 01 May 2024 11:00:00 GMT", 0.0),
    ("Wed, 01 May 2024 12:01:00 -0000", 60.0), (None, None), ("", None), ("soon", None), ("-5", None), ("1.5", None),
    ("٣", None), ("Wed, 99 May 2024", None), ("9" * 400, 999999999999.0),
    (f"Mon, {'9' * 20} Jan 2020 00:00:00 GMT", None), (f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", None),
    (f"Mon, 01 Jan 2020 00:00:00 +{'9' * 20}", None)])
def test_it_is_read_as_seconds_or_a_date_and_never_trusted_to_be_either(text: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(text, NOW) == seconds
