"""The front door is true: every snippet and command of the README runs, every file is listed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks import ROOT, run_code

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
GUIDES = {
    f"{page.stem}-{i}": text
    for page in sorted((ROOT / "docs").glob("*.md"))
    for i, (kind, text) in enumerate(re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL))
    if kind == "python" and text.startswith("import")  # others go on from one before
}
COMMANDS = [[line for line in text.splitlines() if line] for kind, text in BLOCKS if kind == "sh"]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("snippet", PYTHON, ids=range(len(PYTHON)))
def test_snippets_run(snippet: str, tmp_path: Path) -> None:
    """In a new interpreter, as a reader would begin."""
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", GUIDES.values(), ids=GUIDES)
def test_guides_run(snippet: str, tmp_path: Path) -> None:
    done = run_code(tmp_path, snippet)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("block", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_run(block: list[str], tmp_path: Path) -> None:
    """``make`` targets exist (CI runs them); the others run here, one after the other."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in block:
        program, *words = shlex.split(command, comments=True)
        if program == "make":
            assert set(words) <= make_targets()
            continue
        assert program == "nestify"
        done = run_code(tmp_path, "from nestify.cli import main\nmain()", [program, *words])
        assert done.code == 0, done.stderr


def test_every_room_is_in_the_code_organization() -> None:
    listed = set(re.findall(r"`((?:nestify|passes|targets)/\w*(?:/|\.py)?)`", README))
    rooms = {
        str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "")
        for path in [*ROOT.glob("nestify/*"), ROOT / "passes", ROOT / "targets"]
        if (not path.is_symlink() and (path / "__init__.py").exists())
        or (path.suffix == ".py" and path.name != "__init__.py")
    }
    assert rooms == listed


def test_every_example_is_listed() -> None:
    folder = ROOT / "examples"
    listed = set(re.findall(r"^- `([^`]+)`", (folder / "README.md").read_text(), re.MULTILINE))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
    assert {name for name in found if not name.endswith("__init__.py")} == listed
