"""Presets and pipelines through the API: what is stored, what is refused and where it says so, and who may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nommerd.api.access import Scope
from nommerd.api.catalog import DOCUMENTS_MAX, TOTAL_MAX
from nommerd.catalog import Catalog, overlay
from nommerd.catalog.linking import Linker
from nommerd.errors import InputError
from nommerd.pipeline.allowed import VALUES_MAX
from nommerd.pipeline.recipe import Recipe, StageSpec, build_stages
from nommerd.store.base import Conflict, Document
from nommerd.store.memory import MemoryStore
from tests.unit.api.calls import Answer, Api, Stamp

PRESET = """\
# for previews
kind: preset
name: ours
description: "Small: previews."
pipeline: copy
params: {width: 320}
"""
PIPELINE = """\
kind: pipeline
name: cut
description: Ten seconds.
params:
  seconds: {type: integer, default: 10, min: 1}
  vf: {type: string, default: fps=25}
stages:
  - fetch
  - ffmpeg: {options: [[c:v, libx264], [t, $seconds], [vf, $vf], [f, mp4]]}
  - upload
"""
YAML = "application/yaml"


def put(api: Api, path: str, body: str | dict[str, Any] | bytes, kind: str = YAML, **environ: str) -> Answer:
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return api.call("PUT", f"/v1/{path}", raw, CONTENT_TYPE=kind, **environ)


def stored(api: Api, path: str, body: str | dict[str, Any]) -> str:
    answer = put(api, path, body, "application/json" if isinstance(body, dict) else YAML)
    assert answer.status in (200, 201), answer.json
    return answer.headers["etag"]


def listed(api: Api, kind: str) -> dict[str, dict[str, Any]]:
    answer = api.call("GET", f"/v1/{kind}")
    assert answer.status == 200
    return {one["name"]: one for one in answer.json[kind]}


def recipe(api: Api, **more: Any) -> Recipe:
    answer = api.submit(**more)
    assert answer.status == 201, answer.json
    return Recipe.decode(api.store.get_recipe(answer.json["recipe"]))


def token(api: Api, *scopes: Scope, project: str = "default") -> str:
    made = api.call("POST", "/v1/tokens", {"name": "t", "scopes": list(scopes), "project": project})
    assert made.status == 201, made.json
    return str(made.json["token"])


def read_again(api: Api, presets: Path) -> None:
    """As a feeder would that starts on these directories."""
    api.catalogs.__init__(api.store, Catalog([api.root / "pipelines"], [presets], api.catalog.stages))  # type: ignore[misc]


# --- what is stored ----------------------------------------------------------------------------------------------


def test_yaml_comes_back_as_it_was_written_and_as_json_and_the_preset_works_by_name(api: Api) -> None:
    made = put(api, "presets/ours", PRESET)
    assert (made.status, made.headers["location"]) == (201, "/v1/presets/ours")
    assert made.json == {"name": "ours", "description": "Small: previews.", "pipeline": "copy", "params": {"width": 320},
                         "origin": "api", "version": 1, "etag": made.headers["etag"], "errors": []}
    as_yaml = api.call("GET", "/v1/presets/ours", HTTP_ACCEPT="text/html, application/yaml;q=0.9, application/json;q=0.5")
    assert (as_yaml.body.decode(), as_yaml.headers["content-type"]) == (PRESET, "application/yaml; charset=utf-8")
    as_json = api.call("GET", "/v1/presets/ours")
    assert as_json.json == {"kind": "preset", "name": "ours", "description": "Small: previews.", "pipeline": "copy",
                            "params": {"width": 320}}
    assert as_yaml.headers["etag"] == as_json.headers["etag"] == made.headers["etag"]
    assert recipe(api, pipeline=None, preset="ours").params == {"width": 320}


def test_json_comes_back_as_the_same_json_and_as_yaml_that_says_the_same(api: Api) -> None:
    odd = {"kind": "pipeline", "name": "odd", "description": "no, 1:30, 017, 0o17, 1e3 and \U0001f600: all text",
           "stages": ["fetch", {"ffmpeg": {"options": [["metadata", "a=1e3"], ["metadata", "b=c"], ["f", "mp4"]]}}, "upload"]}
    stored(api, "pipelines/odd", odd)
    assert api.call("GET", "/v1/pipelines/odd").json == odd
    text = api.call("GET", "/v1/pipelines/odd", HTTP_ACCEPT=YAML).body.decode()
    assert text.startswith("kind: pipeline\nname: odd\n")
    stored(api, "pipelines/odd", text)
    assert api.call("GET", "/v1/pipelines/odd").json == odd


@pytest.mark.parametrize("kind", ["application/yaml", "text/yaml", "text/x-yaml", "application/x-yaml; charset=utf-8", "",
                                  "application/x-www-form-urlencoded"])
def test_whatever_is_not_called_json_is_read_as_yaml(api: Api, kind: str) -> None:
    assert put(api, "presets/ours", PRESET, kind).status == 201


def test_lists_show_where_each_comes_from(api: Api) -> None:
    stored(api, "presets/ours", PRESET)
    stored(api, "pipelines/cut", PIPELINE)
    presets, pipelines = listed(api, "presets"), listed(api, "pipelines")
    assert (presets["ours"]["origin"], presets["web-720p"]["origin"]) == ("api", "shipped")
    assert [pipelines[name]["origin"] for name in ("copy", "cut", "web-mp4")] == ["disk", "api", "shipped"]
    assert pipelines["cut"]["params"]["seconds"] | {"choices": []} == {
        "type": "integer", "description": "", "default": 10, "required": False, "min": 1, "max": None, "choices": []}
    assert presets["web-720p"]["version"] is None
    assert api.call("GET", "/v1/presets/web-720p", HTTP_ACCEPT=YAML).body.decode() == \
        (Path(__file__).parents[3] / "conf/presets/web-720p.yaml").read_text()


def test_a_change_is_used_at_once_and_versions_rise_only_with_changes(api: Api) -> None:
    first = stored(api, "presets/ours", PRESET)
    before = recipe(api, pipeline=None, preset="ours")
    assert stored(api, "presets/ours", PRESET) == first
    changed = put(api, "presets/ours", PRESET.replace("320", "160"))
    assert (changed.status, changed.json["version"]) == (200, 2)
    assert changed.headers["etag"] != first
    assert recipe(api, pipeline=None, preset="ours", dest=(api.media / "b.mp4").as_uri()).params == {"width": 160}
    assert before.params == {"width": 320}


def test_a_preset_may_extend_one_on_disk_and_one_of_its_own(api: Api) -> None:
    stored(api, "presets/ours", PRESET)
    stored(api, "presets/tiny", "kind: preset\nname: tiny\nextends: ours\nparams: {width: 16}\n")
    stored(api, "presets/web", {"kind": "preset", "name": "web", "extends": "web-720p", "params": {"video_bitrate": "1M"}})
    assert recipe(api, pipeline=None, preset="tiny").params == {"width": 16}
    assert recipe(api, pipeline=None, preset="web", dest=(api.media / "b.mp4").as_uri()).params["height"] == 720


# --- conditions --------------------------------------------------------------------------------------------------


def test_if_match_lets_through_only_who_knows_the_state(api: Api) -> None:
    etag = stored(api, "presets/ours", PRESET)
    newer = put(api, "presets/ours", PRESET.replace("320", "64"), HTTP_IF_MATCH=f'"x", {etag}').headers["etag"]
    late = put(api, "presets/ours", PRESET.replace("320", "48"), HTTP_IF_MATCH=etag)
    assert (late.status, late.codes, late.places) == (412, ["request.precondition_failed"], ["header.If-Match"])
    assert newer in late.json["detail"]
    assert api.call("DELETE", "/v1/presets/ours", HTTP_IF_MATCH=etag).status == 412
    assert put(api, "presets/none", PRESET.replace("ours", "none"), HTTP_IF_MATCH="*").status == 412
    assert put(api, "presets/ours", PRESET, HTTP_IF_MATCH="nonsense").codes == ["request.bad_header"]
    assert listed(api, "presets")["ours"]["params"] == {"width": 64}
    assert api.call("DELETE", "/v1/presets/ours", HTTP_IF_MATCH=newer).status == 204


def test_if_none_match_makes_only_what_is_new_and_spares_a_client_what_it_has(api: Api) -> None:
    assert put(api, "presets/ours", PRESET, HTTP_IF_NONE_MATCH="*").status == 201
    again = put(api, "presets/ours", PRESET, HTTP_IF_NONE_MATCH="*")
    assert (again.status, again.places) == (412, ["header.If-None-Match"])
    etag = api.call("GET", "/v1/presets/ours").headers["etag"]
    same = api.call("GET", "/v1/presets/ours", HTTP_IF_NONE_MATCH=f"W/{etag}")
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
    assert api.call("GET", "/v1/presets/ours", HTTP_IF_NONE_MATCH='"other"').status == 200


def test_a_change_through_another_feeder_meanwhile_is_no_ones_loss(api: Api) -> None:
    """The store is changed between this feeder's look and its write."""
    class Racing(MemoryStore):
        races = 0

        def put_document(self, document: Document, expected_version: int | None) -> None:
            if self.races:
                self.races -= 1
                super().put_document(Document(kind="preset", scope="default", name="ours", version=document.version,
                                              body=PRESET.replace("320", f"{100 + self.races}")), None)
            super().put_document(document, expected_version)

    store = Racing()
    (api.root / "racing").mkdir()
    api = Api(api.root / "racing", store=store)
    etag = stored(api, "presets/ours", PRESET)
    store.races = 1
    assert put(api, "presets/ours", PRESET.replace("320", "64"), HTTP_IF_MATCH=etag).status == 412
    assert listed(api, "presets")["ours"]["params"] == {"width": 100}
    store.races = 2
    last = put(api, "presets/ours", PRESET.replace("320", "64"))
    assert (last.status, last.json["params"], last.json["version"]) == (200, {"width": 64}, 5)
    store.races = 99
    beaten = put(api, "presets/ours", PRESET.replace("320", "32"))
    assert (beaten.status, "retry-after" in beaten.headers) == (503, True)  # it set no condition that could have failed
    store.races = 0
    with pytest.raises(Conflict):
        store.put_document(Document(kind="preset", scope="default", name="ours", body=PRESET), 1)


