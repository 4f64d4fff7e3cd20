"""A nested model without a network: units, a formula for the cost, a formula for the score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from nestify.explore.protocol import Priced
from nestify.graph.cost import Costs
from nestify.space import SearchSpace, Subnet, Unit


class FakeNested(nn.Module):
    """A chain of layers as wide as the units: MACs are the sum of products of neighbours.

    ``importance`` says how much score is lost with a unit; the loss is quadratic in the share cut.
    """

    def __init__(self, units: Sequence[Unit], importance: Mapping[str, float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.space = SearchSpace(tuple(units))
        self.recipe = "fake"
        self.graph = SimpleNamespace(
            original=None, nodes=(), calls={}, batch=None, moves={}, droppable=()
        )
        self.example_inputs = (torch.zeros(1),)
        self.cuts = SimpleNamespace(before={})
        self.example_kwargs: dict[str, Any] = {}
        self.importance = importance
        self.active = self.space.largest()
        self.extracted: list[Subnet] = []

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.named_parameters()

    def forget_statistics(self) -> None:
        """There are none."""

    @contextmanager
    def activate(self, subnet: Subnet) -> Iterator[FakeNested]:
        self.space.validate(subnet)
        before, self.active = self.active, subnet
        try:
            yield self
        finally:
            self.active = before

    def estimate(self, subnets: Priced, convention: str = "torch") -> Costs:
        if isinstance(subnets, Mapping):
            columns = [subnets[unit.name] for unit in self.space.units]
        else:
            columns = [np.array([s[unit.name] for s in subnets]) for unit in self.space.units]
        ends = np.full_like(columns[0], 16)
        sizes = np.stack([ends, *columns, ends], axis=1)
        macs = (sizes[:, :-1] * sizes[:, 1:]).sum(axis=1)
        return Costs(macs, sizes.sum(axis=1), 4 * sizes.sum(axis=1), 4 * sizes.max(axis=1))

    @contextmanager
    def reusing(self, limit_bytes: int, turned: bool) -> Iterator[None]:
        yield

    def extract(self, subnet: Subnet, **options: Any) -> nn.Module:
        self.extracted.append(subnet)
        return nn.Identity()

    def score(self) -> float:
        losses = (
            self.importance.get(u.name, 0.0) * (1 - self.active[u.name] / u.size) ** 2
            for u in self.space.units
        )
        return 1.0 - sum(losses)


def chain(count: int, size: int = 64, step: int = 8, **importance: float) -> FakeNested:
    """A fake of ``count`` units ``u0``, ``u1``, ... of one size."""
    units = [Unit(f"u{i}", "channel", size, step, step) for i in range(count)]
    return FakeNested(units, {unit.name: 0.1 for unit in units} | importance)


SIM: Any = None  # tests put a target here
