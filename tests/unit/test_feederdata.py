"""What a feeder is told at its birth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nommerd.errors import ConfigError, ManyErrors
from nommerd.feederdata import render_feeder
from tests.unit.cli.scripted import here

PRESET = "kind: preset\nname: small\npipeline: web-mp4\nparams: {width: 320, height: 180}\n"


def config(folder: Path, text: str) -> Path:
    file = folder / "nommerd.yaml"
    file.write_text(text)
    return file


def told(folder: Path, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The user-data, and the files it writes."""
    document = yaml.safe_load(render_feeder(config(folder, text), "1.2.3"))
    return document, {file["path"]: file["content"] for file in document["write_files"]}


def test_it_writes_the_configuration_with_the_operators_presets_and_pipelines_and_starts_the_feeder(tmp_path: Path) -> None:
    for folder, name in (("mine", "small.yaml"), ("mine", "notes.txt"), ("mine", ".hidden.yaml"), ("more", "small.yaml")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(PRESET if folder == "mine" else PRESET.replace("320", "640"))
    document, files = told(tmp_path, "cluster: east\npaths: {presets: [mine, more]}\napi: {port: 8005}\n")
    assert set(document) == {"users", "write_files", "runcmd"}
    assert yaml.safe_load(files["/etc/nommerd/nommerd.yaml"]) == {
        "cluster": "east", "api": {"port": 8005},
        "paths": {"data": "/var/lib/nommerd", "presets": ["/etc/nommerd/presets"], "pipelines": []}}
    assert files["/etc/nommerd/presets/small.yaml"] == PRESET, "that of the first folder"
    assert not any("notes" in path or "hidden" in path for path in files)
    assert "[program:nommerd-feeder]" in files["/etc/nommerd/nommerd-feeder.conf"]
    assert "nommerd[ffmpeg]==1.2.3" in files["/etc/nommerd/start"]
    assert "shutdown" not in files["/etc/nommerd/start"], "a feeder that does not start is looked at, not ended"
    assert "sudo" not in document["users"][1]


def test_nobody_but_root_writes_its_files_and_of_the_others_only_nommerd_reads_them(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.yaml").write_text(PRESET)
    document, files = told(tmp_path, "paths: {presets: [own]}\n")
    rights = {file["path"]: (file["owner"], file["permissions"]) for file in document["write_files"]}
    assert {rights[f"/etc/nommerd/{name}"] for name in ("nommerd.yaml", "presets/p.yaml")} == {("root:root", "0640")}
    start = files["/etc/nommerd/start"].splitlines()
    assert [line for line in start if line.startswith(("chown", "chmod"))] == ["chown -R root:nommerd /etc/nommerd"]
    assert start.index("chown -R root:nommerd /etc/nommerd") < start.index("until supervisorctl update; do")


def test_an_empty_file_is_a_configuration_too(tmp_path: Path) -> None:
    _, files = told(tmp_path, "# all as it comes\n")
    assert yaml.safe_load(files["/etc/nommerd/nommerd.yaml"])["paths"]["data"] == "/var/lib/nommerd"


def test_a_data_directory_on_a_volume_of_its_own_is_made_the_users(tmp_path: Path) -> None:
    assert told(tmp_path, "paths: {data: /data}\n")
    _, files = told(tmp_path, "paths: {data: /mnt/keep/nommerd}\n")
    assert "install -d -o nommerd -g nommerd -m 0700 /var/lib/nommerd /mnt/keep/nommerd\n" in files["/etc/nommerd/start"]
    assert yaml.safe_load(files["/etc/nommerd/nommerd.yaml"])["paths"]["data"] == "/mnt/keep/nommerd"


@pytest.mark.parametrize("data", ["data", "'/srv/a b'", "'/srv/$(reboot)'", "/srv/../etc", "/etc", "/usr/lib", "/var/lib",
                                  "/var/lib/dpkg", "/var/lib/dpkg/info", "/var/spool/cron", "/var/log/nommerd", "/opt/nommerd",
                                  "/opt/nommerd/data", "/opt/nommerd-0123456789ab", "/var/opt", "/home/admin", "/srv"])
def test_a_data_directory_that_means_nothing_there_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        told(tmp_path, f"paths: {{data: {data}}}\n")
    assert caught.value.place == "paths.data"


@pytest.mark.parametrize(("text", "places"), [
    ("aws: {access_key_id: AKIACANARY7F3A91TEST, secret_access_key: canary-7f3a91}\n",
     {"1:7": "aws.access_key_id", "1:44": "aws.secret_access_key"}),
    ("# ours\nsecrets:\n  keys: [Y2FuYXJ5LTdmM2E5MS1jYW5hcnktN2YzYTkxLWNhbmE=]\n", {"3:3": "secrets.keys"}),
    ("webhooks: {secret: whsec_Y2FuYXJ5LTdmM2E5MS1jYW5hcnktN2YzYTkx}\n", {"1:12": "webhooks.secret"}),
    ("aws: {region: eu-central-1, endpoint_url: 'https://a:canary-7f3a91@host'}\n", {"1:29": "aws.endpoint_url"}),
    ("cluster: east\nstorage: {s3_endpoint_url: 'https://a:canary-7f3a91@host'}\n", {"2:11": "storage.s3_endpoint_url"})])
def test_secrets_are_refused_each_by_its_place_and_name_and_not_repeated(text: str, places: dict[str, str],
                                                                         tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ManyErrors)) as caught:
        told(tmp_path, text)
    faults = caught.value.errors if isinstance(caught.value, ManyErrors) else [caught.value]
    assert {fault.place: fault.message.split()[0] for fault in faults} == {
        f"{tmp_path}/nommerd.yaml:{place}": name for place, name in places.items()}
    assert "canary" not in str(caught.value).lower()


@pytest.mark.parametrize("written", [
    r'"https:\/\/u:canary-7f3a91@h/"', r'"s3://AK\x3acanary-7f3a91@b/k"', '"https://u:\\\n    canary-7f3a91@h/"',
    '"https://u:it\'s-canary-7f3a91@h/"', "https://canary-7f3a91@h/", "https://u:a/canary-7f3a91@h/x",
    "https://h/x?X-Amz-Signature=canary-7f3a91", '"-i https://u:canary-7f3a91@h/"', "ok # https://u:canary-7f3a91@h",
    "ok # https://h/x?X-Amz-Signature=canary-7f3a91", "ok # as (s3://b/k?a&sig=canary-7f3a91)", "see https://h/?t=canary-7f3a91"])
def test_credentials_are_found_however_they_are_written(tmp_path: Path, written: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.yaml").write_text(f"kind: pipeline\nname: p\nto: {written}\n")
    with pytest.raises(ConfigError) as caught:
        told(tmp_path, "paths: {pipelines: [own]}\n")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("harmless", ["see https://example.com/?page", "s3://bucket/a:b@c", "{source}", "me@example.com"])
def test_what_holds_no_credentials_is_taken(tmp_path: Path, harmless: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.yaml").write_text(f"kind: preset # by https://example.com/a#b=c\nname: p\ntext: '{harmless}'\n")
    assert harmless in told(tmp_path, "paths: {presets: [own]}\n")[1]["/etc/nommerd/presets/p.yaml"]


@pytest.mark.parametrize("uri", ["ftp://me:canary-7f3a91@host/", "s3://AKIACANARY:wJal/canary-7f3a91+K@bucket/key"])
def test_a_pipeline_with_credentials_is_refused(tmp_path: Path, uri: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.yaml").write_text(f"kind: pipeline\nname: p\nstages: [{{upload: {{to: '{uri}'}}}}]\n")
    with pytest.raises(ConfigError) as caught:
        told(tmp_path, "paths: {pipelines: [own]}\n")
    assert caught.value.place == "/etc/nommerd/pipelines/p.yaml"
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"name: \xff\n"], ids=["a-directory", "not-utf-8"])
def test_what_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "own" / "p.yaml"
    (file if content is None else file.parent).mkdir(parents=True)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        told(tmp_path, "paths: {presets: [own]}\n")
    assert (caught.value.code, caught.value.place) == ("config.unreadable", str(file))


def test_what_ec2_would_not_take_is_refused_here(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.yaml").write_text(PRESET + "# " + "x" * 16_000)
    with pytest.raises(ConfigError, match="16384"):
        told(tmp_path, "paths: {presets: [own]}\n")


@pytest.mark.parametrize(("folder", "text", "place"), [
    ("presets", PRESET.replace("width", "widht"), "small.yaml:4:"),
    ("pipelines", "kind: pipeline\nname: [\n", "small.yaml:3:")])
def test_a_preset_or_pipeline_that_does_not_hold_is_told_before_a_machine_is(tmp_path: Path, folder: str, text: str,
                                                                            place: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "small.yaml").write_text(text)
    ended = here(None, "ami", "user-data", "-c", str(config(tmp_path, f"paths: {{{folder}: [own]}}\n")))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{tmp_path}/own/{place}" in ended.stderr