def test_a_dry_run_checks_and_changes_nothing(api: Api) -> None:
    tried = put(api, "presets/ours", PRESET, QUERY_STRING="dry_run=true")
    assert (tried.status, tried.json["params"]) == (200, {"width": 320})
    assert "ours" not in listed(api, "presets")
    assert put(api, "presets/ours", PRESET.replace("width", "widht"), QUERY_STRING="dry_run=true").status == 422
    stored(api, "presets/ours", PRESET)
    assert api.call("DELETE", "/v1/presets/ours", query="dry_run=true").status == 204
    assert "ours" in listed(api, "presets")
    assert put(api, "presets/ours", PRESET, QUERY_STRING="dry=1").codes == ["request.unknown_field"]


# --- what depends on others --------------------------------------------------------------------------------------


def test_what_is_on_disk_cannot_be_replaced_or_deleted(api: Api) -> None:
    for path, body in (("presets/web-720p", PRESET.replace("ours", "web-720p")), ("pipelines/copy", PIPELINE)):
        assert (put(api, path, body).status, put(api, path, body).codes) == (409, ["recipe.on_disk"])
        assert api.call("DELETE", f"/v1/{path}").status == 409


def test_what_another_extends_or_names_is_not_deleted(api: Api) -> None:
    stored(api, "pipelines/cut", PIPELINE)
    stored(api, "presets/base", "kind: preset\nname: base\npipeline: cut\n")
    stored(api, "presets/short", "kind: preset\nname: short\nextends: base\nparams: {seconds: 2}\n")
    for path, user in (("pipelines/cut", "base"), ("presets/base", "short")):
        refused = api.call("DELETE", f"/v1/{path}")
        assert (refused.status, refused.codes) == (409, ["recipe.in_use"])
        assert user in refused.json["detail"]
    for path in ("presets/short", "presets/base", "pipelines/cut"):
        assert api.call("DELETE", f"/v1/{path}").status == 204
    assert api.call("DELETE", "/v1/pipelines/cut").codes == ["recipe.unknown_pipeline"]


