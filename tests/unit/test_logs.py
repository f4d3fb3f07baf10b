from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import gevent
import pytest

from nommerd import logs
from nommerd.secrets import Secret
from tests import logged

CANARY = "canary-91e2"


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Logging as it was, whatever a test configures."""
    with logged.undone():
        yield


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
    f"http://a,https://user:{CANARY}@host/", f"https://user:x://{CANARY}@host/", f"'url':'/a/b?sig={CANARY}'",
    "x" * 40 + f"https://user:{CANARY}@host/a", f"(/v1/jobs?token={CANARY})",
])
def test_secrets_are_masked_in_whatever_they_are_run_together_with(text: str) -> None:
    assert CANARY not in logs.redact(text)


@pytest.mark.parametrize("text", ["-/" * 200_000, "a" * 400_000 + " ://", "bearer " + " " * 400_000, "a/" * 200_000 + "?",
                                  "https://" + "u:" * 200_000, "h://" * 100_000, "?a" * 200_000])
def test_the_time_that_redaction_takes_grows_with_the_text_alone(text: str) -> None:
    begun = time.monotonic()
    logs.redact(text)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("as_json", [True, False])
def test_a_value_that_cannot_be_shown_does_not_make_its_line_fail(as_json: bool) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no")

    stream = io.StringIO()
    logs.configure(stream, json=as_json)
    logs.get().info("odd", value=Odd())
    logs.get().info("huge", number=10**5000, deep=[[[[[[[[Odd]]]]]]]])
    logs.get().info("halves", text="\ud800", key={"\udfff": 1})
    assert [name in stream.getvalue() for name in ("odd", "huge", "halves")] == [True] * 3


def test_no_text_of_a_callers_looks_like_another_line_or_speaks_to_the_terminal() -> None:
    stream = io.StringIO()
    logs.configure(stream, json=False)
    forged = "x\n2026-01-01T00:00:00.000Z info    job.finished\r\x1b[2K\x9b31m\u2028y"
    try:
        raise RuntimeError(forged)
    except RuntimeError:
        logs.get().exception("broken", text=forged, **{"a\nb": 1})
    assert [line for line in stream.getvalue().splitlines() if line.startswith("2026-01-01")] == []
    assert not any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 for c in stream.getvalue())


def test_nobody_waits_for_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logs.configure(stream, json=True)
        begun = time.monotonic()
        for number in range(10_000):
            logs.get().info("line", number=number, text="x" * 300)
        assert time.monotonic() - begun < 10
        got = bytearray()
        while b"log.lines_lost" not in got:  # what was kept comes whole and in order, then how much was not
            got += os.read(reader, 2**16)
        logs.get().info("after")
        while not got.endswith(b"}\n") or b'"after"' not in got:
            got += os.read(reader, 2**16)
    os.close(reader)
    events = [json.loads(line) for line in got.splitlines()]
    kept = [event["number"] for event in events if event["event"] == "line"]
    lost = sum(event["lines"] for event in events if event["event"] == "log.lines_lost")
    assert kept == list(range(len(kept)))
    assert len(kept) + lost == 10_000
    assert lost > 0
    assert events[-1]["event"] == "after"


def test_a_pipe_that_is_closed_ends_nothing_but_the_log() -> None:
    script = """
from nommerd import runtime
runtime.patch()
import gevent, os, sys
from nommerd import logs
logs.configure(sys.stderr)
sys.stdin.readline()
for number in range(1000):
    logs.get().info("line", text="x" * 1000)
gevent.spawn(lambda: 1 / 0).join()
print("alive", flush=True)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.read() == "alive\n"
        assert process.wait(20) == 0


def test_daemons_go_without_rich() -> None:
    script = "import sys; from nommerd import logs; assert 'rich' not in sys.modules; import rich"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


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
