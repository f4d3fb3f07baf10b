from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from nommerd.cli.configure import config
from nommerd.config import Settings, load
from nommerd.errors import ConfigError, ManyErrors, NommerdError
from nommerd.pipeline.loader import load_yaml
from nommerd.secrets import new_key

SHIPPED = Path(__file__).parents[2] / "conf" / "nommerd.yaml"
HOME = {"HOME": "/home/op"}


def write(folder: Path, text: str) -> Path:
    path = folder / "nommerd.yaml"
    path.write_text(text)
    return path


def faults(path: Path | None, env: dict[str, str] | None = None) -> list[str]:
    """The messages of what `load` raises."""
    with pytest.raises(NommerdError) as caught:
        load(path, HOME | (env or {}))
    errors = caught.value.errors if isinstance(caught.value, ManyErrors) else [caught.value]
    assert all(isinstance(error, ConfigError) for error in errors)
    return [str(error) for error in errors]


def test_a_file_that_one_may_not_even_look_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("n" * 256)  # root may look into any folder, but not for that
    monkeypatch.setattr("nommerd.config.SYSTEM_FILE", path)
    for named in (path, None):
        assert faults(named)[0].startswith(f"config.unreadable: {path} cannot be read: File name too long.")


def test_without_a_file_every_key_has_its_default() -> None:
    settings = load(None, HOME)
    assert settings.model_copy(update={"paths": Settings().paths}) == Settings()


def test_the_shipped_file_says_the_defaults() -> None:
    settings = load(SHIPPED, HOME)
    assert settings.model_copy(update={"paths": Settings().paths}) == Settings()


def test_the_shipped_file_has_every_key_and_no_other() -> None:
    def keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for name, info in model.model_fields.items():
            inner = info.annotation
            is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
            found |= keys(inner, (*path, name)) if is_section else {(*path, name)}
        return found

    def written(values: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for name, value in values.items():
            found |= written(value, (*path, name)) if isinstance(value, dict) and value else {(*path, name)}
        return found

    assert written(load_yaml(SHIPPED.read_text(), "nommerd.yaml").plain()) == keys(Settings)


def test_the_shipped_file_comments_every_section() -> None:
    text = SHIPPED.read_text()
    for section in yaml.safe_load(text):
        body = re.search(rf"^{section}:.*\n(?:[ ].*\n|\n(?=  ))*", text, re.MULTILINE)
        assert body is not None
        assert "#" in body[0] or section == "aws", section


def test_all_faults_are_told_at_once_each_with_its_place_and_what_was_meant(tmp_path: Path) -> None:
    path = write(tmp_path, """\
api:
  prot: 1
  port: "80"
worker: {slots: true, lease_seconds: -1}
storage: {max_source_bytes: 20XB}
port: 3
net: {allow_networks: [10.0.0.1/8]}
stages: {mark: nothing}
""")
    said = "\n".join(faults(path, {"NOMMERD_WORKER__SLTS": "1", "NOMMERD_JOBS__KEEP_FINISHED_DAYS": "long",
                                    "NOMMERD_PATHS__PRESETS": "/srv/presets"}))
    for expected in (
        f"{path}:2:3: config.unknown_key: There is no setting api.prot. Did you mean api.port?",
        f"{path}:3:3: config.bad_value: api.port must be an integer",
        f"{path}:4:10: config.bad_value: worker.slots must be an integer",
        f"{path}:4:23: config.bad_value: worker.lease_seconds must be greater than 0",
        f"{path}:5:11: config.bad_value: storage.max_source_bytes must be a size such as 200GB or 64MiB",
        f"{path}:6:1: config.unknown_key: There is no setting port. Did you mean api.port?",
        f"{path}:7:24: config.bad_value: net.allow_networks.0 must be a network such as 10.0.0.0/8",
        f"{path}:8:10: config.bad_value: stages.mark must be a dotted path",
        "NOMMERD_WORKER__SLTS: config.unknown_key: There is no setting worker.slts. Did you mean NOMMERD_WORKER__SLOTS?",
        "NOMMERD_JOBS__KEEP_FINISHED_DAYS: config.bad_value: jobs.keep_finished_days must be a number",
        "NOMMERD_PATHS__PRESETS: config.bad_value: paths.presets must be a list. Lists and maps are JSON in the environment",
    ):
        assert expected in said


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "api: !!map {}\n",
                                   "api: {}\napi: {}\n", "<<: {a: 1}\n", "- 1\n", "api: {\n"])
