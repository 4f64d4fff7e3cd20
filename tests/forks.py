"""Python in a process of its own, without the seconds that importing torch takes.

It is forked off a server that has imported what most runs need; the environment, the folder and the
arguments are those of a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["ENV", "ROOT", "Result", "run_code"]

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "nestify",
        "torch._dynamo",
        "torch.export._trace",
        "onnxruntime",
        "onnxscript",
        "rich.progress",
    ]
)


@dataclass(frozen=True)
class Result:
    """What a process left behind."""

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


def run_code(folder: Path, code: str, argv: Sequence[str] = ()) -> Result:
    """Run ``code`` as ``python -c`` would in ``folder``, with one thread."""
    with TemporaryDirectory() as outputs:
        stdout, stderr = Path(outputs, "stdout"), Path(outputs, "stderr")
        process = _SERVER.Process(target=_run, args=(folder, code, argv, stdout, stderr))
        process.start()
        process.join()
        assert process.exitcode is not None
        return Result(process.exitcode, stdout.read_text(), stderr.read_text())


def _run(folder: Path, code: str, argv: Sequence[str], stdout: Path, stderr: Path) -> None:
    """In the forked process: what it prints goes where it would have gone."""
    for path, place in ((stdout, 1), (stderr, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), place)
    os.environ |= ENV
    os.chdir(folder)
    sys.path[:1] = [str(folder), str(ROOT)]
    sys.argv = [*argv] or ["-c"]
    __import__("torch").set_num_threads(1)
    exec(code, {"__name__": "__main__"})
