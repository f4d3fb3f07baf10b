"""`/job/submit` as the original system's client calls it: always 200, success or an error_code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nommerd.api.access import Scope
from nommerd.api.app import create_app
from nommerd.api.auth import EVERYBODY, WRONG_TOKENS_MAX, Gate, Hosts, Networks
from nommerd.api.body import BODY_BYTES_MAX
from nommerd.api.job_routes import job_routes
from nommerd.api.original import Original, check_nommers
from nommerd.api.pages import page_routes
from nommerd.bus.base import BusUnavailable
from nommerd.cli.configure import load_all
from nommerd.errors import ConfigError
from nommerd.job import Job, JobState, Key
from nommerd.pipeline.recipe import Recipe
from nommerd.secrets import Secret
from nommerd.store.base import JobQuery, StoreUnavailable
from tests.unit.api.calls import TOKEN, Answer, Api

NOMMER = "media_nommer.ec2nommerd.nommers.ffmpeg.FFmpegNommer"
ONE_PASS: list[Any] = [{"outfile_options": [["vcodec", "libx264"], ["f", "mp4"]]}]


class Old(Api):
    """The application with the original's call, for callers from these networks."""

    def open(self, networks: tuple[str, ...] = ("127.0.0.1/32",), *, enabled: bool = True, project: str = "default") -> Old:
        original = Original(jobs=replace(self.jobs, project=project), nommers={"acme.Copier": "copy", "acme.Silent": "silent"})
        gate = Gate([Secret(TOKEN)], Hosts("127.0.0.1"), original=Networks(networks) if enabled else EVERYBODY,
                    project=project, stored=self.tokens)
        self.app = create_app([*job_routes(self.jobs), *page_routes(self._ready)], gate, original if enabled else None)
        return self

    def job_body(self, **more: Any) -> dict[str, Any]:
        """What the original's client sends, changed by `more`; None leaves a key out."""
        fields = {"source_path": self.source.as_uri(), "dest_path": (self.media / "out.mp4").as_uri(), "notify_url": None,
                  "job_options": {"nommer": NOMMER, "options": ONE_PASS}, **more}
        return {name: value for name, value in fields.items() if value is not None or name == "notify_url"}

    def send(self, body: object = None, path: str = "/job/submit", token: str | None = None, **environ: str) -> Answer:
        return self.call("POST", path, self.job_body() if body is None else body, token=token, **environ)

    def order(self, **more: Any) -> Answer:
        return self.send(self.job_body(**more))

    def options(self, *options: Any, nommer: str = NOMMER) -> Answer:
        return self.order(job_options={"nommer": nommer, "options": list(options)})

    def job(self, answer: Answer) -> Job:
        assert answer.json.get("success") is True, answer.json
        return self.store.get(Key("default", answer.json["job_id"]))

    def stages(self, answer: Answer) -> list[tuple[str, dict[str, Any]]]:
        recipe = Recipe.decode(self.store.get_recipe(self.job(answer).recipe))
        assert {stage.origin for stage in recipe.stages} == {"api"}
        return [(stage.name, stage.settings) for stage in recipe.stages]

    @property
    def count(self) -> int:
        return len(self.store.list(JobQuery()).jobs)


@pytest.fixture
def old(tmp_path: Path) -> Old:
    return Old(tmp_path).open()


def failed(answer: Answer, code: str = "BADINPUT") -> str:
    """The message of an answer that says no, in the way that the client can read."""
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"success", "error_code", "message"}
    assert (answer.json["success"], answer.json["error_code"]) == (False, code)
    return str(answer.json["message"])


# --- accepted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/job/submit", "/job/submit/"])
def test_a_job_sent_as_json_under_a_form_type_is_taken_and_answered_with_its_id(old: Old, path: str) -> None:
    answer = old.send(path=path)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"success", "job_id"} and answer.json["success"] is True
    job = old.job(answer)
    assert (job.state, job.source, job.dest) == (JobState.PENDING, old.source.as_uri(), (old.media / "out.mp4").as_uri())
    [delivery] = old.bus.jobs.receive(5, 0)
    assert delivery.message.key == job.key


