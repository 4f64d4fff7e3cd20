"""Search: a method chooses subnets, they are scored and stored, and become the points of a plan.

Whatever the method, every subnet that was scored on all the data is a point, the largest and the
smallest are among them, and points are placed just inside each set of constraints.
"""

from __future__ import annotations

import math
import operator
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from nestify.errors import InfeasibleError, UsageError
from nestify.explore.arguments import ARGUMENTS
from nestify.explore.canonical import Alike
from nestify.explore.constraints import check_constraints, excess, infeasible_message, meets
from nestify.explore.evaluator import Evaluator
from nestify.explore.executors import check_workers, executor
from nestify.explore.fidelity import fidelity
from nestify.explore.ledger import Ledger
from nestify.explore.methods import parse_method
from nestify.explore.moves import between
from nestify.explore.plan import Plan
from nestify.explore.pricing import PRICE, Pricer
from nestify.explore.progress import Progress, front_note
from nestify.explore.protocol import Method, Problem, Round
from nestify.explore.storage import Storage
from nestify.nested.fingerprint import fingerprint
from nestify.support.arguments import check
from nestify.targets import load_target, usable_target

if TYPE_CHECKING:
    from nestify.nested.model import NestedModel

MAX_EVALUATIONS = 256
REUSE_BYTES = 1 << 30
_NEAR = 2  # subnets that are scored just inside the constraints, kept back from the method
_NOTE_S = 0.5  # between two looks at the front
_TIMED = 12  # of the front, where a constraint is on a latency that has to be measured


def search(
    nested: NestedModel,
    evaluate: Callable[..., Any] | None = None,
    *,
    target: str | Sequence[str] = ("cpu",),
    method: str = "fn3",
    constraints: Mapping[str, float] | None = None,
    storage: str | os.PathLike[str] | None = None,
    batches: Iterable[Any] | None = None,
    calibrate: Iterable[Any] | None = None,
    workers: int | str = 1,
    seed: int = 0,
    max_evaluations: int | None = MAX_EVALUATIONS,
    convention: str = "torch",
    evaluator: str | None = None,
    reuse_bytes: int = REUSE_BYTES,
    progress: Progress | None = None,
) -> Plan:
    """Search the space of ``nested`` and return every scored point as a plan (FN3, section 4).

    Example:
        >>> import nestify
        >>> nested = nestify.transform(model, "fn3-channel", example_inputs=(x,))
        >>> plan = search(nested, evaluate, constraints={"macs": 2e6}, storage="search.db")
        >>> plan.best(macs=2e6).cost.macs <= 2e6
        True

    Args:
        nested: what to search.
        evaluate: ``evaluate(model) -> float``, higher is better; called with ``nested`` in eval
            mode under one subnet at a time. With ``batches``, ``evaluate(model, batch)`` gives the
            score of each sample, and subnets that are clearly behind are stopped early. None:
            fidelity to the full model on the example inputs.
        target: the target or targets to give costs for.
        method: ``fn3``, ``algorithm1`` (FN3's, to the letter), ``greedy``, ``evolution``,
            ``random`` or ``uniform``, with options in braces.
        constraints: bounds that the plan should have points near, as for `Plan.best`.
        storage: a SQLite file that keeps every score: a search that was killed goes on from it,
            and nothing is evaluated twice.
        batches: the data of an ``evaluate`` of two arguments; a list, or what fits in memory.
        calibrate: batches of inputs from which each subnet's BatchNorm statistics are
            re-estimated before it is scored. What `NestedModel.calibrate` estimated before is
            dropped.
        workers: how many processes evaluate; ``"ray"`` or ``"ray:N"`` for a Ray cluster.
        seed: for what is drawn.
        max_evaluations: how many subnets are scored at most; None for as many as the method wants.
        convention: how MACs are counted.
        evaluator: names ``evaluate`` and its data in ``storage``, in place of a hash of both; the
            sizes of ``batches`` count all the same.
        reuse_bytes: memory for activations that subnets share; 0 evaluates as a plain loop does,
            and leaves images in the layout that they have.
        progress: called as ``progress(stage, done, total, note)``.

    Returns:
        The plan.

    Raises:
        UsageError: an argument of a wrong type or value; an unknown method, target or cost; an
            evaluate that returns no finite number, or changes the weights, or, with ``storage`` and
            no ``evaluator``, closes over what cannot be told.
        InfeasibleError: even the smallest subnet misses a constraint.
        CaptureError: evaluate failed; the message shows its line.
        ArtifactError: the storage is not a search's.
    """
    check("search", locals(), ARGUMENTS)  # before anything else is a local
    targets = (target,) if isinstance(target, str) else tuple(target)
    bounds = dict(constraints or {})
    seed = operator.index(seed)  # a plan holds numbers of JSON, not NumPy's
    check_workers(workers)
    for name in targets:
        usable_target(name)
    check_constraints(bounds, targets)
    if batches is not None and evaluate is None:
        raise UsageError("batches= are for an evaluate(model, batch); there is no evaluate")
    chosen = parse_method(method)
    if not nested.space.units and nested.graph.original is None:
        raise UsageError(
            f"no dim of the model is elastic under {nested.recipe!r}: there is nothing to search; "
            "`nestify inspect` shows why"
        )
    with _evaluating(nested), ExitStack() as stack:
        scored = evaluate or fidelity(nested, nested.example_inputs, nested.example_kwargs)
        judge = Evaluator(
            nested, scored, batches, calibrate, name=evaluator, reuse_bytes=reuse_bytes
        )
        prints, judged = fingerprint(nested), _known_as(judge, stored=storage is not None)
        file = None
        if storage is not None:
            key = f"{prints.structure}:{prints.weights}"
            file = stack.enter_context(Storage(storage, model=key, evaluator=judged))
        known = {name: load_target(name) for name in targets}
        pricer = Pricer(nested, known, convention, file, progress)
        _check_feasible(nested, pricer, bounds)
        runner = executor(judge, workers)
        stack.callback(runner.close)
        ledger = Ledger(runner, judge.parts, file, max_evaluations, Alike(nested))
        if progress is not None:
            ledger.told = _teller(progress, ledger, pricer, max_evaluations)
        _explore(nested, chosen, ledger, pricer, seed, bounds)
        if workers == 1:  # others evaluate copies
            judge.check_weights(closely=True)
        points = pricer.points(ledger.scores)
    return Plan(
        model=None,
        fingerprint=prints,
        recipe=nested.recipe,
        targets=targets,
        convention=convention,
        scoring="fidelity" if evaluate is None else "evaluate",
        evaluator=judged,
        method=method,
        seed=seed,
        points=points,
    )


