"""The user-data of a feeder: its configuration, its own presets and pipelines, and the start of the daemon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nommerd import __version__
from nommerd.catalog.disk import documents
from nommerd.config import load
from nommerd.errors import ConfigError
from nommerd.fleet.cloudconfig import DATA_DIR, FOLDER, USER, File, cloud_config
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.tree import Faults, Node, walk
from nommerd.secrets import has_secret, split_uri

CONFIG_FILE = f"{FOLDER}/nommerd.yaml"
_SECRET: dict[tuple[str | int, ...], str] = {
    ("aws", "access_key_id"): "The feeder's role gives it its rights: `nommerd aws setup` makes it.",
    ("aws", "secret_access_key"): "The feeder's role gives it its rights: `nommerd aws setup` makes it.",
    ("webhooks", "secret"): "The feeder makes one on its machine.",
    ("secrets", "keys"): "The feeder makes one on its machine.",
}
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_IN_CLEAR = "would be told in the clear to whoever may look at the instance."


def render_feeder(config: Path, version: str = __version__) -> str:
    """The user-data of a feeder with the configuration in this file, which must hold; files in its `paths.pipelines` and
    `paths.presets` come along.

    Raises ConfigError, or ManyErrors, for what does not hold, for secrets in it, and where it all is too long.
    """
    settings = load(config, {})
    written = config.read_text(encoding="utf-8")
    only_comments = yaml.compose(written, Loader=yaml.SafeLoader) is None
    document: dict[str, Any] = {}
    if not only_comments:
        root = load_yaml(written, str(config), ConfigError, "config")
        _check(root)
        document = root.plain()
    files: list[File] = []
    paths: dict[str, Any] = {key: value for key, value in (document.get("paths") or {}).items() if value}
    paths.setdefault("data", DATA_DIR)
    for kind, folders in (("pipelines", settings.paths.pipelines), ("presets", settings.paths.presets)):
        files += _documents(f"{FOLDER}/{kind}", folders)
        paths[kind] = [f"{FOLDER}/{kind}"] if folders else []
    document["paths"] = paths
    text = "# The configuration that this feeder was started with.\n" + yaml.safe_dump(document, sort_keys=False, width=120)
    files = [File(CONFIG_FILE, "0640", text), *files]
    for file in files:
        if _has_secret(file):
            raise ConfigError("config.bad_value", f"What becomes {file.path} has a URI with credentials or a query, which "
                              f"{_IN_CLEAR}", "Leave them out of it, and of its comments.", place=file.path)
    return cloud_config(files, program="nommerd-feeder", conf="feeder", version=version, owners=f"root:{USER} {FOLDER}",
                        data=str(paths["data"]))


def _check(root: Node) -> None:
    """Raises ConfigError, or ManyErrors, for the secrets of a configuration, each with its place."""
    faults = Faults(family="config")
    for path, node in walk(root):
        name, hint = ".".join(map(str, path[:2])), _SECRET.get(path)
        if hint is not None and node.plain():
            faults.add("bad_value", f"{name} {_IN_CLEAR}", f"Leave it out. {hint}", node.key_place)
        elif isinstance(node.value, str) and (has_secret(node.value) or _tells(node.value)):
            faults.add("bad_value", f"{name} has a URI with credentials or a query, which {_IN_CLEAR}",
                       "Leave them out of it.", node.key_place)
    faults.check()


def _has_secret(file: File) -> bool:
    """Whether it has a URI with user information or a query of `name=value` anywhere, in a comment as well, or a value that is
    a URI with any query or fragment.

    Values are looked at as they are read, not as they are written: YAML knows many spellings of a text.
    """
    try:
        values = [event.value for event in yaml.parse(file.content, Loader=yaml.SafeLoader)
                  if isinstance(event, yaml.ScalarEvent)]
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError("config.bad_yaml", f"What becomes {file.path} is no YAML.", place=file.path) from error
    return any(map(has_secret, values)) or any(map(_tells, (file.content, *values)))


def _tells(text: str) -> bool:
    """Whether a URI anywhere in it has user information, or a query of `name=value`, as presigned ones have."""
    return any(split_uri(uri)[1] or "=" in uri.partition("?")[2] for uri in _URI.findall(text))


def _documents(where: str, folders: Sequence[Path]) -> list[File]:
    """The YAML files in these folders, the first folder's first."""
    found: dict[str, File] = {}
    for folder in folders:
        for file in documents(folder):
            found.setdefault(file.stem, File(f"{where}/{file.name}", "0640", _text(file)))
    return list(found.values())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError("config.unreadable", f"{file} cannot be read: {why}.", place=str(file)) from None
