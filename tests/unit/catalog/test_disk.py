"""The catalog: the operator's directories before the shipped ones, every fault at once, and names to recipes."""

import os
from pathlib import Path

import pytest

from nommerd.catalog import Catalog, load_stages
from nommerd.errors import ConfigError, InputError, ManyErrors, NommerdError
from nommerd.pipeline import Stage
from nommerd.pipeline.stages import STAGES

PIPELINE = """\
kind: pipeline
name: {name}
params:
  width: {{type: integer, default: 1280, min: 16}}
  crf: {{type: integer, required: true}}
stages:
  - fetch
  - ffmpeg: {{video: {{codec: h264, crf: $crf, width: $width}}}}
  - upload
"""


class Own(Stage):
    name = "own"

    def run(self, context):
        raise NotImplementedError


class Dirs:
    """The operator's two directories."""

    def __init__(self, root: Path) -> None:
        self.pipelines, self.presets = root / "pipelines", root / "presets"
        self.pipelines.mkdir()
        self.presets.mkdir()

    def pipeline(self, name: str, text: str = PIPELINE) -> Path:
        file = self.pipelines / f"{name}.yaml"
        file.write_text(text.replace("{name}", name).replace("{{", "{").replace("}}", "}"))
        return file

    def preset(self, name: str, text: str) -> Path:
        file = self.presets / f"{name}.yaml"
        file.write_text(f"kind: preset\nname: {name}\n{text}\n")
        return file

    def catalog(self, **stages) -> Catalog:
        return Catalog([self.pipelines], [self.presets], {**STAGES, **stages})


@pytest.fixture
def dirs(tmp_path: Path) -> Dirs:
    return Dirs(tmp_path)


def refused(call) -> NommerdError:
    with pytest.raises(NommerdError) as caught:
        call()
    return caught.value


def test_an_operators_pipeline_and_preset_work_by_name(dirs):
    dirs.pipeline("mine")
    dirs.preset("small", "pipeline: mine\nparams: {width: 320, crf: 30}")
    catalog = dirs.catalog()
    assert catalog.errors == []
    recipe = catalog.resolve("small")
    assert recipe.pipeline == "mine"
    assert recipe.stages[1].settings["video"] == {"codec": "h264", "crf": 30, "width": 320}
    assert catalog.resolve(preset="small", params={"width": 640}).params == {"width": 640, "crf": 30}
    assert catalog.resolve(pipeline="mine", params={"crf": 20}).params == {"width": 1280, "crf": 20}
    assert "small" in catalog.names()["presets"]
    assert "web-720p" in catalog.names()["presets"]


def test_the_operators_document_is_used_instead_of_a_shipped_one_of_the_same_name(dirs):
    shipped = Catalog([], []).resolve("web-720p")
    dirs.preset("web-720p", "pipeline: web-mp4\nparams: {height: 700}")
    catalog = dirs.catalog()
    assert catalog.errors == []
    assert catalog.resolve("web-720p").params["height"] == 700
    assert shipped.params["height"] == 720


