"""Every command: its help teaches, by example; docs/cli.md has a section for it; shells complete it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nommerd.cli.app import COMMANDS, SECTIONS, cli, sections
from tests.unit.cli.scripted import here

ROOT = Path(__file__).parents[3]
NO_JSON = {"feeder", "worker", "up",  # daemons: they log
           "presets schema", "pipelines schema"}  # JSON in any case


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below this one, groups before what is in them."""
    if not isinstance(command, click.Group):
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None, name
        yield (*path, name), found
        yield from commands(found, (*path, name))


ALL = {" ".join(path): command for path, command in commands(cli)}
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}
DESIGN = """demo up encode feeder worker submit watch doctor tokens backup restore explain workers pause resume
jobs ls|jobs show|jobs watch|jobs log|jobs cancel|jobs retry|presets ls|presets show|presets check|presets push|presets rm
pipelines ls|pipelines show|pipelines check|pipelines push|pipelines rm|config check|config show|config keygen|webhooks test
aws setup|aws teardown|aws watch|ami check|ami build|ami user-data"""


def test_every_command_of_the_design_is_there() -> None:
    wanted = {part.strip() for line in DESIGN.splitlines() for part in (line.split("|") if "|" in line else line.split())}
    assert wanted - set(ALL) == set()


@pytest.mark.parametrize("path", ALL)
def test_help_says_what_it_does_in_a_sentence(path: str) -> None:
    ended = here(None, *path.split(), "--help")
    assert ended.returncode == 0
    text = ALL[path].help or ""
    assert re.match(r"[A-Z].*?\.(\s|$)", text, re.DOTALL), text


@pytest.mark.parametrize("path", LEAVES)
def test_help_teaches_by_examples_that_are_commands(path: str) -> None:
    epilog = LEAVES[path].epilog or ""
    assert epilog.startswith("\b\nExamples:\n")
    examples = [line.strip() for line in epilog.splitlines()[2:]]
    mine = [line for line in examples if f"nommerd {path}" in line]
    assert mine, examples
    for line in mine:
        _accepts(_words(line)[1:])


