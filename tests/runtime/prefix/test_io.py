"""Inputs are told apart by their bits, and the outputs are the caller's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nestify
from tests.runtime.prefix.evaluations import chain, nest, plainly, same
from tests.runtime.prefix.subjects import SUBJECTS, Masked

# --- inputs ---------------------------------------------------------------------------------------


class Reciprocal(nn.Module):
    """Tells the zeros apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(torch.nan_to_num(1 / x, posinf=1.0, neginf=-1.0)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0.0, 1, 2], [-0.0, 1, 2]),
        ([1.0, 2, 3], [3.0, 1, 2]),
        ([float("nan"), 1, 2], [1.0, float("nan"), 2]),
    ],
)
def test_inputs_are_told_apart_by_their_bits(first: list[float], second: list[float]) -> None:
    torch.manual_seed(0)
    nested = nestify.transform(Reciprocal(), "fn3-neuron", (torch.ones(2, 3),)).eval()
    a, b = torch.tensor([first]), torch.tensor([second])
    with torch.no_grad(), nested.reusing() as reuse:
        for x in (a, b, a.clone(), b.clone()):
            assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.misses) == (2, 2)


def test_a_tensor_that_is_filled_anew_is_another_input() -> None:
    """NumPy leaves no sign in the tensor that shares its memory."""
    nested = chain()
    memory = np.ones((3, 8), dtype=np.float32)
    x = torch.from_numpy(memory)
    with torch.no_grad(), nested.reusing() as reuse:
        for value in (1.0, 2.0, 1.0):
            memory[:] = value
            assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.misses) == (1, 2)


def test_views_of_the_input_outlive_what_the_caller_writes() -> None:
    torch.manual_seed(0)
    x, mask = SUBJECTS["masked"].batch(3)
    nested = nestify.transform(Masked(), "fn3-neuron{where=all}", (x, mask)).eval()
    last = nested.space.units[-1].name
    with torch.no_grad(), nested.reusing() as reuse:
        again = x.clone(), mask.clone()
        nested(x, mask)
        mask.zero_()
        x.zero_()
        with nested.activate({last: 3}):
            assert same(nested(*again), plainly(nested, *again))
        assert reuse.hits == 1


def test_other_layouts_and_settings_are_other_inputs() -> None:
    nested, ((x,), *_) = nest("mobilenet")
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), nested.reusing() as reuse:
        for y in (x, last, x[:3], x.double()[:2].float()):
            assert same(nested(y), plainly(nested, y))
        with torch.autocast("cpu", torch.bfloat16):
            assert same(nested(x), plainly(nested, x))
        with torch.inference_mode():
            found = nested(x)
            assert same(found, plainly(nested, x))
        assert reuse.hits == 0
        out = nested(x)
        assert reuse.hits == 1
        assert not out.is_inference()


def test_inputs_of_any_layout_are_kept() -> None:
    nested, base = chain(), torch.randn(9, 8)
    wide = torch.randn(3, 16)
    with torch.no_grad(), nested.reusing() as reuse:
        for x in (base[0].expand(3, 8), base.T[:, :8].T[1:4], wide[:, ::2], wide[:, 1:9]):
            assert same(nested(x), plainly(nested, x))
            assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.misses) == (4, 4)


# --- outputs --------------------------------------------------------------------------------------


def test_the_caller_may_write_into_what_it_gets() -> None:
    nested, ((x,), *_) = nest("pyramid")
    last = nested.space.units[-1].name
    with torch.no_grad():
        expected = {name: y.clone() for name, y in nested(x.clone()).items()}
        with nested.reusing() as reuse:
            for _ in range(3):
                found = nested(x.clone())
                assert same(found, expected)
                for y in found.values():
                    y.zero_()
            with nested.activate({last: 3}):
                nested(x.clone())["map0"].zero_()
            assert same(nested(x), expected)
            assert reuse.hits == 4