def test_a_pipeline_is_not_changed_so_that_a_preset_no_longer_fits(api: Api) -> None:
    stored(api, "pipelines/cut", PIPELINE)
    for name, seconds in (("one", 2), ("two", 20)):
        stored(api, f"presets/{name}", f"kind: preset\nname: {name}\npipeline: cut\nparams: {{seconds: {seconds}}}\n")
    refused = put(api, "pipelines/cut", PIPELINE.replace("min: 1", "min: 5"))
    assert (refused.status, refused.codes) == (409, ["recipe.in_use"])
    assert "preset one" in refused.json["detail"]
    gone = put(api, "pipelines/cut", PIPELINE.replace("  seconds: {type: integer, default: 10, min: 1}\n", "")
               .replace("$seconds", "3"))
    assert gone.codes == ["recipe.in_use"] * 2
    assert put(api, "presets/one", "kind: preset\nname: one\npipeline: cut\nparams: {seconds: 9}\n").status == 200
    assert put(api, "pipelines/cut", PIPELINE.replace("min: 1", "min: 5")).status == 200


def test_a_document_that_became_invalid_is_listed_with_its_error_and_takes_no_other_down(api: Api) -> None:
    stored(api, "presets/ours", PRESET)
    for name, body in (("old", "kind: preset\nname: old\npipeline: gone\n"), ("bits", "kind: preset\nname: ["),
                       ("child", "kind: preset\nname: child\nextends: old\n")):
        api.store.put_document(Document(kind="preset", scope="default", name=name, body=body), 0)
    api.store.put_document(Document(kind="pipeline", scope="default", name="bad", body=PIPELINE.replace("cut", "bad").replace(
        "[f, mp4]", "[f, tee]")), 0)
    presets = listed(api, "presets")
    assert presets["ours"]["errors"] == []
    [error] = presets["old"]["errors"]
    assert (error["place"], error["code"]) == ("presets/old:3:11", "recipe.unknown_pipeline")
    assert presets["child"]["errors"] != []
    assert presets["bits"]["errors"][0]["code"] == "recipe.bad_yaml"
    assert presets["bits"]["pipeline"] is None
    assert listed(api, "pipelines")["bad"]["errors"][0]["code"] == "recipe.forbidden_option"
    assert api.call("GET", "/v1/presets/bits", HTTP_ACCEPT=YAML).body == b"kind: preset\nname: ["
    assert api.call("GET", "/v1/presets/bits").status == 422
    named = api.submit(pipeline=None, preset="old")
    assert (named.status, named.codes) == (422, ["recipe.unknown_pipeline"])
    assert api.submit(pipeline="bad").status == 422
    assert api.submit(pipeline=None, preset="ours").status == 201
    assert put(api, "presets/new", PRESET.replace("ours", "new")).status == 201
    assert api.call("DELETE", "/v1/presets/bits").status == 204


