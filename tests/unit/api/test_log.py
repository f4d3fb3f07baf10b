"""GET /v1/jobs/ID/log: who may see it, and what the record adds to it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from nommerd.api.access import Scope
from nommerd.api.log import JobLog
from nommerd.job import Attempt, Key
from nommerd.journal import Journal
from nommerd.store.base import Document
from tests.unit.api.calls import Api

AT = datetime(2026, 1, 31, 9, tzinfo=UTC)


def submitted(api: Api) -> str:
    return str(api.submit().json["id"])


def keep(api: Api, job_id: str, number: int, outcome: str | None = None) -> None:
    journal = Journal(number, "w1", "node")
    journal.begin("ffmpeg")
    journal.program(["/usr/bin/ffmpeg", "-i", "file:source.mov"])
    if outcome:
        journal.close(outcome, [])
    api.store.put_document(Document(kind="log", scope=f"default/{job_id}", name=f"{number:06}", body=journal.text()), None)


def claimed(api: Api, job_id: str, *attempts: Attempt) -> None:
    api.store.update(Key("default", job_id), lambda job: job.evolve(attempts=attempts, token=len(attempts)))


def attempt(number: int, why: str | None = None) -> Attempt:
    return Attempt(number=number, worker="w1", node="node", begun=AT, ended=AT if why else None, why=why)


def test_a_job_that_nobody_began_has_no_attempts(api: Api) -> None:
    job_id = submitted(api)
    answer = api.call("GET", f"/v1/jobs/{job_id}/log")
    assert (answer.status, answer.json) == (200, {"job": job_id, "attempts": []})


def test_attempts_come_in_order_with_what_they_ran(api: Api) -> None:
    job_id = submitted(api)
    keep(api, job_id, 10)
    keep(api, job_id, 9, "failed")
    answer = api.call("GET", f"/v1/jobs/{job_id}/log").json
    JobLog.model_validate(answer)
    assert [(one["number"], one["outcome"]) for one in answer["attempts"]] == [(9, "failed"), (10, None)]
    assert answer["attempts"][1]["stages"] == [{"stage": "ffmpeg", "seconds": None, "commands": [
        {"argv": ["/usr/bin/ffmpeg", "-i", "file:source.mov"], "code": None, "seconds": None, "stderr": ""}]}]


def test_the_record_tells_how_an_attempt_ended_that_could_not_say_so_itself(api: Api) -> None:
    job_id = submitted(api)
    keep(api, job_id, 1)
    keep(api, job_id, 4, "given_back")
    whys = ["node.lost", "encoder.failed", "shutting down", "shutting down", None]
    claimed(api, job_id, *(attempt(number, why) for number, why in enumerate(whys, 1)))
    answer = api.call("GET", f"/v1/jobs/{job_id}/log").json
    JobLog.model_validate(answer)
    found = [(one["number"], one["outcome"], one["ended"] is not None, len(one["stages"])) for one in answer["attempts"]]
    assert found == [(1, "lost", True, 1), (2, "failed", True, 0), (3, "given_back", True, 0), (4, "given_back", True, 1),
                     (5, None, False, 0)]


def test_a_job_that_is_not_there_has_no_log(api: Api) -> None:
    answer = api.call("GET", "/v1/jobs/nothing/log")
    assert (answer.status, answer.codes) == (404, ["request.unknown_job"])


def test_only_operators_of_its_project_see_a_log(api: Api) -> None:
    job_id = submitted(api)
    keep(api, job_id, 1, "failed")
    expected = {("default", Scope.OPERATE): 200, ("default", Scope.READ): 403, ("default", Scope.SUBMIT): 403,
                ("other", Scope.OPERATE): 404, ("other", Scope.ADMIN): 404}
    for (project, scope), status in expected.items():
        _, text = api.tokens.make(f"{project}-{scope}", project, [scope])
        answer = api.call("GET", f"/v1/jobs/{job_id}/log", token=text.reveal())
        assert answer.status == status, (project, scope)
        assert status == 200 or b"ffmpeg" not in answer.body


def test_a_log_is_json_of_ours_whatever_was_in_it(api: Api) -> None:
    job_id = submitted(api)
    journal = Journal(1, "w<script>", "n")
    journal.program(["/usr/bin/ffmpeg", "\udcff", "ü€"])
    api.store.put_document(Document(kind="log", scope=f"default/{job_id}", name="000001", body=journal.text()), None)
    answer = api.call("GET", f"/v1/jobs/{job_id}/log")
    assert json.loads(answer.body)["attempts"][0]["stages"][0]["commands"][0]["argv"] == ["/usr/bin/ffmpeg", "?", "ü€"]