def test_the_first_of_the_operators_directories_wins(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = Dirs(tmp_path / "a"), Dirs(tmp_path / "b")
    for place, width in ((one, 100), (two, 200)):
        place.preset("p", f"pipeline: web-mp4\nparams: {{width: {width}}}")
    assert Catalog([], [one.presets, two.presets]).resolve("p").params["width"] == 100


def test_a_preset_extends_another_and_overrides_its_params_one_by_one(dirs):
    dirs.pipeline("mine")
    dirs.preset("a", "pipeline: mine\nparams: {width: 320, crf: 30}")
    dirs.preset("b", "extends: a\nparams: {crf: 20}")
    dirs.preset("c", "extends: b\nparams: {width: 160}")
    assert dirs.catalog().resolve("c").params == {"width": 160, "crf": 20}
    dirs.preset("d", "extends: web-480p\nparams: {video_bitrate: 1M}")
    assert dirs.catalog().resolve("d").params["width"] == 854


def test_presets_that_extend_each_other_in_a_circle_are_refused(dirs):
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
        dirs.preset(name, f"extends: {parent}")
    places = {error.place: error.message for error in dirs.catalog().errors}
    assert len(places) == 4
    assert all("extends itself" in message for message in places.values())


@pytest.mark.parametrize(("text", "place", "words"), [
    ("pipeline: mien", "3:11", "There is no pipeline called 'mien'. Did you mean mine?"),
    ("extends: web-721p", "3:10", "There is no preset called 'web-721p'. Did you mean web-720p?"),
    ("pipeline: mine\nparams: {widht: 3}", "4:10", "no param called 'widht'. Did you mean width?"),
    ("pipeline: mine\nparams: {width: true}", "4:17", "expected a whole number, got true"),
    ("pipeline: mine\nparams: {width: 15}", "4:17", "at least 16"),
    ("pipeline: mine\nparams:\n  width: 320\n  crf: 99", "6:8", "With these params, mine: stages[1].ffmpeg.video.crf"),
    ("pipeline: mine\nparms: {}", "4:1", "Did you mean params?"),
    ("pipeline: [mine]", "3:11", "expected text, got a list of 1"),
    ("description: x", "1:1", "pipeline: missing"),
    ("pipeline: mine\nextends: *x", "4:10", "alias"),
])
def test_a_preset_with_a_fault_is_told_with_file_line_and_column(dirs, text, place, words):
    dirs.pipeline("mine")
    file = dirs.preset("p", text)
    [error] = dirs.catalog().errors
    assert isinstance(error, ConfigError)
    assert error.place == f"{file}:{place}"
    assert words in str(error)


def test_all_faults_of_all_files_are_told_at_once_and_the_others_work(dirs):
    dirs.pipeline("good")
    bad = dirs.pipeline("bad", PIPELINE.replace("h264", "h265").replace("upload", "uplaod"))
    preset = dirs.preset("of-bad", "pipeline: bad")
    broken = dirs.preset("broken", "pipeline: [")
    catalog = dirs.catalog()
    assert [error.place for error in catalog.errors] == [f"{bad}:8:29", f"{bad}:9:5", f"{broken}:4:1", f"{preset}:3:11"]
    assert "It has faults of its own" in str(catalog.errors[-1])
    assert catalog.resolve(pipeline="good", params={"crf": 20})
    assert isinstance(refused(lambda: catalog.resolve(pipeline="bad", params={"crf": 20})), ManyErrors)
    assert isinstance(refused(lambda: catalog.resolve("of-bad")), ConfigError)


def test_a_file_must_be_called_as_its_document(dirs):
    file = dirs.pipeline("mine", PIPELINE.replace("{name}", "other"))
    [error] = dirs.catalog().errors
    assert error.place == f"{file}:2:7"
    assert "Call the file other.yaml" in error.hint


def test_a_directory_that_does_not_exist_and_a_file_that_cannot_be_read_are_faults(dirs, tmp_path):
    (dirs.pipelines / "odd.yaml").mkdir()
    (dirs.presets / ".hidden.yaml").write_text("[")
    (dirs.presets / "notes.txt").write_text("[")
    (dirs.presets / "away.yaml").symlink_to(tmp_path / "nowhere")
    errors = Catalog([dirs.pipelines, tmp_path / "none"], [dirs.presets]).errors
    assert sorted(error.code for error in errors) == ["config.no_directory", "config.unreadable", "config.unreadable"]


def test_a_huge_file_is_refused_without_being_read_whole(dirs):
    with (dirs.presets / "huge.yaml").open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
    [error] = dirs.catalog().errors
    assert "More than" in error.message


def test_reload_sees_what_changed(dirs):
    catalog = dirs.catalog()
    file = dirs.pipeline("mine", "kind: pipeline\n")
    catalog.reload()
    assert [str(error.place) for error in catalog.errors] == [f"{file}:1:1"] * 2
    dirs.pipeline("mine")
    catalog.reload()
    assert catalog.errors == []
    assert catalog.resolve(pipeline="mine", params={"crf": 1})


@pytest.mark.parametrize(("call", "code", "words"), [
    ({"preset": "web-721p"}, "recipe.unknown_preset", "Did you mean web-720p?"),
    ({"preset": "zzz"}, "recipe.unknown_preset", "Presets here: audio-aac"),
    ({"pipeline": "web_mp4"}, "recipe.unknown_pipeline", "Did you mean web-mp4?"),
    ({"preset": "../../etc/passwd"}, "recipe.unknown_preset", "no preset"),
    ({}, "recipe.no_name", "preset or a pipeline"),
    ({"preset": "web-720p", "pipeline": "web-mp4"}, "recipe.no_name", "one of the two"),
    ({"preset": "web-720p", "params": {"hieght": 3}}, "recipe.unknown_param", "Did you mean height?"),
    ({"preset": "web-720p", "inputs": {"logo": [{"uri": "x"}]}}, "recipe.unknown_input", "no input called 'logo'"),
])
def test_what_a_caller_names_wrongly_is_the_callers_fault(call, code, words):
    error = refused(lambda: Catalog([], []).resolve(**call))
    assert isinstance(error, InputError)
    assert error.code == code
    assert words in str(error)


def test_recipes_do_not_mix_types_origins_or_what_was_there_before_a_reload(dirs):
    text = ("kind: pipeline\nname: mine\nparams:\n  q: {type: number, default: 20}\n  f: {type: string, default: fps=25}\n"
            "stages: [fetch, ffmpeg: {options: [[crf, $q], [vf, $f], [f, mp4]] }, upload]\n")
    dirs.pipeline("mine", text)
    catalog = dirs.catalog()
    assert catalog.errors == []

    def crf(value):
        return catalog.resolve(pipeline="mine", params={"q": value}).stages[1].settings["options"][0][1]

    hostile = {"f": "movie=/etc/passwd"}
    for _ in range(2):
        assert [repr(crf(value)) for value in (1, 1.0)] == ["1", "1.0"]
        assert refused(lambda: crf(True)).code == "recipe.bad_param"
        assert catalog.resolve(pipeline="mine", params=hostile, origin="disk").stages[1].untrusted == ()
        assert refused(lambda: catalog.resolve(pipeline="mine", params=hostile)).code == "recipe.forbidden_option"
    dirs.pipeline("mine", text.replace("[crf, $q]", "[qp, $q]"))
    catalog.reload()
    assert catalog.resolve(pipeline="mine", params={"q": 1}).stages[1].settings["options"][0] == ["qp", 1]


def test_a_pipeline_file_by_path_need_not_be_called_as_its_document(dirs):
    file = dirs.pipeline("x", PIPELINE.replace("{name}", "other"))
    catalog = Catalog([], [])
    pipeline = catalog.pipeline_from_file(file)
    params = catalog.params_from_text(pipeline, {"width": "320", "crf": "18"})
    assert params == {"width": 320, "crf": 18}
    assert catalog.resolve_pipeline(pipeline, params, origin="disk").params == params
    assert refused(lambda: catalog.params_from_text(pipeline, {"width": "wide"})).place == "params.width"
    assert "Did you mean crf?" in str(refused(lambda: catalog.params_from_text(pipeline, {"crff": "1"})))
    file.write_text("kind: [")
    assert str(refused(lambda: catalog.pipeline_from_file(file))).startswith(f"{file}:")
    assert refused(lambda: catalog.pipeline_from_file(file.with_name("none.yaml"))).code == "config.unreadable"


def test_the_pipeline_behind_a_name_can_be_asked_for():
    catalog = Catalog([], [])
    assert catalog.pipeline_of(preset="web-480p").name == "web-mp4"
    assert catalog.pipeline_of(pipeline="web-mp4").name == "web-mp4"


# --- the operator's own stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [":", "."])
def test_stages_by_dotted_path_work_in_pipelines(dirs, tmp_path, monkeypatch, separator):
    package = f"operators_{separator.replace(':', 'colon').replace('.', 'dot')}"
    (tmp_path / f"{package}.py").write_text(
        "from nommerd.pipeline import Stage, StageSettings\n\n\nclass Settings(StageSettings):\n    text: str\n\n\n"
        "class Stamp(Stage):\n    name = 'stamp'\n    Settings = Settings\n\n    def run(self, context):\n        pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stages = load_stages({"stamp": f"{package}{separator}Stamp"})
    assert set(stages) == {*STAGES, "stamp"}
    dirs.pipeline("mine", "kind: pipeline\nname: mine\nstages: [fetch, stamp: {text: x}, upload]\n")
    bad = dirs.pipeline("bad", "kind: pipeline\nname: bad\nstages: [fetch, stamp: {txet: x}, upload]\n")
    catalog = Catalog([dirs.pipelines], [], stages)
    assert [error.place for error in catalog.errors] == [f"{bad}:3:24", f"{bad}:3:25"]
    assert catalog.resolve(pipeline="mine").stages[1].settings == {"text": "x"}


@pytest.mark.parametrize(("name", "path", "words"), [
    ("mine", "no.such.module:Stage", "cannot be imported"),
    ("mine", "nommerd.pipeline:Nothing", "cannot be imported"),
    ("mine", "nommerd.job:Job", "no class derived from"),
    ("mine", "nommerd.job:utcnow", "no class derived from"),
    ("mine", "nonsense", "cannot be imported"),
    ("mine", "", "cannot be imported"),
    ("fetch", "nommerd.pipeline:Stage", "cannot be called 'fetch'"),
    ("package", "nommerd.pipeline:Stage", "cannot be called 'package'"),
    ("My Stage", "nommerd.pipeline:Stage", "cannot be called"),
])
def test_a_stage_that_cannot_be_had_is_the_operators_fault(name, path, words):
    error = refused(lambda: load_stages({name: path}))
    assert (error.code, error.place) == ("config.stage", f"stages.{name}")
    assert isinstance(error, ConfigError)
    assert words in str(error)


def test_all_stages_that_cannot_be_had_are_told_at_once():
    error = refused(lambda: load_stages({"a": "nope:A", "b": "nope:B"}))
    assert isinstance(error, ManyErrors)
    assert [one.place for one in error.errors] == ["stages.a", "stages.b"]
