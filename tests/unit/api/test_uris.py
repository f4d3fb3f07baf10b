"""How a submission's URIs may be spelt: escaped, but for the literal keys of s3: and the paths of file:."""

from __future__ import annotations

import pytest

from nommerd.api.models import submission
from nommerd.api.problems import Refusal


@pytest.mark.parametrize("uri", [
    "s3://media/a b/é \"1\".mov", "S3://media/<a>.mov", "s3://AKIA:s/e+c@media/a b", "file:///a b/é"])
def test_literal_keys_and_paths_are_taken_as_they_are(uri: str) -> None:
    assert submission({"source": uri, "dest": uri, "preset": "p"}).source == uri


@pytest.mark.parametrize("uri", ["https://host/a b", "https://host/é", "s3://AKIA:se cret@media/a", "s3://AKIA:\"s\"@media/a",
                                 "s3://AKIA:é/x@media/a", "s3://media/a\nb"])
def test_what_would_break_a_log_line_before_its_secret_ends_is_refused(uri: str) -> None:
    with pytest.raises(Refusal):
        submission({"source": uri, "dest": "s3://media/a", "preset": "p"})