def test_it_is_an_ordinary_job_of_the_api(old: Old) -> None:
    job_id = old.send().json["job_id"]
    shown = old.call("GET", f"/v1/jobs/{job_id}").json
    assert (shown["pipeline"], shown["preset"], shown["params"], shown["priority"]) == \
        ("original", None, {"nommer": NOMMER}, "normal")
    assert [job["id"] for job in old.call("GET", "/v1/jobs").json["jobs"]] == [job_id]
    assert old.call("POST", f"/v1/jobs/{job_id}/cancel").status == 202


def test_its_jobs_are_in_a_project_of_their_own_where_one_is_set(tmp_path: Path) -> None:
    old = Old(tmp_path).open(project="legacy")
    job_id = old.send().json["job_id"]
    assert old.store.get(Key("legacy", job_id)).project == "legacy"
    assert old.bus.jobs.receive(1, 0)[0].message.key == Key("legacy", job_id)
    assert old.count == 0


def test_a_token_submits_to_its_own_project_and_needs_the_scope(tmp_path: Path) -> None:
    old = Old(tmp_path).open(networks=(), project="legacy")
    tokens = {scope: old.tokens.make("t", "studio-a", [scope])[1].reveal() for scope in Scope}
    for scope in (Scope.SUBMIT, Scope.ADMIN):
        made = old.send(old.job_body(dest_path=(old.media / f"{scope}.mp4").as_uri()), token=tokens[scope])
        assert old.store.get(Key("studio-a", made.json["job_id"])).project == "studio-a"
    assert old.store.count("legacy") == old.store.count("default") == {}
    for scope in (Scope.READ, Scope.OPERATE):
        refused = old.send(token=tokens[scope])
        assert (refused.status, refused.json["success"], refused.json["error_code"]) == (200, False, "FORBIDDEN")
    assert sum(old.store.count("studio-a").values()) == 2


def test_a_destination_that_exists_is_replaced(old: Old) -> None:
    (old.media / "out.mp4").write_bytes(b"old")
    assert old.job(old.send()).overwrite is True


def test_a_body_whose_length_was_not_declared_is_read(old: Old) -> None:
    raw = json.dumps(old.job_body()).encode()
    seen: list[Any] = []
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/job/submit", "QUERY_STRING": "", "SCRIPT_NAME": "", "SERVER_NAME": "x",
               "SERVER_PORT": "8001", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "127.0.0.1:8001", "REMOTE_ADDR": "127.0.0.1",
               "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_TYPE": "application/x-www-form-urlencoded",
               "wsgi.input": BytesIO(raw), "wsgi.errors": StringIO(), "wsgi.url_scheme": "http"}
    body = b"".join(old.app(environ, lambda status, headers, exc_info=None: seen.append(status)))
    assert seen == ["200 OK"] and json.loads(body)["success"] is True


@pytest.mark.parametrize("notify_url", [None, "", "https://hook.example/done"])
def test_a_notify_url_may_be_null_or_there(old: Old, notify_url: str | None) -> None:
    job = old.job(old.order(notify_url=notify_url))
    assert job.notify_url == (notify_url or None) and job.webhook.form is True and job.webhook.states is None


def test_an_http_address_with_spaces_is_escaped_as_the_original_did(old: Old) -> None:
    job = old.job(old.order(source_path="http://cdn.example/my film é%20x.mov"))
    assert job.source == "http://cdn.example/my%20film%20%C3%A9%20x.mov"


def test_secrets_of_addresses_are_encrypted_and_shown_nowhere(old: Old, log: StringIO) -> None:
    body = old.job_body(source_path="https://user:hidden1@cdn.example/in.mov?sig=hidden2",
                        dest_path="https://up.example/o.mp4?key=hidden3", notify_url="https://hook.example/n?token=hidden4")
    answer = old.send(body)
    job = old.job(answer)
    shown = old.call("GET", f"/v1/jobs/{job.id}").body
    for place in (answer.body, shown, job.encode(), log.getvalue().encode(), old.store.get_recipe(job.recipe).encode()):
        assert b"hidden" not in place
    assert job.secrets is not None and old.keyring.decrypt(job.secrets)["source"] == body["source_path"]
    bad = old.order(source_path="https://user:hidden1@10.0.0.1/in.mov?sig=hidden2")
    assert "hidden" not in failed(bad)


