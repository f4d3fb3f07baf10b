"""`nommerd jobs watch`: a live table of what runs, or some jobs followed to their end."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import click

from nommerd.cli.client import FINAL, Client, Missing, Patience
from nommerd.cli.follow import follow
from nommerd.cli.options import Command, client_options, examples, json_option
from nommerd.cli.output import problem_lines, source_name
from nommerd.cli.progress import Bar, Board, ProgressLine, draw, plain, times

INTERVAL_SECONDS = 1.0
RUNNING = ("DOWNLOADING", "ENCODING", "UPLOADING", "WAITING")
SHOWN_MAX = 200  # running jobs in the table
PLAIN_SECONDS = 5.0  # between lines of progress where there is no terminal


@click.command("watch", cls=Command, short_help="See running jobs live, or follow some to their end.", epilog=examples(
    "nommerd jobs watch", "nommerd jobs watch 6f1c2a9be0d34c57a801 && echo done",
    "nommerd jobs watch --json | jq -r '[.id, .state, .progress] | @tsv'"))
@click.argument("job_ids", metavar="[ID]…", nargs=-1)
@client_options
@json_option
def watch(job_ids: tuple[str, ...], url: str | None, token: str | None, as_json: bool) -> int:
    """See what runs, live, until Ctrl-C; or follow the named jobs to their end, and exit with 1 if one of them does not end
    as FINISHED. With --json each change is the job's JSON on one line."""
    if any(not job_id.strip() for job_id in job_ids):
        raise click.UsageError("An id is empty. Is a variable empty?")
    client = Client.from_options(url, token)
    if not job_ids:
        return _running(client, as_json)
    if len(job_ids) == 1 and not as_json:
        return _one(client, job_ids[0])
    return _several(client, list(dict.fromkeys(job_ids)), as_json)


def _one(client: Client, job_id: str) -> int:
    line = ProgressLine()
    job, _ = follow(client, client.job(job_id), line)
    if job["error"]:
        line.say("\n".join(problem_lines(job["error"])))
    return 0 if job["state"] == "FINISHED" else 1


# --- several jobs, to their end ----------------------------------------------------------------------------------------


def _several(client: Client, job_ids: list[str], as_json: bool) -> int:
    board, news = Board(), News(as_json)
    jobs = {job_id: client.job(job_id) for job_id in job_ids}
    patience = Patience()
    while True:
        for job in jobs.values():
            news.tell(job, board)
        open_ones = [job for job in jobs.values() if job["state"] not in FINAL]
        if not open_ones:
            break
        news.progress(open_ones, board)
        time.sleep(INTERVAL_SECONDS)
        with patience:
            for job in open_ones:
                jobs[job["id"]] = client.job(job["id"])
    board.clear()
    return 0 if all(job["state"] == "FINISHED" for job in jobs.values()) else 1


def _bar(job: dict[str, Any], note: str = "") -> Bar:
    label = f"{job['id']:<20} {(job['stage'] or job['state'].lower()):<11.11}"
    notes = [times(job.get("speed")), note or source_name(job)]
    return Bar(label, job["progress"], job["eta_seconds"], "  ".join(filter(None, notes)), done=job["state"] in FINAL)


class News:
    """Tells each change of a job once: for machines its JSON when anything moved, for people each state it was in."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: dict[str, tuple[Any, ...]] = {}
        self._said = time.monotonic()

    def tell(self, job: dict[str, Any], board: Board) -> None:
        """What is new in the job."""
        now = (job["event_seq"], job["stage"], job["progress"])
        before = self._last.get(job["id"])
        if before == now:
            return
        self._last[job["id"]] = now
        if self._as_json:
            print(json.dumps(job, ensure_ascii=False), flush=True)
        elif before is None or before[0] != now[0]:
            self._states(job, board, before[0] if before else job["event_seq"] - 1)

    def _states(self, job: dict[str, Any], board: Board, seen: int) -> None:
        events = [event for event in job.get("events", []) if event["seq"] > seen]
        for at, state in [(event["at"], event["state"]) for event in events] or [(job["updated"], job["state"])]:
            board.say(f"{at[11:19]}  {job['id']}  {state:<11}  {source_name(job)}")
        for text in problem_lines(job["error"]) if job["error"] and job["state"] in FINAL else ():
            board.say(f"  {text}")

    def progress(self, jobs: list[dict[str, Any]], board: Board) -> None:
        """How far they are: bars on a terminal, now and then a line elsewhere."""
        if self._as_json:
            return
        if board.live:
            board.draw([draw(_bar(job), board.room, board.colour) for job in jobs])
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            for job in jobs:
                board.say(plain(_bar(job)))


# --- what runs ---------------------------------------------------------------------------------------------------------


def _running(client: Client, as_json: bool) -> int:
    """Until Ctrl-C, which is how this ends."""
    board, news, patience = Board(), News(as_json), Patience()
    query = [("state", state) for state in RUNNING]
    jobs: list[dict[str, Any]] = list(client.jobs(query, SHOWN_MAX))
    try:
        while True:
            if as_json or not board.live:
                for job in jobs:
                    news.tell(job, board)
            _show(jobs, board)
            time.sleep(INTERVAL_SECONDS)
            with patience:
                before, jobs = jobs, list(client.jobs(query, SHOWN_MAX))
                _tell_ended(client, {job["id"] for job in before} - {job["id"] for job in jobs}, board, news)
    except KeyboardInterrupt:
        return 0
    finally:
        board.clear()


def _show(jobs: list[dict[str, Any]], board: Board) -> None:
    head = f"{len(jobs)}{' or more' if len(jobs) == SHOWN_MAX else ''} running, {time.strftime('%H:%M:%S')} (Ctrl-C ends)"
    board.draw([head[:board.room], *(draw(_bar(job, _where(job)), board.room, board.colour) for job in jobs)])


def _where(job: dict[str, Any]) -> str:
    attempt = f", attempt {len(job['attempts'])}" if len(job["attempts"]) > 1 else ""
    return f"{source_name(job)}{' on ' + job['owner']['worker'] if job['owner'] else ''}{attempt}"


def _tell_ended(client: Client, ids: set[str], board: Board, news: News) -> None:
    """What ran a moment ago and no longer does gets its last line."""
    for job_id in ids:
        with suppress(Missing):
            news.tell(client.job(job_id), board)