def _known_as(judge: Evaluator, *, stored: bool) -> str:
    """The key of the scores, taken before the function can change what it closes over."""
    try:
        return judge.fingerprint
    except UsageError:
        if stored:
            raise
        return f"unknown-{uuid.uuid4().hex}"  # no other search's: its scores compare with none


@contextmanager
def _evaluating(nested: NestedModel) -> Generator[None]:
    was_training = nested.training
    nested.eval()
    nested.forget_statistics()  # those of other data or weights would decide scores
    try:
        yield
    finally:
        nested.train(was_training)


def _check_feasible(nested: NestedModel, pricer: Pricer, bounds: Mapping[str, float]) -> None:
    """Fail before anything is scored where even the smallest subnet is too large."""
    smallest = pricer.value(nested.space.smallest())
    if not meets(smallest, bounds):
        raise InfeasibleError(infeasible_message([smallest], bounds))


def _explore(
    nested: NestedModel,
    method: Method,
    ledger: Ledger,
    pricer: Pricer,
    seed: int,
    bounds: Mapping[str, float],
) -> None:
    """Answer the method's rounds; then the smallest subnet, and those just inside the bounds."""
    space = nested.space
    reserve = 1 + (_NEAR if bounds else 0)
    most = bounds.get(PRICE, math.inf)
    problem = Problem(
        space, pricer.prices, seed, lambda: max(0, ledger.left - reserve), most, nested.cuts.before
    )
    if space.units:
        rounds = method.rounds(problem)
        try:
            asked = next(rounds)
            while True:
                first = int(not ledger.begun)  # the largest subnet is scored in any case
                asked = rounds.send(ledger.ask(asked, most=max(first, problem.left)))
        except StopIteration:
            pass
    ledger.ask(Round([space.largest(), space.smallest()]))
    for _ in range(_NEAR if bounds else 0):
        _near(nested, ledger, pricer, bounds)


def _near(nested: NestedModel, ledger: Ledger, pricer: Pricer, bounds: Mapping[str, float]) -> None:
    """Score the largest subnet within ``bounds`` between the best point inside and one outside.

    Of the points outside it is the one that misses by least. Bisection finds a subnet where the
    bounds are just met, without scoring anything.
    """
    slow = any(key.startswith("latency_ms") for key in bounds)
    considered = pricer.front(ledger.scores, _TIMED) if slow else list(ledger.scores)
    values = {subnet: pricer.value(subnet) for subnet in considered}
    inside = {s: ledger.scores[s] for s, value in values.items() if meets(value, bounds)}
    outside = {s: excess(value, bounds) for s, value in values.items() if s not in inside}
    if not outside:
        return  # the largest subnet meets everything
    low = max(inside, key=inside.__getitem__)
    high = min(outside, key=outside.__getitem__)
    share, width = 0.0, 1.0
    for _ in range(5 if slow else 12):
        width /= 2
        there = between(nested.space, low, high, share + width)
        if meets(pricer.value(there), bounds):
            share += width
    found = between(nested.space, low, high, share)
    pricer.keep(found)
    ledger.ask(Round([found]))


def _teller(
    progress: Progress, ledger: Ledger, pricer: Pricer, limit: int | None
) -> Callable[[int], None]:
    note, due = "", 0.0

    def told(begun: int) -> None:
        nonlocal note, due
        if time.monotonic() >= due:
            note, due = front_note(ledger.scores, pricer.prices), time.monotonic() + _NOTE_S
        progress("scoring subnets", begun, limit or 0, note)

    return told