# --- the recipe ---------------------------------------------------------------------------------------------------


def test_one_entry_is_one_run_of_ffmpeg_with_its_pairs_in_order(old: Old) -> None:
    stages = old.stages(old.options({
        "infile_options": [["ss", 5], ["r", 24]],
        "outfile_options": [["metadata", "title=a"], ["metadata", "artist=b"], ["an", None], ["sn", ""], ["bf", 0],
                            ["r", 29.97]]}))
    assert stages == [("fetch", {}), ("ffmpeg", {
        "options": [["metadata", "title=a"], ["metadata", "artist=b"], ["an", None], ["sn", None], ["bf", "0"],
                    ["r", "29.97"]],
        "input_options": [["ss", "5"], ["r", "24"]]}), ("upload", {}), ("notify", {})]


def two_passes() -> list[dict[str, Any]]:
    return [{"outfile_options": [["vcodec", "libx264"], ["pass", "1"], ["f", "mp4"], ["an", None]]},
            {"outfile_options": [["vcodec", "libx264"], ["pass", 2], ["f", "mp4"]], "move_atom_to_front": True}]


def test_two_entries_with_pass_are_two_passes_and_a_fast_start(old: Old) -> None:
    assert old.stages(old.options(*two_passes())) == [
        ("fetch", {}),
        ("ffmpeg", {"pass": 1, "options": [["vcodec", "libx264"], ["f", "mp4"], ["an", None]]}),
        ("ffmpeg", {"pass": 2, "options": [["vcodec", "libx264"], ["f", "mp4"]]}),
        ("faststart", {}), ("upload", {}), ("notify", {})]


@pytest.mark.parametrize("numbers", [(1, 2, 3), (1, 3, 2), (1, 1, 2), tuple(range(1, 33))])
def test_any_number_of_passes_is_taken(old: Old, numbers: tuple[int, ...]) -> None:
    stages = old.stages(old.options(*({"outfile_options": [["b", "1M"], ["pass", number]]} for number in numbers)))
    assert [settings["pass"] for name, settings in stages if name == "ffmpeg"] == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("numbers", [(None, None), (1, None), (None, None, None)])
def test_passes_that_measure_nothing_are_left_out_and_told(old: Old, numbers: tuple[int | None, ...]) -> None:
    entries = [{"outfile_options": [["crf", 20 + at], *([["pass", number]] if number else [])]}
               for at, number in enumerate(numbers)]
    answer = old.options(*entries)
    runs = [settings for name, settings in old.stages(answer) if name == "ffmpeg"]
    assert runs == [{"options": [["crf", str(20 + len(numbers) - 1)]]}]
    assert [warning.code for warning in old.job(answer).warnings] == ["recipe.pass_dropped"]


def test_one_entry_needs_no_pass_and_may_have_the_first(old: Old) -> None:
    answer = old.options({"outfile_options": [["crf", 20], ["pass", "1"]]})
    assert ("ffmpeg", {"options": [["crf", "20"]]}) in old.stages(answer) and old.job(answer).warnings == ()


def test_a_second_pass_without_a_first_is_refused(old: Old) -> None:
    message = failed(old.options({"outfile_options": [["pass", 2]]}))
    assert message.startswith("job_options.options[0].outfile_options: Pass 2 has no pass before it.")


def test_no_options_at_all_is_a_plain_run(old: Old) -> None:
    assert old.stages(old.options({"infile_options": {}, "outfile_options": None}))[1] == ("ffmpeg", {"options": []})


def test_options_as_an_object_are_its_members_in_order(old: Old) -> None:
    stages = old.stages(old.options({"outfile_options": {"vcodec": "libx264", "an": None, "crf": 20}}))
    assert stages[1] == ("ffmpeg", {"options": [["vcodec", "libx264"], ["an", None], ["crf", "20"]]})


