"""Who may import whom: only the daemons and the command line join the parts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nommerd

HOUSE = Path(nommerd.__file__).parent
DAEMONS = ("api", "feeder", "worker", "cli", "handling", "attempt", "settling", "sweeper", "sending", "deliveries")
FORBIDDEN = {
    "store": ("bus", "storage", "media", "pipeline", *DAEMONS),
    "bus": ("store", "storage", "media", "pipeline", *DAEMONS),
    "storage": ("store", "bus", "media", "pipeline", *DAEMONS),
    "media": ("store", "bus", "storage", "pipeline", *DAEMONS),
    "net": ("store", "bus", "storage", "media", "pipeline", *DAEMONS),
    "pipeline": ("store", "bus", *DAEMONS),
    "aws": ("storage", "media", "pipeline", *DAEMONS),
    "fleet": ("bus", "storage", "media", "pipeline", *DAEMONS),
}
VOCABULARY = ("errors.py", "job.py", "messages.py")
BACKENDS = ("storage.file", "storage.http", "storage.s3")


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, without the leading `nommerd.`; also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("nommerd.") for name in found if name.startswith("nommerd.")}


def files(part: str) -> list[Path]:
    return sorted((HOUSE / part).rglob("*.py"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_part_imports_no_other_part_and_no_daemon(part: str) -> None:
    assert files(part)
    wrong = {(str(path.relative_to(HOUSE)), name) for path in files(part) for name in imported(path)
             if name.split(".")[0] in FORBIDDEN[part]}
    assert wrong == set()


def test_a_pipeline_knows_storage_by_its_contract_alone() -> None:
    assert {(path.name, name) for path in files("pipeline") for name in imported(path) if name.startswith(BACKENDS)} == set()


@pytest.mark.parametrize("name", VOCABULARY)
def test_the_vocabulary_imports_only_itself(name: str) -> None:
    assert {found.split(".")[0] for found in imported(HOUSE / name)} <= {part.removesuffix(".py") for part in VOCABULARY}


def test_sh_is_imported_by_one_module_and_the_standard_library_patched_by_one() -> None:
    text = {str(path.relative_to(HOUSE)): path.read_text(encoding="utf-8") for path in HOUSE.rglob("*.py")}
    assert [name for name, code in text.items() if "\nimport sh\n" in code or "from sh " in code] == ["media/process.py"]
    assert [name for name, code in text.items() if "patch_all(" in code] == ["runtime.py"]
