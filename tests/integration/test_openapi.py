"""The API's description: valid, complete, and true of what a real feeder answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.media import clip
from tests.rig import Rig

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "response_headers_conformance")
FEW, LONG_SECONDS = 2, 300  # random calls of each kind beside the planned ones; how long for any number of them
SEED = 20260


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("openapi")) as rig:
        rig.start_feeder()
        rig.start_worker("w1")
        source = rig.media / "in.mp4"
        source.write_bytes(clip(seconds=1, size="320x180").read_bytes())
        job = rig.submit(source, rig.media / "out.mp4", preset="web-480p")
        rig.wait_finished(job)
        yield rig


@pytest.fixture(scope="module")
def document(rig: Rig) -> dict[str, Any]:
    status, answer = rig.call("GET", "/openapi.json")
    assert status == 200, answer
    return dict(answer)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    faults = [f"{error.json_path}: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert faults == []


def test_every_call_says_what_it_does_who_may_make_it_and_what_it_answers(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"].endswith("."), name
        done = [status for status in operation["responses"] if status < "400"]
        assert done, f"{name} tells no answer of success"
        if "/v1/" in name:
            assert "401" in operation["responses"], name
            refusal = operation["responses"]["401"]["content"]["application/problem+json"]["schema"]
            assert refusal == {"$ref": "#/components/schemas/Problem"}, name


def test_no_call_is_left_out(document: dict[str, Any]) -> None:
    """Those that docs/api.md tells of."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    told = {name for name, _ in operations(document)}
    for name in told:
        method, path = name.split(" ")
        plain = path.replace("{id}", "ID").replace("{name}", "NAME").replace("{n}", "N")
        if path.startswith("/v1/"):
            assert f"{method} {plain}" in page or f"{plain}`" in page, f"docs/api.md does not tell of {name}"


def fuzzed(rig: Rig, *bound: str, at_least: int) -> None:
    """Schemathesis, a process of its own, finds nothing; it asks as somebody who may do everything."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{rig.port}/openapi.json",
               "--header", f"Authorization: Bearer {rig.token}", "--checks", ",".join(CHECKS), *bound,
               "--request-timeout", "90",  # a call may ask to wait for a minute
               "--seed", str(SEED), "--no-color", "--suppress-health-check", "all",
               "--continue-on-failure", "--output-truncate", "true",
               "--exclude-path", "/v1/pause"]  # jobs would wait for ever, and so would those who follow them
    done = subprocess.run(command, cwd=rig.root, capture_output=True, text=True, timeout=LONG_SECONDS + 240,
                          env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, f"{done.stdout[-12000:]}\n{done.stderr[-3000:]}\n{rig.tail('feeder')}"
    cases = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert cases is not None and int(cases[1]) > at_least, done.stdout


@pytest.mark.timeout(300)
def test_random_calls_get_documented_answers_and_never_5xx(rig: Rig) -> None:
    fuzzed(rig, "--max-examples", str(FEW), at_least=1000)
    assert rig.call("GET", "/readyz")[0] == 200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_so_do_five_minutes_of_them(rig: Rig) -> None:
    fuzzed(rig, "--max-time", str(LONG_SECONDS), at_least=5000)  # how many a machine makes is not tested
