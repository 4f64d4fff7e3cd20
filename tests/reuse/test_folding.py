"""Convolutions take over the norms behind them where images run with their channels last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import nestify
from nestify.folding import Fold, folded
from nestify.running import Run
from tests.reuse.evaluations import plainly

NORMS = (torch.ops.aten.native_batch_norm.default, torch.ops.aten.cudnn_batch_norm.default)


class Norms(nn.Module):
    """Norms that a convolution can take over, and norms that none can."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.bare, self.bare_norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, affine=False)
        self.grouped, self.grouped_norm = nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)
        self.shared, self.shared_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.batch, self.batch_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, momentum=None)
        self.cast, self.cast_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.loose_norm = nn.BatchNorm2d(8)
        self.standard = nn.Parameter(torch.ones(8))
        self.scaled, self.scaled_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain_norm(self.plain(x)).relu()
        x = self.bare_norm(self.bare(x))
        x = self.grouped_norm(self.grouped(x)).relu()
        y = self.shared(x)
        x = self.shared_norm(y) + y
        x = F.batch_norm(self.batch(x), None, None, training=True)
        with torch.autocast("cpu", torch.bfloat16):
            x = self.cast_norm(self.cast(x))
        x = self.loose_norm(x.float().relu())
        norm = self.scaled_norm
        return F.batch_norm(
            self.scaled(x), norm.running_mean, norm.running_var, self.standard * 2, norm.bias
        )


class Calls(TorchDispatchMode):
    """Counts the norms that run."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.norms += func in NORMS
        return func(*args, **(kwargs or {}))


def nested_norms() -> tuple[nestify.NestedModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 9, 9)
    nested = nestify.transform(Norms(), "fn3-channel{where=all}", (x,)).eval()
    with torch.no_grad():
        for name, tensor in nested.named_tensors():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * (0.1 if "var" not in name else 1.0))
    return nested, x


def test_a_convolution_takes_over_the_norm_that_alone_reads_it() -> None:
    nested, _ = nested_norms()
    folds = nested._program.frame.folds
    found = {
        (str(node.all_input_nodes[1].target), str(fold.norm.all_input_nodes[-1].target))
        for node, fold in folds.items()
    }
    names = ("plain", "bare", "grouped")
    assert found == {(f"{name}.weight", f"{name}_norm.running_var") for name in names}


@torch.no_grad()
def test_only_evaluations_with_channels_last_fold() -> None:
    nested, x = nested_norms()
    subnet = nested.space.at(0.5)
    with Calls() as plain, nested.activate(subnet):
        expected = nested(x)
    with nested.reusing(turned=True):
        with Calls() as turned, nested.activate(subnet):
            found = nested(x)
        with torch.enable_grad(), Calls() as graded, nested.activate(subnet):
            nested(x)
        with Calls() as calibrated:
            nested.calibrate(subnet, [x])
        with Calls() as untouched, nested.reusing(), nested.activate(subnet):
            nested(x)
    assert plain.norms - turned.norms == 3
    assert plain.norms == graded.norms == calibrated.norms == untouched.norms
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # a part is in bfloat16


@torch.no_grad()
def test_a_norm_in_training_is_left_to_itself() -> None:
    nested, x = nested_norms()
    nested.get_submodule("bare_norm").train()
    expected = plainly(nested, x)
    with nested.reusing(turned=True), Calls() as calls:
        found = nested(x)
    assert calls.norms >= 3
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_no_evaluation_starts_between_the_two() -> None:
    nested, _ = nested_norms()
    slots = nested._program.slots
    assert not {slots[node] for node in nested._program.frame.folds} & set(nested.cuts.places)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.floats(1e-5, 1.0),
    st.integers(0, 1 << 30),
)
def test_folded_arguments_give_what_both_calls_give(
    groups: int, width: int, bias: bool, affine: bool, eps: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.rand(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    x, outputs = random(2, groups * width, 5, 4) - 0.5, groups * 2
    weight, mean, var = random(outputs, width, 2, 2) - 0.5, random(outputs), random(outputs)
    gain, shift = (random(outputs), random(outputs)) if affine else (None, None)
    args = [x, weight, random(outputs) if bias else None, [1, 1], [1, 0], [1, 1], groups]
    places = (0 if affine else None, 1 if affine else None, 2, 3)
    fold = Fold(fx.Graph().placeholder("norm"), places, eps)
    expected = F.batch_norm(torch.conv2d(*args), mean, var, gain, shift, eps=eps)
    found = torch.conv2d(*folded(args, fold, [gain, shift, mean, var]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


class Lends(nn.Module):
    """Gives a weight beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x).mean((2, 3)), self.body[2].bias.view(3, 1)


@torch.no_grad()
def test_slices_are_made_once_for_the_passes_of_a_subnet() -> None:
    nested, x = nested_norms()
    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch, nested.reusing(turned=True, limit_bytes=1) as reuse:
        sliced = Run._sliced
        weights = dict(nested.named_parameters())

        def noting(run: Run, read: Any) -> Tensor:
            made.extend([read.name] if read.name in weights else [])
            return sliced(run, read)

        patch.setattr(Run, "_sliced", noting)
        with nested.activate(nested.space.at(0.5)):
            for _ in range(3):
                nested(x)
            count = len(made)
            assert count == len(set(made)), "each once in three passes"
            nested.get_parameter("plain.bias").add_(1)
            found = nested(x)
            assert len(made) == 2 * count, "and again, as something changed"
    assert not reuse.hits
    with nested.activate(nested.space.at(0.5)):
        torch.testing.assert_close(found, nested(x), rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_no_slice_is_kept_that_a_caller_may_write_into() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 3, 3)
    nested = nestify.transform(Lends(), "fn3-channel", (x,)).eval()
    assert nested.cuts.lends
    assert not nested_norms()[0].cuts.lends
    with nested.reusing(turned=True), nested.activate(nested.space.at(0.5)):
        for _ in range(3):
            out, bias = nested(x)
            torch.testing.assert_close((out, bias), plainly(nested, x))
            bias.add_(1)
