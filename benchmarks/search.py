"""How near the true front does each search method end, after how many evaluations and seconds?

    python benchmarks/search.py [--quick] [--only NAME] [--methods fn3,greedy] [--unseen]

Two nested networks, MobileNetV2-like and ResNeXt-like (nine blocks of eight paths, whose residual
widths are elastic too), are trained once on scikit-learn's digits. Then each method searches them
for accuracy against MACs, BatchNorm re-estimated for every subnet. The measure is the dominated
hypervolume: the area between the best accuracy within each share of the full MACs and the accuracy
of guessing, as a share of the whole rectangle.

``algorithm1`` is FN3's Algorithm 1 to the letter: one block a step, every candidate scored on all
images, nothing reused. All others run as they ship: images in batches, so that candidates which are
clearly behind are stopped; activations that subnets share are kept. On a third network every subnet
is scored, which gives the true front. One process, one thread, one method after the other; seconds
are of processor time, which other load on the machine hardly changes.

The more subnets a search scores, the more of its front is luck: the best of many scores that differ
by chance. ``--unseen`` searches on one half of the images, and scores the fronts on the other.

Prints tables and writes ``results/search.json``, or ``results/search_unseen.json``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import nestify
from benchmarks.support.clock import Row, show, write
from benchmarks.support.digits import digits
from benchmarks.support.search_nets import MOBILENET, RESNEXT, SMALL, Scorer, Subject, trained
from nestify import NestedModel, Subnet
from nestify.pareto import pareto

CHANCE = 0.1
LITERAL = "algorithm1"
METHODS = ("fn3", "greedy", "evolution", "random", "uniform")


class Event(NamedTuple):
    """A subnet scored on all images: when, at which share of the full MACs, how well."""

    seconds: float
    share: float
    score: float


class Recorder:
    """Scores subnets, and notes when each was scored on all images."""

    def __init__(self, nested: NestedModel, scorer: Scorer) -> None:
        self.nested, self.scorer = nested, scorer
        self.seen: dict[Subnet, list[Tensor]] = {}
        self.done: list[tuple[float, Subnet, float]] = []
        self.start = time.process_time()

    def whole(self, model: nn.Module) -> float:
        """The accuracy on all images."""
        score = self.scorer.whole(model)
        self._note(score)
        return score

    def each(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """What is right of one batch."""
        right = self.scorer.each(model, batch)
        parts = self.seen.setdefault(self.nested.active, [])
        parts.append(right)
        if len(parts) == len(self.scorer.batches):
            self._note(float(torch.cat(parts).mean()))
        return right

    def _note(self, score: float) -> None:
        self.done.append((time.process_time() - self.start, self.nested.active, score))

    def events(self) -> list[Event]:
        """All that was scored whole, in order."""
        full = self.nested.estimate([self.nested.space.largest()]).macs[0]
        macs = self.nested.estimate([subnet for _, subnet, _ in self.done]).macs
        rows = zip(self.done, macs.tolist(), strict=True)
        return [Event(seconds, cost / int(full), score) for (seconds, _, score), cost in rows]


def hypervolume(events: list[Event], *, as_chosen: bool = False) -> float:
    """The dominated share of the rectangle from guessing to 1, from no MACs to all.

    ``as_chosen``: every subnet serves up to the next one's MACs, better than smaller ones or not.
    """
    area, best = 0.0, CHANCE
    rows = sorted((event.share, event.score) for event in events)
    for (share, score), (following, _) in itertools.pairwise([*rows, (1.0, 0.0)]):
        best = score if as_chosen else max(best, score)
        area += (following - share) * (best - CHANCE)
    return area / (1 - CHANCE)


def run(nested: NestedModel, method: str, limit: int | None, seed: int) -> tuple[list[Event], int]:
    """Search once; what was scored whole, and how many subnets were begun."""
    recorder = searched(nested, method, limit, seed, Scorer())
    return recorder.events(), len(recorder.seen or recorder.done)


def searched(
    nested: NestedModel, method: str, limit: int | None, seed: int, scorer: Scorer
) -> Recorder:
    """Search once, by the accuracy on the images of ``scorer``."""
    recorder = Recorder(nested, scorer)
    literal = method.startswith(LITERAL)
    options: dict[str, Any] = {} if literal else {"batches": scorer.batches}
    with TemporaryDirectory() as folder:
        nestify.search(
            nested,
            recorder.whole if literal else recorder.each,
            method=method,
            calibrate=scorer.calibration,
            max_evaluations=limit,
            storage=None if literal else Path(folder) / "search.db",
            reuse_bytes=0 if literal else 1 << 30,
            seed=seed,
            target="untimed",
            **options,
        )
    return recorder


def summary(name: str, method: str, events: list[Event], begun: int, goal: float | None) -> Row:
    """One line of the table; ``goal`` is the hypervolume of the literal algorithm."""
    reached = None if goal is None else _reached(events, goal)
    return {
        "network": name,
        "method": method,
        "subnets begun": begun,
        "scored whole": len(events),
        "seconds": round(events[-1].seconds, 1),
        "hypervolume": round(hypervolume(events), 4),
        "seconds to the literal's": None if reached is None else round(reached, 1),
    }


def _reached(events: list[Event], goal: float) -> float | None:
    """When the hypervolume first was ``goal``."""
    if hypervolume(events) < goal:
        return None
    low, high = 0, len(events)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hypervolume(events[:middle]) >= goal else (middle, high)
    return events[high - 1].seconds


def everything(nested: NestedModel) -> list[Event]:
    """Score every subnet."""
    recorder = Recorder(nested, Scorer())
    sizes = itertools.product(*(unit.choices for unit in nested.space.units))
    names = [unit.name for unit in nested.space.units]
    with nested.reusing():
        for row in sizes:
            subnet = Subnet(dict(zip(names, row, strict=True)))
            nested.calibrate(subnet, recorder.scorer.calibration)
            with nested.activate(subnet):
                recorder.whole(nested)
    return recorder.events()


def compared(subject: Subject, methods: list[str], epochs: int, seed: int) -> Iterator[Row]:
    """The literal algorithm, and each method beside it."""
    nested = trained(subject, epochs)
    limit = None if epochs > 1 else 40
    events, begun = run(nested, LITERAL, limit, seed)
    goal = hypervolume(events)
    yield summary(subject.name, f"{LITERAL}, literal", events, begun, None)
    for method in methods:
        events, begun = run(nested, method, None if epochs > 1 else 20, seed)
        yield summary(subject.name, method, events, begun, goal)


def against_all(methods: list[str], epochs: int, seed: int) -> Iterator[Row]:
    """How much of the true front's hypervolume each method misses."""
    nested = trained(SMALL, epochs)
    events = everything(nested)
    best = hypervolume(events)
    yield summary(SMALL.name, "every subnet", events, len(events), None) | {"missed": 0.0}
    for method in methods:
        events, begun = run(nested, method, 128, seed)
        row = summary(SMALL.name, method, events, begun, None)
        yield row | {"missed": round((best - hypervolume(events)) / best, 4)}


