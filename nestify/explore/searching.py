"""Search: choose subnets, score them, and put what they cost beside it.

Greedy walks from the largest subnet to the smallest; "uniform" takes the same share of every unit;
"random" draws. Whatever the method, every scored subnet becomes a point of the plan, the largest
and the smallest are among them, and points are placed just inside each set of constraints. Storing
a search so that it can be resumed is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from nestify.constraints import check_constraints, infeasible_message, meets
from nestify.errors import InfeasibleError, UsageError
from nestify.explore import greedy
from nestify.explore.fidelity import fidelity
from nestify.explore.pricing import Pricer
from nestify.explore.scoring import Ledger, Progress
from nestify.explore.steps import between
from nestify.fingerprints import fingerprint
from nestify.plans import Plan
from nestify.targets import load_target

if TYPE_CHECKING:
    from torch import nn

    from nestify.nested import NestedModel
    from nestify.space import Subnet

METHODS = ("greedy", "uniform", "random")
MAX_EVALUATIONS = 64


def search(
    nested: NestedModel,
    evaluate: Callable[[nn.Module], float] | None = None,
    *,
    target: str | Sequence[str] = ("cpu",),
    method: str = "greedy",
    constraints: Mapping[str, float] | None = None,
    seed: int = 0,
    max_evaluations: int = MAX_EVALUATIONS,
    convention: str = "torch",
    progress: Progress | None = None,
) -> Plan:
    """Search the space of ``nested`` and return every scored point as a plan.

    Example:
        >>> nested = nestify.transform(model, "fn3-channel", example_inputs=(x,))
        >>> plan = search(nested, evaluate, constraints={"macs": 50e6})
        >>> plan.best(macs=50e6).subnet

    Args:
        nested: what to search.
        evaluate: ``evaluate(model) -> float``, higher is better; called with ``nested`` in eval
            mode under
            one subnet at a time. None: fidelity to the full model on the example inputs.
        target: the target or targets to give costs for.
        method: ``"greedy"``, ``"uniform"`` or ``"random"``.
        constraints: bounds that the plan should have points near, as for `Plan.best` on the first
            target.
        seed: for what is drawn.
        max_evaluations: how many subnets are scored at most.
        convention: how MACs are counted.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The plan.

    Raises:
        UsageError: an unknown method, target or cost; an evaluate that returns no finite number.
        InfeasibleError: even the smallest subnet misses a constraint.
        CaptureError: evaluate failed; the message shows its line.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    bounds = dict(constraints or {})
    _check(targets, method, bounds, max_evaluations)
    if not nested.space.units and nested.graph.original is None:
        raise UsageError(
            f"no dim of the model is elastic under {nested.recipe!r}: there is nothing to search; "
            "`nestify inspect` shows why"
        )
    was_training = nested.training
    nested.eval()
    try:
        pricer = Pricer(nested, {name: load_target(name) for name in targets}, convention, progress)
        _check_feasible(nested, pricer, bounds)
        scored = evaluate or fidelity(nested, nested.example_inputs, nested.example_kwargs)
        ledger = Ledger(nested, scored, max_evaluations, progress)
        if nested.space.units:
            path = _walk(method, ledger, pricer, seed, reserve=2 if bounds else 1)
        else:  # a recipe that only rewrites: a family of one
            path = [nested.space.largest()]
            ledger.score(path[0])
        if bounds:
            _near(path, ledger, pricer, bounds)
        points = pricer.points(ledger.scores)
    finally:
        nested.train(was_training)
    return Plan(
        model=None,
        fingerprint=fingerprint(nested),
        recipe=nested.recipe,
        targets=targets,
        convention=convention,
        scoring="fidelity" if evaluate is None else "evaluate",
        method=method,
        seed=seed,
        points=points,
    )


def _check(
    targets: Sequence[str], method: str, bounds: Mapping[str, float], max_evaluations: int
) -> None:
    if not targets or len(set(targets)) < len(targets):
        raise UsageError(f"targets must be one or more distinct names, not {list(targets)}")
    for name in targets:
        load_target(name)
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}: the methods are {', '.join(METHODS)}")
    if max_evaluations < 3:
        raise UsageError(f"max_evaluations must be at least 3, not {max_evaluations}")
    check_constraints(bounds)


def _check_feasible(nested: NestedModel, pricer: Pricer, bounds: Mapping[str, float]) -> None:
    """Fail before anything is scored where even the smallest subnet is too large."""
    smallest = pricer.cost(nested.space.smallest(), with_latency="latency_ms" in bounds)
    if not meets(smallest, bounds):
        raise InfeasibleError(infeasible_message([smallest], bounds))


def _walk(method: str, ledger: Ledger, pricer: Pricer, seed: int, reserve: int) -> list[Subnet]:
    """Score subnets by ``method``; return a path of them from the largest to the smallest."""
    space = ledger.nested.space
    ledger.score(space.largest())
    if method == "greedy":
        path = greedy.walk(ledger, pricer.macs, reserve)
    elif method == "uniform":
        count = min(ledger.left - reserve, 32)
        path = [space.largest(), *(space.at(share) for share in np.linspace(1, 0, count + 2)[1:-1])]
    else:
        generator = torch.Generator().manual_seed(seed)
        path = [space.largest()]
        for _ in range(ledger.left - reserve):
            ledger.score(space.sample(generator))
    path.append(space.smallest())
    for subnet in path:
        ledger.score(subnet)
    return path


def _near(
    path: Sequence[Subnet], ledger: Ledger, pricer: Pricer, bounds: Mapping[str, float]
) -> None:
    """Score the largest subnet that meets ``bounds`` on the way between two points of ``path``.

    Sizes only fall along the path, and so do costs: the first point that meets the bounds and the
    one before it bracket the limit, which bisection finds without scoring anything.
    """
    space = ledger.nested.space
    latency = "latency_ms" in bounds

    def feasible(subnet: Subnet) -> bool:
        return meets(pricer.cost(subnet, with_latency=latency), bounds)

    inside = next(i for i, subnet in enumerate(path) if feasible(subnet))  # the smallest does
    if not inside:
        return  # the largest subnet meets everything
    low, high = path[inside], path[inside - 1]
    share, width = 0.0, 1.0
    for _ in range(5 if latency else 12):
        width /= 2
        if feasible(between(space, low, high, share + width)):
            share += width
    found = between(space, low, high, share)
    pricer.keep(found)
    ledger.score(found)
