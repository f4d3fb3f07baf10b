"""Building the machine image with Packer: which commands, and running them. Light: a client command imports it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nommerd import __version__
from nommerd.errors import ConfigError, InfrastructureError, ShuttingDown, Stop
from nommerd.places import shipped_deploy

TEMPLATE = "encoder.pkr.hcl"
OLDEST = (1, 6)
WITHOUT_BUILDERS = (1, 11)  # from there on Packer's builders are plugins, which `packer init` fetches
CHECK_SECONDS = 120.0
KEY_SECONDS = 30.0
HEED_SECONDS = 0.2  # at most, until an interrupt is passed on
FFMPEGS = ("distribution", "wheels")  # what provision.sh knows
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "nommerd", "conf", "deploy")
ANY_REGION = "us-east-1"  # for a check, which calls nothing


@dataclass(frozen=True, slots=True)
class Packer:
    """Packer as it is here."""

    path: str
    version: tuple[int, ...]

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: `fault` is empty where all is well."""

    what: str
    fault: str


def recipe() -> Path:
    """The folder with template, variable sets and the scripts that run on the image."""
    return shipped_deploy() / "ami"


def variable_sets() -> dict[tuple[str, str], Path]:
    """The files of variables there are, by base and architecture."""
    found = {}
    for path in sorted((recipe() / "vars").glob("*.pkrvars.hcl")):
        base, _, arch = path.name.removesuffix(".pkrvars.hcl").rpartition("-")
        found[base, arch] = path
    return found


def find_packer(env: Mapping[str, str]) -> Packer:
    """The Packer in PATH. Raises ConfigError where there is none that can read the template."""
    path = shutil.which("packer", path=env.get("PATH"))
    if path is None:
        raise ConfigError("config.no_program", "There is no packer in PATH.",
                          "Install Packer 1.6 or newer: https://developer.hashicorp.com/packer/install", place="packer")
    ended = _quiet([path, "version"], env)
    told = re.search(r"Packer v(\d+(?:\.\d+)+)", ended.stdout)
    if told is None:  # some systems have another program of this name: a part of cracklib
        raise ConfigError("config.packer", f"{path} does not tell its version as HashiCorp's Packer does.",
                          "Put Packer before it in PATH.", place="packer")
    packer = Packer(path, tuple(map(int, told[1].split("."))))
    if packer.version < OLDEST:
        raise ConfigError("config.packer", f"{path} is Packer {packer.text}; the template needs 1.6 or newer.", place="packer")
    return packer


def init_argv(packer: Packer) -> list[str]:
    """The command that fetches Packer's builder; none for versions that bring it along."""
    return [packer.path, "init", str(recipe() / "plugins")] if packer.version >= WITHOUT_BUILDERS else []


def validate_argv(packer: Packer, variables: Path, values: Mapping[str, str]) -> list[str]:
    """The command that checks the template with a set of variables."""
    return [packer.path, "validate", *_arguments(variables, values)]


def build_argv(packer: Packer, variables: Path, values: Mapping[str, str]) -> list[str]:
    """The command that builds."""
    return [packer.path, "build", "-color=false", *_arguments(variables, values)]


def _arguments(variables: Path, values: Mapping[str, str]) -> list[str]:
    given = [f"-var={name}={value}" for name, value in values.items()]
    return [f"-var-file={variables}", *given, str(recipe() / TEMPLATE)]


def checked_values(given: Mapping[str, str]) -> dict[str, str]:
    """The variables as they were given; an empty region is none. Raises ConfigError for one that the template does not have,
    and for what fails only on the instance."""
    known = re.findall(r'^variable "(\w+)"', (recipe() / TEMPLATE).read_text(encoding="utf-8"), re.MULTILINE)
    for name in given:
        if name not in known:
            raise ConfigError("config.bad_value", f"The template has no variable {name!r}.", f"It has {', '.join(known)}.",
                              place=f"--var {name}")
    ffmpeg = given.get("ffmpeg", FFMPEGS[0])
    if ffmpeg not in FFMPEGS:
        raise ConfigError("config.bad_value", f"There is no ffmpeg from {ffmpeg!r}.", f"There are {' and '.join(FFMPEGS)}.",
                          place="--var ffmpeg")
    return {name: value for name, value in given.items() if value or name != "region"}


def check(packer: Packer, sets: Mapping[tuple[str, str], Path], values: Mapping[str, str],
          env: Mapping[str, str]) -> Iterator[Checked]:
    """Whether Packer takes the template as it is written, and with each of these sets of variables. Calls no AWS."""
    fetch = init_argv(packer)
    if fetch:
        yield _checked("packer init", fetch, env)
    for folder in (recipe(), recipe() / "vars", recipe() / "plugins"):
        name = folder.relative_to(recipe().parent).as_posix()
        yield _checked(f"format of {name}/", [packer.path, "fmt", "-check", "-diff", str(folder)], env)
    given = {"region": ANY_REGION, "nommerd_version": __version__, **values}
    for (base, arch), path in sets.items():
        yield _checked(f"{base} on {arch}", validate_argv(packer, path, given), env)


def _checked(what: str, argv: Sequence[str], env: Mapping[str, str]) -> Checked:
    ended = _quiet(argv, env)
    told = (ended.stdout + ended.stderr).strip()
    return Checked(what, "" if ended.returncode == 0 else told or f"It ended with {ended.returncode}.")