def unseen(subject: Subject, methods: list[str], epochs: int, seed: int) -> Iterator[Row]:
    """Fronts found on one half of the images, scored there and on the other; mean of both ways."""
    nested = trained(subject, epochs)
    halves = torch.randperm(len(digits()[1].y), generator=torch.Generator().manual_seed(0)).chunk(2)
    for method in (LITERAL, *methods):
        areas: list[tuple[float, float]] = []
        for mine, others in (halves, halves[::-1]):
            limit = None if epochs > 1 else 20
            recorder = searched(nested, method, limit, seed, Scorer(images=mine))
            events = recorder.events()
            front = pareto([e.share for e in events], [e.score for e in events])
            again = [
                events[i]._replace(score=accuracy(nested, recorder.done[i][1], others))
                for i in front
            ]
            areas.append((hypervolume(events), hypervolume(again, as_chosen=True)))
        here, there = (sum(column) / len(areas) for column in zip(*areas, strict=True))
        yield {
            "network": subject.name,
            "method": method,
            "images searched on": round(here, 4),
            "unseen images": round(there, 4),
            "unseen, by half": [round(area, 4) for _, area in areas],
        }


def accuracy(nested: NestedModel, subnet: Subnet, images: Tensor) -> float:
    """The accuracy of one subnet on some of the test images."""
    scorer = Scorer(images=images)
    nested.calibrate(subnet, scorer.calibration)
    with nested.activate(subnet):
        return scorer.whole(nested)


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch, a few evaluations")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--unseen", action="store_true", help="fronts on unseen images only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _untimed()
    epochs = 1 if options.quick else 40
    methods = options.methods.split(",")
    subjects = [subject for subject in (MOBILENET, RESNEXT) if options.only in subject.name]
    if options.unseen:
        fronts = [r for s in subjects for r in unseen(s, methods, epochs, options.seed)]
        show("search: fronts on images that no search saw", fronts)
        if not options.quick:
            write("search_unseen", {"networks": fronts})
        return
    rows = [row for subject in subjects for row in compared(subject, methods, epochs, options.seed)]
    show("search: accuracy against MACs", rows)
    exact = list(against_all(methods, epochs, options.seed)) if options.only in SMALL.name else []
    show("search: against every subnet", exact)
    if not options.quick:
        write("search", {"networks": rows, "exhaustive": exact})


def _untimed() -> None:
    """A target that times nothing: latency is not what is compared here."""
    from nestify import targets

    target = targets.Target("untimed", "nothing is timed", 1, lambda model, inputs, kwargs: 0.0)
    globals()["UNTIMED"] = target
    vars(targets)["TARGETS"]["untimed"] = f"{__name__}:UNTIMED"


if __name__ == "__main__":
    main()
