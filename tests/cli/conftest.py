"""A tiny model on disk, a way to run the real command, and one plan that many tests read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import ENV, Result, run_code

MODEL = """
import torch
from torch import nn

print("a model file may print")
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
example_inputs = (torch.randn(8, 6),)
"""


Run = Callable[..., Result]


def python(folder: Path, *args: str) -> Result:
    """Run this Python in ``folder``, with one thread."""
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=ENV, capture_output=True, text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


def nestify(folder: Path, *args: str | Path) -> Result:
    """Run ``nestify args...`` in ``folder``."""
    return nestify_after(folder, "", *map(str, args))


def nestify_after(folder: Path, change: str, *args: str) -> Result:
    """Run ``nestify args...`` in ``folder`` after ``change``, code that breaks something."""
    return run_code(folder, f"{change}\nfrom nestify.cli import main\nmain()", ["nestify", *args])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with ``model.py``."""
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run a command in `folder`."""
    return lambda *args: nestify(folder, *args)


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder in which ``nestify plan --json`` was run, and its result."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "model.py").write_text(MODEL)
    out = ("--out", "results/tiny", "--json", "--evaluations", "24")
    return folder, nestify(folder, "plan", "model.py", "--constraint", "macs=700", *out)