@pytest.mark.parametrize(("muxer", "dest", "fits"), [
    ("mp4", "o", True), ("mov", "o", True), ("3gp", "o", True), (None, "o.mp4", True), (None, "o", True),
    ("flv", "o.mp4", False), (None, "o.mkv", False)])
def test_an_atom_is_moved_only_where_there_is_one(old: Old, muxer: str | None, dest: str, fits: bool) -> None:
    entry = {"outfile_options": [["f", muxer]] if muxer else [], "move_atom_to_front": True}
    answer = old.order(dest_path=(old.media / dest).as_uri(), job_options={"nommer": NOMMER, "options": [entry]})
    assert answer.json["success"] is fits
    assert fits or "has no atom to move to the front" in failed(answer)


def test_what_changed_on_the_way_is_a_warning_of_the_job_from_the_beginning(old: Old) -> None:
    job_id = old.options({"outfile_options": [["acodec", "libfaac"], ["b", "400k"]], "spare": 1}).json["job_id"]
    shown = old.call("GET", f"/v1/jobs/{job_id}").json
    assert [(w["code"], w["message"]) for w in shown["warnings"]] == [
        ("recipe.old_encoder", "Encoders that ffmpeg no longer has: libfaac became aac."),
        ("recipe.old_option", "Options in today's form: b as b:v."),
        ("recipe.key_ignored", "Unknown, and ignored: job_options.options[0].spare.")]


# --- nommers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FFmpegNommer", "ffmpeg.FFmpegNommer", NOMMER])
def test_the_originals_nommer_is_known_by_its_short_names_too(old: Old, name: str) -> None:
    assert old.job(old.options(*ONE_PASS, nommer=name)).params == {"nommer": name}


@pytest.mark.parametrize("options", [{"width": 320}, [{"width": 320}], [["width", 320]]])
def test_a_custom_nommer_is_a_pipeline_and_its_options_are_params(old: Old, options: object) -> None:
    job = old.job(old.order(job_options={"nommer": "acme.Copier", "options": options}, notify_url="https://hook.example/"))
    assert (job.pipeline, job.params, job.overwrite, job.webhook.form) == ("copy", {"width": 320}, True, True)


@pytest.mark.parametrize(("options", "part"), [
    ([{"outfile_options": []}], "outfile_options"), ({"width": "wide"}, "expected a whole number"),
    ([["width"]], "[name, value]"),
    ([["width", 1], ["width", 2]], "twice"), ({"width": {"a": 1}}, "width"), ("fast", "['job_options'][options]")])
def test_options_that_its_pipeline_does_not_take_are_refused(old: Old, options: object, part: str) -> None:
    assert part in failed(old.order(job_options={"nommer": "acme.Copier", "options": options}))


def test_an_unknown_nommer_is_refused_by_name(old: Old) -> None:
    message = failed(old.options(*ONE_PASS, nommer="acme.Cop"))
    assert "There is no nommer 'acme.Cop'. Did you mean acme.Copier?" in message and "api.original.nommers" in message


def test_a_notify_url_needs_a_pipeline_that_notifies(old: Old) -> None:
    message = failed(old.order(job_options={"nommer": "acme.Silent", "options": [{}]}, notify_url="https://hook.example/"))
    assert message.startswith("notify_url: The pipeline silent has no notify stage.")


def test_a_nommer_mapped_to_a_pipeline_that_is_not_there_is_a_fault_of_the_configuration(old: Old) -> None:
    check_nommers({"acme.Copier": "copy"}, old.catalog.pipelines)
    with pytest.raises(ConfigError) as caught:
        check_nommers({"acme.Copier": "coppy"}, old.catalog.pipelines)
    assert (caught.value.place, caught.value.hint) == ("api.original.nommers.acme.Copier", "Did you mean copy?")
    config = old.root / "nommerd.yaml"
    config.write_text('paths: {pipelines: [pipelines]}\napi: {original: {nommers: {"acme.Copier": sillent}}}\n')
    assert "api.original.nommers.acme.Copier" in [fault.place for fault in load_all(config)[2]]


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["absent", None, "", 0, False, [], {}, 5, True, ["x"]])
@pytest.mark.parametrize("key", ["source_path", "dest_path"])
def test_a_missing_or_falsy_path_is_told_in_the_originals_words(old: Old, key: str, value: object) -> None:
    body = old.job_body()
    body.pop(key) if value == "absent" else body.update({key: value})
    assert failed(old.send(body)) == f"Missing/invalid required key+val: ['{key}']"


