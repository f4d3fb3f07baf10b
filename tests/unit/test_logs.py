from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import gevent
import pytest
import structlog

from nommerd import logs
from nommerd.secrets import Secret

CANARY = "canary-91e2"


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Logging as it was, whatever a test configures."""
    root, hook, stream = logging.getLogger(), sys.excepthook, gevent.get_hub().exception_stream
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, sys.excepthook = handlers, hook
    root.setLevel(level)
    gevent.get_hub().exception_stream = stream
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_away_from_a_terminal_a_line_is_json_with_a_utc_time() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    logs.get(worker="w").info("job.claimed", seconds=1.5)
    (event,) = lines(stream)
    assert {key: event[key] for key in ("level", "event", "worker", "seconds")} == {
        "level": "info", "event": "job.claimed", "worker": "w", "seconds": 1.5}
    assert event["time"].endswith("Z")
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)


def test_on_a_terminal_a_line_is_keys_and_values() -> None:
    stream = io.StringIO()
    logs.configure(stream, json=False)
    logs.get().warning("disk.low", path="/a b", free=3)
    assert stream.getvalue().rstrip().endswith('warning disk.low path="/a b" free=3')
    assert stream.getvalue().count("\n") == 1


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure(stream, level="warning")
    logs.get().info("quiet")
    logs.get().warning("loud")
    assert [event["event"] for event in lines(stream)] == ["loud"]


def test_bound_fields_are_on_every_line_of_the_work_and_on_no_other() -> None:
    stream = io.StringIO()
    logs.configure(stream)

    def work(job: str) -> None:
        with logs.bound(job=job):
            for step in ("one", "two"):
                logs.get().info(step)
                gevent.sleep(0)
            gevent.spawn(logs.carry(lambda: logs.get().info("helper"))).join()

    gevent.joinall([gevent.spawn(work, "a"), gevent.spawn(work, "b")], raise_error=True)
    logs.get().info("outside")
    found = [(event["event"], event.get("job")) for event in lines(stream)]
    for job in ("a", "b"):
        assert [name for name, of in found if of == job] == ["one", "two", "helper"]
    assert ("outside", None) in found


@pytest.mark.parametrize("text", [
    f"s3://AKIA:se/{CANARY}@bucket/key", f"https://user:{CANARY}@host/a", f"get https://host/a?sig={CANARY}, failed",
    f"HTTPSConnectionPool(host='h', port=443): Max retries exceeded with url: /a/b?sig={CANARY} (Caused by …)",
    f"Authorization: Bearer {CANARY}", f"{{'authorization': 'Basic {CANARY}'}}", f"whsec_{CANARY}", f"('https://h/?a={CANARY}',)",
])
def test_secrets_in_texts_are_masked_in_every_field(text: str) -> None:
    stream = io.StringIO()
    logs.configure(stream)
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        logs.get().exception("broken", text=text, nested={"deep": [text, {"er": (text,)}]}, error=error, secret=Secret(CANARY))
    logging.getLogger("some.library").warning("says %s", text)
    assert len(lines(stream)) == 2
    assert "RuntimeError" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_registered_secrets_are_masked_wherever_they_turn_up() -> None:
    stream = io.StringIO()
    logs.register(Secret("a-registered-one"))
    logs.configure(stream, json=False)
    logs.get().info("x", text="it is 'a-registered-one'!")
    assert "registered" not in stream.getvalue()


@pytest.mark.parametrize("text", [
    "ffmpeg -i file:in.mov out.mp4",
    "1/2 of 3/4", "a bearer of news", "http://127.0.0.1:8001/v1/jobs", "s3://bucket/a@b", "is it? yes"])
def test_harmless_texts_stay_as_they_are(text: str) -> None:
    assert logs.redact(text) == text


def test_what_nobody_caught_is_redacted_too() -> None:
    script = f"""
from nommerd import runtime
runtime.patch()
import gevent
from nommerd import logs
logs.configure()
gevent.spawn(lambda: int("https://u:{CANARY}@h/")).join()
raise ValueError("https://u:{CANARY}@h/")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.count("ValueError") >= 2
    assert '"event": "uncaught"' in ended.stderr
    assert CANARY not in ended.stderr.split("File \"<string>\"")[-1]
