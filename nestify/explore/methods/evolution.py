"""NSGA-II (Deb et al., 2002) by pymoo, as Once-for-all and NNCF search: score against cost.

Genes are the places of sizes among the legal ones of each unit. The first generation holds the same
share of every unit from all to the least, and draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nestify.errors import UsageError
from nestify.explore.methods.steps import choices
from nestify.explore.rounds import Problem, Round, Rounds
from nestify.space import SearchSpace, Subnet

__all__ = ["Evolution"]


@dataclass(frozen=True, slots=True)
class Evolution:
    """Generations of ``population`` subnets, until ``generations`` are over.

    Raises:
        UsageError: a population below 4; pymoo is not installed.
    """

    population: int = 32
    generations: int = 32

    def __post_init__(self) -> None:
        if self.population < 4:
            raise UsageError(
                f"population of method evolution must be at least 4; got {self.population}"
            )

    def rounds(self, problem: Problem) -> Rounds:
        """Yield generations."""
        space = problem.space
        genes = _Genes(space)
        largest, least = space.largest(), space.smallest()
        yield Round([largest, least])
        top = float(problem.prices([largest])[0])
        algorithm = _nsga2(genes, self._first(problem, genes), problem.seed)
        for _ in range(self.generations):
            if problem.left <= 0:
                return
            asked: Any = algorithm.ask()
            if asked is None or not len(asked):
                return  # no subnet is left that it has not seen
            subnets = [genes.subnet(row) for row in asked.get("X")]
            scores = yield Round(subnets)
            costs = problem.prices(subnets) / top
            losses = [-value for value in scores.values if value is not None]
            if len(losses) < len(subnets):
                return  # nothing more may be scored
            asked.set("F", np.stack([costs, np.array(losses)], axis=1))
            algorithm.tell(infills=asked)

    def _first(self, problem: Problem, genes: _Genes) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(problem.seed)
        shares = np.linspace(1, 0, self.population // 2)
        even = [problem.space.at(max(float(share), 1e-9)) for share in shares]
        drawn = [problem.space.sample(generator) for _ in range(self.population - len(even))]
        return np.array([genes.row(subnet) for subnet in (*even, *drawn)])


class _Genes:
    """Subnets as rows of integers."""

    def __init__(self, space: SearchSpace) -> None:
        self.units = space.units
        self.most = np.array([len(choices(unit)) - 1 for unit in space.units])

    def subnet(self, row: NDArray[Any]) -> Subnet:
        places = zip(self.units, row, strict=True)
        return Subnet({unit.name: choices(unit)[int(place)] for unit, place in places})

    def row(self, subnet: Subnet) -> list[int]:
        return [choices(unit).index(subnet[unit.name]) for unit in self.units]


def _nsga2(genes: _Genes, first: NDArray[np.int64], seed: int) -> Any:
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem as Pymoo
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
    except ImportError:
        raise UsageError("method evolution needs pymoo: pip install nestify[search]") from None
    whole = RoundingRepair()
    sampling: Any = first
    algorithm: Any = NSGA2(
        pop_size=len(first),
        sampling=sampling,
        crossover=SBX(prob=0.9, eta=10, vtype=float, repair=whole),
        mutation=PM(eta=10, vtype=float, repair=whole),
        eliminate_duplicates=True,
    )
    count = len(genes.units)
    described = Pymoo(n_var=count, n_obj=2, xl=np.zeros(count), xu=genes.most, vtype=int)
    algorithm.setup(described, termination=("n_gen", 1 << 30), seed=seed, verbose=False)
    return algorithm