def told() -> list[tuple[str, str]]:
    """Commands of ours in the middle of the pages' sentences, beside those in blocks, which are run."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [(page.name, span) for page in pages for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))]
    return [(name, span) for name, span in found if re.match(r"(NOMMERD_\w+=\S+ )*nommerd [a-z]", span)]


@pytest.mark.parametrize(("page", "span"), told())
def test_commands_in_sentences_are_commands(page: str, span: str) -> None:
    """Options may be told of in brackets, and what a command needs may be left out."""
    for one in re.findall(r"nommerd [^`]*", re.sub(r"[][…]", "", span).replace("|", " | nommerd ")):
        _accepts(_words(one)[1:], whole=False)


def _words(line: str) -> list[str]:
    """The words of the first command of ours in a line for a shell."""
    inner = re.search(r"\$\((nommerd [^)]*)\)", line)
    lexer = shlex.shlex(inner[1] if inner else line[line.index("nommerd "):], posix=True, punctuation_chars=True)
    lexer.wordchars += "@:%+,[]{}$"
    return list(itertools.takewhile(lambda word: not set(word) <= set("|&;<>()"), lexer))


def _accepts(words: list[str], whole: bool = True) -> None:
    """The command line is one that the command would take, apart from files that are not here; unless it is `whole`, what the
    command needs may be left out."""
    command, context = cli, click.Context(cli, info_name="nommerd")
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, words = found, words[1:]  # type: ignore[assignment]
    try:
        if words or whole:
            command.make_context("x", words, parent=context)
    except click.MissingParameter:
        assert not whole, words
    except click.BadParameter as error:
        assert "does not exist" in error.message, (words, error.message)


@pytest.mark.parametrize("path", sorted(set(LEAVES) - NO_JSON))
def test_every_command_speaks_json(path: str) -> None:
    assert any("--json" in param.opts for param in LEAVES[path].params)


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_says_what_it_is_for(path: str) -> None:
    silent = [param.name for param in LEAVES[path].params if isinstance(param, click.Option) and not param.help
              and not param.hidden and param.name != "log_level"]
    assert silent == []


def test_help_is_by_what_one_wants_and_names_every_command_once() -> None:
    names = [name for group in sections().values() for name in group]
    assert sorted(names) == sorted(COMMANDS)
    text = here(None, "--help").stdout
    assert [title for title in SECTIONS if f"\n{title}:\n" in text] == list(SECTIONS)
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)


def test_the_first_sentence_in_the_list_and_in_the_command_is_from_one_hand() -> None:
    assert all(line.endswith(".") and len(line) < 64 for _, line in COMMANDS.values())


@pytest.mark.parametrize(("arguments", "meant"), [
    (["jbos"], "jobs"), (["jobs", "list"], "ls"), (["jobs", "retyr"], "retry"), (["config", "chek"], "check"),
    (["submitt"], "submit")])
def test_a_slip_is_told_with_what_may_have_been_meant(arguments: list[str], meant: str) -> None:
    ended = here(None, *arguments)
    assert ended.returncode == 2
    assert "There are: " in ended.stderr
    assert meant == "ls" or f"Did you mean {meant}" in ended.stderr


def test_an_option_that_was_misspelt_is_told_too() -> None:
    ended = here(None, "jobs", "ls", "--sate", "ERROR")
    assert (ended.returncode, "--state" in ended.stderr) == (2, True)


def test_usage_faults_are_json_where_that_was_asked_for() -> None:
    ended = here(None, "jobs", "lss", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["errors"][0]["code"]) == (2, "usage")


def test_the_page_of_the_command_line_has_a_heading_for_each_command_and_no_others() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ .*`nommerd ([a-z -]+)`", page, re.MULTILINE)
    assert sorted(headings) == sorted(LEAVES)
    for path, command in LEAVES.items():
        section = page[page.index(f"`nommerd {path}`"):]
        section = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
        options = {opt for param in command.params if isinstance(param, click.Option) and not param.hidden
                   for opt in param.opts if opt.startswith("--")} - {"--json", "--url", "--token", "--config", "--log-level"}
        assert {option for option in options if f"`{option}" not in section} == set(), path


# --- completion --------------------------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    env = {**os.environ, "_NOMMERD_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["nommerd", *words]),
           "COMP_CWORD": str(len(words))}
    ended = subprocess.run([sys.executable, "-m", "nommerd"], env=env, capture_output=True, text=True, timeout=30)
    return [line.partition(",")[2] for line in ended.stdout.splitlines()]


def test_commands_options_and_choices_are_completed() -> None:
    assert completed("jo") == ["jobs"]
    assert completed("jobs", "ca") == ["cancel"]
    assert {"--state", "--since"} <= set(completed("jobs", "ls", "--s"))
    assert completed("jobs", "ls", "--state", "EN") == ["ENCODING"]
    assert completed("encode", "a", "b", "-p", "web-4") == ["web-480p"]
    assert completed("explain", "a", "-p", "web-4") == ["web-480p"]
    assert set(completed("")) == set(COMMANDS)


@pytest.mark.parametrize("words", [
    ["encode", "ho"], ["encode", "a", "ho"], ["encode", "a", "b", "--pipeline", "ho"], ["submit", "ho"], ["explain", "ho"],
    ["up", "-c", "ho"], ["watch", "in", "-o", "ho"], ["backup", "ho"]], ids=" ".join)
def test_files_are_left_to_the_shell(words: list[str]) -> None:
    env = {**os.environ, "_NOMMERD_COMPLETE": "bash_complete", "COMP_WORDS": shlex.join(["nommerd", *words]),
           "COMP_CWORD": str(len(words))}
    ended = subprocess.run([sys.executable, "-m", "nommerd"], env=env, capture_output=True, text=True, timeout=30)
    assert ended.stdout.splitlines() == ["file,ho"]


def test_lists_of_commands_are_not_cut_off() -> None:
    for group in ("webhooks", "aws", "ami", "jobs", "tokens", "workers", "presets", "pipelines", "config"):
        listed = here(None, group, "--help", COLUMNS="80").stdout.partition("Commands:")[2].partition("Examples:")[0]
        assert listed
        assert "..." not in listed, group


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_nommerd(shell: str) -> None:
    ended = here(None, "completion", shell)
    assert ended.returncode == 0
    assert f"_NOMMERD_COMPLETE={shell}_complete" in ended.stdout


def test_bash_takes_its_script_and_completes_by_it(tmp_path: Path) -> None:
    (tmp_path / "nommerd").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m nommerd "$@"\n')
    (tmp_path / "nommerd").chmod(0o755)
    script = ('eval "$(nommerd completion bash)"; COMP_WORDS=(nommerd jobs re); COMP_CWORD=2; '
              '_nommerd_completion nommerd; echo "${COMPREPLY[@]}"')
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30,
                           env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)})
    assert ended.stdout.strip() == "retry", ended.stderr
