"""`/job/submit` as the original media-nommer had it, for clients that call it still. What becomes of it is an ordinary job.

Its client reads nothing but answers with status 200, so every outcome is one: `{"success": true, "job_id": …}` or
`{"success": false, "error_code": …, "message": …}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from nommerd import logs
from nommerd.api import body as bodies
from nommerd.api.jobs import Jobs
from nommerd.api.models import NAME_MAX, PARAMS_MAX, submission
from nommerd.api.original_recipe import PIPELINE, ffmpeg_recipe
from nommerd.api.problems import Fault, Refusal, from_error
from nommerd.errors import ConfigError, InfrastructureError, InputError, ManyErrors, NommerdError, Problem
from nommerd.job import Job
from nommerd.pipeline.params import known_hint

REQUIRED = ("source_path", "dest_path", "job_options")
REQUIRED_OPTIONS = ("options", "nommer")
BADINPUT, FORBIDDEN, UNAVAILABLE, INTERNAL = "BADINPUT", "FORBIDDEN", "UNAVAILABLE", "INTERNAL"
MESSAGE_MAX = 1000
FFMPEG = frozenset({  # the names that the original's only nommer has had
    "FFmpegNommer", "ffmpeg.FFmpegNommer", "nommers.ffmpeg.FFmpegNommer", "ec2nommerd.nommers.ffmpeg.FFmpegNommer",
    "media_nommer.ec2nommerd.nommers.ffmpeg.FFmpegNommer",
})
_FIELDS = {"source": "source_path", "dest": "dest_path", "params": "job_options.options", "pipeline": "job_options.nommer"}
_UNESCAPED = "".join(chr(code) for code in range(0x21, 0x7f) if chr(code) not in '"<>')

Answer = dict[str, Any]


class Missing(Exception):
    """A key that must be there is not, or is nothing; `path` as the original's messages spell it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"Missing/invalid required key+val: {path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The original's call on jobs of one project. `nommers`: custom nommers' names -> pipelines."""

    jobs: Jobs
    nommers: Mapping[str, str]

    def of(self, project: str) -> Original:
        """The same call on the jobs of another project."""
        return replace(self, jobs=self.jobs.of(project))

    def submit(self, read: Callable[[], bytes]) -> tuple[Answer, Mapping[str, str]]:
        """The answer, and its headers, to the call whose body `read` gives. Never raises an Exception."""
        try:
            return {"success": True, "job_id": self._submit(read()).id}, {}
        except Missing as error:
            return _failure(BADINPUT, str(error)), {}
        except Refusal as refusal:
            return refused(refusal), {name: value for name, value in refusal.headers.items() if name == "Connection"}
        except (InputError, ManyErrors) as error:
            return refused(from_error(error)), {}
        except InfrastructureError as error:
            logs.get().warning("api.unavailable", why=str(error))
            if error.retryable:
                return _failure(UNAVAILABLE, "The job store is out of reach. Send the job again a little later."), {}
        except NommerdError as error:
            logs.get().warning("api.error", why=str(error))
        except Exception:
            logs.get().exception("api.internal_error", method="POST", path="/job/submit")
        return _failure(INTERNAL, "Something went wrong in the server. Its log has the details."), {}

    def _submit(self, raw: bytes) -> Job:
        body = bodies.parse_object(raw)
        for key in REQUIRED:
            if not body.get(key):
                raise Missing(f"['{key}']")
        source, dest, job_options = (body[key] for key in REQUIRED)
        for key, value, kind in (("source_path", source, str), ("dest_path", dest, str), ("job_options", job_options, dict)):
            if not isinstance(value, kind):
                raise Missing(f"['{key}']")
        for key in REQUIRED_OPTIONS:
            if not job_options.get(key):
                raise Missing(f"['job_options'][{key}]")
        if not isinstance(job_options["nommer"], str):
            raise Missing("['job_options'][nommer]")
        fields = {"source": _escaped(source), "dest": _escaped(dest), "notify_url": _escaped(body.get("notify_url") or None),
                  "overwrite": True}
        return self._create(fields, job_options["nommer"], job_options["options"], len(raw))

    def _create(self, fields: dict[str, Any], nommer: str, options: Any, size: int) -> Job:
        pipeline = self.nommers.get(nommer)
        if pipeline is not None:
            wanted = submission({**fields, "pipeline": pipeline, "params": _params(options)})
            return self.jobs.submit_recipe(wanted, self.jobs.recipe(wanted), _shaped(None, ()), size)
        if nommer not in FFMPEG:
            raise InputError("request.invalid", f"There is no nommer {bodies.shown(nommer, NAME_MAX)}.",
                             f"{known_hint(nommer[:NAME_MAX], {*self.nommers, max(FFMPEG, key=len)}, 'Nommers')} Others are "
                             "mapped to pipelines by the setting api.original.nommers.", place="job_options.nommer")
        wanted = submission({**fields, "pipeline": PIPELINE})
        recipe, warnings = ffmpeg_recipe(options, wanted.dest)
        return self.jobs.submit_recipe(wanted, recipe, _shaped(nommer, warnings), size)


