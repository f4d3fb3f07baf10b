"""A container engine for tests: podman with a store of its own, and an image built by the Dockerfile as it stands.

Registries may be out of reach, so the base image is made here, by debootstrap, and given the name that the Dockerfile asks
for. The engine runs in mount and process namespaces of its own: when it is closed, every container in it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.deploy.root import CHECKOUT, cache, debian
from tests.rig import wait_until

NEEDED = ("podman", "crun", "setpriv", "unshare", "nsenter", "debootstrap")
BASE = "docker.io/library/debian:bookworm-slim"
CERTIFICATE = "/run/outside.crt"
BUILD_SECONDS = 900.0
# crun of Debian 12 refuses a machine that has version 1 and 2 of cgroups side by side: in here it sees version 2 alone
FIRST = r"""
set -eu
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "$2"
mount -t tmpfs tmpfs "$2"  # what runs: to podman, each engine is the first one after a restart of the machine
touch "$1"
while :; do sleep 3600 & wait $!; done
"""


def missing() -> list[str]:
    """What this machine lacks for the engine."""
    return [*([] if os.geteuid() == 0 else ["root's rights"]), *(tool for tool in NEEDED if shutil.which(tool) is None)]


class Engine:
    """podman, alone with its store. Use it as a context."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._store, self._running = cache() / "containers", cache() / "containers-running"

    def __enter__(self) -> Self:
        self._store.mkdir(parents=True, exist_ok=True)
        self._lock = (cache() / "containers.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        up = self._home / "up"
        self._unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", "bash", "-c", FIRST, "first", str(up), str(self._running)], stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: self._unshare.poll() is not None or up.exists(), 20, "the engine's namespaces")
            self._pid = int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()[0])
            self.run("rm", "--force", "--all")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("rm", "--force", "--all", "--time", "0", check=False)
        self._end()

    def _end(self) -> None:
        self._unshare.kill()
        self._unshare.wait(20)
        self._lock.close()

    def run(self, *argv: str, check: bool = True, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """One command of podman, to its end. `check`: it must exit 0."""
        command = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "podman", "--root", str(self._store),
                   "--runroot", str(self._running), "--tmpdir", f"{self._running}/tmp",
                   "--cgroup-manager", "cgroupfs", "--events-backend", "none", *argv]
        # containers hold on to what they are given as stderr: to a file, not to a pipe whose end would be waited for
        with (self._home / "out").open("w+") as out, (self._home / "err").open("w+") as err:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=timeout).returncode
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(command, code, out.read(), err.read())
        assert not check or code == 0, f"{argv}: {code}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def build(self, tag: str) -> None:
        """The image of the checkout."""
        if self.run("image", "exists", BASE, check=False).returncode:
            packed = self._home / "base.tar"
            subprocess.run(["tar", "-C", str(debian()), "-cf", str(packed), "."], check=True, timeout=BUILD_SECONDS)
            self.run("import", "--quiet", "--change", f"ENV PIP_CERT={CERTIFICATE}", str(packed), BASE, timeout=BUILD_SECONDS)
            packed.unlink()
        options = [f"--build-arg={name}={os.environ[name]}" for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
                   if name in os.environ]
        trusted = ssl.get_default_verify_paths().cafile
        assert trusted, "the build trusts what this machine trusts"
        self.run("build", "--pull=never", "--isolation", "chroot", "--network", "host", "--format", "docker", "--volume",
                 f"{trusted}:{CERTIFICATE}:ro", *options, "--tag", tag, str(CHECKOUT), timeout=BUILD_SECONDS)
        self.run("image", "prune", "--force", check=False)

    def start(self, name: str, image: str, service: dict[str, Any], sources: dict[str, str]) -> None:
        """A container of a service of compose.yaml, with what it is given there; `sources`: target -> volume or folder."""
        mounts = [f"--volume={sources[target]}:{target}" for target in targets(service)]
        self.run("run", "--detach", "--name", name, *self.hardened(service), *mounts, "--network", "none",
                 f"--stop-timeout={int(service['stop_grace_period'].removesuffix('s'))}", image, *service["command"])

    @staticmethod
    def hardened(service: dict[str, Any]) -> list[str]:
        """A service's rights, as options of `run`. Limits: those of this machine may forbid the engine's own."""
        return ["--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096",
                *(["--read-only", "--read-only-tmpfs=false"] if service["read_only"] else []),
                *(f"--tmpfs={path}" for path in service["tmpfs"]), *(f"--cap-drop={cap}" for cap in service["cap_drop"]),
                *(f"--security-opt={option.removesuffix(':true')}" for option in service["security_opt"])]

    def healthy(self, name: str) -> bool:
        """What the image's HEALTHCHECK says of a container."""
        return self.run("healthcheck", "run", name, check=False).returncode == 0

    def logs(self, name: str) -> str:
        done = self.run("logs", "--tail", "20", name, check=False)
        return done.stdout + done.stderr

    def nommerd(self, name: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A client command, in a container."""
        return self.run("exec", name, "nommerd", *argv, check=check)

    def job(self, name: str, id: str) -> Any:
        return json.loads(self.nommerd(name, "jobs", "show", id, "--json").stdout)

    def exit_code(self, name: str) -> int:
        return int(self.run("wait", name).stdout)


def targets(service: dict[str, Any]) -> Sequence[str]:
    """Where a service's volumes are in its container."""
    return [one["target"] if isinstance(one, dict) else one.split(":")[1] for one in service["volumes"]]
