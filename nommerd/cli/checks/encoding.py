"""Checks of ffmpeg: what it can do for each preset, and one second that is really encoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nommerd.cli.checks.finding import FAULT, OK, WARNING, Finding, Patient, failed
from nommerd.cli.usual import USUAL
from nommerd.errors import ConfigError, NommerdError

ENCODE_SECONDS = 60.0
PRESETS = ("web-480p", "audio-aac", "remux-mp4")  # shipped ones, the first that can run here
MAJOR_LEAST = 5


def programs(patient: Patient) -> Iterator[Finding]:
    """ffmpeg and ffprobe, and whether this ffmpeg has what each preset needs. Must run on the main thread."""
    from nommerd.media.binaries import find

    media = patient.settings.media if patient.settings is not None else None
    try:
        found = find(media.ffmpeg if media else None, media.ffprobe if media else None)
    except ConfigError as error:
        yield failed("ffmpeg", error)
        return
    patient.binaries = found
    old = found.major is not None and found.major < MAJOR_LEAST
    yield Finding("ffmpeg", WARNING if old else OK, f"{found.ffmpeg}, version {found.version}; {found.ffprobe}.",
                  f"Versions from {MAJOR_LEAST} on are tested: install a newer one." if old else "")
    if patient.catalog is not None:
        yield from _presets(patient)


def _presets(patient: Patient) -> Iterator[Finding]:
    """Each preset planned for a usual film, with what this ffmpeg has."""
    assert patient.catalog is not None
    able: list[str] = []
    unable: list[tuple[str, ConfigError]] = []
    unclear: list[str] = []
    for name in sorted(patient.catalog.presets):
        try:
            _plan(patient, name)
        except ConfigError as error:
            unable.append((name, error))
        except NommerdError:
            unclear.append(name)  # needs inputs, or another source than a usual one
        else:
            able.append(name)
    if able:
        yield Finding("presets", OK, f"ffmpeg has all for {', '.join(able)}.")
    for name, why in unable:
        yield Finding("presets", WARNING, f"{name} cannot run here: {why.message}",
                      why.hint or "Install an ffmpeg that has it, or run its jobs on another worker.")
    if unclear:
        yield Finding("presets", OK, f"Not checked, for they depend on their inputs: {', '.join(unclear)}.")


def _plan(patient: Patient, preset: str) -> None:
    """Raises ConfigError for what ffmpeg lacks, InputError where a usual film is not what the preset wants."""
    from nommerd.media.probe import claimed
    from nommerd.pipeline.context import Task
    from nommerd.pipeline.explain import explain
    from nommerd.pipeline.recipe import build_stages

    assert patient.catalog is not None
    recipe = patient.catalog.resolve(preset=preset, origin="disk")
    task = Task(job_id="doctor", token=1, attempt=1, source="file:///source.mp4",
                dest="file:///out/" if recipe.needs_folder else "file:///out", inputs=recipe.complete_inputs({}))
    explain(build_stages(recipe, patient.catalog.stages), claimed(USUAL, Path("/source.mp4"), "the source"), task,
            patient.binaries, 1)


def encode(patient: Patient) -> Iterator[Finding]:
    """One second through a shipped preset's whole pipeline, as `nommerd encode` does it, in a temporary folder."""
    if patient.binaries is None:
        yield Finding("encode", FAULT, "Nothing can be encoded without ffmpeg and ffprobe.", "See ffmpeg above.")
        return
    preset = _possible(patient)
    with tempfile.TemporaryDirectory(prefix="nommerd-doctor-") as folder:
        source = _clip(patient, Path(folder))
        begun = time.monotonic()
        argv = [sys.executable, "-P", "-m", "nommerd", "encode", str(source), f"{folder}/out.mp4", "-p", preset, "--json"]
        code, said = _run(argv, folder, _environment(patient))
        took = time.monotonic() - begun
    if code == 0:
        yield Finding("encode", OK, f"One second by {preset}, verified, in {took:.1f} s.")
    else:
        yield Finding("encode", FAULT, f"One second by {preset} failed: {said}", "`nommerd demo` shows more.")


def _possible(patient: Patient) -> str:
    """The first of PRESETS that this ffmpeg has an encoder for."""
    h264 = patient.binaries.pick_encoder("h264") is not None
    aac = patient.binaries.pick_encoder("aac") is not None
    return PRESETS[0] if h264 and aac else PRESETS[1] if aac else PRESETS[2]


def _clip(patient: Patient, folder: Path) -> Path:
    """A second of test picture and tone, by encoders that every ffmpeg has."""
    path = folder / "film.mov"
    argv = [str(patient.binaries.ffmpeg), "-nostdin", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25",
            "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-t", "1", "-c:v", "mpeg4", "-c:a", "aac",
            f"file:{path}"]
    code, said = _run(argv, str(folder), dict(os.environ))
    if code != 0:
        raise ConfigError("config.no_ffmpeg", f"ffmpeg could not make a clip: {said}", "Run it by hand to see why.")
    return path


def _environment(patient: Patient) -> dict[str, str]:
    """Without the operator's settings, but with his ffmpeg."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NOMMERD_")}
    ours = patient.binaries
    return clean | {"NOMMERD_MEDIA__FFMPEG": str(ours.ffmpeg), "NOMMERD_MEDIA__FFPROBE": str(ours.ffprobe)}


def _run(argv: list[str], folder: str, env: dict[str, str]) -> tuple[int, str]:
    """Exit code, and the last thing it said where that is not 0."""
    try:
        ended = subprocess.run(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                               errors="replace", timeout=ENCODE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return -1, f"it did not end within {ENCODE_SECONDS:.0f} s."
    except OSError as error:
        return -1, f"{argv[0]}: {error.strerror}"
    return ended.returncode, _said(ended.stdout, ended.stderr) if ended.returncode else ""


def _said(out: str, err: str) -> str:
    try:
        answer = json.loads(out)
        error = answer.get("error") or answer["errors"][0]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return (err.strip().splitlines() or out.strip().splitlines() or ["it said nothing."])[-1][:300]
