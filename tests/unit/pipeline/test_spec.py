"""Pipeline documents: what loads, and what is said of what does not."""

import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nommerd.errors import InputError, ManyErrors, NommerdError
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.recipe import Recipe, build_stages, make_recipe
from nommerd.pipeline.spec import Pipeline, PipelineDocument, read_pipeline, read_preset
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages import STAGES
from nommerd.pipeline.tree import Faults, load_value

HEAD = "kind: pipeline\nname: p\n"
MEDIA = "- ffmpeg: {video: {codec: h264, crf: 21}}"


class Custom(Stage):
    """An operator's stage: what it makes is not known here."""

    name = "custom"

    def run(self, context):
        raise NotImplementedError


REGISTRY = {**STAGES, "custom": Custom}


def read(text: str, faults: Faults | None = None) -> Pipeline:
    faults = faults or Faults()
    pipeline = read_pipeline(load_yaml(HEAD + textwrap.dedent(text), "p.yaml"), REGISTRY, "disk", faults)
    faults.check()
    assert pipeline is not None
    return pipeline


def faults_of(text: str) -> list[NommerdError]:
    with pytest.raises(NommerdError) as caught:
        read(text)
    return list(caught.value.errors) if isinstance(caught.value, ManyErrors) else [caught.value]


def stages(*lines: str) -> str:
    return "stages:\n" + "\n".join(lines)


def told(*lines: str) -> list[str]:
    """The faults of these stages as text; the first stage stands on line 4."""
    return [str(error) for error in faults_of(stages(*lines))]


def test_the_kinds_of_stage_entries_and_their_ids():
    pipeline = read(stages("- fetch", MEDIA, "- ffmpeg: {id: small, video: {width: 320}}", "- ffmpeg:\n    video: {}",
                           "- verify:", "- upload: {}", "- notify: {states: [FINISHED]}"))
    assert [(s.name, s.id) for s in pipeline.stages] == [
        ("fetch", "fetch"), ("ffmpeg", "ffmpeg"), ("ffmpeg", "small"), ("ffmpeg", "ffmpeg-2"), ("verify", "verify"),
        ("upload", "upload"), ("notify", "notify")]


def test_a_default_id_steps_aside_for_one_that_is_written_out():
    pipeline = read(stages("- fetch", MEDIA, "- ffmpeg: {id: ffmpeg, video: {}}", "- upload"))
    assert [s.id for s in pipeline.stages] == ["fetch", "ffmpeg-2", "ffmpeg", "upload"]


def test_the_passes_of_a_run_share_the_id_of_the_first():
    raw = "- ffmpeg: {pass: %d, options: [[f, mp4]]}"
    pipeline = read(stages("- fetch", raw % 1, raw % 2, raw % 1, "- upload"))
    assert [s.id for s in pipeline.stages] == ["fetch", "ffmpeg", "ffmpeg", "ffmpeg-2", "upload"]


def test_unknown_keys_are_found_at_every_depth_with_place_path_and_what_was_meant():
    text = stages("- fetch", "- ffmpeg:", "    video: {codec: h264, widht: 3}", "    audio: [{codec: aac, chanels: 2}]",
    "    otput: {}",
                  "- upload: {alc: private}", "- notify") + "\ndescripton: x\n"
    assert [str(error) for error in faults_of(text)] == [
        "p.yaml:6:26: recipe.unknown_key: stages[1].ffmpeg.video.widht: unknown key. Did you mean width?",
        "p.yaml:7:26: recipe.unknown_key: stages[1].ffmpeg.audio[0].chanels: unknown key. Did you mean channels?",
        "p.yaml:8:5: recipe.unknown_key: stages[1].ffmpeg.otput: unknown key. Did you mean output?",
        "p.yaml:9:12: recipe.unknown_key: stages[2].upload.alc: unknown key. Did you mean acl?",
        "p.yaml:11:1: recipe.unknown_key: descripton: unknown key. Did you mean description?",
    ]


