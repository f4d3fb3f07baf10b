"""The calls on jobs, as routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nommerd.api.access import Scope
from nommerd.api.answers import JobAnswer, JobList
from nommerd.api.jobs import Jobs
from nommerd.api.models import ListQuery, Submission, WaitQuery, wait_query
from nommerd.api.route import Answer, Call, Route
from nommerd.api.view import job_json


def job_routes(jobs: Jobs) -> list[Route]:
    """Submit, list, show, cancel and retry the jobs of the caller's project."""

    def submit(call: Call) -> Answer:
        job, new = jobs.of(call.access.project).submit(call.body(), call.header("Idempotency-Key"))
        return Answer(value=job_json(job), status=201 if new else 200, headers={"Location": f"/v1/jobs/{job.id}"})

    def listing(call: Call) -> Answer:
        page = jobs.of(call.access.project).list(call.query)
        return Answer(value={"jobs": [job_json(job) for job in page.jobs], "next": page.next})

    def show(call: Call) -> Answer:
        wait_seconds, after = wait_query(call.query)
        return Answer(value=job_json(jobs.of(call.access.project).show(call.path["id"], wait_seconds, after)))

    def cancel(call: Call) -> Answer:
        job, changed = jobs.of(call.access.project).cancel(call.path["id"])
        return Answer(value=job_json(job), status=202 if changed else 200)

    def retry(call: Call) -> Answer:
        return Answer(value=job_json(jobs.of(call.access.project).retry(call.path["id"])), status=202)

    def route(method: str, path: str, scope: Scope, handle: Callable[[Call], Answer], summary: str, **more: Any) -> Route:
        return Route(method=method, path=path, scope=scope, handle=handle, summary=summary, **more)

    return [
        route("POST", "/v1/jobs", Scope.SUBMIT, submit, "Submit a job.", request=Submission,
              answers={201: JobAnswer, 200: JobAnswer, 409: None, 422: None},
              headers={"Idempotency-Key": "The same key and body again answer 200 with the job that is there."}),
        route("GET", "/v1/jobs", Scope.READ, listing, "List jobs, newest first.", query=ListQuery, answers={200: JobList}),
        route("GET", "/v1/jobs/{id}", Scope.READ, show, "Show a job, now or at its next change.", query=WaitQuery,
              answers={200: JobAnswer, 404: None}),
        route("POST", "/v1/jobs/{id}/cancel", Scope.SUBMIT, cancel, "Cancel a job.",
              answers={202: JobAnswer, 200: JobAnswer, 404: None, 409: None}),
        route("POST", "/v1/jobs/{id}/retry", Scope.SUBMIT, retry, "Run a job again that ended without a result.",
              answers={202: JobAnswer, 404: None, 409: None}),
    ]