def test_a_project_keeps_a_bounded_number_of_bounded_documents(api: Api) -> None:
    assert put(api, "presets/ours", PRESET + "#" * 65_536).status == 413
    big = {"kind": "preset", "name": "ours", "description": "x" * 70_000}
    assert put(api, "presets/ours", big, "application/json").status == 413
    for number in range(DOCUMENTS_MAX):
        name = f"p{number}"
        api.store.put_document(Document(kind="preset", scope="default", name=name, body=PRESET.replace("ours", name)), 0)
    full = put(api, "presets/ours", PRESET)
    assert (full.status, full.codes) == (409, ["request.too_many_documents"])
    assert put(api, "presets/p1", PRESET.replace("ours", "p1").replace("320", "32")).status == 200


def test_a_projects_documents_are_bounded_together(api: Api) -> None:
    for number in range(TOTAL_MAX // 65_000):
        body = PRESET.replace("ours", f"p{number}")
        api.store.put_document(Document(kind="preset", scope="default", name=f"p{number}",
                                        body=body + "#" * (65_000 - len(body))), 0)
    assert put(api, "presets/ours", PRESET + "#" * 60_000).codes == ["request.too_many_documents"]


# --- what is refused, and where it says so -----------------------------------------------------------------------


@pytest.mark.parametrize(("body", "code", "place", "words"), [
    (PRESET.replace("copy", "cpoy"), "unknown_pipeline", "body:5:11", "Did you mean copy?"),
    (PRESET.replace("width", "widht"), "unknown_param", "body:6:10", "Did you mean width?"),
    (PRESET.replace("320", "wide"), "bad_param", "body:6:17", "expected a whole number"),
    (PRESET.replace("pipeline", "pipelin"), "unknown_key", "body:5:1", "Did you mean pipeline?"),
    (PRESET.replace("name: ours", "name: other"), "bad_name", "body:3:7", "Write name: ours."),
    (PRESET.replace("kind: preset", "kind: pipeline"), "bad_setting", "body:2:7", "expected preset"),
    (PRESET.replace('"Small: previews."', "Small: previews."), "bad_yaml", "body:4:19", "Quote a value that holds a colon"),
    (PRESET.replace("{width", "\t{width").replace("params:", "params:\n"), "bad_yaml", "body:7:2", "spaces"),
    (PRESET.replace("copy", "*a"), "bad_yaml", "body:5:11", "alias"),
    (PRESET.replace("copy", "&a copy"), "bad_yaml", "body:5:11", "anchor"),
    (PRESET.replace("{width", "{<<: {}, width"), "bad_yaml", "body:6:10", "merge key"),
    (PRESET.replace("copy", "!!str copy"), "bad_yaml", "body:5:11", "tag"),
    (PRESET.replace("320", "!!python/object/apply:os.system [x]"), "bad_yaml", "body:6:17", "tag"),
    (PRESET.replace("320", "9" * 400), "bad_yaml", "body:6:17", "out of range"),
    (PRESET.replace("320", ".inf"), "bad_yaml", "body:6:17", "not a number"),
    (PRESET + "name: ours\n", "bad_yaml", "body:7:1", "a second time"),
    (PRESET + "---\nkind: preset\n", "bad_yaml", "body:7:1", "second document"),
    (PRESET.replace("320", "[" * 70 + "]" * 70), "bad_yaml", "body:6:79", "Nested more than 64 deep"),
    ("[" * 900, "bad_yaml", "body:1:65", "Nested more than 64 deep"),  # far more: where the parser says so itself
    (PRESET.replace("previews", "\\e[31m"), "bad_yaml", "body:4:14", "control character"),
    (PRESET.replace("previews", "\\x9b31m"), "bad_yaml", "body:4:14", "control character"),
    ("", "bad_yaml", "body:1:1", "empty"),
    ("just text", "wrong_type", "body:1:1", "a mapping"),
])
def test_a_broken_yaml_is_answered_with_line_column_and_the_likely_slip(api: Api, body: str, code: str, place: str,
                                                                        words: str) -> None:
    answer = put(api, "presets/ours", body)
    assert answer.status == 422, answer.body
    first = answer.json["errors"][0]
    assert (first["code"], first["place"]) == (f"recipe.{code}", place)
    assert words in f"{first['message']} {first['hint']}"
    assert "ours" not in listed(api, "presets")


def test_a_merge_bomb_is_refused_at_once(api: Api) -> None:
    bomb = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
    answer = put(api, "presets/ours", bomb)
    assert (answer.status, answer.json["errors"][0]["place"]) == (422, "body:1:5")


def test_what_yaml_1_1_would_take_for_something_else_stays_text(api: Api) -> None:
    for word in ("no", "1:30", "017", "2026-01-31", "on", "12:30:45"):
        stored(api, "pipelines/words", PIPELINE.replace("cut", "words").replace("Ten seconds.", word))
        assert api.call("GET", "/v1/pipelines/words").json["description"] == word


def test_every_fault_of_a_document_is_told_in_one_answer(api: Api) -> None:
    answer = put(api, "pipelines/cut", PIPELINE.replace("fetch", "fech").replace("description: T", "descripton: T"))
    assert answer.status == 422
    assert [(error["place"], error["hint"]) for error in answer.json["errors"]] == [
        ("body:3:1", "Did you mean description?"), ("body:8:5", "Did you mean fetch?")]


@pytest.mark.parametrize(("body", "status", "code", "place"), [
    (b'{"kind": "preset", "kind": "preset"}', 400, "request.bad_json", "body"),
    (b'{"kind": "preset", "name": "ours", "pipeline": "copy", "params": {"width": NaN}}', 400, "request.bad_json", "body"),
    (b'{"kind": "preset", ', 400, "request.bad_json", "body"),
    (b"[]", 400, "request.bad_body", "body"),
    (b'{"kind": "preset", "name": "ours", "pipeline": "copy", "params": {"width": true}}', 422, "recipe.bad_param",
     "body.params.width"),
    (b'{"kind": "preset", "name": "ours", "pipelin": "copy"}', 422, "recipe.unknown_key", "body.pipelin"),
    (b'{"kind": "preset", "name": "ours", "pipeline": "copy", "description": "\\u0007"}', 422, "recipe.bad_value",
     "body.description"),
    (b"\xff\xfe", 400, "request.bad_json", "body"),
])
def test_a_fault_in_json_is_told_with_its_path(api: Api, body: bytes, status: int, code: str, place: str) -> None:
    answer = put(api, "presets/ours", body, "application/json")
    assert (answer.status, answer.codes[0], answer.places[0]) == (status, code, place)


@pytest.mark.parametrize("name", ["Bad", "a b", ".x", "x" * 65, "\u00c3\u00a9", "<script>", "-x"])
def test_a_name_that_cannot_be_one_is_refused(api: Api, name: str) -> None:
    answer = put(api, f"presets/{name}", PRESET)
    assert (answer.status, answer.codes, answer.places) == (422, ["recipe.bad_name"], ["path.name"])
    assert api.call("GET", f"/v1/presets/{name}").status == 404
    assert api.call("DELETE", f"/v1/presets/{name}").status == 404


def test_an_unknown_name_is_answered_with_the_one_that_was_meant(api: Api) -> None:
    stored(api, "presets/ours", PRESET)
    answer = api.call("GET", "/v1/presets/uors")
    assert (answer.status, answer.codes) == (404, ["recipe.unknown_preset"])
    assert answer.json["errors"][0]["hint"] == "Did you mean ours?"


# --- trust -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after", "code", "place"), [
    ("[f, mp4]", "[f, tee]", "forbidden_option", "body:9:66"),
    ("[f, mp4]", "[vf, movie=/etc/passwd]", "forbidden_option", "body:9:66"),
    ("default: fps=25", "default: movie=/etc/passwd", "forbidden_option", "body:9:55"),
    ("- upload", "- upload: {acl: public-read}", "forbidden_option", "body:10:14"),
    ("- fetch", "- fetch\n  - stamp: {width: 2}", "forbidden_stage", "body:9:5"),
    ("stages:", "inputs: {logo: {type: image, default: \"file:///etc/passwd\"}}\nstages:", "forbidden_option", "body:7:30"),
])
def test_a_pipeline_from_the_api_passes_the_allowlist_when_it_is_stored(api: Api, before: str, after: str, code: str,
                                                                       place: str) -> None:
    answer = put(api, "pipelines/cut", PIPELINE.replace(before, after))
    assert answer.status == 422
    assert (answer.codes[0], answer.places[0]) == (f"recipe.{code}", place)


