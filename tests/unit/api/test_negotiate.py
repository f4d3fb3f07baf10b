"""What a client accepts, by quality and by how exactly it says it."""

from __future__ import annotations

import pytest

from nommerd.api.negotiate import preferred

JSON, YAML, TEXT = "application/json", "application/yaml", "text/yaml"


@pytest.mark.parametrize(("accept", "chosen"), [
    (None, JSON), ("", JSON), ("*/*", JSON), ("application/*", JSON), ("text/*", TEXT), ("text/html", JSON),
    ("application/yaml", YAML), ("APPLICATION/YAML ; charset=utf-8", YAML), ("text/html, */*;q=0.1, text/yaml", TEXT),
    ("application/json;q=0.4, application/yaml;q=0.5", YAML), ("application/json, application/yaml", JSON),
    ("*/*, application/json;q=0", YAML), ("application/yaml;q=0, */*;q=0.1", JSON),
    ("application/yaml;q=2, text/yaml;q=0.1", TEXT),
    ("application/yaml;q=1.000", YAML), ("application/*;q=0.2, text/yaml;q=0.3", TEXT), (",;q=,;;", JSON),
    ("x" * 100_000, JSON),
])
def test_the_client_gets_what_it_likes_best_and_json_when_it_does_not_say(accept: str | None, chosen: str) -> None:
    assert preferred(accept, (JSON, YAML, TEXT)) == chosen