@pytest.mark.parametrize(("line", "place", "words"), [
    ("- ffmpeg: {passes: two, video: {}}", "p.yaml:5:20",
     "stages[1].ffmpeg.passes: expected a whole number, got the text 'two'."),
    ("- ffmpeg: {video: {crf: true}}", "p.yaml:5:25", "expected a number, got true."),
    ("- ffmpeg: {video: {upscale: yes}}", "p.yaml:5:29", "expected true or false, got the text 'yes'."),
    ("- ffmpeg: {video: {codec: h265}}", "p.yaml:5:27", "got the text 'h265': did you mean h264?"),
    ("- ffmpeg: {video: 5}", "p.yaml:5:19", "expected a mapping, got the number 5."),
    ("- ffmpeg: {video: {bitrate: fast}}", "p.yaml:5:29", "such as 2500k"),
    ("- ffmpeg: {video: {crf: 20, bitrate: 5M}}", "p.yaml:5:19", "exclude each other"),
    ("- ffmpeg: {options: [[vf, scale=-2:720, fps=25]]}", "p.yaml:5:22",
     "expected [name, value], got 3 items: quote a value that holds a comma."),
    ("- ffmpeg: {options: [[vn]]}", "p.yaml:5:22", "for a bare flag"),
    ("- ffmpeg: {options: [[an, false]]}", "p.yaml:5:22", "null for a bare flag"),
    ("- ffmpeg: {options: [[f, mp4]], video: {}}", "p.yaml:5:11", "raw form"),
    ("- ffmpeg: {passes: 2, video: {crf: 21}}", "p.yaml:5:11", "passes: 2"),
    ("- notify: {states: [FINSHED]}", "p.yaml:5:21", "did you mean FINISHED?"),
    ("- ffmpg", "p.yaml:5:3", "stages[1].ffmpg: no stage is called 'ffmpg'. Did you mean ffmpeg?"),
    ("- ffmpeg: [1]", "p.yaml:5:11", "expected a mapping of settings, got a list of 1."),
    ("- [ffmpeg]", "p.yaml:5:3", "expected a stage, got a list of 1."),
    ("- 5", "p.yaml:5:3", "expected a stage, got the number 5."),
    ("-", "p.yaml:5:2", "expected a stage, got nothing (null)."),
    ("- ffmpeg:\n  passes: 2", "p.yaml:5:3", "Indent the settings of ffmpeg further than its name."),
    ("- {ffmpeg: {}, upload: {}}", "p.yaml:5:3", "Begin each stage with a dash of its own."),
    ("- ffmpeg: {id: Big One, video: {}}", "p.yaml:5:16", "is no id"),
    ("- ffmpeg: {id: source, video: {}}", "p.yaml:5:16", "is taken"),
    ("- ffmpeg: {input: $$, video: {}}", "p.yaml:5:19", "a param cannot stand here"),
])
def test_a_wrong_setting_is_named_where_it_stands(line, place, words):
    found = told("- fetch", line, MEDIA, "- upload")
    assert len(found) == 1
    assert found[0].startswith(f"{place}: recipe.")
    assert words in found[0]


def test_faults_in_params_settings_and_names_are_told_in_one_go():
    places = [error.place for error in faults_of("""\
        params:
          a: {type: strin}
          b: {type: bitrate, default: 3x}
        stages:
          - fetch
          - ffmpeg: {video: {crf: $c}}
          - uplod
        """)]
    assert places == ["p.yaml:4:13"]  # without types nothing more can be said
    places = [error.place for error in faults_of("""\
        params:
          b: {type: bitrate, default: 3x}
        stages:
          - fetch
          - ffmpeg: {video: {crf: $c}}
          - uplod
        """)]
    assert places == ["p.yaml:4:31", "p.yaml:7:27", "p.yaml:8:5"]


