"""`python -m tools.dist`: the sdist and the wheel, the same bytes wherever and whenever they are made of one commit.

The sdist is packed anew, as setuptools leaves times, owners and modes of the machine in it; the wheel is built from that
sdist, so whoever has only the sdist gets the same wheel. What is left to differ is the version of setuptools, which
tools/requirements.txt pins, and of zlib.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

HOOK = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
ZIP_EPOCH = 315532800  # 1980: zip knows no time before
SUMS = "SHA256SUMS"


class Unbuildable(Exception):
    """There is nothing to build, or setuptools could not; the message says why."""


def build(tree: Path, out: Path, epoch: int) -> list[Path]:
    """The sdist and the wheel of a tree, in `out`; every time in them is `epoch`, in seconds. The tree is left as it is."""
    if not (tree / "setup.py").is_file():
        raise Unbuildable(f"{tree} has no setup.py: it is no source of nommerd.")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy, unpacked, raw = (Path(folder) / name for name in ("copy", "unpacked", "raw"))
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(
            "__pycache__", "*.egg-info", "build", "dist", ".[a-z]*", "tests"))
        _plain_modes(copy)
        sdist = _packed(_hook("build_sdist", copy, raw, epoch), out, epoch)
        _unpacked(sdist, unpacked)
        (source,) = unpacked.iterdir()
        wheel = _hook("build_wheel", source, raw, epoch)
        shutil.copy(wheel, out / wheel.name)
    return [sdist, out / wheel.name]


def _plain_modes(tree: Path) -> None:
    """The modes that git keeps, whatever the umask was when the tree was made."""
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _unpacked(archive: Path, to: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)  # Python 3.11.2 has none
        tar.extractall(to)


def _hook(name: str, tree: Path, out: Path, epoch: int) -> Path:
    """What one of setuptools' build hooks made of a tree."""
    out.mkdir(exist_ok=True)
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    ended = subprocess.run([sys.executable, "-c", HOOK, name, str(out)], cwd=tree, env=env, umask=0o022, capture_output=True,
                           text=True, check=False)
    if ended.returncode:
        raise Unbuildable(f"setuptools' {name} failed:\n{ended.stderr}")
    return out / ended.stdout.splitlines()[-1]


def _packed(made: Path, out: Path, epoch: int) -> Path:
    """An sdist with the same files, sorted, of nobody's, all of one time."""
    path = out / made.name
    with (path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=epoch) as zipped,
          tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as packed, tarfile.open(made) as tar):
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, epoch
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            packed.addfile(plain, tar.extractfile(member))
    return path


# --- of a checkout -----------------------------------------------------------------------------------------------------


def exported(checkout: Path, to: Path) -> int:
    """The last commit's files in `to`; when it was made, in seconds. Changes that are not committed are told, and left out."""
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        print(f"not in it, as they are not committed: {', '.join(line[3:] for line in changed)}", file=sys.stderr)
    archive = to.with_name("commit.tar")
    _git(checkout, "archive", "--output", str(archive), "HEAD")
    _unpacked(archive, to)
    return int(_git(checkout, "log", "-1", "--format=%ct"))


def _git(checkout: Path, *argv: str) -> str:
    try:
        ended = subprocess.run(["git", "-C", str(checkout), *argv], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unbuildable("git is not installed: name a tree with --tree, and set SOURCE_DATE_EPOCH.") from None
    if ended.returncode:
        raise Unbuildable(f"git {argv[0]}: {ended.stderr.strip()}\nWithout git: --tree, and SOURCE_DATE_EPOCH.")
    return ended.stdout


def _epoch(commit: int | None) -> int:
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not told and commit is None:
        raise Unbuildable("SOURCE_DATE_EPOCH must say which time the files of a --tree get, in seconds since 1970.")
    if told and not told.isdecimal():
        raise Unbuildable(f"SOURCE_DATE_EPOCH is {told!r}, and must be whole seconds since 1970.")
    return max(int(told or commit or 0), ZIP_EPOCH)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.dist", description="Build the sdist and the wheel, reproducibly.")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where to put them (dist)")
    parser.add_argument("--tree", type=Path, help="build what lies here, instead of this checkout's last commit")
    told = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tree = told.tree or Path(folder) / "tree"
            commit = None if told.tree else exported(Path(__file__).parents[1], tree)
            made = build(tree, told.out, _epoch(commit))
    except (Unbuildable, OSError) as error:
        print(f"tools.dist: {error}", file=sys.stderr)
        return 1
    sums = "".join(f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made)
    (told.out / SUMS).write_text(sums, encoding="utf-8")
    print(sums, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