@pytest.mark.parametrize("value", ["absent", None, "", 0, False, [], {}, "x", 5, [1]])
def test_missing_or_falsy_job_options_are_told_in_the_originals_words(old: Old, value: object) -> None:
    body = old.job_body()
    body.pop("job_options") if value == "absent" else body.update(job_options=value)
    assert failed(old.send(body)) == "Missing/invalid required key+val: ['job_options']"


@pytest.mark.parametrize(("job_options", "key"), [
    ({"nommer": NOMMER}, "options"), ({"nommer": NOMMER, "options": []}, "options"),
    ({"nommer": NOMMER, "options": None}, "options"), ({"spare": 1}, "options"), ({"options": ONE_PASS}, "nommer"),
    ({"options": ONE_PASS, "nommer": ""}, "nommer"), ({"options": ONE_PASS, "nommer": 5}, "nommer")])
def test_nested_keys_are_told_in_the_originals_words(old: Old, job_options: object, key: str) -> None:
    assert failed(old.order(job_options=job_options)) == f"Missing/invalid required key+val: ['job_options'][{key}]"


def test_keys_are_checked_in_the_originals_order(old: Old) -> None:
    body: dict[str, Any] = {}
    for key in ("source_path", "dest_path", "job_options"):
        assert failed(old.send(body)) == f"Missing/invalid required key+val: ['{key}']"
        body[key] = {"spare": 1} if key == "job_options" else "file:///x"
    assert failed(old.send(body)).endswith("['job_options'][options]")


@pytest.mark.parametrize("raw", [
    b"", b"{", b"null", b"[]", b'"x"', b"5", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"a=b&c=d", b"[" * 5000,
    b'{"a": 1e999}', b"9" * 5000, b"x" * (BODY_BYTES_MAX + 1)])
def test_a_body_that_is_no_object_is_badinput(old: Old, raw: bytes) -> None:
    failed(old.send(raw))


def test_a_connection_whose_body_was_not_read_is_closed(old: Old) -> None:
    answer = old.send(b"x" * (BODY_BYTES_MAX + 1))
    assert "request.too_large" in failed(answer) and answer.headers["connection"] == "close"


@pytest.mark.parametrize(("pair", "part"), [
    (["b", False], "The option b cannot be false. Send null for a bare flag, or 0 or 1."),
    (["b", True], "cannot be true"), (["b", [1]], "takes one plain value"), (["b", {}], "takes one plain value"),
    (["b"], "Expected [name, value]"), (["b", "1", "2"], "Expected [name, value]"), ("b", "Expected [name, value]"),
    ([5, "1"], "is no option's name"), (["-i", "x"], "is no option's name"), (["", None], "is no option's name"),
    (["i", "/etc/passwd"], "The option 'i' is not allowed"), (["vf", "movie=/etc/passwd"], "movie"), (["f", "tee"], "tee"),
    (["async", "1,amovie=/etc/passwd"], "amovie"), (["pass", "x"], "The option pass is a number"), (["pass", None], "number")])
def test_an_option_that_cannot_be_is_refused_with_its_place(old: Old, pair: object, part: str) -> None:
    message = failed(old.options({"outfile_options": [["an", None]]}, {"outfile_options": [["f", "mp4"], pair]}))
    assert message.startswith("job_options.options[1].outfile_options") and part in message


def test_an_input_option_is_held_to_its_own_list(old: Old) -> None:
    message = failed(old.options({"infile_options": [["ss", 1], ["i", "/etc/passwd"]]}))
    assert message.startswith("job_options.options[0].infile_options[1]: The option 'i' is not allowed")


@pytest.mark.parametrize(("entry", "part"), [
    (5, "Expected an object"), (None, "Expected an object"), ([], "Expected an object"),
    ({"outfile_options": "x"}, "Expected a list"), ({"infile_options": 5}, "Expected a list")])