@pytest.mark.parametrize(("text", "place", "words"), [
    ("stages: []\n", "p.yaml:3:9", "at least 1 items"),
    ("stages: fetch\n", "p.yaml:3:9", "expected a list, got the text 'fetch'."),
    ("params: {}\n", "p.yaml:1:1", "stages: missing."),
    ("stages: [fetch]\nparams: {1a: {type: integer}}\n", "p.yaml:4:10", "no name here"),
    ("stages: [fetch]\ninputs: {logo: {type: picture}}\n", "p.yaml:4:23", "expected media, image or captions"),
])
def test_a_document_that_is_no_pipeline_is_refused(text, place, words):
    [error] = faults_of(text)
    assert error.place == place
    assert words in str(error)


def test_defaults_are_filled_in_when_settings_are_tried():
    [fault] = faults_of("params: {w: {type: integer, default: 100000}}\n" + stages("- fetch",
    "- ffmpeg: {video: {width: $w}}", "- upload"))
    assert fault.place == "p.yaml:6:27"
    assert "16384" in fault.message


def test_required_params_are_tried_with_values_they_take_and_do_not_make_false_faults():
    read("""\
        params:
          start: {type: duration, required: true}
          end: {type: duration, required: true}
          rate: {type: integer, required: true}
          codec: {type: string, required: true}
          stem: {type: string, required: true}
        stages:
          - fetch
          - ffmpeg:
              clip: {start: $start, end: $end}
              video: {codec: h264, bitrate: $rate}
              audio: {codec: aac, sample_rate: 48000, encoder: $codec}
              output: {file: "$stem.mp4"}
          - upload
        """)


def test_a_required_param_of_a_type_that_never_fits_is_a_fault():
    [fault] = faults_of("params: {c: {type: string, required: true}}\n" + stages("- fetch", "- ffmpeg: {video: {crf: $c}}",
    "- upload"))
    assert "expected a number" in fault.message


def test_an_optional_param_leaves_its_setting_out():
    read("params: {w: {type: integer}}\n" + stages("- fetch", "- ffmpeg: {video: {width: $w}}", "- upload"))


@pytest.mark.parametrize("name", ["package", "thumbnails", "sprite"])
def test_stages_to_come_are_refused_as_not_yet_supported_and_nothing_else_is_said(name):
    [fault] = told("- fetch", f"- {name}: {{anything: [1]}}", "- upload")
    assert fault.startswith("p.yaml:5:3: recipe.not_yet_supported: stages[1].")


# --- the order of stages -----------------------------------------------------------------------------------------


def raw(number: int) -> str:
    return f"- ffmpeg: {{pass: {number}, options: [[f, mp4]]}}"


