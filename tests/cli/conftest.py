"""A tiny model on disk, a way to run the real command, and one plan that many tests read.

Most of a short command's time goes into importing torch. So commands are forked off a server that
has imported it; the environment, the folder and the arguments are those of a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]

MODEL = """
import torch
from torch import nn

print("a model file may print")
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
example_inputs = (torch.randn(8, 6),)
"""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one message of a command that failed."""
        assert self.stdout == "", "a failed command has no result"
        assert "Traceback" not in self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        return errors[0]


Run = Callable[..., Result]


ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def python(folder: Path, *args: str) -> Result:
    """Run this Python in ``folder``, with one thread."""
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=ENV, capture_output=True, text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["nestify", "torch", "onnxruntime", "onnxscript", "rich.progress"])


def nestify(folder: Path, *args: str | Path) -> Result:
    """Run ``nestify args...`` in ``folder``."""
    return nestify_after(folder, "", *map(str, args))


def nestify_after(folder: Path, change: str, *args: str) -> Result:
    """Run ``nestify args...`` in ``folder`` after ``change``, code that breaks something."""
    with TemporaryDirectory() as outputs:
        stdout, stderr = Path(outputs, "stdout"), Path(outputs, "stderr")
        process = _SERVER.Process(
            target=_command, args=(folder, change, ["nestify", *args], stdout, stderr)
        )
        process.start()
        process.join()
        assert process.exitcode is not None
        return Result(process.exitcode, stdout.read_text(), stderr.read_text())


def _command(folder: Path, change: str, argv: list[str], stdout: Path, stderr: Path) -> None:
    """A forked process: what it prints goes where it would have gone."""
    for path, place in ((stdout, 1), (stderr, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), place)
    os.environ |= ENV
    os.chdir(folder)
    sys.path[0] = str(folder)
    sys.argv = argv
    __import__("torch").set_num_threads(1)
    exec(change, {"__name__": "__main__"})
    from nestify.cli import main

    main()


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
