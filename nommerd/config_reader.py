"""How a configuration file and the environment become Settings, and how their faults become messages with a place."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nommerd.config import Settings
from nommerd.errors import ConfigError, ManyErrors, NommerdError
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.tree import walk
from nommerd.places import SYSTEM_DATA, SYSTEM_FILE, default_data_dir
from nommerd.secrets import Keyring, Secret, check_webhook_secret

FAMILY = "config"
PREFIX = "NOMMERD_"
JSON_WANTED = """Lists and maps are JSON in the environment, such as '["/srv/media"]'."""
RESERVED = frozenset({"NOMMERD_CONFIG", "NOMMERD_URL", "NOMMERD_TOKEN"})
PATH_KEYS = (("paths", "data"), ("paths", "pipelines"), ("paths", "presets"), ("api", "token_file"), ("worker", "workspace"),
             ("storage", "file_roots"))
PROGRAM_KEYS = (("media", "ffmpeg"), ("media", "ffprobe"))
WORDS = (("Input should be", "must be"), ("String should", "must"), ("a valid integer", "an integer"), ("a valid ", "a "),
         ("tuple", "list"), ("dictionary", "map"))
LOCAL_SCHEMES = frozenset({"sqlite", "memory"})
AWS_SCHEMES = {"store": frozenset({"dynamodb", "simpledb"}), "bus": frozenset({"sqs"})}

Where = tuple[str | int, ...]


@dataclass
class Draft:
    """Values as they were written, and where each of them stands."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Where, str] = field(default_factory=dict)
    faults: list[NommerdError] = field(default_factory=list)

    def place(self, path: Where) -> str | None:
        """The place of the nearest written thing on the way to `path`."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path)

    def fault(self, code: str, message: str, hint: str = "", *, place: str | None = None) -> None:
        self.faults.append(ConfigError(code, message, hint, place=place))


def read(file: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings of these two sources, or every fault in them."""
    draft = Draft()
    if file is not None:
        _read_file(draft, file)
    _read_environment(draft, env)
    if file == SYSTEM_FILE:
        _fill_in(draft.values)
    try:
        settings = Settings.model_validate(draft.values)
    except ValidationError as error:
        _translate(draft, error)
    else:
        _check(draft, settings)
    if draft.faults:
        raise draft.faults[0] if len(draft.faults) == 1 else ManyErrors(draft.faults)
    if settings.paths.data is None:
        settings = settings.model_copy(update={"paths": settings.paths.model_copy(update={"data": default_data_dir(env)})})
    return settings


# --- the two sources ---------------------------------------------------------------------------------------------


def _read_file(draft: Draft, file: Path) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return draft.fault("config.unreadable", f"{file} cannot be read: {why}.",
                           "Let the user read it whom this runs as.")
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines()):
        return None
    try:
        root = load_yaml(text, str(file), ConfigError, FAMILY)
    except NommerdError as error:
        draft.faults.extend(error.errors if isinstance(error, ManyErrors) else [error])
        return None
    if not isinstance(root.value, dict):
        return draft.fault("config.bad_value", "A configuration is a map of sections.", place=root.place)
    draft.values = root.plain()
    draft.places = {path: node.key_place for path, node in walk(root)}
    _make_absolute(draft.values, file.parent)
    return None


def _fill_in(values: dict[str, Any]) -> None:
    """Where the machine's own file leaves out paths, they are those of the machine, whoever asks."""
    paths = values.setdefault("paths", {})
    if not isinstance(paths, dict):
        return
    if paths.get("data") is None:
        paths["data"] = str(SYSTEM_DATA)
    for kind in ("pipelines", "presets"):
        folder = SYSTEM_FILE.parent / kind
        if kind not in paths and folder.is_dir():
            paths[kind] = [str(folder)]


def _read_environment(draft: Draft, env: Mapping[str, str]) -> None:
    for name in sorted(env):
        if name.startswith(PREFIX) and name not in RESERVED:
            _override(draft, name, env[name])