@pytest.mark.parametrize(("lines", "place", "words"), [
    ([MEDIA, "- upload"], "p.yaml:4:3", "no fetch stage comes before"),
    ([MEDIA, "- fetch", "- upload"], "p.yaml:4:3", "no fetch stage comes before"),
    (["- fetch", MEDIA], "p.yaml:5:3", "nothing is published"),
    (["- fetch", "- upload"], "p.yaml:4:3", "makes an output"),
    (["- fetch", "- upload", MEDIA], "p.yaml:6:3", "never published"),
    (["- fetch", MEDIA, "- upload", MEDIA], "p.yaml:7:3", "never published"),
    (["- fetch", "- upload", MEDIA, "- upload"], "p.yaml:5:3", "no media stage comes before upload"),
    (["- fetch", "- fetch", MEDIA, "- upload"], "p.yaml:5:3", "second time"),
    (["- fetch", MEDIA, "- upload", "- notify", "- notify"], "p.yaml:8:3", "second time"),
    (["- fetch", "- faststart", MEDIA, "- upload"], "p.yaml:5:3", "no media stage comes before faststart"),
    (["- fetch", MEDIA, "- faststart: {input: ffmpg}", "- upload"], "p.yaml:6:22", "Did you mean ffmpeg?"),
    (["- fetch", "- ffmpeg: {input: later, video: {}}", "- ffmpeg: {id: later, video: {}}", "- upload"],
    "p.yaml:5:19", "no earlier"),
    (["- fetch", MEDIA, "- ffmpeg: {input: fetch, video: {}}", "- upload"], "p.yaml:6:19", "no earlier stage makes 'fetch'"),
    (["- fetch", raw(2), "- upload"], "p.yaml:5:18", "pass 2 does not follow pass 1"),
    (["- fetch", raw(1), raw(3), "- upload"], "p.yaml:6:18", "pass 3 does not follow pass 2"),
    (["- fetch", raw(1), "- verify", raw(2), "- upload"], "p.yaml:7:18", "pass 2 does not follow"),
    (["- fetch", raw(1), raw(2), raw(2), "- upload"], "p.yaml:7:18", "pass 2 does not follow"),
    (["- fetch", MEDIA, raw(1), "- ffmpeg: {input: ffmpeg, pass: 2, options: []}", "- upload"], "p.yaml:7:19", "one input"),
    (["- fetch", raw(1), "- ffmpeg: {id: x, pass: 2, options: []}", "- upload"], "p.yaml:6:16", "id of its first pass"),
])
def test_an_order_that_makes_no_sense_is_refused(lines, place, words):
    found = told(*lines)
    assert any(fault.startswith(f"{place}: ") and words in fault for fault in found), found


@pytest.mark.parametrize("lines", [
    ["- fetch", MEDIA, "- upload"],
    ["- fetch", MEDIA, "- faststart", "- verify: {decode: full}", "- upload"],
    ["- notify", "- fetch", MEDIA, "- upload"],
    ["- fetch", MEDIA, "- upload", MEDIA, "- upload"],
    ["- fetch", MEDIA, "- ffmpeg: {input: ffmpeg, audio: {}}", "- upload"],
    ["- fetch", "- ffmpeg: {input: source, video: {}}", "- upload"],
    ["- fetch", raw(1), raw(2), raw(3), raw(1), "- upload"],
    ["- fetch", "- ffmpeg: {options: [[f, mp4]]}", "- upload"],
    ["- custom"], ["- custom", MEDIA], ["- fetch", "- custom", "- upload"], ["- fetch", MEDIA, "- custom"],
    ["- fetch", "- custom: {id: mine}", "- ffmpeg: {input: mine, video: {}}", "- upload"],
])
def test_an_order_that_makes_sense_loads_and_operators_stages_are_trusted(lines):
    read(stages(*lines))


# --- the same from JSON ------------------------------------------------------------------------------------------


def test_a_json_body_goes_through_the_same_models_and_its_faults_are_the_callers():
    body = {"kind": "pipeline", "name": "p", "stages": ["fetch", {"ffmpeg": {"video": {"codec": "h264", "widht": 3}}},
    "upload"]}
    faults = Faults(InputError)
    assert read_pipeline(load_value(body, InputError), STAGES, "api", faults) is None
    [fault] = faults.errors
    assert isinstance(fault, InputError)
    assert (fault.place, fault.code) == ("stages[1].ffmpeg.video.widht", "recipe.unknown_key")


def test_a_preset_names_a_pipeline_or_extends_one_that_does():
    faults = Faults()
    assert read_preset(load_yaml("kind: preset\nname: a\nparams: {w: 1}\n", "a.yaml"), faults) is None
    assert "pipeline: missing" in faults.errors[0].message
    assert read_preset(load_yaml("kind: preset\nname: a\nextends: b\n", "a.yaml"), Faults()) is not None
    faults = Faults()
    assert read_preset(load_yaml("kind: preset\nname: a\npipeline: b\nparams: {w: [1]}\n", "a.yaml"), faults) is None
    assert faults.errors[0].place == "a.yaml:4:14"


def test_the_models_give_a_json_schema_for_editors():
    schema = PipelineDocument.model_json_schema()
    assert schema["required"] == ["kind", "name", "stages"]
    assert schema["additionalProperties"] is False