def test_yaml_that_is_not_read_here_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    assert re.match(rf"{re.escape(str(tmp_path))}/nommerd.yaml:\d+:\d+: config\.", faults(write(tmp_path, text))[0])


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n\n  # and another\n"])
def test_a_file_of_comments_is_a_file_of_defaults(tmp_path: Path, text: str) -> None:
    assert load(write(tmp_path, text), HOME).api.port == 8001


def test_the_environment_goes_before_the_file_with_scalars_and_json(tmp_path: Path) -> None:
    path = write(tmp_path, "api: {port: 1}\nstorage: {file_roots: [/a]}\n")
    settings = load(path, HOME | {
        "NOMMERD_API__PORT": "8080", "NOMMERD_STORAGE__FILE_ROOTS": '["/b", "/c"]', "NOMMERD_CLUSTER": "blue",
        "NOMMERD_API__ORIGINAL__ENABLED": "false", "NOMMERD_STAGES": '{"mark": "ours.stages:Mark"}',
        "NOMMERD_WORKER__HEALTH_PORT": "null", "NOMMERD_STORAGE__MAX_SOURCE_BYTES": "5MiB"})
    assert (settings.api.port, settings.cluster, settings.worker.health_port) == (8080, "blue", None)
    assert settings.storage.file_roots == (Path("/b"), Path("/c"))
    assert settings.api.original.enabled is False
    assert settings.stages == {"mark": "ours.stages:Mark"}
    assert settings.storage.max_source_bytes == 5 * 2**20


def test_reserved_names_are_no_settings_and_unknown_ones_are_errors() -> None:
    load(None, HOME | {"NOMMERD_URL": "http://x", "NOMMERD_TOKEN": "t"})
    assert "There is no setting home" in faults(None, {"NOMMERD_HOME": "x"})[0]


