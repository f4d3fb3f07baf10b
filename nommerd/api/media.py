"""A job's outputs over HTTP, where this feeder can reach them: to play them in the dashboard, and to take them home.

Only what is recorded on a job of the caller's own project is ever read, by the storage backend that published it and within
what the operator opened. Whatever the file holds, a browser must not run it in the dashboard's name: the type is one of a
list of ours, the answer is sandboxed, and what is neither picture nor sound is a download.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote

from pydantic import BaseModel

from nommerd import runtime
from nommerd.api import tickets
from nommerd.api.access import Scope
from nommerd.api.jobs import Jobs
from nommerd.api.models import query_pairs
from nommerd.api.problems import Refusal, from_error, refuse
from nommerd.api.ranges import Unsatisfiable, wanted
from nommerd.api.route import Answer, Call, Route
from nommerd.api.view import timestamp
from nommerd.errors import InputError
from nommerd.job import Job, Output
from nommerd.secrets import split_uri
from nommerd.storage.base import Storage, name_of

PIECE_BYTES = 256 * 1024  # read at once, off the hub
SENT_MAX = 256  # outputs on their way at once, each with an open file
SENT_OF_PROJECT_MAX = 128
RETRY_SECONDS = 5
NAME_MAX = 120
UNSAFE = frozenset('/\\:*?"<>|;%')  # in names of files, on some system or in the header
OTHER = "application/octet-stream"
TYPES = {
    "mp4": "video/mp4", "m4v": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "mkv": "video/x-matroska",
    "ts": "video/mp2t", "m4s": "video/iso.segment", "mpg": "video/mpeg", "avi": "video/x-msvideo",
    "m4a": "audio/mp4", "mp3": "audio/mpeg", "aac": "audio/aac", "ogg": "audio/ogg", "opus": "audio/ogg", "flac": "audio/flac",
    "wav": "audio/wav", "jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp",
    "m3u8": "application/vnd.apple.mpegurl", "mpd": "application/dash+xml", "vtt": "text/vtt", "json": "application/json",
}
SHOWN = ("video/", "audio/", "image/")  # all others are downloads
CONFINED = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class Link(BaseModel):
    """A short-lived address of an output, relative to the feeder's; it needs no token."""

    url: str
    expires: str


class MediaQuery(BaseModel):
    """GET /v1/media's query string."""

    ticket: str


class Sending:
    """How many outputs are on their way, by project."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def begin(self, project: str) -> Callable[[], None]:
        """What is to be called at the end. 429 where the project has as many as it may, 503 where all have."""
        for count, most, status in ((self._open[project], SENT_OF_PROJECT_MAX, 429), (self._open.total(), SENT_MAX, 503)):
            if count >= most:
                raise refuse(status, "request", "request.too_many_downloads", f"{most} outputs are being sent.",
                             "Wait for some to end.", Retry_After=str(RETRY_SECONDS))
        self._open[project] += 1

        def end() -> None:
            self._open[project] -= 1
            self._open += Counter()  # forget projects without any

        return end


def media_routes(jobs: Jobs) -> list[Route]:
    """An output's bytes, by token or by ticket, and the tickets."""
    sending = Sending()

    def output(call: Call) -> Answer:
        job = jobs.of(call.access.project).show(call.path["id"])
        return _answer(jobs, sending, call, job, _chosen(job, call.path["n"]))

    def link(call: Call) -> Answer:
        job = jobs.of(call.access.project).show(call.path["id"])
        _chosen(job, call.path["n"])
        expires = int(time.time()) + tickets.TICKET_SECONDS
        text = tickets.write(jobs.keyring, tickets.Ticket(job.project, job.id, int(call.path["n"]), expires))
        return Answer(value={"url": f"/v1/media?ticket={text}", "expires": timestamp(datetime.fromtimestamp(expires, UTC))})

    def media(call: Call) -> Answer:
        text = dict(query_pairs(call.query, frozenset({"ticket"}))).get("ticket", "")
        try:
            ticket = tickets.read(jobs.keyring, text, time.time())
        except tickets.BadTicket as error:
            raise refuse(403, "query.ticket", "request.bad_ticket", str(error),
                         "POST /v1/jobs/ID/outputs/N/link makes one.") from None
        job = jobs.of(ticket.project).show(ticket.job)
        return _answer(jobs, sending, call, job, _chosen(job, str(ticket.output)))

    asked = {"Range": "One range of bytes.", "If-Range": "Heed Range only if the output has this ETag.",
             "If-None-Match": "Answer 304 if the output has this ETag."}
    bytes_answers = {200: None, 206: None, 304: None, 307: None, 404: None, 409: None, 416: None, 422: None}
    return [
        Route(method="GET", path="/v1/jobs/{id}/outputs/{n}", scope=Scope.READ, handle=output, headers=asked,
              produces=("*/*",), answers={status: model for status, model in bytes_answers.items() if status != 422},
              summary="An output's bytes, counted from 0; 307 to S3 where it is there."),
        Route(method="POST", path="/v1/jobs/{id}/outputs/{n}/link", scope=Scope.READ, handle=link,
              answers={200: Link, 404: None}, summary="A short-lived address of an output, for players and downloads."),
        Route(method="GET", path="/v1/media", scope=None, handle=media, headers=asked, query=MediaQuery, answers=bytes_answers,
              produces=("*/*",),
              summary="An output's bytes, by a ticket instead of a token."),
    ]