def _override(draft: Draft, name: str, text: str) -> None:
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    annotation = _annotation(path)
    if annotation is None:
        near = difflib.get_close_matches(name, [*_variables(), *RESERVED], n=1, cutoff=0.7)
        draft.fault("config.unknown_key", f"There is no setting {'.'.join(path)}.",
                    f"Did you mean {near[0]}?" if near else "conf/nommerd.yaml lists every key.", place=name)
        return
    try:
        value = text if text and _takes_secret(annotation) else _plain(text, name)
    except NommerdError as error:
        draft.faults.extend(error.errors if isinstance(error, ManyErrors) else [error])
        return
    target = draft.values
    for part in path[:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[path[-1]] = value
    draft.places = {at: place for at, place in draft.places.items() if at[:len(path)] != path}
    draft.places[path] = name
    _make_absolute(draft.values, Path.cwd(), only=path)


def _plain(text: str, name: str) -> Any:
    """A variable's value: a YAML scalar, or JSON; empty is null. The place of a fault is the variable."""
    if not text.strip():
        return None
    try:
        return load_yaml(text, name, ConfigError, FAMILY).plain()
    except NommerdError as error:
        raise ConfigError(error.code, error.message, error.hint, place=name) from None


def _annotation(path: tuple[str, ...]) -> Any:
    """The annotation of the field at this path; None where there is none."""
    model: Any = Settings
    for part in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            return None
        model = model.model_fields[part].annotation
    return model


def _takes_secret(annotation: Any) -> bool:
    """A secret is taken as it is: it may look like anything in YAML."""
    return get_origin(annotation) is not tuple and Secret in get_args(annotation)


def _variables(model: type[BaseModel] = Settings, prefix: str = PREFIX) -> Iterable[str]:
    for name, info in model.model_fields.items():
        yield prefix + name.upper()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _variables(info.annotation, f"{prefix}{name.upper()}__")


def _make_absolute(values: dict[str, Any], base: Path, only: tuple[str, ...] | None = None) -> None:
    """Relative paths under these keys become absolute, `~` the home directory; a program's bare name stays."""
    for section, key in (*PATH_KEYS, *PROGRAM_KEYS):
        holder = values.get(section)
        if not isinstance(holder, dict) or (only is not None and (section, key)[:len(only)] != only):
            continue
        value = holder.get(key)
        if isinstance(value, list):
            holder[key] = [_absolute(item, base) if isinstance(item, str) else item for item in value]
        elif isinstance(value, str) and ((section, key) in PATH_KEYS or "/" in value):
            holder[key] = _absolute(value, base)


def _absolute(text: str, base: Path) -> str:
    return str(base / Path(text).expanduser())


# --- faults ------------------------------------------------------------------------------------------------------


def _translate(draft: Draft, error: ValidationError) -> None:
    """pydantic's errors as ours: one per key, the alternatives of a union joined."""
    said: dict[Where, list[str]] = {}
    for detail in error.errors(include_input=False, include_url=False):
        path = _real_path(draft.values, detail["loc"])
        if detail["type"] == "extra_forbidden":
            draft.fault("config.unknown_key", f"There is no setting {_dotted(detail['loc'])}.", _slip(detail["loc"]),
                        place=draft.place(detail["loc"]))
        else:
            said.setdefault(path, []).append(_message(detail))
    for path, messages in said.items():
        place, said_so = draft.place(path), _either(messages)
        json_wanted = (place or "").startswith(PREFIX) and ("a list" in said_so or "a map" in said_so)
        draft.fault("config.bad_value", f"{_dotted(path)} {said_so}.", JSON_WANTED if json_wanted else "", place=place)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] in ("model_type", "dict_type"):
        return "must be a map"
    text = detail["msg"]
    for theirs, ours in WORDS:
        text = text.replace(theirs, ours)
    return text


def _either(messages: list[str]) -> str:
    return " or ".join(dict.fromkeys(messages)).replace(" or must be ", " or ")


def _real_path(values: Any, location: Where) -> Where:
    """The part of pydantic's location that is really there: it adds names of its own for unions."""
    path: Where = ()
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        path = (*path, part)
    return path


def _dotted(path: Where) -> str:
    return ".".join(str(part) for part in path)


def _slip(location: Where) -> str:
    """What the writer of an unknown key probably meant."""
    *parents, key = location
    model = _annotation(tuple(str(part) for part in parents)) if parents else Settings
    siblings = list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    near = difflib.get_close_matches(str(key), siblings, n=1)
    if near:
        return f"Did you mean {_dotted((*parents, near[0]))}?"
    elsewhere = [f"{name}.{key}" for name, info in Settings.model_fields.items()
                 if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
                 and key in info.annotation.model_fields]
    return f"Did you mean {elsewhere[0]}?" if elsewhere else f"Known here: {', '.join(siblings)}."


def _check(draft: Draft, settings: Settings) -> None:
    """What no single key can tell, and secrets that are none."""
    _check_secrets(draft, settings)
    for key in ("store", "bus"):
        _check_url(draft, key, getattr(settings, key))
    if settings.fleet.enabled:
        _check_fleet(draft, settings)
    if settings.media.sandbox == "require":
        draft.fault("config.not_supported", "media.sandbox: require is not yet supported.", "Set it to best or off.",
                    place=draft.place(("media", "sandbox")))
    if not settings.api.hosts and not _loopback(settings.api.host):
        draft.fault("config.no_hosts", f"api.host is {settings.api.host}, which others can reach, and api.hosts is empty.",
                    "List the host names under which clients call it, for example api.hosts: [media.example.org].",
                    place=draft.place(("api", "host")))


def _check_fleet(draft: Draft, settings: Settings) -> None:
    from nommerd.fleet.check import faults

    for key, message, hint in faults(settings):
        place = draft.places.get(tuple(key.split("."))) or draft.place(("fleet", "enabled"))
        draft.fault("config.fleet", message, hint, place=place)


def _check_secrets(draft: Draft, settings: Settings) -> None:
    try:
        if settings.secrets.keys:
            Keyring(settings.secrets.keys)
    except ConfigError as error:
        draft.fault(error.code, error.message, error.hint, place=draft.place(("secrets", "keys")))
    try:
        if settings.webhooks.secret is not None:
            check_webhook_secret(settings.webhooks.secret, "webhooks.secret")
    except ConfigError as error:
        draft.fault(error.code, error.message, error.hint, place=draft.place(("webhooks", "secret")))


def _check_url(draft: Draft, key: str, url: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme in AWS_SCHEMES[key]:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", rest):
            draft.fault("config.bad_value", f"{key}: {scheme}:// needs a name of letters, digits, _ . and -.",
                        f"For example {scheme}://nommerd.", place=draft.place((key,)))
    elif scheme not in LOCAL_SCHEMES or (scheme == "sqlite" and not url.startswith("sqlite:///")):
        known = " or ".join(f"{name}://NAME" for name in sorted(AWS_SCHEMES[key]))
        draft.fault("config.bad_value", f"{key} must be sqlite:///FILE, memory:// or {known}.",
                    "FILE is relative to the data directory; sqlite:////absolute/path has four slashes.",
                    place=draft.place((key,)))


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
