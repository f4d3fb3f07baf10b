"""Watching one job to its end: every state, in order, and the progress between."""

from __future__ import annotations

from typing import Any

from nommerd.cli.client import FINAL, Client
from nommerd.cli.output import ProgressLine, problem_lines
from nommerd.cli.progress import times

POLL_SECONDS = 0.5


class Follower:
    """Shows a job's events by their numbers, so that a state that was over quickly is not missed."""

    def __init__(self, line: ProgressLine) -> None:
        self.line = line
        self.seen = 0  # event_seq shown so far
        self.missed: list[int] = []
        self.states: list[str] = []
        self.progress: list[float] = []  # the distinct figures shown

    def show(self, job: dict[str, Any]) -> None:
        """What is new in the job."""
        if not self.states:
            self._state("PENDING", job["created"], "", job)
        for event in job.get("events", []):
            if event["seq"] <= self.seen:
                continue
            self.missed += range(self.seen + 1, event["seq"])
            self.seen = event["seq"]
            again = f"  attempt {event['attempt']}" if event["attempt"] > 1 else ""
            self._state(event["state"], event["at"], again, job)
        if not self.progress or job["progress"] != self.progress[-1]:
            self.progress.append(job["progress"])
        self.line.show(job["stage"] or job["state"].lower(), job["progress"], job["eta_seconds"],
                       note=times(job.get("speed")), done=job["state"] in FINAL)

    def _state(self, state: str, at: str, more: str, job: dict[str, Any]) -> None:
        self.states.append(state)
        newest = state == job["state"] and self.seen == job["event_seq"]
        share = f"  {int(100 * job['progress'])} %" if newest else ""
        self.line.say(f"{at[11:23]:<12}  {state}{share}{more}")


def follow(client: Client, job: dict[str, Any], line: ProgressLine) -> tuple[dict[str, Any], Follower]:
    """Show the job until it is final; returns it."""
    follower = Follower(line)
    for job in client.changes(job, POLL_SECONDS):  # noqa: B020, PLR1704 - the newest one is what counts
        follower.show(job)
    line.clear()
    for warning in job["warnings"]:
        for text in problem_lines(warning):
            line.say(f"warning: {text}")
    return job, follower
