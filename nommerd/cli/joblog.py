"""What `nommerd jobs log` shows: each attempt with its commands, ready to be copied, and its probes side by side."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any
from urllib.parse import quote

from nommerd.cli.client import Client
from nommerd.cli.output import duration, moment, print_json

FIELDS = ("codec", "profile", "pixel_format", "frame_rate", "sample_rate", "channels", "language")


def show_log(job_id: str, *, url: str | None, token: str | None, as_json: bool) -> None:
    """Print the log of a job's attempts."""
    answer = Client.from_options(url, token).call("GET", f"/v1/jobs/{quote(job_id, safe='')}/log")
    if as_json:
        print_json(answer)
    elif not answer["attempts"]:
        print("Nobody has worked on this job yet.")
    else:
        print("\n\n".join("\n".join(attempt_lines(attempt)) for attempt in answer["attempts"]))


def attempt_lines(attempt: dict[str, Any]) -> Iterator[str]:
    """One attempt, for people."""
    until = f"to {moment(attempt['ended'])}" if attempt["ended"] else "until now"
    outcome = (attempt["outcome"] or "at work").replace("_", " ")
    who = f"{attempt['worker']} on {attempt['node']}"
    yield f"attempt {attempt['number']}: {outcome}, {who}, {moment(attempt['begun'])} {until}"
    for stage in attempt["stages"]:
        seconds = "runs" if stage["seconds"] is None else f"{stage['seconds']:.1f} s"
        yield f"  {stage['stage']}  ({seconds})"
        for command in stage["commands"]:
            yield from _command_lines(command)
    yield from _probe_lines(attempt)
    if attempt["truncated"]:
        yield "  (older parts of this log were cut to keep it small)"


def _command_lines(command: dict[str, Any]) -> Iterator[str]:
    yield f"    $ {shlex.join(command['argv'])}"
    if command["seconds"] is None:
        yield "      runs"
    elif command["code"] != 0 or command["seconds"] >= 1:
        yield f"      {_ending(command['code'])} after {duration(command['seconds'])}"
    for line in command["stderr"].splitlines():
        yield f"      {line}"


def _ending(code: int | None) -> str:
    if code is None:
        return "could not be started"
    return f"ended by signal {-code}" if code < 0 else f"exit {code}"


def _probe_lines(attempt: dict[str, Any]) -> Iterator[str]:
    """The source on the left, each output on the right of it."""
    source, outputs = attempt["source"], [output["probe"] for output in attempt["outputs"]]
    columns = [["source", *_probe(source)]] if source else []
    columns += [[f"output {number}" if len(outputs) > 1 else "output", *_probe(probe)]
                for number, probe in enumerate(outputs, 1)]
    widths = [max(map(len, column)) for column in columns]
    for row in zip_longest(*columns, fillvalue=""):
        yield ("  " + "  │ ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def _probe(probe: dict[str, Any]) -> Sequence[str]:
    seconds = probe.get("duration_seconds")
    rate = probe.get("bit_rate")
    said = [str(probe.get("container", "?")), "" if seconds is None else f"{seconds:g} s",
            "" if rate is None else f"{rate / 1000:.0f} kbit/s"]
    return [" ".join(filter(None, said)), *(stream_line(stream) for stream in probe.get("streams") or ())]


def stream_line(stream: dict[str, Any]) -> str:
    """One stream of a probe's summary."""
    units = {"frame_rate": " fps", "sample_rate": " Hz", "channels": " ch"}
    size = f"{stream['width']}x{stream['height']}" if stream.get("width") and stream.get("height") else ""
    said = [f"{stream[name]:g}{units[name]}" if name in units else str(stream[name]) for name in FIELDS
            if stream.get(name) is not None]
    return " ".join(filter(None, (str(stream.get("kind", "?")), *said[:1], size, *said[1:])))