def test_its_recipe_says_whence_it_came_so_that_the_worker_checks_it_again(api: Api) -> None:
    stored(api, "pipelines/cut", PIPELINE)
    assert {stage.origin for stage in recipe(api, pipeline="cut").stages} == {"api"}
    refused = api.submit(pipeline="cut", params={"vf": "movie=/etc/passwd"})
    assert (refused.status, refused.codes) == (422, ["recipe.forbidden_option"])


@pytest.mark.parametrize(("stage", "code"), [
    (StageSpec(name="stamp", id="stamp", origin="api"), "recipe.forbidden_stage"),
    (StageSpec(name="upload", id="upload", origin="api", settings={"acl": "public-read"}), "recipe.forbidden_option"),
    (StageSpec(name="ffmpeg", id="ffmpeg", origin="api", settings={"options": [["f", "tee"]]}), "recipe.forbidden_option"),
])
def test_a_worker_refuses_what_the_feeder_would_not_have_stored(api: Api, stage: StageSpec, code: str) -> None:
    stages = api.catalog.stages
    with pytest.raises(InputError) as caught:
        build_stages(Recipe(pipeline="x", stages=(stage,)), stages)
    assert caught.value.code == code
    if code == "recipe.forbidden_stage":
        class Open(Stamp):
            from_api = True

        assert build_stages(Recipe(pipeline="x", stages=(stage,)), {**stages, "stamp": Open})


