"""NSGA-II (Deb et al., 2002) by pymoo, as Once-for-all and NNCF search: score against cost.

Genes are the places of sizes among the legal ones of each unit. The first generation holds the same
share of every unit from all to the least, and draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nestify.errors import UsageError
from nestify.explore.protocol import Problem, Round, Rounds, check_options
from nestify.explore.surrogate.encoding import Genes, Rows
from nestify.support.arguments import whole

__all__ = ["Evolution"]


@dataclass(frozen=True, slots=True)
class Evolution:
    """Generations of ``population`` subnets, until ``generations`` are over.

    Raises:
        UsageError: an option out of range; pymoo is not installed.
    """

    population: int = 32
    generations: int = 32

    def __post_init__(self) -> None:
        check_options(self, population=whole(4), generations=whole(1))

    def rounds(self, problem: Problem) -> Rounds:
        """Yield generations."""
        space = problem.space
        genes = Genes(space)
        largest, least = space.largest(), space.smallest()
        yield Round([largest, least])
        top = max(1.0, problem.price(largest))  # some have no MACs at all
        algorithm = _nsga2(genes, self._first(problem, genes), problem.seed)
        for _ in range(self.generations):
            if problem.left <= 0:
                return
            asked: Any = algorithm.ask()
            if asked is None or not len(asked):
                return  # no subnet is left that it has not seen
            subnets = [genes.subnet(row) for row in asked.get("X")]
            scores = yield Round(subnets)
            costs = problem.prices(genes.sizes(asked.get("X"))) / top
            losses = [-value for value in scores.values if value is not None]
            if len(losses) < len(subnets):
                return  # nothing more may be scored
            asked.set("F", np.stack([costs, np.array(losses)], axis=1))
            algorithm.tell(infills=asked)

    def _first(self, problem: Problem, genes: Genes) -> Rows:
        generator = torch.Generator().manual_seed(problem.seed)
        shares = np.linspace(1, 0, self.population // 2)
        even = [problem.space.at(max(float(share), 1e-9)) for share in shares]
        drawn = [problem.space.sample(generator) for _ in range(self.population - len(even))]
        return genes.rows([*even, *drawn])


def _nsga2(genes: Genes, first: Rows, seed: int) -> Any:
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
