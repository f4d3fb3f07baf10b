"""Where things are when nobody says otherwise. Light: the client commands import it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SYSTEM_FILE = Path("/etc/nommerd/nommerd.yaml")
SYSTEM_DATA = Path("/var/lib/nommerd")  # the data directory of a machine's own installation
DEFAULT_URL = "http://127.0.0.1:8001"
TOKEN_NAME = "token"


def default_data_dir(env: Mapping[str, str]) -> Path:
    """XDG_DATA_HOME/nommerd, else ~/.local/share/nommerd."""
    home = env.get("XDG_DATA_HOME", "")
    base = Path(home) if home.startswith("/") else _home(env) / ".local" / "share"
    return base / "nommerd"


def _home(env: Mapping[str, str]) -> Path:
    try:
        return Path(env.get("HOME") or Path.home())
    except RuntimeError:  # a user whom nobody knows, as in containers
        return Path("/nonexistent")


def shipped_conf() -> Path:
    """Where nommerd's own presets and pipelines lie: in the installed package, else in the checkout beside it."""
    return _shipped("conf")


def shipped_deploy() -> Path:
    """Where the recipes of machines and images lie: in the installed package, else in the checkout beside it."""
    return _shipped("deploy")


def _shipped(name: str) -> Path:
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def state_dir(env: Mapping[str, str]) -> Path:
    """XDG_STATE_HOME/nommerd, else ~/.local/state/nommerd: what client commands remember."""
    home = env.get("XDG_STATE_HOME", "")
    base = Path(home) if home.startswith("/") else _home(env) / ".local" / "state"
    return base / "nommerd"