def test_params_of_a_preset_from_the_api_are_trusted_no_more_than_a_jobs(api: Api) -> None:
    flags = PIPELINE.replace("cut", "flags").replace("fps=25", "movie=/srv/logo.png")
    (api.root / "pipelines" / "flags.yaml").write_text(flags)
    presets = api.root / "presets"
    presets.mkdir()
    (presets / "disk.yaml").write_text("kind: preset\nname: disk\npipeline: flags\nparams: {vf: movie=/srv/other.png}\n")
    read_again(api, presets)
    assert recipe(api, pipeline=None, preset="disk").stages[1].untrusted == ()
    for name, base in (("mine", "pipeline: flags"), ("theirs", "extends: disk")):
        stored(api, f"presets/{name}", f"kind: preset\nname: {name}\n{base}\nparams: {{vf: movie=/etc/passwd}}\n")
        refused = api.submit(pipeline=None, preset=name)
        assert (refused.status, refused.codes) == (422, ["recipe.forbidden_option"]), name
    stored(api, "presets/fits", "kind: preset\nname: fits\nextends: disk\nparams: {vf: fps=10}\n")
    assert recipe(api, pipeline=None, preset="fits").stages[1].untrusted == ("options[2]",)
    stored(api, "presets/heir", "kind: preset\nname: heir\nextends: disk\nparams: {seconds: 2}\n")
    assert recipe(api, pipeline=None, preset="heir").stages[1].untrusted == ()


