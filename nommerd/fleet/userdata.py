"""What a node is told at its birth: a cloud-config that says where its configuration is and starts its worker.

Everybody on the node can read it, and so can whoever may describe the instance: it holds no secret. The node's role gives
it its rights; the pin says which configuration it may believe.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

import yaml

from nommerd import __version__
from nommerd.aws.clients import Clients
from nommerd.config import Settings
from nommerd.errors import ConfigError
from nommerd.fleet.distribution import Pin, publish
from nommerd.secrets import Keyring

BYTES_MAX = 16 * 1024  # of user-data, before it is encoded (EC2)
BOOT_FILE = "/etc/nommerd/boot.yaml"
SUPERVISOR_FILE = "/etc/nommerd/supervisord.conf"
START_FILE = "/etc/nommerd/start-node"
DATA_DIR = "/var/lib/nommerd"
HOME = "/opt/nommerd"  # a virtual environment: the image's, or made here
USER = "nommerd"
SHUTDOWN = "/usr/sbin/shutdown -h now"  # what the worker may do as root: end the machine where EC2 refuses to

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}")  # a version, a region, a cluster's name

# Where it cannot start, the machine ends (the launch template makes that its termination): nobody pays for one that idles.
_START = f"""\
#!/bin/sh
set -eu
trap '[ $? -eq 0 ] || /usr/sbin/shutdown -h +1' EXIT
python={HOME}/bin/python
[ -x "$python" ] || python3 -m venv {HOME}
is_right() {{
    "$python" -I -c 'import sys, nommerd; sys.exit(nommerd.__version__ != sys.argv[1])' VERSION 2>/dev/null
}}
tries=0
until is_right; do
    tries=$((tries + 1))
    [ "$tries" -le 5 ] || exit 1
    [ "$tries" -eq 1 ] || sleep 10
    "$python" -m pip install --quiet --disable-pip-version-check 'nommerd[ffmpeg]==VERSION' || :
done
install -d -o {USER} -g {USER} -m 0700 {DATA_DIR}
chown {USER}:{USER} {BOOT_FILE}
{HOME}/bin/supervisord -c {SUPERVISOR_FILE}
"""

# Exit codes 0 (drained, or ended itself) and 2 (a configuration that must be changed) are not started again.
_SUPERVISOR = f"""\
[unix_http_server]
file=/run/nommerd-supervisor.sock
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix:///run/nommerd-supervisor.sock
[supervisord]
logfile=/var/log/nommerd-supervisord.log
logfile_maxbytes=10MB
pidfile=/run/nommerd-supervisord.pid
[program:worker]
command={HOME}/bin/nommerd worker --boot {BOOT_FILE} --log json
user={USER}
directory={DATA_DIR}
environment=HOME="{DATA_DIR}"
autorestart=unexpected
exitcodes=0,2
startsecs=1
startretries=10
stopsignal=TERM
stopwaitsecs=10
redirect_stderr=true
stdout_logfile=/var/log/nommerd-worker.log
stdout_logfile_maxbytes=50MB
"""


def render(pin: Pin, *, region: str, cluster: str, version: str, endpoint_url: str | None = None) -> str:
    """The user-data of a node: `nommerd` of exactly this `version`, with the configuration of `pin`.

    cloud-config as text, below BYTES_MAX. Raises ConfigError for an endpoint that holds credentials.
    """
    for name, text in (("version", version), ("region", region), ("cluster", cluster)):
        if not _SAFE.fullmatch(text):
            raise ConfigError("config.bad_value", f"{text!r} is no {name} that a node can be told.", place=name)
    if endpoint_url is not None and (urlsplit(endpoint_url).username is not None or urlsplit(endpoint_url).query):
        raise ConfigError("config.bad_value", "aws.endpoint_url holds credentials: nodes would be told them in the clear.",
                          "Leave them out of it.", place="aws.endpoint_url")
    boot = {"cluster": cluster, "data": DATA_DIR, "region": region, "endpoint_url": endpoint_url,
            "config": {"uri": pin.uri, "version": pin.version, "sha256": pin.sha256}}
    document = {
        "users": ["default", {"name": USER, "system": True, "homedir": DATA_DIR, "shell": "/usr/sbin/nologin",
                              "sudo": [f"ALL=(root) NOPASSWD: {SHUTDOWN}"]}],
        "write_files": [_file(BOOT_FILE, "0600", json.dumps(boot, indent=2) + "\n"),
                        _file(SUPERVISOR_FILE, "0600", _SUPERVISOR),
                        _file(START_FILE, "0700", _START.replace("VERSION", version))],
        "runcmd": [[START_FILE]],
    }
    text = "#cloud-config\n" + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000)
    if len(text.encode()) > BYTES_MAX:
        raise ConfigError("config.bad_value", f"The user-data of a node would take more than {BYTES_MAX} bytes.",
                          "Shorten aws.config_bucket or aws.endpoint_url.", place="aws")
    return text


def _file(path: str, permissions: str, content: str) -> dict[str, Any]:
    return {"path": path, "owner": "root:root", "permissions": permissions, "content": content}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, for people who read them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


class UserData:
    """What the feeder gives new nodes: call it for the text. `publish` puts their configuration into the bucket, once."""

    def __init__(self, settings: Settings, clients: Clients, keyring: Keyring) -> None:
        self._settings, self._clients, self._keyring = settings, clients, keyring
        self._pin: Pin | None = None

    def publish(self) -> None:
        """Publish, unless it is done or there is no aws.config_bucket. Raises ConfigError, or InfrastructureError where a
        later try may succeed."""
        if self._pin is None:
            self._pin = publish(self._settings, self._clients, self._keyring)

    def renew(self) -> None:
        """What is to be published may have changed: publish it again before the next node, or the next call of `publish`."""
        self._pin = None

    def __call__(self) -> str:
        """The user-data, once the configuration is published. Raises as `publish`, and ConfigError without a bucket."""
        self.publish()
        if self._pin is None:
            raise ConfigError("config.bucket", "There is no bucket from which nodes could fetch their configuration.",
                              "Set aws.config_bucket.", place="aws.config_bucket")
        return render(self._pin, region=self._clients.region, cluster=self._settings.cluster, version=__version__,
                      endpoint_url=self._settings.aws.endpoint_url)
