"""Pause, resume and drain on real processes, where nothing may be lost; and what they tell Prometheus, held against the alerts
and the dashboard that ship."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.media import clip
from tests.promql import Scraped, all_faults, labels_of
from tests.rig import Daemon, Rig, free_port, invariants, wait_until

CONF = Path(__file__).parents[2] / "conf"
SLOW = """\
kind: pipeline
name: slow
stages:
  - fetch
  - ffmpeg: {input_options: [[re, null]], options: [[c, copy], [f, mp4]]}
  - upload
"""


class Town(Rig):
    """A feeder and workers of one slot each; `slow` jobs take as long as their clip. The first worker has a health port."""

    health = 0

    @property
    def out(self) -> Path:
        return self.media / "out"

    def nommerd(self, *arguments: str, code: int = 0) -> Any:
        """What a client command prints as JSON."""
        env = {**self.env, "NOMMERD_URL": f"http://127.0.0.1:{self.port}", "NOMMERD_TOKEN": self.token}
        done = subprocess.run([sys.executable, "-m", "nommerd", *arguments, "--json"], env=env, capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def alone(self) -> Daemon:
        """The worker w1, as the only one: every job is then its own. It is the one that is scraped."""
        for daemon in self.daemons:
            if daemon.name.startswith("w") and daemon.name != "w1" and daemon.alive:
                daemon.stop()
        for daemon in self.daemons:
            if daemon.name == "w1" and daemon.alive:
                return daemon
        usual, self.health = self.env, free_port()
        self.env = {**usual, "NOMMERD_WORKER__HEALTH_PORT": str(self.health)}
        try:
            return self.start_worker("w1")
        finally:
            self.env = usual

    def slow(self, name: str) -> str:
        """A slow job, once it runs."""
        job_id = self.submit(self.media / "slow.mp4", self.out / f"{name}.mp4", pipeline="slow")
        self.wait_state(job_id, {"ENCODING"}, 20)
        return job_id

    def quick(self, name: str) -> str:
        return self.submit(self.media / "in.mp4", self.out / f"{name}.m4a", preset="audio-aac")

    def workers(self) -> dict[str, str]:
        """The state of each."""
        status, answer = self.call("GET", "/v1/workers")
        assert status == 200, answer
        return {one["name"]: one["state"] for one in answer["workers"]}

    def wait_heeded(self, worker: str, **orders: bool) -> None:
        def heeded() -> bool:
            said = self.events(worker, "control.heeded")[-1:]
            return bool(said) and {name: said[0][name] for name in orders} == orders

        wait_until(heeded, 10, f"{worker} sees {orders}")

    def scrape(self, port: int, accept: str) -> str:
        """/metrics as Prometheus asks for it."""
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={
            "Accept": accept, "Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(asked, timeout=20) as answer:
            text: str = answer.read().decode()
        self.answers.append(text)
        return text


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    root = tmp_path_factory.mktemp("operate")
    for folder in ("pipelines", "presets", "media/out"):
        (root / folder).mkdir(parents=True)
    (root / "pipelines" / "slow.yaml").write_text(SLOW)
    with Town(root, slots=1, config="jobs: {keep_finished_days: 30}\n") as town:
        (town.media / "in.mp4").write_bytes(clip(seconds=1, size="160x120").read_bytes())
        (town.media / "slow.mp4").write_bytes(clip(seconds=2, size="160x120").read_bytes())
        town.start_feeder()
        yield town


def test_a_pause_begins_nothing_new_and_lets_what_runs_go_on_until_somebody_resumes(town: Town) -> None:
    town.alone()
    running = town.slow("running")
    assert town.call("POST", "/v1/pause")[1]["paused"]["by"] == "token file"
    town.wait_heeded("w1", paused=True)
    town.start_worker("w2")  # one that starts into a pause begins nothing either
    waiting = [town.quick(f"waiting-{number}") for number in range(2)]
    town.wait_finished(running)
    wait_until(lambda: town.workers().get("w2") == "ACTIVE", 20, "the second worker reports")
    wait_until(lambda: town.call("GET", "/v1/stats")[1]["states"]["PENDING"] == 2, 10, "the figures")
    stats = town.nommerd("stats")
    assert stats["paused"]["by"] == "token file" and stats["queue"]["normal"] == 2
    assert [town.job(job_id)["attempts"] for job_id in waiting] == [[], []]
    assert town.nommerd("resume") == {"paused": None}
    assert [len(town.wait_finished(job_id)["attempts"]) for job_id in waiting] == [1, 1]


def test_what_prometheus_is_told_has_all_that_alerts_and_dashboard_ask_for(town: Town) -> None:
    town.alone()
    broken = town.media / "broken.mp4"
    broken.write_bytes(b"no media")
    town.wait_state(town.submit(broken, town.out / "broken.m4a", preset="audio-aac"), {"ERROR"}, 20)
    town.wait_finished(town.quick("counted"))
    town.call("GET", "/v1/nothing")
    scraped = Scraped()
    for port in (town.port, town.health):
        scraped.add(town.scrape(port, "text/plain"))
    alerts = [rule for group in yaml.safe_load((CONF / "prometheus" / "alerts.yml").read_text())["groups"]
              for rule in group["rules"]]
    targets = [(panel, target) for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    assert len(alerts) > 10 and len(targets) > 30
    assert all_faults([rule["expr"] for rule in alerts] + [target["expr"] for _, target in targets], scraped) == []
    shown = {(rule["alert"], label) for rule in alerts for text in rule["annotations"].values()
             for label in re.findall(r"\$labels\.(\w+)", text) if label not in labels_of(rule["expr"], scraped)}
    shown |= {(panel["title"], label) for panel, target in targets
              for label in re.findall(r"{{(\w+)}}", target["legendFormat"]) if label not in labels_of(target["expr"], scraped)}
    assert shown == set()


def test_scrapes_are_openmetrics_too_and_name_no_job_and_no_file(town: Town) -> None:
    town.alone()
    town.wait_finished(town.quick("told"))
    job_ids = [job["id"] for job in town.jobs()]
    for port, daemon in ((town.port, "feeder"), (town.health, "worker")):
        text = town.scrape(port, "application/openmetrics-text; version=1.0.0, text/plain; q=0.5")
        found = {family.name: family for family in text_string_to_metric_families(text)}
        (build,) = found["nommerd_build_info"].samples
        assert build.labels["daemon"] == daemon
        assert sum(sample.value for sample in found["nommerd_hub_lag_seconds"].samples if sample.name.endswith("_count")) > 0
        assert not any(word in text for word in [*job_ids, "in.mp4", "told.m4a"])
    assert found["nommerd_writes_fenced"].samples[0].value == 0
    ended = {sample.labels["state"]: sample.value for sample in found["nommerd_jobs_ended"].samples}
    assert ended["FINISHED"] >= 1


def test_the_feeders_metrics_are_the_operators_alone(town: Town) -> None:
    assert town.call("GET", "/metrics", token=False)[0] == 401
    theirs = town.call("POST", "/v1/tokens", {"name": "t", "scopes": ["admin"], "project": "other"})[1]["token"]
    assert town.call("GET", "/metrics", token=False, headers={"Authorization": f"Bearer {theirs}"})[0] == 403
    assert 'nommerd_jobs{project="other",state="PENDING"} 0.0' in town.scrape(town.port, "text/plain")


def test_a_drained_worker_finishes_its_job_takes_no_other_and_exits_with_success(town: Town) -> None:
    drained = town.alone()
    running = town.slow("drained")
    town.nommerd("workers", "drain", "w1")
    wait_until(lambda: town.workers()["w1"] == "DRAINING", 10, "the heartbeat says so")
    later = town.quick("later")
    assert town.nommerd("workers", "drain", "w1", "--wait")["state"] == "TERMINATED"
    assert town.job(running)["state"] == "FINISHED"
    assert drained.process.wait(10) == 0
    assert town.nommerd("workers", "drain", "w1", "--wait")["state"] == "TERMINATED"  # what is waited for has come
    assert town.nommerd("workers", "drain", "w1", code=1)["errors"][0]["code"] == "request.wrong_state"
    assert town.job(later)["state"] == "PENDING"
    again = town.alone()  # the request was of the life before
    town.wait_finished(later)
    assert again.alive and town.workers()["w1"] == "ACTIVE"


@pytest.mark.slow
def test_sigterm_gives_back_at_once_also_while_draining(town: Town) -> None:
    daemon = town.alone()
    running = town.slow("given-back")
    town.nommerd("workers", "drain", "w1")
    town.wait_heeded("w1", draining=True)
    assert daemon.stop(6) == 0
    assert town.job(running)["state"] == "PENDING"
    town.alone()
    job = town.wait_finished(running)
    assert len(job["attempts"]) == 2 and job["attempts"][0]["why"] == "shutting down"


def test_a_worker_that_is_not_there_cannot_be_drained(town: Town) -> None:
    (fault,) = town.nommerd("workers", "drain", "nobody", code=1)["errors"]
    assert fault["code"] == "request.unknown_worker"


def test_nothing_was_lost(town: Town) -> None:
    invariants(town, outputs=[town.out / "any"])


# --- the files as such --------------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONF / "grafana" / "nommerd.json").read_text())
    return found


def test_grafana_finds_in_the_dashboard_what_it_needs() -> None:
    board = dashboard()
    panels = board["panels"]
    assert board["schemaVersion"] >= 39 and board["title"] and board["uid"]
    assert {variable["name"]: variable["type"] for variable in board["templating"]["list"]} == {
        "datasource": "datasource", "project": "query"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"timeseries", "stat", "bargauge"} and panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] and panel["options"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(part["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for part in (panel, *panel["targets"]))


def test_each_alert_says_how_bad_it_is_and_is_explained_on_the_page() -> None:
    page = (CONF.parent / "docs" / "monitoring.md").read_text()
    for group in yaml.safe_load((CONF / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"warning", "critical"}
            assert rule["annotations"].keys() == {"summary", "description"}
            assert f"`{rule['alert']}`" in page, rule["alert"]