def _chosen(job: Job, number: str) -> Output:
    if number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(job.outputs):
        return job.outputs[int(number)]
    there = f"It has {len(job.outputs)}, counted from 0." if job.outputs else "Jobs have outputs once they are FINISHED."
    raise refuse(404, "path.n", "request.unknown_output", "The job has no such output.", there)


def _answer(jobs: Jobs, sending: Sending, call: Call, job: Job, output: Output) -> Answer:
    """Its bytes, or where to get them."""
    etag = f'"{output.sha256}"'
    kind = content_type(output.uri)
    headers = {**CONFINED, "Content-Disposition": disposition(output.uri, kind), "Accept-Ranges": "bytes", "ETag": etag}
    backend, uri = jobs.storage.for_uri(output.uri, "dest"), _complete(jobs, job, output)
    try:
        descriptor = runtime.in_pool(backend.open_output, uri)
    except InputError as error:
        raise _unreachable(error) from None
    if descriptor is None:
        return _elsewhere(backend, uri, output, headers["Content-Disposition"], kind)
    pieces = Pieces(descriptor, 0, output.bytes)
    try:
        pieces.done = sending.begin(job.project)
        if os.fstat(descriptor).st_size != output.bytes:
            raise _changed()
        given = call.header("If-None-Match")
        if given is not None and etag in (one.strip().removeprefix("W/") for one in given.split(",")):
            pieces.close()
            return Answer(status=304, body=b"", content_type=kind, headers=headers)
        span = wanted(call.header("Range"), call.header("If-Range"), etag, output.bytes)
    except Unsatisfiable:
        pieces.close()
        raise refuse(416, "header.Range", "request.bad_range", "No byte of the output is in that range.",
                     f"It has {output.bytes} bytes.", Content_Range=f"bytes */{output.bytes}") from None
    except BaseException:
        pieces.close()
        raise
    if span is None:
        return Answer(body=pieces, content_type=kind, headers={**headers, "Content-Length": str(output.bytes)})
    return Answer(status=206, body=replace(pieces, start=span.start, count=span.count), content_type=kind, headers={
        **headers, "Content-Length": str(span.count),
        "Content-Range": f"bytes {span.start}-{span.start + span.count - 1}/{output.bytes}"})


def _elsewhere(backend: Storage, uri: str, output: Output, disposition: str, kind: str) -> Answer:
    try:
        address = backend.link_output(uri, tickets.TICKET_SECONDS, disposition, kind)
    except InputError as error:
        raise _unreachable(error) from None
    if address is None:
        raise refuse(409, "path.n", "dest.elsewhere", f"The feeder cannot read {output.uri}.", "Get it from there.")
    if not backend.carries(uri, output.bytes, output.sha256, ""):
        raise _changed()
    return Answer(status=307, body=b"", content_type=OTHER, headers={**CONFINED, "Location": address})


def _complete(jobs: Jobs, job: Job, output: Output) -> str:
    """The output's URI with the credentials that its destination was given with."""
    if job.secrets is None:
        return output.uri
    scheme, user, _ = split_uri(jobs.keyring.decrypt(job.secrets).get("dest", ""))
    return output.uri.replace(scheme, scheme + user, 1) if user else output.uri


def _unreachable(error: InputError) -> Refusal:
    """What is gone is 404; what must not be read (any longer) is 409."""
    if error.code == "dest.bad_uri":
        return refuse(404, "path.n", "dest.gone", "The output is no longer there.", "It was moved or deleted.")
    refusal = from_error(error, "path.n")
    return Refusal(409, refusal.faults)


def _changed() -> Refusal:
    return refuse(409, "path.n", "dest.changed", "What is at the destination now is not what this job published.",
                  "Somebody replaced it, or wrote to it.")


def content_type(uri: str) -> str:
    """By the name's ending, of our list."""
    return TYPES.get(name_of(uri).rpartition(".")[2].lower(), OTHER)


def disposition(uri: str, kind: str) -> str:
    """Content-Disposition (RFC 6266): pictures and sound inline, under a name that is safe on any disk."""
    clean = "".join("_" if c in UNSAFE else c for c in name_of(uri) if c.isprintable())
    name = clean[-NAME_MAX:].lstrip(".") or "output"
    plain = "".join(c if c.isascii() else "_" for c in name)
    how = "inline" if kind.startswith(SHOWN) else "attachment"
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name.encode('utf-8', 'replace'))}"


@dataclass
class Pieces:
    """Part of a file, read as it is sent. Closes its descriptor at the end, or when the client goes."""

    descriptor: int
    start: int
    count: int
    done: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[bytes]:
        at, end = self.start, self.start + self.count
        try:
            while at < end:
                piece = runtime.in_pool(os.pread, self.descriptor, min(PIECE_BYTES, end - at), at)
                if not piece:  # cut short meanwhile: the connection must break off, so that nobody takes this for the whole
                    raise OSError("an output was cut short while it was sent")
                at += len(piece)
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self.done()
