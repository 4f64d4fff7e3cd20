"""Help and the targets: answers that need no torch."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run, python
from tests.forks import ROOT

COMMANDS = ("plan", "inspect", "export", "verify")

PROBE = """
import sys
sys.argv = ["nestify", *{args!r}]
from nestify.cli import main
try:
    main()
finally:
    heavy = {{"torch", "numpy", "onnx", "onnxruntime", "tabulate", "networkx"}} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize("args", [["--help"], ["plan", "--help"], ["targets", "-h"], []])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    result = python(ROOT, "-c", PROBE.format(args=args))
    assert "Usage" in result.stdout + result.stderr
    assert "heavy" not in result.stderr, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert "Examples:" in result.stdout
    assert f"nestify {command} " in result.stdout


def test_targets_are_listed_and_shown(run: Run) -> None:
    assert run("targets", "list").stdout.splitlines()[2].startswith("cpu ")
    listed = json.loads(run("targets", "list", "--json").stdout)
    assert [target["name"] for target in listed["targets"]] == ["cpu", "cuda"]
    shown = json.loads(run("targets", "show", "cpu", "--json").stdout)
    assert (shown["name"], shown["step"]) == ("cpu", 1)
    assert "one thread" in run("targets", "show", "cpu").stdout


def test_an_unknown_target_is_wrong_usage(run: Run) -> None:
    result = run("targets", "show", "gpu")
    assert result.code == 2
    assert (
        result.error
        == "error: unknown target 'gpu': the targets are cpu, cuda; did you mean 'cpu'?"
    )


@pytest.mark.parametrize("args", [["fly"], ["plan"], ["plan", "model.py", "--speed", "3"]])
def test_what_the_command_line_does_not_know_is_wrong_usage(run: Run, args: list[str]) -> None:
    result = run(*args)
    assert result.code == 2
    assert result.stdout == ""
    assert "Usage: nestify" in result.stderr