def _quiet(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, env=_calm(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureError("node.packer", f"{argv[0]} {argv[1]} did not run: {error}") from None


def _calm(env: Mapping[str, str]) -> dict[str, str]:
    """Packer reports to its makers that it was used, unless it is told not to."""
    return {"CHECKPOINT_DISABLE": "1", **env}


# --- what goes into the image ------------------------------------------------------------------------------------------


def default_source() -> Path | None:
    """The checkout this nommerd runs from; none where it was installed as a package."""
    root = Path(__file__).parent.parent
    return root if (root / "setup.py").is_file() and (root / "deploy").is_dir() else None


def check_source(source: Path) -> None:
    """Raises ConfigError for what is no wheel of nommerd and no folder with its source."""
    wheel = source.is_file() and source.name.startswith("nommerd-") and source.suffix == ".whl"
    if not wheel and not (source / "setup.py").is_file():
        raise ConfigError("config.bad_value", f"{source} is neither a wheel of nommerd nor a folder with its source.",
                          "Give the path of nommerd-VERSION-py3-none-any.whl, or of a checkout.", place="--source")
    if wheel and re.search(r"[^A-Za-z0-9_.+-]", source.name):
        raise ConfigError("config.bad_value", f"{source.name!r} is no name that a wheel has.", place="--source")


def source_version(source: Path | None) -> str:
    """The version of what is installed; this one's, unless a wheel's name or the source tells another."""
    if source is None:
        return __version__
    if source.is_file():
        return source.name.split("-")[1]
    text = (source / "nommerd" / "__init__.py").read_text(encoding="utf-8")
    told = re.search(r'__version__ = "([^"]+)"', text)
    return told[1] if told else __version__


def copy_source(source: Path, where: Path) -> Path:
    """What Packer uploads: a wheel as it is; of a checkout, a copy of what is installed of it."""
    if source.is_file():
        return source.absolute()
    tree = where / "nommerd-source"
    tree.mkdir()
    for name in SOURCES:
        part = source / name
        if part.is_dir():
            shutil.copytree(part, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif part.is_file():
            shutil.copy(part, tree / name)
    return tree


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder of one's own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nommerd-image-") as name:
        yield Path(name)


def make_key(where: Path) -> dict[str, str]:
    """A key pair for the time of a build, as the template's variables: Ed25519, which every Packer and every OpenSSH of today
    takes. EC2 would make an RSA pair, whose signatures by Packer before 1.8 are refused by OpenSSH 8.8 and newer.

    Raises ConfigError without ssh-keygen, InfrastructureError where it makes none."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ConfigError("config.no_program", "There is no ssh-keygen in PATH.", "Install OpenSSH's client.",
                          place="ssh-keygen")
    key = where / "key"
    argv = [program, "-q", "-t", "ed25519", "-N", "", "-C", "nommerd image build", "-f", str(key)]
    try:  # a session of its own: a terminal's interrupt is for us to heed
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=True,
                       timeout=KEY_SECONDS, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        raise InfrastructureError("node.packer", f"ssh-keygen made no key for the build: {said or error}",
                                  "Mend it, or give a key pair: --var ssh_private_key_file=FILE --var authorized_key=LINE.",
                                  place="ssh-keygen") from None
    return {"ssh_private_key_file": str(key), "authorized_key": key.with_suffix(".pub").read_text(encoding="utf-8").strip()}


# --- building ----------------------------------------------------------------------------------------------------------


@contextmanager
def interrupts() -> Iterator[Stop]:
    """Set by Ctrl-C, SIGTERM or SIGHUP, none of which ends this process meanwhile. For the main thread.

    A hangup that is to be ignored, as under nohup, stays ignored.
    """
    stop = Stop()
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
               if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: stop.set(ShuttingDown("interrupted"))) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build(packer: Packer, argv: Sequence[str], manifest: Path, env: Mapping[str, str], stop: Stop) -> dict[str, str]:
    """Run the build, its output on stderr; the ids of the images it made, by region. Raises InfrastructureError.

    Once `stop` is set nothing more is begun (that raises its reason), and a Packer that runs is interrupted, once: it then
    removes what it has made, and is waited for.
    """
    for command in (init_argv(packer), argv):
        if command:
            stop.check()
            status = _run(command, env, stop)
            if status != 0:
                raise InfrastructureError("node.packer", f"packer {command[1]} ended with {status}.",
                                          "What it says is above; what it had made on AWS it has removed, unless it says so.")
    return image_ids(manifest)


def _run(command: Sequence[str], env: Mapping[str, str], stop: Stop) -> int:
    sys.stdout.flush()
    try:  # a session of its own: a terminal's interrupt would be Packer's first, and ours the second, at which it gives up
        process = subprocess.Popen(command, env=_calm(env), stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(),
                                   start_new_session=True)
    except OSError as error:
        raise InfrastructureError("node.cannot_start", f"{command[0]} cannot be started: {error.strerror or error}.",
                                  "See that it runs here: `packer version`.", place="packer") from None
    with process:
        while not stop.is_set():
            try:
                return process.wait(HEED_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        if process.poll() is None:  # as from a terminal, to all of it: Packer's first process leaves it to its second
            os.killpg(process.pid, signal.SIGINT)
        return process.wait()


def image_ids(manifest: Path) -> dict[str, str]:
    """The images that Packer's manifest tells of, region to id."""
    try:
        made = json.loads(manifest.read_text(encoding="utf-8"))["builds"][-1]["artifact_id"]
        return dict(one.split(":", 1) for one in made.split(","))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InfrastructureError("node.packer", f"Packer ended well, but its manifest tells of no image: {error}") from None


def region_of(values: Mapping[str, str], env: Mapping[str, str]) -> str:
    """Where the image is made. Raises ConfigError."""
    for region in (values.get("region"), env.get("AWS_REGION"), env.get("AWS_DEFAULT_REGION")):
        if region:
            return region
    raise ConfigError("config.aws", "No region is set to build the image in.",
                      "Set AWS_REGION, or give --var region=REGION.", place="region")
