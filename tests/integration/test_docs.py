"""Every command in README and docs works as it stands there, and docs/errors.md lists the codes that the code has.

How a page is written: in a `console` block, lines that begin with `$ ` are commands (a line that ends in a backslash goes on,
and so does one with an open quote); the others are output, which is not compared. A page's commands run in order, with the
variables ID, TOKEN and AWS_… kept, in a folder with a clip called holiday.mov. A block opened with ```yaml FILE or
```python FILE is written to that file first. `nommerd up` is started in the background and waited for, and so is what ends
in `&` and names a port of ours; all other commands must exit 0.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media import clip
from tests.pages import ROOTS_PROMPT, blocks, commands
from tests.rig import free_port, listening, wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy.md"  # what root does there runs in tests/deploy
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = {"aws.md", "cli.md"}  # a minute of processor time, and half of one
ELSEWHERE = {"make demo": "tests/acceptance/test_demo.py", "make test": "this is it"}
FAMILIES = ("input", "source", "dest", "recipe", "encoder", "node", "internal", "config", "request", "idempotency", "webhook",
            "explain")
CODE = re.compile(rf"(?:{'|'.join(FAMILIES)})\.[a-z][a-z0-9_]*")
# a run-time variable; the beginning of two codes, which the catalog completes; the type of an event
NO_CODES = {"source.stem", "recipe.unknown_", "webhook.test"}
LOG_METHODS = {"debug", "info", "warning", "error", "exception"}  # their first argument names an event


VARIABLES = "set -a; touch vars; . ./vars; "


class Terminal:
    """A folder, an environment, a shell that keeps its variables from command to command, and at most one `up`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.ports = {"8001": str(self.port), "5566": str(free_port())}  # as the pages have them -> as they are here
        self.background: list[subprocess.Popen[bytes]] = []
        (home / "holiday.mov").write_bytes(clip(seconds=2, size="320x180", container="mov").read_bytes())
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("NOMMERD_")} | {
            "HOME": str(home), "XDG_DATA_HOME": str(home / "share"), "NOMMERD_URL": f"http://127.0.0.1:{self.port}",
            "NOMMERD_WORKER__HEALTH_PORT": "null", "PATH": f"{bin_folder(home)}:{os.environ['PATH']}"}
        self.up: subprocess.Popen[bytes] | None = None

    def run(self, command: str) -> None:
        command = self.here(command)
        if command.startswith("nommerd up"):
            return self._start(command)
        if command.endswith("&"):
            return self._start_other(command.removesuffix("&"))
        script = f"{VARIABLES}{command}\ncode=$?; set | grep -E '^(ID|TOKEN|AWS_[A-Z_]+)=' > vars; exit $code"
        done = subprocess.run(["bash", "-c", script], cwd=self.home, env=self.env, capture_output=True, text=True, timeout=90,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}\n{self._log()}"
        return None

    def here(self, text: str) -> str:
        """The text with the ports of this test."""
        for told, used in self.ports.items():
            text = text.replace(f"127.0.0.1:{told}", f"127.0.0.1:{used}").replace(f"-p {told}", f"-p {used}")
        return text

    def _start_other(self, command: str) -> None:
        self.background.append(subprocess.Popen(["bash", "-c", f"{VARIABLES}exec {command}"], cwd=self.home, env=self.env,
                                                stdin=subprocess.DEVNULL))
        port = next(int(used) for used in self.ports.values() if used in command)
        wait_until(lambda: listening(port) or self.background[-1].poll() is not None, 30, f"{command} listens")
        assert self.background[-1].poll() is None, command

    def _start(self, command: str) -> None:
        with (self.home / "up.log").open("wb") as log:
            self.up = subprocess.Popen(["bash", "-c", f"{VARIABLES}exec {command}"], cwd=self.home, stdout=log, stderr=log,
                                       env={**self.env, "NOMMERD_API__PORT": str(self.port)}, stdin=subprocess.DEVNULL)
        wait_until(lambda: "ready: " in self._log() or self.up is None or self.up.poll() is not None, 60, self._log)
        assert self.up.poll() is None, self._log()

    def _log(self) -> str:
        path = self.home / "up.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        try:
            if self.up is not None:
                self.up.send_signal(signal.SIGINT)
                assert self.up.wait(20) == 0, self._log()
        finally:
            for process in self.background:
                process.kill()
                process.wait()


def bin_folder(home: Path) -> Path:
    """A folder with `nommerd` and the AWS emulator's command, as this Python has them."""
    folder = home / "bin"
    folder.mkdir()
    for name, module in (("nommerd", "nommerd"), ("moto_server", "moto.server")):
        script = folder / name
        script.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m {module} \"$@\"\n")
        script.chmod(0o755)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] if page.name in LONG else [], id=page.name)
                                  for page in PAGES])
def test_the_commands_of_a_page_work_in_their_order(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    todo = [command for block in found if block.language in ("console", "sh", "bash") for command in commands(block.text)]
    if not todo:
        return
    terminal = Terminal(tmp_path)
    for block in found:
        if block.language in ("yaml", "python") and block.rest:
            path = tmp_path / block.rest
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(terminal.here(block.text))
    try:
        for command in todo:
            if command not in ELSEWHERE:
                terminal.run(command)
    finally:
        terminal.close()


def test_every_shell_block_is_one_whose_commands_are_run() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("console", "sh", "bash"):
                found = commands(block.text) or (page == DEPLOY and commands(block.text, ROOTS_PROMPT))
                assert found, f"{page.name}: a {block.language} block without a `$ ` line: {block.text}"
            else:
                known = ("yaml", "python", "json", "text")
                assert block.language in known, f"{page.name}: a block of no known language: {block.text}"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


class Codes(ast.NodeVisitor):
    """The codes that a module raises: `whole` with their family, `names` of those whose family is put in."""

    def __init__(self) -> None:
        self.whole: set[str] = set()
        self.names: set[str] = set()
        self._events: list[ast.AST] = []

    def visit_Call(self, node: ast.Call) -> None:
        method = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0] if node.args else None
        if method in LOG_METHODS and first is not None:
            self._events.append(first)
        if method == "add" and len(node.args) >= 2 and isinstance(first, ast.Constant) and isinstance(first.value, str):
            self.names |= {first.value} if re.fullmatch(r"[a-z_]+", first.value) else set()
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and CODE.fullmatch(node.value) and not any(node is event for event in self._events):
            self.whole.add(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        if len(node.values) == 2 and "family" in ast.unparse(node.values[0]) and isinstance(node.values[1], ast.Constant):
            name = str(node.values[1].value).removeprefix(".")
            self.names |= {name} if re.fullmatch(r"[a-z_]+", name) else set()
        self.generic_visit(node)


def test_the_page_of_errors_lists_the_codes_of_the_code_and_no_others() -> None:
    codes = Codes()
    for module in sorted((ROOT / "nommerd").rglob("*.py")):
        codes.visit(ast.parse(module.read_text(encoding="utf-8")))
    from nommerd.pipeline.faults import _CODES

    whole = codes.whole - NO_CODES
    names = codes.names | set(_CODES.values())
    page = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert sorted(whole - page) == [], "raised, but not on the page"
    told = {code.partition(".")[2] for code in page}
    assert sorted(names - told) == [], "raised with a family put in, but not on the page in any"
    unknown = [code for code in sorted(page - whole) if code.partition(".")[2] not in names]
    assert unknown == [], "on the page, but never raised"