def check_nommers(nommers: Mapping[str, str], pipelines: Iterable[str]) -> None:
    """ConfigError config.bad_value for a nommer mapped to a pipeline that is not there."""
    known = set(pipelines)
    for nommer, pipeline in nommers.items():
        if pipeline not in known:
            raise ConfigError("config.bad_value", f"There is no pipeline called {pipeline!r}.",
                              known_hint(pipeline, known, "Pipelines here"), place=f"api.original.nommers.{nommer}")


def refused(refusal: Refusal) -> Answer:
    """The answer for what the rest of the API would say with another status."""
    code = BADINPUT
    if refusal.status >= 500:
        code = UNAVAILABLE if refusal.status == 503 else INTERNAL
    elif refusal.status in (401, 403, 429):
        code = FORBIDDEN
    return _failure(code, _sentence(refusal.faults[0]))


def _failure(error_code: str, message: str) -> Answer:
    return {"success": False, "error_code": error_code, "message": _clipped(message, MESSAGE_MAX)}


def _sentence(fault: Fault) -> str:
    """A fault in one line, its place in the original's words."""
    place = fault.place.removeprefix("body.")
    first, dot, rest = place.partition(".")
    renamed = _FIELDS.get(first, first) + dot + rest
    message = fault.message.replace(f"'{first}'", f"'{renamed}'") if first in _FIELDS else fault.message
    where = "" if place in ("body", "request") else f"{renamed}: "
    text = f"{where}{message}{' ' + fault.hint if fault.hint else ''}"
    return f"{_clipped(text, MESSAGE_MAX - len(fault.code) - 3)} ({fault.code})"


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _escaped(uri: Any) -> Any:
    """http addresses were escaped by the original itself."""
    if isinstance(uri, str) and uri.lower().startswith(("http://", "https://")) and not bodies.control_characters(uri):
        return quote(uri, safe=_UNESCAPED)
    return uri


def _params(options: Any) -> dict[str, Any]:
    """What a custom nommer's options mean to its pipeline: params, as an object, or as the original's pairs."""
    if isinstance(options, list) and len(options) == 1 and isinstance(options[0], dict):
        options = options[0]
    if isinstance(options, dict):
        return options
    if not isinstance(options, list) or len(options) > PARAMS_MAX:
        raise Missing("['job_options'][options]")
    found: dict[str, Any] = {}
    for index, pair in enumerate(options):
        place = f"job_options.options[{index}]"
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError("request.invalid", "A param is [name, value].", "Or send an object of names and values.",
                             place=place)
        if pair[0] in found:
            raise InputError("request.invalid", f"The param {bodies.shown(pair[0])} stands twice.", place=place)
        found[pair[0]] = pair[1]
    return found


def _shaped(nommer: str | None, warnings: tuple[Problem, ...]) -> Callable[[Job], Job]:
    """What distinguishes the record: callbacks as forms, the warnings known by now, and the nommer's name."""

    def change(job: Job) -> Job:
        params = job.params if nommer is None else {"nommer": nommer}
        return job.evolve(params=params, warnings=warnings, webhook=replace(job.webhook, form=True))

    return change