def test_a_secret_from_the_environment_is_taken_as_it_is_and_never_shown() -> None:
    keys = [new_key(), new_key()]
    settings = load(None, HOME | {"NOMMERD_AWS__SECRET_ACCESS_KEY": "@!{: x", "NOMMERD_SECRETS__KEYS": json.dumps(keys)})
    assert settings.aws.secret_access_key is not None
    assert settings.aws.secret_access_key.reveal() == "@!{: x"
    assert [key.reveal() for key in settings.secrets.keys] == keys
    for shown in (repr(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "@!{" not in shown
        assert keys[0] not in shown


@pytest.mark.parametrize(("text", "count"), [
    ("secrets: {keys: {canary: canary}}\nwebhooks: {secret: [canary]}\n", 2), ("secrets: {keys: [*canary]}", 1),
    ("webhooks: {secret: &canary x}", 1), ("webhooks: {secret: 4815162342481516234248151623}", 1),
    ("secrets: {keys: [canary]}\nwebhooks: {secret: whsec_canary}\n", 2), ("store: postgres://u:canary@h/db", 1),
])
def test_a_fault_in_a_secret_does_not_show_it(tmp_path: Path, text: str, count: int) -> None:
    said = faults(write(tmp_path, text))
    assert len(said) == count
    assert all(error.startswith(f"{tmp_path}/nommerd.yaml:") for error in said)
    assert not any("canary" in error or "48151" in error for error in said)


def test_no_credentials_are_in_the_settings_that_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path, "aws: {endpoint_url: 'https://user:canary@host/', access_key_id: canary-2}\n")
    shown = CliRunner().invoke(config, ["show", "-c", str(path)])
    assert shown.exit_code == 0
    assert "https://host/" in shown.output
    assert "canary" not in shown.output


def test_relative_paths_are_relative_to_the_file_and_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    path = write(tmp_path, "paths: {data: d, pipelines: [p, /abs, ~/q]}\nmedia: {ffmpeg: bin/ffmpeg, ffprobe: ffprobe6}\n")
    settings = load(path, HOME)
    assert settings.data_dir == tmp_path / "d"
    assert settings.paths.pipelines == (tmp_path / "p", Path("/abs"), Path("/home/op/q"))
    assert (settings.media.ffmpeg, settings.media.ffprobe) == (str(tmp_path / "bin/ffmpeg"), "ffprobe6")


@pytest.mark.parametrize(("env", "expected"), [
    ({"HOME": "/home/op"}, "/home/op/.local/share/nommerd"),
    ({"HOME": "/home/op", "XDG_DATA_HOME": "/share"}, "/share/nommerd"),
    ({"HOME": "/home/op", "XDG_DATA_HOME": "not/absolute"}, "/home/op/.local/share/nommerd"),
    ({"HOME": "/home/op", "NOMMERD_PATHS__DATA": "/var/lib/nommerd"}, "/var/lib/nommerd"),
])
def test_the_data_directory_is_where_the_rules_say(env: dict[str, str], expected: str) -> None:
    settings = load(None, env)
    assert settings.data_dir == Path(expected)
    assert settings.token_file == Path(expected, "token")
    assert settings.work_dir == Path(expected, "work")
    assert settings.database_path(settings.store) == Path(expected, "nommerd.db")
    assert settings.database_path("sqlite:////else/where.db") == Path("/else/where.db")


def test_the_file_is_the_named_one_then_the_environments(tmp_path: Path) -> None:
    named, other = write(tmp_path, "cluster: named\n"), tmp_path / "other.yaml"
    other.write_text("cluster: other\n")
    assert load(named, HOME | {"NOMMERD_CONFIG": str(other)}).cluster == "named"
    assert load(None, HOME | {"NOMMERD_CONFIG": str(other)}).cluster == "other"
    assert "named by -c" in faults(tmp_path / "none.yaml")[0]
    assert "named by NOMMERD_CONFIG" in faults(None, {"NOMMERD_CONFIG": str(tmp_path / "none.yaml")})[0]


@pytest.mark.parametrize(("host", "hosts", "refused"), [
    ("0.0.0.0", "[]", True), ("::", "[]", True), ("media.example.org", "[]", True), ("10.0.0.1", "[]", True),
    ("127.0.0.1", "[]", False), ("::1", "[]", False), ("localhost", "[]", False), ("0.0.0.0", '["media.example.org"]', False),
])
def test_listening_for_others_needs_their_host_names(host: str, hosts: str, refused: bool) -> None:
    env = {"NOMMERD_API__HOST": f'"{host}"', "NOMMERD_API__HOSTS": hosts}
    if refused:
        assert "config.no_hosts" in faults(None, env)[0]
    else:
        load(None, HOME | env)


@pytest.mark.parametrize("env", [
    {"NOMMERD_STORE": "dynamodb://jobs"}, {"NOMMERD_STORE": "simpledb://jobs"}, {"NOMMERD_BUS": "sqs://jobs"}])
def test_stores_and_buses_on_aws_are_taken(env: dict[str, str]) -> None:
    load(None, env)


@pytest.mark.parametrize("env", [{"NOMMERD_STORE": "dynamodb://"}, {"NOMMERD_STORE": "sqs://jobs"},
                                 {"NOMMERD_BUS": "sqs://a/b"}, {"NOMMERD_BUS": "dynamodb://jobs"}])
def test_a_store_or_bus_without_a_proper_name_or_of_the_wrong_kind_is_refused(env: dict[str, str]) -> None:
    assert "config.bad_value" in faults(None, env)[0]


@pytest.mark.parametrize("env", [{"NOMMERD_MEDIA__SANDBOX": "require"}])
def test_what_comes_later_is_refused_as_not_yet_supported(env: dict[str, str]) -> None:
    assert "config.not_supported" in faults(None, env)[0]
    assert "not yet supported" in faults(None, env)[0]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(None, HOME).api.port = 1  # type: ignore[misc]


def test_what_the_machines_own_file_leaves_out_of_paths_is_the_machines(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = write(tmp_path, "cluster: media\n"), tmp_path / "var"
    (tmp_path / "presets").mkdir()
    monkeypatch.setattr("nommerd.config.SYSTEM_FILE", file)
    monkeypatch.setattr("nommerd.config_reader.SYSTEM_FILE", file)
    monkeypatch.setattr("nommerd.config_reader.SYSTEM_DATA", data)
    for named in (None, file):
        paths = load(named, {**HOME, "XDG_DATA_HOME": "/elsewhere"}).paths
        assert (paths.data, paths.presets, paths.pipelines) == (data, (tmp_path / "presets",), ())
    given = load(None, {**HOME, "NOMMERD_PATHS__DATA": "/srv/data", "NOMMERD_PATHS__PRESETS": "[]"}).paths
    assert (given.data, given.presets) == (Path("/srv/data"), ())
    write(tmp_path, "paths: {data: mine, presets: [own]}\n")
    given = load(None, HOME).paths
    assert (given.data, given.presets) == (tmp_path / "mine", (tmp_path / "own",))
    write(tmp_path, "paths: 1\n")
    assert faults(None)
    assert load(write(tmp_path / "presets", ""), HOME).paths.data == Path("/home/op/.local/share/nommerd"), "another file"
