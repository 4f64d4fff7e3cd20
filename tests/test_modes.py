"""A model is left as it was found: also what its own code keeps between calls."""

from __future__ import annotations

import torch
from torch import nn

import nestify


class Caching(nn.Module):
    """Keeps a table per device, as attention biases do; in eval only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8))
        self.linear = nn.Linear(8, 4)
        self.cache: dict[str, torch.Tensor] = {}
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.linear(x + self.table.flip(0))
        self.calls.append(1)
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.table.flip(0)
        return self.linear(x + self.cache["cpu"])


def test_caches_filled_while_tracing_are_emptied() -> None:
    model = Caching().eval()
    x = torch.randn(2, 8)
    cache = model.cache
    nestify.trace(model, example_inputs=(x,))
    assert model.cache is cache
    assert cache == {}
    assert model.calls == []
    assert torch.isfinite(model(x)).all()