def test_a_pipeline_from_the_api_holds_so_many_values_and_no_more(api: Api) -> None:
    options = "".join(f", [metadata, a{number}=b]" for number in range(VALUES_MAX // 3))
    answer = put(api, "pipelines/cut", PIPELINE.replace(", [f, mp4]", options + ", [f, mp4]"))
    assert (answer.status, answer.codes) == (422, ["recipe.too_large"])


def test_pipelines_that_many_presets_name_are_short_and_none_is_tried_first(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(api, "pipelines/cut", PIPELINE)
    stored(api, "presets/base", "kind: preset\nname: base\npipeline: cut\n")
    stored(api, "presets/heir", "kind: preset\nname: heir\nextends: base\n")
    assert listed(api, "presets")["heir"]["pipeline"] == "cut"
    monkeypatch.setattr(overlay, "NAMED_BYTES_MAX", 2 * len(PIPELINE) + 100)
    monkeypatch.setattr(Linker, "link", lambda *_: pytest.fail("this takes long"))
    for path, text in (("pipelines/cut", PIPELINE + "#" * 100), ("presets/more", "kind: preset\nname: more\nextends: heir\n")):
        answer = put(api, path, text)
        assert (answer.status, answer.codes) == (409, ["request.too_many_documents"]), path
    monkeypatch.undo()
    stored(api, "pipelines/cut", PIPELINE + "#" * 100)


def test_projects_neither_see_nor_name_each_others(api: Api) -> None:
    stored(api, "presets/ours", PRESET)
    theirs = token(api, Scope.ADMIN, project="theirs")
    assert "ours" not in {one["name"] for one in api.call("GET", "/v1/presets", token=theirs).json["presets"]}
    for method, status in (("GET", 404), ("DELETE", 404)):
        assert api.call(method, "/v1/presets/ours", token=theirs).status == status
    named = api.call("POST", "/v1/jobs", api.body(pipeline=None, preset="ours"), token=theirs)
    assert named.codes == ["recipe.unknown_preset"]
    own = api.call("PUT", "/v1/presets/ours", PRESET.replace("320", "64").encode(), token=theirs, CONTENT_TYPE=YAML)
    assert own.status == 201
    assert listed(api, "presets")["ours"]["params"] == {"width": 320}


def test_reading_needs_the_scope_read_and_changing_admin(api: Api) -> None:
    reader, submitter = token(api, Scope.READ), token(api, Scope.SUBMIT, Scope.OPERATE)
    assert api.call("GET", "/v1/presets", token=reader).status == 200
    assert api.call("GET", "/v1/presets/web-720p", token=submitter).status == 403
    for method in ("PUT", "DELETE"):
        assert api.call(method, "/v1/pipelines/cut", PIPELINE.encode(), token=reader).status == 403
