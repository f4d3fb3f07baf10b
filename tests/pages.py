"""How a page of the documentation is written: fenced blocks; in `console` ones, what follows a prompt is a command."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = "$ "
ROOTS_PROMPT = "# "


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, its text."""

    language: str
    rest: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All of a page."""
    return blocks_of(page.read_text(encoding="utf-8"))


def blocks_of(text: str) -> list[Block]:
    """All of a text."""
    return [Block(*found) for found in FENCE.findall(text)]


def section(page: Path, title: str) -> str:
    """What stands under a heading of the second level."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert rest, f"{page} has no section {title}"
    return rest.partition("\n## ")[0]


def commands(text: str, prompt: str = PROMPT) -> list[str]:
    """The commands of a console block."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith(prompt):
            found.append(line.removeprefix(prompt))
        elif found and not complete(found[-1]):
            found[-1] += "\n" + line
    return found


def complete(command: str) -> bool:
    """Whether the shell would not ask for more."""
    if command.endswith("\\"):
        return False
    try:
        shlex.split(command)
    except ValueError:  # an open quote
        return False
    return True
