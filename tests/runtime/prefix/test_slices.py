"""Slices of weights are made once for the passes of a subnet, and nobody else writes into them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nestify
from nestify.runtime.run import Run
from tests.runtime.prefix.evaluations import plainly


class Paths(nn.Module):
    """Paths behind each other, of which a subnet keeps other channels than the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.paths, self.expand = nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.paths(self.norm(self.reduce(x)).relu()).relu()).mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("turned", [False, True])
def test_slices_are_made_again_only_for_other_subnets_and_weights(turned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 7, 7)
    nested = nestify.transform(Paths(), "fn3-path+fn3-channel{where=all}", (x,)).eval()
    weights, made = list(nested.parameters()), [0]
    sliced = Run._sliced

    def noting(run: Run, full: Tensor, cut: Any) -> Tensor:
        made[0] += any(full is weight for weight in weights)
        return sliced(run, full, cut)

    def run(share: float) -> tuple[Tensor, int]:
        made[0] = 0
        with nested.activate(nested.space.at(share)):
            return nested(x), made[0]

    with pytest.MonkeyPatch.context() as patch, nested.reusing(turned=turned, limit_bytes=1):
        patch.setattr(Run, "_sliced", noting)
        found = [run(0.5), run(0.5), run(0.9), run(0.5)]
        nested.get_parameter("reduce.bias").add_(1)
        found += [run(0.5), run(0.5)]
    counts = [count for _, count in found]
    assert counts == [len(weights), 0, *[len(weights)] * 3, 0]
    assert torch.equal(found[0][0], found[3][0])
    with nested.activate(nested.space.at(0.5)):
        for out, _ in found[4:]:
            torch.testing.assert_close(out, nested(x))
    assert not torch.allclose(found[4][0], found[0][0])


class Lends(nn.Module):
    """Gives a view of a weight beside what it computes, by an op whose outputs may be views."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
        self.weight = nn.Parameter(torch.randn(2, 3, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.body(x).mean((2, 3)) + self.weight.mean()
        return out, torch.einsum("abcd->bacd", self.weight)[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("turned", [False, True])
def test_whoever_writes_into_a_weight_that_was_handed_out_changes_no_slice(turned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 3, 3)
    nested = nestify.transform(Lends(), "fn3-channel", (x,)).eval()
    address = nested.get_parameter("weight").data_ptr()
    with nested.activate(nested.space.at(0.5)):
        expected = plainly(nested, x)
        with nested.reusing(turned=turned):
            for _ in range(3):
                found = nested(x)
                torch.testing.assert_close(found, expected)
                if found[1].untyped_storage().data_ptr() != address:  # else the weight itself
                    found[1].add_(100)
