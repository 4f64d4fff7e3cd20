"""Bad input: the right exit code, one clear message, no traceback, no file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestify.explore.storage import stored_scores
from tests.cli.conftest import MODEL, Run, nestify_after
from tests.forks import ENV, Result

RETURNS_NOTHING = MODEL + (
    "class Nothing(nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.body = model_before\n"
    "    def forward(self, x):\n"
    "        self.body(x)\n"
    "model_before, model = model, None\n"
    "model = Nothing()\n"
)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in str(p)}


@pytest.mark.parametrize(
    ("text", "args", "code", "message"),
    [
        (MODEL, ["--recipe", "fn4-channel"], 2, "fn4-channel"),
        (MODEL, ["--target", "gpu"], 2, "unknown target 'gpu': the targets are cpu"),
        (MODEL, ["--constraint", "latency=5"], 2, "did you mean 'latency_ms'?"),
        (MODEL, ["--constraint", "latency_ms"], 2, "is not NAME=NUMBER"),
        ("raise ValueError\n", ["--workers", "²"], 2, "workers of search must be a whole number"),
        ("raise ValueError\n", ["--workers", "0"], 2, "workers of search must be a whole number"),
        ("raise ValueError\n", ["--target", "cpu"] * 2, 2, "must be one or more distinct names"),
        ("raise ValueError\n", ["--method", "magic"], 2, "the methods are fn3, algorithm1, greedy"),
        (MODEL, ["--out", "model.py"], 2, "--out 'model.py' is a file"),
        (MODEL, ["--out", "model.py/x"], 2, "is not a writable folder"),
        ("x = 1\n", [], 2, "model.py defines no 'model'"),
        ("def model():\n    pass\n", [], 3, "model() returned None"),
        (RETURNS_NOTHING, [], 3, "returns no"),
        ("raise ValueError('no data')\n", [], 3, "ValueError: no data (model.py:1: raise"),
        (MODEL, ["--constraint", "macs=3"], 5, "the closest feasible macs is "),
        (MODEL, ["--refit"], 2, "--refit fits weights to calibration data, and model has none"),
        (MODEL + "def evaluate(model):\n    return 'good'\n", [], 2, "not a str"),
        (MODEL + "def evaluate(model):\n    return {}['a']\n", [], 3, "KeyError: 'a' (model.py:"),
    ],
)
def test_plan_refuses(
    run: Run, folder: Path, text: str, args: list[str], code: int, message: str
) -> None:
    (folder / "model.py").write_text(text)
    before = files(folder)
    result = run("plan", "model.py", *args, "--json")
    assert result.code == code, result.stderr
    assert message in result.error
    assert files(folder) == before


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_a_seed_that_no_plan_can_hold_is_wrong_usage(run: Run, command: str) -> None:
    result = run(command, "absent.py", "--seed", 2**63)
    assert result.code == 2
    assert "--seed" in result.stderr
    assert "does not exist" not in result.stderr, "said before the model is looked for"


def test_a_missing_file_is_wrong_usage(run: Run) -> None:
    for command in ("plan", "inspect", "verify"):
        result = run(command, "absent.py")
        assert result.code == 2
        assert result.error == "error: model file 'absent.py' does not exist"


def test_a_failed_export_leaves_the_scores_alone(folder: Path) -> None:
    """The export is the last step: when it fails, what was scored before stays, nothing else."""
    change = (
        "import nestify.emit\n"
        "from nestify.errors import VerificationError\n"
        "def export(model, path, **options):\n"
        "    path.write_text('half')\n"
        "    raise VerificationError('onnxruntime differs')\n"
        "nestify.emit.export = export\n"
    )
    before = files(folder)
    args = ("plan", "model.py", "--out", "new/deep", "--evaluations", "4")
    result = nestify_after(folder, change, *args)
    assert result.code == 4, result.stderr
    assert result.error == "error: onnxruntime differs"
    assert files(folder) - before == {"new", "new/deep", "new/deep/search.db"}


def test_an_interrupt_ends_with_130_and_the_command_goes_on(folder: Path) -> None:
    (folder / "model.py").write_text(
        MODEL + "import os, time\n"
        "def evaluate(model):\n    os.path.exists('slow') and time.sleep(0.5)\n"
        "    return float(sum(model.active.values()))\n"  # a constant would end the search early
    )
    (folder / "slow").touch()
    command = ["plan", "model.py", "--out", "here", "--evaluations", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nestify.cli", *command],
        cwd=folder,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a script ignores interrupts, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "scoring" in line:
            break
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert f"scores are kept in {Path('here/search.db')}; to go on" in stderr
    assert "nestify plan model.py --out here" in stderr
    assert sorted(path.name for path in (folder / "here").iterdir()) == ["search.db"]
    known = stored_scores(folder / "here" / "search.db")
    assert known >= 1
    (folder / "slow").unlink()
    assert nestify_after(folder, "", *command).code == 0
    assert known < stored_scores(folder / "here" / "search.db") <= 40


def test_an_interrupt_after_the_search_says_that_scores_are_kept(folder: Path) -> None:
    change = (
        "import nestify.emit\n"
        "def export(model, path, **options): raise KeyboardInterrupt\n"
        "nestify.emit.export = export\n"
    )
    command = ("plan", "model.py", "--out", "here", "--evaluations", "4")
    result = nestify_after(folder, change, *command)
    assert result.code == 130, result.stderr
    assert f"scores are kept in {Path('here/search.db')}; to go on" in result.stderr
    assert "nothing was written" not in result.stderr
    assert stored_scores(folder / "here" / "search.db") >= 3


def test_debug_shows_the_traceback(run: Run) -> None:
    result = run("inspect", "absent.py", "--debug")
    assert result.code == 2
    assert "Traceback" in result.stderr
    assert "error: model file 'absent.py' does not exist" in result.stderr


def test_an_unexpected_error_is_one_line_too(folder: Path) -> None:
    change = (
        "import nestify.cli.model_reference\n"
        "def load_source(reference): raise RuntimeError('boom')\n"
        "nestify.cli.model_reference.load_source = load_source\n"
    )
    result = nestify_after(folder, change, "inspect", "model.py")
    assert result.code == 1
    assert result.error == "error: unexpected RuntimeError: boom; --debug shows the traceback"


# plans from elsewhere -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda d: d, 5, "the closest feasible macs is "),
        (lambda d: d | {"version": 7}, 6, "its version is 7"),
        (lambda d: d | {"extra": 7}, 6, "unknown field 'extra'"),
        (lambda d: d | {"model": None}, 2, "pass --model"),
        (lambda d: d | {"model": "../gone.py"}, 2, "does not exist"),
    ],
)
def test_export_refuses(
    run: Run,
    folder: Path,
    planned: tuple[Path, Result],
    change: object,
    code: int,
    message: str,
) -> None:
    document = json.loads((planned[0] / "results/tiny/plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(change(document)))
    before = files(folder)
    bound = "macs=3" if code == 5 else "macs=700"
    result = run("export", "plan.json", "--constraint", bound, "--out", "slim.onnx")
    assert result.code == code, result.stderr
    assert message in result.error
    assert files(folder) == before


def test_export_refuses_a_plan_of_another_model(
    run: Run, folder: Path, planned: tuple[Path, Result]
) -> None:
    (folder / "model.py").write_text(MODEL.replace("32", "40"))
    plan = planned[0] / "results/tiny/plan.json"
    result = run("export", plan, "--model", "model.py", "--out", "slim.onnx")
    assert result.code == 6
    assert "the plan was made for another model than model.py" in result.error
    assert not (folder / "slim.onnx").exists()


@pytest.mark.parametrize(
    ("plan", "out", "message"),
    [
        ("absent.json", "slim.onnx", "plan 'absent.json' does not exist"),
        (".", "slim.onnx", "plan '.' is not a file"),
        ("model.py", "deep/slim.onnx", "is no writable folder"),
    ],
)
def test_export_needs_a_plan_and_a_place(run: Run, plan: str, out: str, message: str) -> None:
    result = run("export", plan, "--out", out)
    assert result.code == 2
    assert message in result.error
