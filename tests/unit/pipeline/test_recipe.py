"""Recipes: params go in, a canonical document comes out, and stages are built from it."""

import json
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nommerd.errors import ConfigError, InfrastructureError, InputError, ManyErrors
from nommerd.job import JobState
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.recipe import SCHEMA_VERSION, Recipe, StageSpec, UnknownSchema, build_stages, make_recipe
from nommerd.pipeline.spec import Pipeline, read_pipeline
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages import STAGES
from nommerd.pipeline.stages.ffmpeg import Ffmpeg
from nommerd.pipeline.tree import Faults

WEB = """\
    kind: pipeline
    name: web
    params:
      width: {type: integer, default: 1280, min: 16, max: 99999}
      rate: {type: bitrate, default: 2500k}
    stages:
      - fetch
      - ffmpeg: {video: {codec: h264, bitrate: $rate, width: $width}, output: {container: mp4}}
      - upload
      - notify
    """
RAW = """\
    kind: pipeline
    name: raw
    params:
      rate: {type: bitrate, default: 2500k}
      filter: {type: string, default: "movie=/etc/logo.png[l];[in][l]overlay"}
      title: {type: string, default: none}
    stages:
      - fetch
      - ffmpeg: {pass: 1, options: [[c:v, libx264], [b:v, $rate], [vf, "scale=-2:720,$filter"]]}
      - ffmpeg: {pass: 2, options: [[c:v, libx264], [b:v, $rate], [metadata, "title=$title"], [f, mp4]]}
      - upload
    """


class Custom(Stage):
    name = "custom"

    def run(self, context):
        raise NotImplementedError


def pipeline(text: str, origin="disk", registry=STAGES) -> Pipeline:
    faults = Faults()
    found = read_pipeline(load_yaml(textwrap.dedent(text), "p.yaml"), registry, origin, faults)
    faults.check()
    assert found is not None
    return found


def recipe(stages: str, **params) -> Recipe:
    registry = {**STAGES, "custom": Custom}
    return make_recipe(pipeline(f"kind: pipeline\nname: p\nstages: {stages}\n", registry=registry), params, registry)


def test_params_go_into_the_settings_and_a_whole_value_keeps_its_type():
    made = make_recipe(pipeline(WEB), {"width": 640}, STAGES)
    assert made.params == {"width": 640, "rate": "2500k"}
    assert made.stages[1].settings == {"video": {"codec": "h264", "bitrate": "2500k", "width": 640},
    "output": {"container": "mp4"}}


def test_the_document_is_canonical_and_its_hash_names_it():
    made = make_recipe(pipeline(WEB), {"width": 640, "rate": "5M"}, STAGES)
    same = make_recipe(pipeline(WEB), {"rate": "5M", "width": 640}, STAGES)
    other = make_recipe(pipeline(WEB), {"rate": "5M", "width": 641}, STAGES)
    assert made.document == same.document
    assert made.hash == same.hash != other.hash
    assert made.document == json.dumps(json.loads(made.document), sort_keys=True, separators=(",", ":"))
    assert json.loads(made.document)["schema_version"] == SCHEMA_VERSION
    assert len(made.hash) == 64


@pytest.mark.parametrize("text", [WEB, RAW])
def test_a_recipe_decodes_to_itself(text):
    made = make_recipe(pipeline(text), {}, STAGES)
    again = Recipe.decode(made.document)
    assert again == made
    assert again.hash == made.hash
    assert Recipe.decode(made.document.encode()) == made


def test_a_recipe_of_a_newer_schema_is_an_error_of_its_own_that_gives_the_work_back():
    body = {**json.loads(make_recipe(pipeline(WEB), {}, STAGES).document), "schema_version": SCHEMA_VERSION + 1, "surprise": 1}
    with pytest.raises(UnknownSchema) as caught:
        Recipe.decode(json.dumps(body))
    assert caught.value.retryable


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.binary(max_size=30) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(
        st.sampled_from(["schema_version", "stages", "pipeline", "inputs", "params", "x"]), x, max_size=5)).map(json.dumps))
def test_bytes_that_are_no_recipe_are_one_clean_error(document):
    with pytest.raises(InfrastructureError):
        Recipe.decode(document)


