"""What a node is told at its birth: a cloud-config that says where its configuration is and starts its worker.

The node's role gives it its rights; the pin says which configuration it may believe.
"""

from __future__ import annotations

import json

from nommerd import __version__
from nommerd.aws.clients import Clients
from nommerd.config import Settings
from nommerd.errors import ConfigError
from nommerd.fleet.cloudconfig import DATA_DIR, FOLDER, SHUTDOWN, USER, File, check_safe, cloud_config
from nommerd.fleet.distribution import Pin, publish
from nommerd.secrets import Keyring, has_secret

BOOT_FILE = f"{FOLDER}/boot.yaml"


def render(pin: Pin, *, region: str, cluster: str, version: str, endpoint_url: str | None = None) -> str:
    """The user-data of a node: `nommerd` of exactly this `version`, with the configuration of `pin`.

    A node on which it cannot start shuts itself down (the launch template makes that its termination): nobody pays for one
    that idles. The worker may end the machine, too, where EC2 refuses to. Raises ConfigError for an endpoint that holds
    credentials.
    """
    check_safe(region=region, cluster=cluster)
    check_endpoint(endpoint_url)
    boot = {"cluster": cluster, "data": DATA_DIR, "region": region, "endpoint_url": endpoint_url,
            "config": {"uri": pin.uri, "version": pin.version, "sha256": pin.sha256}}
    return cloud_config([File(BOOT_FILE, "0600", json.dumps(boot, indent=2) + "\n")], program="nommerd-worker",
                        conf="node", version=version, owners=f"{USER}:{USER} {BOOT_FILE}",
                        sudo=f"{SHUTDOWN} -h now", shut_down=True)


def check_endpoint(url: str | None) -> None:
    """No credentials in it. Raises ConfigError."""
    if url is not None and has_secret(url):
        raise ConfigError("config.bad_value", "aws.endpoint_url holds credentials: nodes would be told them in the clear.",
                          "Leave them out of it.", place="aws.endpoint_url")


class UserData:
    """What the feeder gives new nodes: call it for the text. `publish` puts their configuration into the bucket, once."""

    def __init__(self, settings: Settings, clients: Clients, keyring: Keyring) -> None:
        self._settings, self._clients, self._keyring = settings, clients, keyring
        self._pin: Pin | None = None
        self._renewed, self._published = 1, 0  # how often there was something new, and how much of that is in the bucket

    def publish(self) -> None:
        """Publish, unless it is done or there is no aws.config_bucket. Raises ConfigError, or InfrastructureError where a
        later try may succeed."""
        if self._published != self._renewed:
            renewed = self._renewed  # before anything is read: what changes meanwhile is published next
            self._pin = publish(self._settings, self._clients, self._keyring)
            self._published = renewed if self._pin is not None else 0

    def renew(self) -> None:
        """What is to be published may have changed: publish it again before the next node, or the next call of `publish`."""
        self._renewed += 1

    def __call__(self) -> str:
        """The user-data, once the configuration is published. Raises as `publish`, and ConfigError without a bucket."""
        self.publish()
        if self._pin is None:
            raise ConfigError("config.bucket", "There is no bucket from which nodes could fetch their configuration.",
                              "Set aws.config_bucket.", place="aws.config_bucket")
        return render(self._pin, region=self._clients.region, cluster=self._settings.cluster, version=__version__,
                      endpoint_url=self._settings.aws.endpoint_url)
