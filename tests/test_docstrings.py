"""Every example in a docstring runs, and shows what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestify
from nestify.compiler import trace
from nestify.explore.evaluator import Evaluator
from nestify.explore.executors import executor
from nestify.runtime.program import Program
from tests import fuzz

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# It wants libraries at hand; tests/cli/test_model_reference.py has stand-ins.
LIBRARIES = ("nestify.cli.model_zoo",)
MODULES = [
    info.name
    for package, prefix in ((nestify, "nestify."), (fuzz, "tests.fuzz."))
    for info in pkgutil.walk_packages(package.__path__, prefix)
    if not info.name.rpartition(".")[2].startswith(("__main__", "test_"))
    and info.name not in LIBRARIES
]


def evaluate(model: nn.Module) -> float:
    return 1.0


@cache
def prepared() -> dict[str, Any]:
    """What examples take as given: a model, its input, and what is made of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    x = torch.randn(2, 3, 16, 16)
    nested = nestify.transform(model, "fn3-channel{where=all}", (x,)).eval()
    program = Program(trace(model, (x,)))
    return {
        "torch": torch,
        "nn": nn,
        "model": model,
        "x": x,
        "nested": nestify.transform(model, "fn3-channel", (x,)).eval(),
        "subnet": nested.space.smallest(),
        "evaluate": evaluate,
        "plan": nestify.search(nested, evaluate, max_evaluations=8),
        "program": program,
        "keep": nested.keep(nested.space.largest()),
        "batch": 2,
        "executor": executor(Evaluator(nested, evaluate), 1),
    }


def examples() -> list[Any]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found: list[Any] = []
    for name in MODULES:
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                found.append(pytest.param(test, id=test.name))
    return found


@pytest.mark.parametrize("test", examples())
def test_example_runs(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(Path(__file__).parents[1] / "examples")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, value in prepared().items():
        test.globs.setdefault(name, value)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)