@pytest.mark.parametrize(("params", "place", "words"), [
    ({"width": True}, "params.width", "expected a whole number, got true"),
    ({"width": "640"}, "params.width", "expected a whole number, got the text '640'"),
    ({"width": 15}, "params.width", "at least 16"),
    ({"widht": 640}, "params.widht", "Did you mean width?"),
    ({"rate": "fast"}, "params.rate", "such as 2500k"),
    ({"width": 20_000}, "params.width", "With these params, stages[1].ffmpeg.video.width"),
    ({"width": None}, "params.width", "expected a whole number"),
])
def test_a_param_that_does_not_fit_is_the_callers_fault_and_named(params, place, words):
    with pytest.raises(InputError) as caught:
        make_recipe(pipeline(WEB), params, STAGES)
    assert caught.value.place == place
    assert words in str(caught.value)


def test_all_wrong_params_are_told_at_once():
    with pytest.raises(ManyErrors) as caught:
        make_recipe(pipeline(WEB), {"width": "x", "rate": True, "q": 1}, STAGES)
    assert [error.place for error in caught.value.errors] == ["params.width", "params.rate", "params.q"]


def test_a_required_param_must_be_given():
    text = WEB.replace("default: 2500k", "required: true")
    with pytest.raises(InputError) as caught:
        make_recipe(pipeline(text), {}, STAGES)
    assert (caught.value.code, caught.value.place) == ("recipe.missing_param", "params.rate")
    assert make_recipe(pipeline(text), {"rate": "1M"}, STAGES).params["rate"] == "1M"


# --- what the API asks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stages", "count"), [
    ("[fetch, ffmpeg: {video: {}}, upload]", 1),
    ("[fetch, ffmpeg: {video: {}}, faststart, verify, upload, notify]", 1),
    ("[fetch, ffmpeg: {video: {}}, ffmpeg: {audio: {}}, upload]", 2),
    ("[fetch, ffmpeg: {video: {}}, ffmpeg: {input: ffmpeg, video: {}}, upload]", 1),
    ("[fetch, ffmpeg: {video: {}}, upload, ffmpeg: {input: ffmpeg, video: {}}, upload]", 2),
    ("[fetch, ffmpeg: {options: [], pass: 1}, ffmpeg: {options: [[f, mp4]], pass: 2}, upload]", 1),
    ("[fetch, ffmpeg: {video: {}}, custom, upload]", None),
])
def test_the_number_of_outputs_follows_from_what_later_stages_consume(stages, count):
    made = recipe(stages)
    assert made.outputs_count == count
    assert made.needs_folder == (count is not None and count > 1)


@pytest.mark.parametrize(("stages", "notifies", "states"), [
    ("[fetch, ffmpeg: {video: {}}, upload]", False, ()),
    ("[fetch, ffmpeg: {video: {}}, upload, notify]", True, None),
    ("[fetch, ffmpeg: {video: {}}, upload, notify: {states: [FINISHED, ERROR]}]", True, (JobState.FINISHED, JobState.ERROR)),
])
def test_it_tells_whether_and_which_states_are_posted(stages, notifies, states):
    made = Recipe.decode(recipe(stages).document)
    assert (made.notifies, made.notify_states) == (notifies, states)


INPUTS = """\
    kind: pipeline
    name: p
    inputs:
      logo: {type: image, default: "file:///etc/nommerd/logo.png"}
      captions: {type: captions, many: true, required: false}
      intro: {type: media}
    stages: [fetch, ffmpeg: {video: {}}, upload]
    """


def test_inputs_are_completed_with_defaults():
    made = Recipe.decode(make_recipe(pipeline(INPUTS), {}, STAGES).document)
    intro = [{"uri": "https://example.org/i.mp4"}]
    assert made.complete_inputs({"intro": intro}) == {"logo": [{"uri": "file:///etc/nommerd/logo.png"}], "intro": intro}
    captions = [{"uri": "https://example.org/en.vtt", "language": "en"},
    {"uri": "https://example.org/de.vtt", "language": "de"}]
    assert made.complete_inputs({"intro": intro, "captions": captions})["captions"] == captions


