"""What a new machine is told: a cloud-config that writes files and starts a daemon under the distribution's supervisor.

The image brings nommerd and supervisor; where it does not, or brings another version, they are installed first. Everybody on
the machine can read user-data, and so can whoever may describe the instance: there is no secret in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from nommerd.errors import ConfigError
from nommerd.places import SYSTEM_DATA, shipped_conf

BYTES_MAX = 16 * 1024  # of user-data, before it is encoded (EC2)
DATA_DIR = str(SYSTEM_DATA)
HOME = "/opt/nommerd"  # a virtual environment: the image's, or made here
USER = "nommerd"
FOLDER = "/etc/nommerd"
START_FILE = f"{FOLDER}/start"
CONF_DIR = "/etc/supervisor/conf.d"
SHUTDOWN = "/usr/sbin/shutdown"

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}")  # a version, a region, a cluster's name
_PATH = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+")
# folders of the system itself and of nommerd's code, and all in the first ones: what becomes the data directory changes its
# owner
_SYSTEM = re.compile(r"/(bin|boot|dev|etc|lib\d*|libx32|proc|root|run|sbin|sys|tmp|usr|opt/nommerd(-[^/]*)?)(/.*)?"
                     r"|/(home|lost\+found|media|mnt|opt|snap|srv|var|var/opt)|/var/(?!lib/nommerd|opt/).*|/home/(?!nommerd)[^/]+")

# Supervisor gets its file last: were it there from the beginning, a supervisor that boots first would start too early. One
# that is just booting may have read its files before and not yet answer: it is asked until it does.
_START = f"""\
#!/bin/sh
set -eu
GIVE_UP
python={HOME}/bin/python
supervisor=/etc/supervisor/supervisord.conf
export DEBIAN_FRONTEND=noninteractive
get() {{ apt-get -qq -o DPkg::Lock::Timeout=120 -o DPkg::Options::=--force-confold "$@" </dev/null >/dev/null; }}
prepare() {{
    if [ ! -x "$python" ] || [ ! -e "$supervisor" ]; then
        get update && get install --no-install-recommends python3-venv supervisor bubblewrap || return 1
    fi
    [ -x "$python" ] || python3 -m venv {HOME}
}}
is_right() {{
    [ -e "$supervisor" ] &&
        "$python" -I -c 'import sys, nommerd; sys.exit(nommerd.__version__ != sys.argv[1])' VERSION 2>/dev/null
}}
tries=0
until is_right; do
    tries=$((tries + 1))
    [ "$tries" -le 5 ] || {{ echo 'nommerd VERSION cannot be installed: the reasons are above' >&2; exit 1; }}
    [ "$tries" -eq 1 ] || sleep 10
    if prepare; then
        "$python" -m pip install --quiet --disable-pip-version-check 'nommerd[ffmpeg]==VERSION' || :
    fi
done
for folder in {DATA_DIR} DATA; do # which may be a volume that somebody else had
    [ ! -L "$folder" ] || {{ echo "$folder is a link: give the folder itself" >&2; exit 1; }}
done
install -d -o {USER} -g {USER} -m 0700 {DATA_DIR} DATA
install -d -o root -g {USER} -m 0750 /var/log/nommerd
chown -R OWNERS
install -m 0644 {FOLDER}/PROGRAM.conf {CONF_DIR}/PROGRAM.conf
service supervisor start || : # where no systemd is, it fails if it runs
tries=0
until supervisorctl update; do
    tries=$((tries + 1))
    [ "$tries" -le 20 ] || {{ echo 'supervisor does not answer' >&2; exit 1; }}
    sleep 1
done
"""
_SHUT_DOWN = f"trap '[ $? -eq 0 ] || {SHUTDOWN} -h +1' EXIT"


@dataclass(frozen=True, slots=True)
class File:
    """A file to write, as root."""

    path: str
    permissions: str
    content: str


def cloud_config(files: Sequence[File], *, program: str, conf: str, version: str, owners: str, data: str = DATA_DIR,
                 sudo: str | None = None, shut_down: bool = False) -> str:
    """The text of a cloud-config, below BYTES_MAX, that has `nommerd` of exactly this version run the program of
    conf/supervisor/`conf`.conf.

    `owners`: user:group and the paths that become theirs. `data`: the data directory, an absolute path. `sudo`: what the user
    nommerd may run as root. `shut_down`: a machine on which it cannot start ends. Raises ConfigError where it is too long.
    """
    check_safe(version=version)
    if not _PATH.fullmatch(data) or _SYSTEM.fullmatch(data):
        raise ConfigError("config.bad_value", f"{data!r} is no data directory that a machine can be told.",
                          f"Leave it out for {DATA_DIR}, or give the absolute path of a folder that is nobody else's, of "
                          "letters, digits and ._- alone.", place="paths.data")
    user: dict[str, Any] = {"name": USER, "system": True, "homedir": DATA_DIR, "shell": "/usr/sbin/nologin"}
    if sudo is not None:
        user["sudo"] = f"ALL=(root) NOPASSWD: {sudo}"  # a list works as well, but cloud-init 22's schema knows none
    start = _START.replace("GIVE_UP\n", f"{_SHUT_DOWN}\n" if shut_down else "").replace("VERSION", version)
    supervised = (shipped_conf() / f"supervisor/{conf}.conf").read_text("utf-8")
    all_files = [*files, File(f"{FOLDER}/{program}.conf", "0644", supervised),
                 File(START_FILE, "0700", start.replace("OWNERS", owners).replace("PROGRAM", program).replace("DATA", data))]
    written = [{"path": one.path, "owner": "root:root", "permissions": one.permissions, "content": one.content}
               for one in all_files]
    document = {"users": ["default", user], "write_files": written, "runcmd": [[START_FILE]]}
    text = "#cloud-config\n" + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000)
    if len(text.encode()) > BYTES_MAX:
        raise ConfigError("config.bad_value", f"The user-data would take {len(text.encode())} bytes; EC2 takes {BYTES_MAX}.",
                          "Put pipelines and presets by API instead of into files; shorten the configuration.")
    return text


def check_safe(**names: str) -> None:
    """Nothing in them that a shell could misread. Raises ConfigError."""
    for name, text in names.items():
        if not _SAFE.fullmatch(text):
            raise ConfigError("config.bad_value", f"{text!r} is no {name} that a machine can be told.", place=name)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, for people who read them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
