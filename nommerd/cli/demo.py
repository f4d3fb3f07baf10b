"""`nommerd demo`: the whole system in a temporary directory: feeder, worker, one job over HTTP, its result verified."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nommerd.cli.client import Client
from nommerd.cli.credentials import token_of_feeder
from nommerd.cli.follow import Follower, follow
from nommerd.cli.options import Command, examples, json_option
from nommerd.cli.output import ProgressLine, print_json, problem_lines
from nommerd.cli.supervisor import Supervisor
from nommerd.errors import EncoderError, InfrastructureError, InputError, NommerdError, Stop

if TYPE_CHECKING:
    from nommerd.media.binaries import Binaries
    from nommerd.media.probe import Probe

CLIP_SECONDS = 10
CLIP_SIZE = (1280, 720)
VIDEO_PRESET, VIDEO_BOX = "web-720p", (1280, 720)
AUDIO_PRESET = "audio-aac"
READY_SECONDS = 60.0
TOLERANCE_SECONDS = 0.5
LOG_LINES = 40


@click.command(cls=Command, epilog=examples("nommerd demo", "nommerd demo holiday.mov -o results", "nommerd demo --json"))
@click.argument("media", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"),
              show_default=True, help="Folder for the result; nothing in it is overwritten.")
@json_option
def demo(media: Path | None, output: Path, as_json: bool) -> int:
    """Encode MEDIA, or a clip made here, through a real feeder and a real worker, and check the result."""
    home = Path(tempfile.mkdtemp(prefix="nommerd-demo-"))
    show = Show(as_json)
    demo = Demo(home, output.absolute(), show)
    try:
        return demo.run(media)
    except NommerdError:
        show.tail(demo.log)
        raise
    finally:
        demo.stop()
        shutil.rmtree(home, ignore_errors=True)


class Show:
    """What people read; on stderr when stdout is for JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.line = ProgressLine(sys.stderr if as_json else sys.stdout)

    def say(self, name: str, text: str) -> None:
        self.line.say(f"{name:<9} {text}")

    def tail(self, log: deque[str]) -> None:
        """The daemons' last words."""
        self.line.clear()
        for text in log:
            print(f"  {text}", file=sys.stderr)


@dataclass
class Outcome:
    """What the journey's thread brought: a verdict or an error."""

    done: threading.Event = field(default_factory=threading.Event)
    job: dict[str, Any] = field(default_factory=dict)
    follower: Follower | None = None
    error: Exception | None = None