@pytest.mark.parametrize(("given_inputs", "code"), [
    ({}, "recipe.missing_input"), ({"intro": [{"uri": "a"}], "intrp": []}, "recipe.unknown_input"),
    ({"intro": [{"uri": "a"}, {"uri": "b"}]}, "recipe.bad_input"),
])
def test_inputs_that_do_not_fit_are_refused(given_inputs, code):
    with pytest.raises(InputError) as caught:
        make_recipe(pipeline(INPUTS), {}, STAGES).complete_inputs(given_inputs)
    assert caught.value.code == code


def test_a_default_input_with_credentials_is_refused_since_recipes_are_stored_in_clear():
    with pytest.raises(ConfigError) as caught:
        pipeline(INPUTS.replace("file:///etc/nommerd/logo.png", "https://user:hunter2@example.org/logo.png"))
    assert caught.value.place == "p.yaml:4:32"
    assert "hunter2" not in str(caught.value)


# --- stages ------------------------------------------------------------------------------------------------------


def test_stages_are_built_with_their_settings_and_a_run_of_passes_is_one():
    built = build_stages(make_recipe(pipeline(RAW), {}, STAGES), STAGES)
    assert [(stage.name, stage.id) for stage in built] == [("fetch", "fetch"), ("ffmpeg", "ffmpeg"), ("upload", "upload")]
    assert isinstance(built[1], Ffmpeg)
    assert [one.pass_ for one in built[1].passes] == [1, 2]
    assert built[1].passes[1].options[2] == ("metadata", "title=none")


def test_stages_are_made_anew_each_time():
    made = make_recipe(pipeline(WEB), {}, STAGES)
    assert build_stages(made, STAGES)[1] is not build_stages(made, STAGES)[1]


def test_a_stage_this_worker_does_not_know_is_the_operators_fault():
    with pytest.raises(ConfigError) as caught:
        build_stages(recipe("[custom]"), STAGES)
    assert caught.value.code == "recipe.unknown_stage"


def test_settings_a_stage_does_not_take_are_told_with_their_path():
    made = Recipe(pipeline="p", stages=(StageSpec(name="ffmpeg", id="small", settings={"video": {"widht": 3}}),))
    with pytest.raises(InputError) as caught:
        build_stages(made, STAGES)
    assert caught.value.place == "small.video.widht"


def test_options_from_the_api_are_held_to_the_allowlist_on_the_worker_and_those_from_disk_are_not():
    made = make_recipe(pipeline(RAW), {}, STAGES)
    build_stages(made, STAGES)
    theirs = replace(made, stages=tuple(replace(stage, origin="api") for stage in made.stages))
    with pytest.raises(InputError) as caught:
        build_stages(theirs, STAGES)
    assert caught.value.code == "recipe.forbidden_option"


def test_a_pipeline_from_the_api_is_held_to_the_allowlist_when_a_job_names_it():
    with pytest.raises(InputError) as caught:
        make_recipe(pipeline(RAW, origin="api"), {}, STAGES)
    assert caught.value.code == "recipe.forbidden_option"


def test_a_text_from_a_job_cannot_smuggle_a_filter_into_the_operators_options():
    hostile = {"filter": "movie=/etc/passwd,scale=1:1"}
    with pytest.raises(InputError) as caught:
        make_recipe(pipeline(RAW), hostile, STAGES)
    assert caught.value.code == "recipe.forbidden_option"
    own = make_recipe(pipeline(RAW), hostile, STAGES, origin="disk")  # the operator's own command line
    assert build_stages(own, STAGES)
    fitting = make_recipe(pipeline(RAW), {"filter": "fps=25", "title": "Hello, World: it's"}, STAGES)
    assert fitting.stages[1].untrusted == ("options[2]",)
    assert build_stages(Recipe.decode(fitting.document), STAGES)
    forged = replace(fitting.stages[1], settings={**fitting.stages[1].settings, "options": [["f", "null"], ["an", None],
    ["vf", "movie=x"]]})
    with pytest.raises(InputError):
        build_stages(replace(fitting, stages=(fitting.stages[0], forged, *fitting.stages[2:])), STAGES)
