"""Slices of parameters are views of another layout: what ran on the whole must run on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestify


class Gated(nn.Module):
    """A gate stored as a table, read as a vector."""

    def __init__(self, like: bool) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(4, 24), nn.Linear(24, 2)
        self.gate = nn.Parameter(torch.randn(6, 4))
        self.like = like

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.rise(x).relu()
        gate = self.gate.view_as(hidden[0]) if self.like else self.gate.view(-1)
        return self.fall(hidden * gate)


@pytest.mark.parametrize("like", [False, True])
def test_a_view_of_a_sliced_parameter(like: bool) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(3, 4),)
    nested = nestify.transform(Gated(like), "fn3-neuron{where=all}", inputs).eval()
    assert sorted(unit.size for unit in nested.space.units) == [4, 6]
    for seed in range(5):
        subnet = nested.space.sample(torch.Generator().manual_seed(seed))
        slim = nested.extract(subnet)
        with nested.activate(subnet), torch.no_grad():
            assert torch.equal(nested(*inputs), slim(*inputs))