class Demo:
    """One run. `stop` ends the daemons, whatever state it is in."""

    def __init__(self, home: Path, output: Path, show: Show) -> None:
        self.home, self.output, self.show = home, output, show
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._supervisor = Supervisor(lambda name, text: self.log.append(f"{name} | {text}"), self.log.append)

    def stop(self) -> None:
        """Stop feeder and worker."""
        self._supervisor.stop()

    def run(self, media: Path | None) -> int:
        """0 when the job is FINISHED and its result holds, 1 when not, 130 when interrupted."""
        from nommerd.media.binaries import find

        self._supervisor.heed_signals()
        binaries = find(os.environ.get("NOMMERD_MEDIA__FFMPEG"), os.environ.get("NOMMERD_MEDIA__FFPROBE"))
        source, before = self._source(binaries, media)
        preset = VIDEO_PRESET if before.video else AUDIO_PRESET
        dest = fresh(self.output / f"{source.stem}-{preset}.{'mp4' if before.video else 'm4a'}")
        client = self._start(source)
        if client is None:
            return self._ended_early()
        outcome = Outcome()
        body = {"source": source.as_uri(), "dest": dest.as_uri(), "preset": preset}
        threading.Thread(target=self._journey, args=(client, body, outcome), daemon=True).start()
        code = self._supervisor.watch(until=outcome.done.is_set)
        if code or not outcome.done.is_set():
            return self._ended_early()
        if outcome.error is not None:
            raise outcome.error
        return self._verdict(binaries, outcome, before, dest)

    def _ended_early(self) -> int:
        if self._supervisor.asked:
            raise KeyboardInterrupt
        raise InfrastructureError("node.no_feeder", "The feeder or the worker does not stay alive.", "Its log is above.")

    # --- what goes in --------------------------------------------------------------------------------------------

    def _source(self, binaries: Binaries, media: Path | None) -> tuple[Path, Probe]:
        from nommerd.media.probe import probe

        if media is not None and not media.is_file():
            raise InputError("source.not_found", f"There is no file {media}.", place="MEDIA")
        source = media.absolute() if media is not None else self._make_clip(binaries)
        found = probe(binaries, source)
        self.show.say("source", f"{source} ({describe(found)}{'' if media else ', made here'})")
        return source, found

    def _make_clip(self, binaries: Binaries) -> Path:
        from nommerd.media import process

        path = self.home / "demo.mp4"
        width, height = CLIP_SIZE
        argv = [str(binaries.ffmpeg), "-nostdin", "-v", "error",
                "-f", "lavfi", "-i", f"testsrc2=size={width}x{height}:rate=25",
                "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-t", str(CLIP_SECONDS),
                "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac", f"file:{path}"]
        ended, _ = process.output(argv, cwd=self.home, stop=Stop(), timeout_seconds=120, max_bytes=4096)
        if not ended.ok:
            raise EncoderError("encoder.failed", f"ffmpeg could not make the clip: {ended.stderr.strip()[-300:]}",
                               "Give a file of your own: nommerd demo MEDIA.")
        return path

    # --- the daemons ---------------------------------------------------------------------------------------------

    def _start(self, source: Path) -> Client | None:
        """A client of the feeder once both daemons run, None if they do not or somebody asked to stop."""
        from nommerd.cli.up import feeder_child, is_ready, worker_child

        begun = time.monotonic()
        config, url = self._configure(source)
        env = {key: value for key, value in os.environ.items()
               if not key.startswith("NOMMERD_") or key.startswith("NOMMERD_MEDIA__")}
        self._supervisor.start(feeder_child(config, env, "text"))
        late = time.monotonic() + READY_SECONDS
        code = self._supervisor.watch(until=lambda: is_ready(url) or time.monotonic() > late)
        if code or self._supervisor.asked or not is_ready(url):
            return None
        self._supervisor.start(worker_child(1, config, env, "text", None))
        self.show.say("feeder", f"{url}, ready after {time.monotonic() - begun:.1f} s")
        return Client(url, token_of_feeder(self.home / "data" / "token"))

    def _configure(self, source: Path) -> tuple[Path, str]:
        port = free_port()
        config = self.home / "nommerd.yaml"
        config.write_text(f"""\
paths: {{data: {json.dumps(str(self.home / "data"))}}}
api: {{port: {port}}}
worker: {{health_port: null, slots: 1}}
storage: {{file_roots: {json.dumps([str(source), str(self.output)])}}}
""", encoding="utf-8")
        return config, f"http://127.0.0.1:{port}"

    def _journey(self, client: Client, body: dict[str, Any], outcome: Outcome) -> None:
        try:
            job = client.submit(body)
            self.show.say("job", f"{job['id']}, preset {body['preset']}")
            outcome.job, outcome.follower = follow(client, job, self.show.line)
        except Exception as error:
            outcome.error = error
        finally:
            outcome.done.set()

    # --- what came out -------------------------------------------------------------------------------------------

    def _verdict(self, binaries: Binaries, outcome: Outcome, before: Probe, dest: Path) -> int:
        job, follower = outcome.job, outcome.follower
        assert follower is not None
        if job["state"] != "FINISHED":
            self.show.tail(self.log)
            for text in problem_lines(job["error"]) if job["error"] else [f"The job is {job['state']}."]:
                self.show.say("error", text)
            return 1
        faults, found = check(binaries, dest, before, job["outputs"])
        if follower.missed:
            faults.append(f"events {follower.missed} were not seen")
        self.show.say("states", f"{' '.join(follower.states)} ({'some' if follower.missed else 'none'} missed: events 1 to "
                      f"{follower.seen}; {len(follower.progress)} figures of progress)")
        self.show.say("output", str(dest))
        self.show.say("verified" if not faults else "WRONG", "; ".join(faults) or f"{describe(found)}, "
                      f"moov before mdat, bytes and sha256 as recorded")
        if self.show.as_json:
            print_json({"job": job, "output": str(dest), "states": follower.states, "faults": faults,
                        "progress": follower.progress})
        return 1 if faults else 0


def check(binaries: Binaries, path: Path, before: Probe, recorded: list[dict[str, Any]]) -> tuple[list[str], Probe]:
    """What is wrong with the result, by ffprobe and by reading it: codecs, size, duration, index first, checksum."""
    from nommerd.media.mp4 import is_fast_start
    from nommerd.media.probe import probe

    found = probe(binaries, path)
    faults = []
    codecs = [stream.codec for stream in (*found.video[:1], *found.audio[:1])]
    expected = ["h264"] * bool(before.video) + ["aac"] * bool(before.audio)
    if codecs != expected:
        faults.append(f"codecs are {codecs}, not {expected}")
    if found.video and not fits(found.video[0].width, found.video[0].height):
        faults.append(f"{found.video[0].width}x{found.video[0].height} is larger than {VIDEO_BOX[0]}x{VIDEO_BOX[1]}")
    wanted, got = before.duration_seconds, found.duration_seconds
    if wanted is not None and (got is None or abs(got - wanted) > TOLERANCE_SECONDS):
        faults.append(f"{got} s long, not {wanted} s")
    if not is_fast_start(path):
        faults.append("the index (moov) does not come before the media (mdat)")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if [(path.stat().st_size, digest)] != [(output["bytes"], output["sha256"]) for output in recorded]:
        faults.append("bytes or sha256 are not as recorded")
    return faults, found


def fits(width: int | None, height: int | None) -> bool:
    """Whether the picture is inside the preset's box, which turns with a portrait source."""
    return max(width or 0, height or 0) <= max(VIDEO_BOX) and min(width or 0, height or 0) <= min(VIDEO_BOX) and bool(width)


def describe(found: Probe) -> str:
    """`10.0 s, h264 1280x720, aac`."""
    parts = [f"{found.duration_seconds:.2f} s"] if found.duration_seconds is not None else []
    parts += [f"{stream.codec} {stream.width}x{stream.height}" for stream in found.video[:1]]
    parts += [stream.codec for stream in found.audio[:1]]
    return ", ".join(parts)


def fresh(path: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3 … that is free."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