# --- anything at all ---------------------------------------------------------------------------------------------

TYPED = {
    "kind": "pipeline", "name": "p",
    "inputs": {"logo": {"type": "image", "default": "file:///a.png"}},
    "params": {"w": {"type": "integer", "default": 640, "min": 2}, "r": {"type": "bitrate", "required": True},
               "c": {"type": "choice", "choices": ["h264", "hevc"], "default": "h264"}},
    "stages": [
        "fetch",
        {"ffmpeg": {"id": "a", "clip": {"start": 1, "end": "1:30"}, "metadata": {"keep": ["title"]},
                    "video": {"codec": "$c", "bitrate": "$r", "width": "$w"}, "audio": [{"codec": "aac", "bitrate": "128k"}],
                    "output": {"container": "mp4", "file": "${source.stem}-$w.mp4"}}},
        {"ffmpeg": {"pass": 1, "options": [["b:v", "$r"], ["vf", "scale=$w:-2"], ["an", None]]}},
        {"ffmpeg": {"pass": 2, "options": [["b:v", "$r"], ["f", "mp4"]]}},
        {"faststart": {"input": "a"}}, {"verify": {"decode": "full"}}, "upload", {"notify": {"states": ["ERROR"]}}],
}
JUNK = st.sampled_from([
    None, True, 0, -1, 2**62, 1.5, "", "$", "$w", "${source.stem}", "source", "a", "upload", "fetch", "x" * 2000, "é\u2028",
    [], {}, [[]], [None], {"a": 1}, {"ffmpeg": None}, {"ffmpeg": {}}, {"pass": 2}, ["vf", "a", "b"], {"x" * 3000: 1},
    {"type": "string"}, {"type": "choice", "choices": [1]},
])
CHANGES = st.tuples(st.integers(0, 10**6), JUNK, st.sampled_from(["replace", "remove", "change"]))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in items:
        yield from paths(child, (*path, step))


def put(value: Any, path: tuple[Any, ...], junk: Any, how: str) -> Any:
    """The document with one thing in it replaced, removed, renamed or doubled."""
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    step, rest = path[0], path[1:]
    if rest or how == "replace":
        copy[step] = put(value[step], rest, junk, how)
    elif how == "remove":
        del copy[step]
    elif isinstance(copy, list):
        copy.insert(step, copy[step])
    else:
        copy[f"{step}x"] = copy.pop(step)
    return copy


@settings(max_examples=300, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_a_damaged_document_is_a_pipeline_or_clean_faults_each_with_a_place(changes):
    document: Any = TYPED
    for number, junk, how in changes:
        found = list(paths(document))
        document = put(document, found[number % len(found)], junk, how)
    faults = Faults(InputError)
    pipeline = read_pipeline(load_value(document, InputError, root="body"), STAGES, "api", faults)
    assert (pipeline is None) == bool(faults.errors)
    assert all(isinstance(error, InputError) and error.place and len(str(error)) < 3000 for error in faults.errors)
    if pipeline is not None:
        try:
            recipe = make_recipe(pipeline, {"r": "1M"}, STAGES)
        except (InputError, ManyErrors):
            return
        assert Recipe.decode(recipe.document) == recipe
        build_stages(recipe, STAGES)


UNKNOWN = [f"k{number}: 1" for number in range(6000)]


@pytest.mark.parametrize("text", ["\n".join(UNKNOWN), f"stages: [fetch, {{ffmpeg: {{{', '.join(UNKNOWN)}}}}}]"])
def test_a_flood_of_unknown_keys_is_refused_quickly(text):
    begun = time.monotonic()
    assert 1 < len(faults_of(text)) <= 50
    assert time.monotonic() - begun < 5


def test_the_undamaged_document_loads():
    faults = Faults()
    assert read_pipeline(load_value(TYPED), STAGES, "disk", faults) is not None, faults.errors
