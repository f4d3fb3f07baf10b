"""Roots to put nommerd into: a Debian of its own to install packages, users and daemons in, without a machine of its own.

A root is a stack of layers (overlayfs), the lowest made by debootstrap. What runs in it has mounts, process ids, /proc and
/dev of its own; the network is this machine's, so its 127.0.0.1 is ours. Nothing is mounted outside its namespace: when its
first process ends, everything in it ends, and nothing is left but files.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.rig import wait_until

CHECKOUT = Path(__file__).parents[2]
SUITE = "bookworm"
NEEDED = ("debootstrap", "setpriv", "unshare", "nsenter")
SECONDS = 300.0
PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "http_proxy", "https_proxy",
             "no_proxy")  # how this machine reaches its packages
CA_FILE = "/run/outside/ca.crt"

# The namespace's first process: it mounts what a system has, moves in, and reaps what others leave behind.
FIRST = r"""
set -eu
root=$1 layers=$2 top=$3 work=$4 debs=$5 wheels=$6 ca=$7
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$top,workdir=$work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root/run/outside"
chmod 1777 "$root/run/lock"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mkdir -p "$root/var/cache/apt/archives" "$root/run/outside/wheels"
mount --bind "$debs" "$root/var/cache/apt/archives"
mount --bind "$wheels" "$root/run/outside/wheels"
if [ -n "$ca" ]; then
    touch "$root/run/outside/ca.crt"
    mount --bind "$ca" "$root/run/outside/ca.crt"
fi
rm -f "$root/etc/resolv.conf"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
exec chroot "$root" /bin/bash -c 'touch /run/outside/up; while :; do sleep 3600 & wait $!; done'
"""


def missing_tools() -> list[str]:
    """What this machine lacks for roots."""
    return [*([] if os.geteuid() == 0 else ["root's rights"]), *(tool for tool in NEEDED if shutil.which(tool) is None)]


def cache() -> Path:
    """Where the lowest layer and downloaded packages are kept from run to run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nommerd-tests"


@contextmanager
def ports() -> Iterator[None]:
    """Machines use the ports of the shipped configuration: no two test runs have some at a time. (One run may have several,
    and starts daemons in one of them.)"""
    cache().mkdir(parents=True, exist_ok=True)
    if _held:
        lock = _held[0]
    else:
        lock = (cache() / "ports.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    _held.append(lock)
    try:
        yield
    finally:
        _held.pop()
        if not _held:
            lock.close()


_held: list[IO[str]] = []


def debian() -> Path:
    """The lowest layer: a minimal Debian, made once."""
    folder = cache() / SUITE
    if not folder.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as temporary:
            tree = Path(temporary) / "tree"
            made = subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(tree)], capture_output=True, text=True,
                                  timeout=SECONDS, stdin=subprocess.DEVNULL)
            assert made.returncode == 0, made.stdout[-2000:] + made.stderr
            # a root may be lost with the power: that saves most of the time dpkg takes
            (tree / "etc/dpkg/dpkg.cfg.d/no-sync").write_text("force-unsafe-io\n")
            # nothing is started when a package is installed, as in any image that is being built
            policy = tree / "usr/sbin/policy-rc.d"
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            tree.rename(folder)
    return folder


class Root:
    """A root on these layers, the topmost first, running from the beginning. Close it."""

    def __init__(self, layers: Sequence[Path], home: Path) -> None:
        self.layers = [home / "top", *layers]
        folders = {name: home / name for name in ("root", "top", "work")}
        folders |= {"debs": cache() / "debs", "wheels": cache() / "pip"}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        ca = ssl.get_default_verify_paths().cafile or ""
        paths = [str(folders["root"]), ":".join(map(str, layers)),
                 *(str(folders[name]) for name in ("top", "work", "debs", "wheels"))]
        self._log = home / "first.log"
        with self._log.open("wb") as log:
            self._unshare = subprocess.Popen(
                # it ends with us, however that comes about
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation",
                 "private", "bash", "-c", FIRST, "first", *paths, ca], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._ca = bool(ca)
        try:
            wait_until(lambda: self._unshare.poll() is not None or self._first() is not None, 20, self._log.read_text)
            self.pid = self._first() or 0
            assert self.pid, self._log.read_text()
            wait_until(lambda: self._unshare.poll() is not None or (self.path / "run/outside/up").exists(), 20,
                       self._log.read_text)
            assert self._unshare.poll() is None, self._log.read_text()
        except BaseException:
            self.close()
            raise

    @classmethod
    def over(cls, lower: Root, home: Path) -> Root:
        """A root on top of a closed one: what that one has, and changes that stay here."""
        assert lower.closed, "its files must not change any more"
        return cls(lower.layers, home)

    def _first(self) -> int | None:
        try:
            children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(children[0]) if children else None

    @property
    def path(self) -> Path:
        """Its files, as long as it runs. A symbolic link to an absolute path leads outside."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def closed(self) -> bool:
        return self._unshare.poll() is not None

    def env(self) -> dict[str, str]:
        """The environment of what runs in it: that of a fresh login of root, and how packages are reached."""
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
                "PIP_CACHE_DIR": "/run/outside/wheels", **({"PIP_CERT": CA_FILE} if self._ca else {}), **passed}

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd", *argv]

    def run(self, *argv: str, env: Mapping[str, str] | None = None, timeout: float = SECONDS, check: bool = True,
            input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root, from /, to its end. `check`: it must exit 0."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(self._inside(argv), env={**self.env(), **(env or {})}, capture_output=True, text=True,
                              errors="replace", timeout=timeout, **given)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done

    def shell(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The same for a script of bash."""
        return self.run("bash", "-euo", "pipefail", "-c", script, **options)

    def start(self, *argv: str, env: Mapping[str, str] | None = None, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command in it; it ends with the root at the latest."""
        with (log or Path(os.devnull)).open("ab") as out:
            return subprocess.Popen(self._inside(argv), env={**self.env(), **(env or {})}, stdin=subprocess.DEVNULL,
                                    stdout=out, stderr=out)

    def checkout(self, where: str = "/root/nommerd") -> None:
        """Put the project's files there, as a clone would."""
        listed = subprocess.run(["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                                capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            source, target = CHECKOUT / name, self.path / where.lstrip("/") / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def close(self) -> None:
        """End everything in it. Its files stay."""
        first = self._first()
        if first is not None:
            os.kill(first, signal.SIGKILL)
        else:
            self._unshare.kill()
        self._unshare.wait(20)
