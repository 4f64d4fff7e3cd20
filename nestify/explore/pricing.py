"""What subnets cost: by formula for all of them, latency by measuring a few on the target."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from nestify.explore.constraints import Value
from nestify.explore.pareto import pareto
from nestify.explore.plan import PlanPoint
from nestify.explore.protocol import Priced
from nestify.graph.cost import Cost
from nestify.targets import Target

if TYPE_CHECKING:
    from nestify.explore.progress import Progress
    from nestify.explore.storage import Storage
    from nestify.nested.model import NestedModel
    from nestify.space import Subnet

MEASURED_POINTS = 24
PRICE = "macs"  # the cost that the steps of a search are judged by
_MACHINE = f"{platform.node()} ({platform.machine()})"  # latencies are of this machine only


class Pricer:
    """Costs of subnets of ``nested`` on ``targets``.

    Timing one subnet takes about a second (extract it, run it), so latency is measured only for
    points on a Pareto front of score and some other cost: no other point can be the best for a
    bound on those.
    """

    def __init__(
        self,
        nested: NestedModel,
        targets: Mapping[str, Target],
        convention: str,
        storage: Storage | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._nested = nested
        self._targets = targets
        self._convention = convention
        self._storage = storage
        self._progress = progress
        self._latency: dict[tuple[Subnet, str], float] = {}
        self._kept: list[Subnet] = []

    def costs(self, subnets: Sequence[Subnet]) -> list[Cost]:
        """Return what ``subnets`` cost by formula; latency is None."""
        table = self._nested.estimate(list(subnets), convention=self._convention)
        return [table.row(i) for i in range(len(subnets))]

    def prices(self, subnets: Priced) -> NDArray[np.float64]:
        """Return what steps of a search are judged by: the MACs of ``subnets``."""
        table = self._nested.estimate(subnets, convention=self._convention)
        return np.asarray(getattr(table, PRICE), dtype=np.float64)

    def value(self, subnet: Subnet) -> Value:
        """Return the costs of one subnet by name; latency is measured when it is asked for."""
        cost = self.costs([subnet])[0]
        first = next(iter(self._targets))

        def of(name: str, target: str | None) -> float | None:
            if name == "latency_ms":
                return self._measured(subnet, target or first)
            return getattr(cost, name)

        return of

    def keep(self, subnet: Subnet) -> None:
        """See to it that `points` measures ``subnet``."""
        self._kept.append(subnet)

    def points(self, scores: Mapping[Subnet, float]) -> tuple[PlanPoint, ...]:
        """Return scored subnets as points, the largest first; the interesting ones are timed."""
        subnets = list(scores)
        costs = self.costs(subnets)
        chosen = self._worth_timing(subnets, [scores[s] for s in subnets], costs)
        for i, subnet in enumerate(chosen):
            for name in self._targets:
                self._measured(subnet, name)
            if self._progress is not None:
                self._progress("measuring latency", i + 1, len(chosen), "")
        first = next(iter(self._targets))
        return tuple(
            PlanPoint(subnet, scores[subnet], self._by_target(subnet, cost), first)
            for subnet, cost in zip(subnets, costs, strict=True)
        )

    def _by_target(self, subnet: Subnet, cost: Cost) -> dict[str, Cost]:
        return {
            name: replace(cost, latency_ms=self._latency.get((subnet, name)))
            for name in self._targets
        }

    def _measured(self, subnet: Subnet, target: str) -> float:
        known = self._latency.get((subnet, target))
        if known is None and self._storage is not None:
            known = self._storage.latency_ms(subnet, self._clock(target))
        if known is None:
            known = self._timed(subnet, target)
        self._latency[subnet, target] = known
        return known

    def _timed(self, subnet: Subnet, target: str) -> float:
        slim = self._nested.extract(subnet, verify=False).eval()
        inputs, kwargs = self._nested.example_inputs, self._nested.example_kwargs
        latency_ms = self._targets[target].measure(slim, inputs, kwargs)
        if self._storage is not None:
            self._storage.add_latency_ms(subnet, self._clock(target), latency_ms)
        return latency_ms

    def _clock(self, target: str) -> str:
        """What a latency is of besides the subnet: where, and on which inputs."""
        example = (self._nested.example_inputs, self._nested.example_kwargs)
        leaves = (
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
            for leaf in pytree.tree_leaves(example)
        )
        return f"{target} of {_MACHINE} on {', '.join(leaves)}"

    def front(self, scores: Mapping[Subnet, float], most: int) -> list[Subnet]:
        """Return points of the front of score and MACs, thinned evenly, and the cheapest subnet."""
        subnets = list(scores)
        prices = self.prices(subnets)
        front = pareto([float(price) for price in prices], list(scores.values()))
        thinned = _thinned(front, most)
        return [subnets[i] for i in dict.fromkeys([int(prices.argmin()), *thinned])]

    def _worth_timing(
        self, subnets: Sequence[Subnet], scores: Sequence[float], costs: Sequence[Cost]
    ) -> list[Subnet]:
        front: set[int] = set()
        for name in ("macs", "params", "size_bytes", "activation_bytes"):
            front |= set(pareto([getattr(c, name) for c in costs], scores))
        by_macs = sorted(front, key=lambda i: costs[i].macs)
        picked = set(_thinned(by_macs, MEASURED_POINTS))
        extremes = {0, min(range(len(costs)), key=lambda i: costs[i].macs)}
        kept = [s for s in self._kept if s in set(subnets)]
        return list(dict.fromkeys([*(subnets[i] for i in sorted(picked | extremes)), *kept]))


def _thinned(indices: Sequence[int], most: int) -> list[int]:
    places = np.linspace(0, len(indices) - 1, min(len(indices), most))
    return [indices[round(float(k))] for k in places]