def test_an_entry_that_is_none_is_refused(old: Old, entry: object, part: str) -> None:
    assert part in failed(old.options(entry))


@pytest.mark.parametrize(("key", "uri", "code"), [
    ("source_path", "file:///etc/passwd", "source.outside_roots"), ("source_path", "gopher://x/y", "source.unknown_scheme"),
    ("source_path", "http://169.254.169.254/latest", "source.forbidden_address"),
    ("dest_path", "file:///etc/x", "dest.outside_roots"), ("notify_url", "http://127.0.0.1:1/", "webhook.forbidden_address"),
    ("notify_url", 5, "request.invalid"), ("dest_path", "nonsense", "dest"), ("source_path", "http://h/\x00", "source")])
def test_a_forbidden_address_is_badinput_and_names_its_key(old: Old, key: str, uri: object, code: str) -> None:
    message = failed(old.order(**{key: uri}))
    assert message.startswith(f"{key}: ") and code in message


def test_a_destination_that_is_the_source_is_refused(old: Old) -> None:
    assert "dest.is_source" in failed(old.order(dest_path=old.source.as_uri()))


def test_more_than_a_record_holds_is_badinput(old: Old) -> None:
    long = "https://cdn.example/" + "x" * 1900
    body = old.job_body(source_path=long + "?a=b", dest_path=long + "?c=d", notify_url=long)
    body["padding"] = "x" * 2000
    failed(old.send(body))
    assert old.count == 0


