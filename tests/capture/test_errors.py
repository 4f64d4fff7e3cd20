"""One clear error where a model cannot be captured, and no noise where it can."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.errors import CaptureError
from tests.capture.serving import nest


class Inside(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), Act(act))

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


class Act(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> Any:
        return self.act(x)


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


def read(x: torch.Tensor) -> torch.Tensor:
    return x * float(x.max().item() > 1)


def to_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


@pytest.mark.parametrize("act", [branch, read])
def test_control_flow_on_data(act: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(CaptureError) as caught:
        nest(Inside(act), torch.randn(2, 6))
    message = str(caught.value)
    line = act.__code__.co_firstlineno + 1
    assert f"in module 'body.1' ({__file__}:{line})" in message
    assert "torch.where" in message
    assert "\n" not in message
    assert "u0" not in message


def test_code_that_leaves_torch() -> None:
    with pytest.raises(CaptureError, match=r"cannot be captured in module 'body\.1'"):
        nest(Inside(to_numpy), torch.randn(2, 6))


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def test_blocks_that_cannot_be_served() -> None:
    with pytest.raises(CaptureError, match=r"uses torch\.cond at .*\.py:\d+, which cannot"):
        nestify.trace(Chooses(), (torch.randn(2, 6),))


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(CaptureError) as caught:
        nest(Inside(F.relu), torch.randn(2, 7))
    message = str(caught.value)
    assert message.startswith(
        "Inside fails on the example inputs (float32 [2, 7]) in module 'body.0'"
    )
    assert f"({__file__}:" in message
    assert "example_inputs=" in message


@pytest.mark.parametrize(
    ("result", "match"),
    [(lambda x: None, "returns no tensor"), (lambda x: 5, "returns no tensor")],
)
def test_a_model_that_returns_nothing(result: Callable[[Any], Any], match: str) -> None:
    with pytest.raises(CaptureError, match=match):
        nest(Inside(result), torch.randn(2, 6))


def test_wrong_types() -> None:
    with pytest.raises(nestify.UsageError, match=r"must be an nn\.Module, not int"):
        nestify.trace(5, (torch.randn(2),))
    with pytest.raises(CaptureError, match="hold no tensor"):
        nestify.trace(nn.Linear(2, 2), (3,))
    with pytest.raises(CaptureError, match="fails on the example inputs"):
        nestify.trace(nn.Linear(2, 2), ("text", torch.ones(2)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_was_compiled_or_exported_already_is_refused() -> None:
    x = torch.randn(2, 3)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for script in (torch.jit.script(net), torch.jit.trace(net, x)):
        with pytest.raises(CaptureError, match=r"the model is of TorchScript.*pass the nn\.Module"):
            nestify.trace(script, (x,))
        with pytest.raises(CaptureError, match="module '1' is of TorchScript"):
            nestify.trace(nn.Sequential(nn.Linear(3, 3), script), (x,))
    exported = torch.export.export(net, (x,)).module()
    with pytest.raises(CaptureError, match=r"cannot change between train and eval .* was exported"):
        nestify.trace(exported, (x,))


def test_a_failed_trace_is_quiet(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch, nestify
        class Net(torch.nn.Module):
            def forward(self, x):
                return x * 2 if x.sum() > 0 else x
        try:
            nestify.trace(Net(), (torch.ones(2),))
        except nestify.CaptureError as error:
            assert "script.py:5" in str(error), error
        else:
            raise SystemExit("captured")
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_warned_of_for_an_ordinary_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nest(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 4)), torch.randn(2, 6))


class Selecting(nn.Module):
    """Keeps the rows whose sum is positive: how many, only the data know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y[y.sum(1) > 0]


def test_a_size_that_depends_on_the_data_is_one_clear_error() -> None:
    with pytest.raises(CaptureError, match=r"test_errors\.py:\d+ gives a size that depends on"):
        nestify.trace(Selecting(), example_inputs=(torch.randn(2, 4),))


def test_lines_of_a_clone_named_nestify_are_the_user_s(tmp_path: Path) -> None:
    """The usual name of a clone, in which examples lie beside the package."""
    folder = tmp_path / "nestify" / "examples"
    folder.mkdir(parents=True)
    file = folder / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x[x > 0]\n"
    )
    space: dict[str, Any] = {"__name__": "mine"}
    exec(compile(file.read_text(), str(file), "exec"), space)
    with pytest.raises(nestify.CaptureError, match=r"nestify.examples.mine.py:4\b"):
        nestify.trace(space["Net"](), (torch.randn(3, 4),))
