"""Subnets that are one network are scored once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nestify
from nestify import NestedModel, Subnet
from nestify.explore.canonical import Alike
from nestify.targets import Target


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Blocks(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Branch(5) for _ in range(count)))
        self.hidden, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.blocks(x))))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def nested_of(recipe: str) -> NestedModel:
    torch.manual_seed(0)
    return nestify.transform(Blocks(), recipe, (X,)).eval()


def network(nested: NestedModel, subnet: Subnet) -> tuple[Any, ...]:
    """What tells one extracted network from another."""
    slim = nested.extract(subnet, verify=False)
    return slim.code, *((name, tuple(t.shape)) for name, t in slim.state_dict().items())


@pytest.mark.parametrize("recipe", ["fn3-neuron+fn3-layer", "fn3-neuron"])
def test_subnets_are_alike_where_their_networks_are_the_same(recipe: str) -> None:
    nested = nested_of(recipe)
    alike = Alike(nested)
    generator = torch.Generator().manual_seed(1)
    subnets = [nested.space.sample(generator) for _ in range(60)]
    by_network: dict[tuple[Any, ...], set[Subnet]] = {}
    for subnet in subnets:
        stands = alike(subnet)
        assert alike(stands) == stands
        assert network(nested, stands) == network(nested, subnet)
        costs = nested.estimate([stands, subnet])
        assert costs.row(0) == costs.row(1)
        by_network.setdefault(network(nested, subnet), set()).add(stands)
    assert all(len(found) == 1 for found in by_network.values())
    assert (len({alike(s) for s in subnets}) < len(set(subnets))) == ("layer" in recipe)
    for subnet in (nested.space.largest(), nested.space.smallest()):
        assert alike(subnet) == subnet


@pytest.mark.parametrize("method", ["fn3", "greedy", "random", "algorithm1"])
def test_a_search_scores_each_network_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nestify.targets.TARGETS, "sim", "tests.fakes:SIM")
    sim = Target("sim", "still", 1, lambda model, args, kwargs: 1.0)
    monkeypatch.setattr("tests.fakes.SIM", sim, raising=False)
    nested = nested_of("fn3-neuron+fn3-layer")
    scored: Counter[tuple[Any, ...]] = Counter()

    def evaluate(model: Any) -> float:
        scored[network(nested, model.active)] += 1
        return float(sum(model.active.values()))

    plan = nestify.search(nested, evaluate, method=method, max_evaluations=40, target="sim")
    assert len(scored) == len(plan.points) > 10
    assert set(scored.values()) == {1}
    subnets = {point.subnet for point in plan.points}
    assert {nested.space.largest(), nested.space.smallest()} <= subnets