def test_without_the_store_the_answer_is_still_one_that_the_client_reads(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(job: Job) -> None:
        raise StoreUnavailable("disk full, hidden1")

    monkeypatch.setattr(old.store, "create", away)
    assert "hidden1" not in failed(old.send(), "UNAVAILABLE")


def test_without_the_bus_the_job_is_accepted(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> str:
        raise BusUnavailable("throttled")

    monkeypatch.setattr(old.bus.jobs, "send", away)
    old.job(old.send())


def test_a_fault_of_ours_is_internal_and_shows_nothing(old: Old, monkeypatch: pytest.MonkeyPatch, log: StringIO) -> None:
    def broken(job: Job) -> None:
        raise ZeroDivisionError("hidden1")

    monkeypatch.setattr(old.store, "create", broken)
    assert "hidden1" not in failed(old.send(), "INTERNAL")
    assert "api.internal_error" in log.getvalue()


# --- who may call -------------------------------------------------------------------------------------------------


def test_peers_in_its_networks_need_no_token_and_others_do(tmp_path: Path) -> None:
    old = Old(tmp_path).open(("10.1.0.0/16", "::1/128"))
    for peer in ("10.1.2.3", "::1", "::ffff:10.1.2.3"):
        old.job(old.send(REMOTE_ADDR=peer))
    for peer in ("10.2.0.1", "127.0.0.1", "::2", "", "nonsense"):
        assert "token" in failed(old.send(REMOTE_ADDR=peer), "FORBIDDEN")
        old.job(old.send(REMOTE_ADDR=peer, token=TOKEN))
    assert old.count == 8


def test_what_a_header_says_of_the_peer_is_not_believed(tmp_path: Path) -> None:
    old = Old(tmp_path).open(("10.1.0.0/16",))
    failed(old.send(HTTP_X_FORWARDED_FOR="10.1.2.3", HTTP_X_REAL_IP="10.1.2.3", HTTP_FORWARDED="for=10.1.2.3"), "FORBIDDEN")
    assert old.count == 0


@pytest.mark.parametrize("header", ["HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_FORWARDED", "HTTP_VIA"])
def test_what_a_proxy_on_this_machine_passes_on_needs_a_token(old: Old, header: str) -> None:
    failed(old.send(**{header: "127.0.0.1"}), "FORBIDDEN")
    old.job(old.send(token=TOKEN, **{header: "203.0.113.9"}))
    assert old.count == 1


def test_many_wrong_tokens_are_slowed_down_here_too(tmp_path: Path) -> None:
    old = Old(tmp_path).open(())
    for _ in range(WRONG_TOKENS_MAX):
        assert "not a token" in failed(old.send(token="wrong"), "FORBIDDEN")
    assert "too many wrong ones" in failed(old.send(token="wrong"), "FORBIDDEN")


def test_no_other_call_is_open_to_those_networks(old: Old) -> None:
    assert old.call("GET", "/v1/jobs", token=None).status == 401
    assert old.call("POST", "/job/submit/x", {}, token=None).status == 401


@pytest.mark.parametrize("environ", [{"HTTP_HOST": "evil.example"}, {"HTTP_ORIGIN": "http://evil.example"},
                                     {"HTTP_ORIGIN": "null"}, {"HTTP_SEC_FETCH_SITE": "cross-site"}])
def test_a_web_page_of_somebody_elses_is_refused(old: Old, environ: dict[str, str]) -> None:
    assert old.send(**environ).status == 403
    assert old.count == 0


@pytest.mark.parametrize("path", ["/job/submit", "/job/submit/"])
def test_switched_off_it_is_not_there(tmp_path: Path, path: str) -> None:
    old = Old(tmp_path).open(enabled=False)
    assert old.send(path=path).status == 404
    assert old.send(path=path, token=TOKEN, REMOTE_ADDR="10.0.0.1").status == 404


def test_it_knows_only_post(old: Old) -> None:
    assert old.call("GET", "/job/submit", token=None).status == 405


# --- whatever is sent ---------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=8)
likely = st.sampled_from([
    ["vcodec", "libx264"], ["b", "400k"], ["pass", 1], ["pass", "2"], ["async", 480], ["vol", 256],
    ["vf", "yadif,scale=320:-2"], ["af", "highpass=200"], ["f", "mp4"], ["f", "flv"], ["sameq", None], ["vpre", "slow"],
    ["target", "ntsc-dvd"], ["an", ""], ["deinterlace", None], ["acodec", "libfaac"], ["acodec", "copy"],
    ["profile", "baseline"], ["vsync", 1], ["qscale", 3.5]])
unlikely = json_values | st.tuples(likely.map(lambda pair: pair[0]) | st.text(max_size=8), json_values).map(list)
pairs = st.lists(likely, max_size=5) | st.lists(likely | unlikely, max_size=4) | json_values
entries = st.fixed_dictionaries({"outfile_options": st.lists(likely, max_size=5)},
                                optional={"move_atom_to_front": json_values})
odd_entries = st.fixed_dictionaries({}, optional={"infile_options": pairs, "outfile_options": pairs}) | json_values
job_options = st.fixed_dictionaries({"nommer": st.just(NOMMER), "options": st.lists(entries, min_size=1, max_size=3)})
odd_job_options = st.fixed_dictionaries({
    "nommer": st.sampled_from([NOMMER, "acme.Copier", "acme.Silent"]) | json_values,
    "options": st.lists(entries | odd_entries, max_size=3) | st.just({"width": 320}) | json_values})
ODD = {"source_path": json_values, "dest_path": st.sampled_from(["s3://k:s@b/x", "file:///", "http://h/"]) | json_values,
       "notify_url": st.just("https://hook.example/") | json_values, "job_options": odd_job_options | json_values}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    yield Old(tmp_path_factory.mktemp("fuzz")).open()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_no_body_makes_anything_but_200_with_success_or_an_error_code(shared: Old, data: st.DataObject) -> None:
    body: object = shared.job_body(job_options=data.draw(job_options))
    for key in data.draw(st.lists(st.sampled_from(sorted(ODD)), max_size=2)):
        assert isinstance(body, dict)
        body[key] = data.draw(ODD[key])
    if data.draw(st.integers(0, 9)) == 9:
        body = data.draw(json_values)
    answer = shared.send(json.dumps(body).encode())
    if answer.json["success"] is True:
        assert shared.job(answer).pipeline in ("original", "copy", "silent")
    else:
        assert failed(answer)


@settings(max_examples=50, deadline=None)
@given(raw=st.binary(max_size=200))
def test_no_bytes_do_either(shared: Old, raw: bytes) -> None:
    failed(shared.send(raw))
