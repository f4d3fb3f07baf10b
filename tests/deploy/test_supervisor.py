"""A provisioned machine under supervisor: what operators do to it, and what happens to it."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest

from tests.deploy.machine import LASTING, Machine
from tests.deploy.root import Root, ports
from tests.media import clip
from tests.rig import wait_until

pytestmark = pytest.mark.timeout(300)

GIVEN_BACK = "shutting down"  # an attempt that is not charged
SMALL = """\
kind: preset
name: small
pipeline: web-mp4
params: {width: 320, height: 180, video_bitrate: 200k, audio_bitrate: 64k}
"""


@pytest.fixture(scope="module")
def machine(provisioned: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ports(), closing(Root.over(provisioned, tmp_path_factory.mktemp("machine"))) as root:
        (root.path / "etc/nommerd/pipelines/lasting.yaml").write_text(LASTING)
        with (root.path / "etc/nommerd/nommerd.yaml").open("a") as settings:
            # its health is looked after where it listens, which is not where it does by default
            settings.write("worker: {health_host: 127.0.0.2, health_port: 8002}\n")
        made = Machine(root)
        made.wait_running()
        yield made


# These two come first: the machine of all others, once it runs, has the ports.


def test_what_cannot_work_is_never_running_and_is_tried_later_and_later(ready: Root) -> None:
    (ready.path / "etc/nommerd/nommerd.yaml").write_text("worker: {slotz: 2}\n")
    log = ready.path / "var/log/supervisor/supervisord.log"
    log.unlink()  # of the time when it was provisioned
    machine = Machine(ready)

    def moments(what: str) -> list[datetime]:
        found = re.findall(rf"^(\S+ \S+?),(\d+) \S+ {what}: '?nommerd-feeder\b(?!-)", log.read_text(), re.MULTILINE)
        return [datetime.strptime(f"{at}.{ms}000", "%Y-%m-%d %H:%M:%S.%f") for at, ms in found]

    wait_until(lambda: len(moments("spawned")) >= 4, 90, lambda: f"{log.read_text()}\n{machine.log('feeder')}")
    assert set(machine.states().items()).isdisjoint({("nommerd-feeder", "RUNNING"), ("nommerd-worker", "RUNNING")})
    assert re.findall(r"success: nommerd-(?:feeder|worker) entered RUNNING", log.read_text()) == []
    pairs = zip(moments("exited"), moments("spawned")[1:], strict=False)
    pauses = [(again - exited).total_seconds() for exited, again in pairs]
    assert pauses[2] > pauses[0] + 0.5, pauses
    assert "/etc/nommerd/nommerd.yaml:1:10" in machine.log("feeder")
    (ready.path / "etc/nommerd/nommerd.yaml").unlink()  # which defaults do not make up for: they have another database
    wait_until(lambda: all("config.missing_file" in machine.log(name) for name in ("feeder", "worker")), 30,
               lambda: machine.log("feeder") + machine.log("worker"))


def test_a_feeder_whose_store_does_not_answer_is_never_running(ready: Root) -> None:
    (ready.path / "etc/nommerd/nommerd.yaml").write_text(
        "{cluster: gone, store: dynamodb://gone, bus: sqs://gone, paths: {data: /var/lib/nommerd},"
        " aws: {region: us-east-1, endpoint_url: 'http://127.0.0.1:9', access_key_id: a, secret_access_key: b}}\n")
    log = ready.path / "var/log/supervisor/supervisord.log"
    log.unlink()
    machine = Machine(ready)
    wait_until(lambda: "exited: nommerd-feeder (exit status 1" in log.read_text(), 60,
               lambda: f"{log.read_text()}\n{machine.log('feeder')}")
    assert "nommerd-feeder entered RUNNING" not in log.read_text()
    assert "node.not_ready" in machine.log("feeder")
    assert "Traceback" not in machine.log("feeder")


def test_feeder_and_worker_come_up_and_a_job_over_http_finishes(machine: Machine) -> None:
    source = machine.put(clip(seconds=2, size="320x180"), "short.mp4")
    job = machine.wait_state(machine.submit(source, "/srv/media/short-480p.mp4", preset="web-480p"), "FINISHED")
    assert job["outputs"][0]["bytes"] == (machine.root.path / "srv/media/short-480p.mp4").stat().st_size


def test_a_worker_stopped_in_mid_encode_gives_the_job_back_and_another_ends_it(machine: Machine) -> None:
    source = machine.put(clip(seconds=6, size="640x360"), "long.mp4")
    id = machine.submit(source, "/srv/media/long-out.mp4", pipeline="lasting")
    machine.wait_state(id, "ENCODING")
    machine.root.run("supervisorctl", "stop", "nommerd-worker")
    log = (machine.root.path / "var/log/supervisor/supervisord.log").read_text()
    assert "killing 'nommerd-worker'" not in log
    assert "stopped: nommerd-worker (exit status 0)" in log, "by itself"
    assert machine.job(id)["state"] == "PENDING"
    assert encoders(machine) == "", "its ffmpeg is gone"
    # its id is noted in there: what starts it from out here can end without it
    other = machine.root.start(
        "bash", "-c", "echo $$ >/run/other.pid; exec setpriv --reuid nommerd --regid nommerd --init-groups"
        " env HOME=/var/lib/nommerd NOMMERD_WORKER__HEALTH_PORT=null nommerd worker --local --name other")
    try:
        machine.wait_state(id, "DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED")
        starting = machine.root.start("supervisorctl", "start", "nommerd-worker")
        # a feeder that is restarted meanwhile loses nothing
        machine.root.run("supervisorctl", "restart", "nommerd-feeder")
        ended = machine.wait_state(id, "FINISHED")
    finally:
        machine.root.shell("kill -TERM $(cat /run/other.pid)")
        other.wait(20)
    assert reasons(ended) == [GIVEN_BACK, "finished"]
    assert [attempt["worker"] for attempt in ended["attempts"]][1] == "other"
    assert starting.wait(60) == 0


def test_killed_daemons_are_started_again(machine: Machine) -> None:
    machine.wait_running()
    before = {name: machine.signal(name, "KILL") for name in ("nommerd-feeder", "nommerd-worker")}
    wait_until(lambda: all(machine.pid(name) not in (0, pid) for name, pid in before.items()), 30, "both have new processes")
    machine.wait_listening()
    source = machine.put(clip(seconds=2, size="320x180"), "after-kill.mp4")
    machine.wait_state(machine.submit(source, "/srv/media/after-kill-out.mp4", preset="web-480p"), "FINISHED")


def test_daemons_that_hang_are_started_again(machine: Machine) -> None:
    machine.wait_running()
    before = {name: machine.signal(name, "STOP") for name in ("nommerd-feeder", "nommerd-worker")}
    wait_until(lambda: all(machine.pid(name) not in (0, pid) for name, pid in before.items()), 90, "both have new processes")
    killed = wait_until(lambda: machine.events("worker-health", "health.killed"), 20, "what killed it says so, afterwards")
    assert "127.0.0.2 port 8002" in killed[-1]["addresses"]
    machine.wait_listening()
    source = machine.put(clip(seconds=2, size="320x180"), "after-hang.mp4")
    machine.wait_state(machine.submit(source, "/srv/media/after-hang-out.mp4", preset="web-480p"), "FINISHED")


def test_where_supervisor_is_killed_its_daemons_end_and_the_next_one_brings_them_back(machine: Machine) -> None:
    source = machine.put(clip(seconds=6, size="640x360"), "orphan.mp4")
    id = machine.submit(source, "/srv/media/orphan-out.mp4", pipeline="lasting")
    machine.wait_state(id, "ENCODING")
    machine.root.shell("kill -KILL $(supervisorctl pid)")
    wait_until(lambda: machine.root.shell("ps -eo args= | grep '[/]opt/nommerd' || :").stdout == "", 20, "all have ended")
    machine.root.run("service", "supervisor", "start")
    machine.wait_listening()
    assert reasons(machine.wait_state(id, "FINISHED")) == [GIVEN_BACK, "finished"]


def test_sighup_takes_changed_presets_refuses_broken_ones_and_touches_no_job(machine: Machine) -> None:
    machine.wait_listening()
    presets = machine.root.path / "etc/nommerd/presets"
    running = machine.submit(machine.put(clip(seconds=6, size="640x360"), "during.mp4"), "/srv/media/during-out.mp4",
                             pipeline="lasting")
    machine.wait_state(running, "ENCODING")
    pids = machine.pid("nommerd-feeder"), machine.pid("nommerd-worker")

    (presets / "small.yaml").write_text(SMALL)
    hup(machine, "catalog.reloaded")
    assert machine.events("feeder", "catalog.reloaded")[-1]["changed"] == ["presets/small"]
    id = machine.submit(machine.put(clip(seconds=2, size="640x360"), "s.mp4"), "/srv/media/s-out.mp4", preset="small")

    (presets / "small.yaml").write_text(SMALL.replace("width: 320", "widht: 480"))
    (presets / "other.yaml").write_text(SMALL.replace("small", "other"))
    hup(machine, "catalog.not_reloaded")
    fault = machine.events("feeder", "catalog.fault")[-1]
    assert fault["place"].startswith("/etc/nommerd/presets/small.yaml:4:")
    with pytest.raises(urllib.error.HTTPError) as refused:
        machine.submit("/srv/media/s.mp4", "/srv/media/o-out.mp4", preset="other")
    assert refused.value.code in {400, 422}, "none of a set that does not hold is taken"
    again = machine.submit("/srv/media/s.mp4", "/srv/media/s2-out.mp4", preset="small")

    for one in (id, again, running):
        machine.wait_state(one, "FINISHED")
    shown = machine.root.run("ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "stream=width", "-of",
                             "csv=p=0", "/srv/media/s2-out.mp4").stdout
    assert shown.strip() == "320", "the one before stays"
    assert reasons(machine.job(running)) == ["finished"]
    machine.root.run("supervisorctl", "signal", "HUP", "nommerd-worker")
    wait_until(lambda: machine.events("worker", "worker.nothing_to_reload"), 10, "the worker says so")
    assert pids == (machine.pid("nommerd-feeder"), machine.pid("nommerd-worker"))


def reasons(job: dict[str, Any]) -> list[str]:
    """Why each of its attempts ended."""
    return [attempt["why"] for attempt in job["attempts"]]


def encoders(machine: Machine) -> str:
    """The ffmpeg processes of jobs."""
    return machine.root.shell("ps -eo args= | grep '[f]fmpeg .*progress' || :").stdout


def hup(machine: Machine, event: str) -> None:
    before = len(machine.events("feeder", event))
    machine.root.run("supervisorctl", "signal", "HUP", "nommerd-feeder")
    wait_until(lambda: len(machine.events("feeder", event)) > before, 20, lambda: machine.log("feeder"))
