"""The container image and compose.yaml: read as an engine would, and (slow) built and run by podman."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nommerd.cli.app import run
from tests.deploy import engine as engines
from tests.deploy.engine import Engine
from tests.deploy.machine import LASTING
from tests.deploy.root import CHECKOUT
from tests.media import clip
from tests.rig import wait_until

IMAGE = "localhost/nommerd-test"


# --- as text -----------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    lines = [line for line in (CHECKOUT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def compose() -> dict[str, Any]:
    """compose.yaml, its merges done."""
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())
    return loaded


def test_what_the_image_is_made_of_is_there_and_is_not_kept_from_the_builder() -> None:
    let_through = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in shlex.split(rest)[:-1]:
                assert (CHECKOUT / source).exists(), source
                assert source.partition("/")[0] in let_through, f"{source}: .dockerignore keeps it away"
    assert all((CHECKOUT / name).exists() for name in let_through)


def test_the_image_runs_as_a_user_named_by_number_and_every_program_it_starts_is_installed() -> None:
    last = instructions()[max(i for i, (word, _) in enumerate(instructions()) if word == "FROM"):]
    told = {word: rest for word, rest in last if word in {"USER", "ENTRYPOINT", "CMD", "HEALTHCHECK", "STOPSIGNAL"}}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", told["USER"])
    assert told["STOPSIGNAL"] == "SIGTERM"
    entry, command = json.loads(told["ENTRYPOINT"]), json.loads(told["CMD"])
    installed = next(rest for word, rest in last if word == "RUN" and "apt-get install" in rest)
    assert entry[0] in installed.split()
    assert json.loads(told["HEALTHCHECK"].partition("CMD ")[2])[0] in installed.split()
    assert run([*command, "--help"]) == 0


def test_what_pip_installs_is_pinned_and_lists_of_packages_are_not_kept() -> None:
    runs = [rest for word, rest in instructions() if word == "RUN"]
    installs = [rest for rest in runs if "pip install" in rest]
    assert installs
    assert all("--constraint deploy/ami/constraints.txt" in rest for rest in installs)
    assert "rm -rf /var/lib/apt/lists/*" in next(rest for rest in reversed(runs) if "apt-get" in rest)


def test_compose_gives_its_services_few_rights_a_shared_volume_and_commands_that_exist() -> None:
    told = compose()
    for name, service in told["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        assert "data:/var/lib/nommerd" in service["volumes"], name
        assert run([*service["command"], "--help"]) == 0
    assert "data" in told["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in told["services"]["feeder"]["ports"]), "this machine alone"


# --- for real ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    missing = engines.missing()
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the engine needs {', '.join(missing)}")
    with Engine(tmp_path_factory.mktemp("engine")) as engine:
        engine.build(IMAGE)
        yield engine


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_image_holds_the_application_and_ffmpeg_and_nothing_that_its_user_could_change(engine: Engine) -> None:
    def inside(script: str) -> str:
        rights = Engine.hardened(compose()["services"]["worker"])
        return engine.run("run", "--rm", *rights, "--network", "none", "--entrypoint", "sh", IMAGE, "-c", script).stdout

    assert inside("id -u; id -g").split() == ["1000", "1000"]
    assert inside("nommerd --version; ffmpeg -version | head -n 1").startswith("nommerd ")
    assert inside("find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' -not -path '/sys/*'"
                  " 2>/dev/null || :").split() == ["/tmp"]
    assert inside("ls -d /opt/nommerd/bin/pip* /root/.cache /build /var/lib/apt/lists/* 2>/dev/null || :") == ""
    told = json.loads(engine.run("image", "inspect", IMAGE).stdout)[0]
    base = json.loads(engine.run("image", "inspect", engines.BASE).stdout)[0]
    assert told["Size"] - base["Size"] < 500e6


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_feeder_and_workers_share_a_volume_and_a_worker_that_is_stopped_or_killed_loses_no_job(
        engine: Engine, tmp_path: Path) -> None:
    services, media, pipelines = compose()["services"], tmp_path / "media", tmp_path / "pipelines"
    for folder in (media, pipelines):
        folder.mkdir()
        os.chown(folder, 1000, 1000)
    for name, seconds in (("short.mp4", 2), ("long.mp4", 6)):
        (media / name).write_bytes(clip(seconds=seconds, size="640x360").read_bytes())
    sources = {"/var/lib/nommerd": "nommerd-test-data", "/srv/media": str(media), "/etc/nommerd/pipelines": str(pipelines)}
    engine.run("volume", "rm", "--force", "nommerd-test-data", check=False)

    def start(name: str, service: str) -> None:
        given = services[service]
        more = [{"target": "/etc/nommerd/pipelines"}] if service == "feeder" else []
        engine.start(name, IMAGE, {**given, "volumes": [*given["volumes"], *more]}, sources)

    def healthy(name: str) -> None:
        wait_until(lambda: engine.healthy(name), 60, lambda: engine.logs(name))

    def state(id: str, *wanted: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            job: dict[str, Any] = engine.job("feeder", id)
            return job if job["state"] in wanted else None

        return wait_until(reached, 120, lambda: f"{wanted}: {engine.job('feeder', id)}") or {}

    def submit(out: str, *how: str) -> str:
        done = engine.nommerd("feeder", "submit", "/srv/media/long.mp4", f"/srv/media/{out}", *how, "--json")
        return str(json.loads(done.stdout)["id"])

    start("feeder", "feeder")
    healthy("feeder")
    start("worker", "worker")
    healthy("worker")
    engine.nommerd("feeder", "submit", "/srv/media/short.mp4", "/srv/media/a.mp4", "-p", "web-480p", "--wait")
    assert (media / "a.mp4").stat().st_uid == 1000

    # SIGHUP comes through: the pipeline is there without a restart
    (pipelines / "lasting.yaml").write_text(LASTING)
    engine.run("kill", "--signal", "HUP", "feeder")
    wait_until(lambda: "catalog.reloaded" in engine.logs("feeder"), 20, lambda: engine.logs("feeder"))

    stopped = submit("stopped.mp4", "--pipeline", "lasting")
    state(stopped, "ENCODING")
    engine.run("stop", "worker")
    assert engine.exit_code("worker") == 0, "it ended by itself, in its grace period"
    assert state(stopped, "PENDING", "ENCODING")["state"] == "PENDING"
    start("second", "worker")
    whys = [one["why"] for one in state(stopped, "FINISHED")["attempts"]]
    assert whys == ["shutting down", "finished"], "an attempt that is not charged"

    killed = submit("killed.mp4", "--pipeline", "lasting")
    state(killed, "ENCODING")
    engine.run("kill", "--signal", "KILL", "second")
    engine.run("start", "worker")
    assert len(state(killed, "FINISHED")["attempts"]) == 2
    # processes of another container are never taken for dead ones, nor for alive
    start("third", "worker")
    jobs = [submit(f"side-{n}.mp4", "--pipeline", "lasting") for n in range(4)]
    assert [len(state(id, "FINISHED")["attempts"]) for id in jobs] == [1, 1, 1, 1]
