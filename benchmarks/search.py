"""How near the true front does each search method end, after how many evaluations and seconds?

    python benchmarks/search.py [--quick] [--only NAME] [--methods fn3,greedy] [--unseen]

Two nested networks, MobileNetV2-like and ResNeXt-like (nine blocks of eight paths, whose residual
widths are elastic too), are trained once on scikit-learn's digits. Then each method searches them
for accuracy against MACs, BatchNorm re-estimated for every subnet. The measure is the dominated
hypervolume: the area between the best accuracy within each share of the full MACs and the accuracy
of guessing, as a share of the whole rectangle.

The literal ``algorithm1`` is FN3's Algorithm 1 to the letter: one block a step, every candidate
evaluated as a plain loop does, nothing reused, images in the layout that they have. All others run
as they ship, the second ``algorithm1`` too: activations that subnets share are kept, and images run
with their channels last. All are told of each image whether it is right, in one batch. On a third
network every subnet is scored, which gives the true front. One process, one thread, one method
after the other; seconds are of processor time, which other load on the machine hardly changes.

The more subnets a search scores, the more of its front is luck: the best of many scores that differ
by chance. ``--unseen`` searches on one half of the images, and scores the fronts on the other: that
of the end, and that known after a tenth of the literal algorithm's seconds. ``--seeds`` of the
search, from ``--seed`` on.

Prints tables and writes ``results/search.json``, or ``results/search_unseen.json``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

import nestify
from benchmarks.support.clock import Row, show, write
from benchmarks.support.digits import Split, digits
from benchmarks.support.search_nets import MOBILENET, RESNEXT, SMALL, Scorer, Subject, trained
from nestify import NestedModel, Subnet
from nestify.explore.pareto import pareto

CHANCE = 0.1
LITERAL = "algorithm1"
METHODS = ("fn3", LITERAL, "greedy", "evolution", "random", "uniform")


class Event(NamedTuple):
    """A subnet scored on all images: when, at which share of the full MACs, how well."""

    seconds: float
    share: float
    score: float


class Recorder:
    """Scores subnets on all images, and notes when each was scored."""

    def __init__(self, nested: NestedModel, scorer: Scorer) -> None:
        self.nested, self.scorer = nested, scorer
        self.done: list[tuple[float, Subnet, float]] = []
        self.start = time.process_time()

    def evaluate(self, model: nn.Module, batch: Split) -> Tensor:
        """Which images the active subnet knows."""
        hits = self.scorer.hits(model, batch)
        score = float(hits.mean())
        self.done.append((time.process_time() - self.start, self.nested.active, score))
        return hits

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


def run(nested: NestedModel, method: str, limit: int | None, seed: int) -> list[Event]:
    """Search once; what was scored."""
    return searched(nested, method, limit, seed, Scorer()).events()


def searched(
    nested: NestedModel,
    method: str,
    limit: int | None,
    seed: int,
    scorer: Scorer,
    *,
    plain: bool = False,
) -> Recorder:
    """Search once, by the accuracy on the images of ``scorer``; ``plain`` for the literal one."""
    recorder = Recorder(nested, scorer)
    with TemporaryDirectory() as folder:
        nestify.search(
            nested,
            recorder.evaluate,
            method=method,
            batches=[scorer.batch],
            calibrate=scorer.calibration,
            max_evaluations=limit,
            storage=None if plain else Path(folder) / "search.db",
            evaluator="accuracy",
            reuse_bytes=0 if plain else 1 << 30,
            seed=seed,
            target="untimed",
        )
    return recorder


def summary(name: str, method: str, events: list[Event], goal: float | None) -> Row:
    """One line of the table; ``goal`` is the hypervolume of the literal algorithm."""
    reached = None if goal is None else _reached(events, goal)
    return {
        "network": name,
        "method": method,
        "subnets": len(events),
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
    with nested.reusing(turned=True):
        for row in sizes:
            subnet = Subnet(dict(zip(names, row, strict=True)))
            nested.calibrate(subnet, recorder.scorer.calibration)
            with nested.activate(subnet):
                recorder.evaluate(nested, recorder.scorer.batch)
    return recorder.events()


def compared(subject: Subject, methods: list[str], epochs: int, seed: int) -> Iterator[Row]:
    """The literal algorithm, and each method beside it."""
    nested = trained(subject, epochs)
    limit = None if epochs > 1 else 40
    events = searched(nested, LITERAL, limit, seed, Scorer(), plain=True).events()
    goal = hypervolume(events)
    yield summary(subject.name, f"{LITERAL}, literal", events, None)
    for method in methods:
        events = run(nested, method, None if epochs > 1 else 20, seed)
        yield summary(subject.name, method, events, goal)


def against_all(methods: list[str], epochs: int, seed: int) -> Iterator[Row]:
    """How much of the true front's hypervolume each method misses."""
    nested = trained(SMALL, epochs)
    events = everything(nested)
    best = hypervolume(events)
    yield summary(SMALL.name, "every subnet", events, None) | {"missed": 0.0}
    for method in methods:
        events = run(nested, method, 128, seed)
        row = summary(SMALL.name, method, events, None)
        yield row | {"missed": round((best - hypervolume(events)) / best, 4)}


class Areas(NamedTuple):
    """Hypervolumes of one search: on its images, on unseen ones, and those of its first part."""

    seconds: float
    here: float
    there: float
    early_here: float
    early_there: float


def unseen(subject: Subject, methods: list[str], epochs: int, seeds: range) -> Iterator[Row]:
    """Fronts found on one half of the images, scored there and on the other half."""
    nested = trained(subject, epochs)
    halves = torch.randperm(len(digits()[1].y), generator=torch.Generator().manual_seed(0)).chunk(2)
    ways = list(itertools.product(seeds, (halves, halves[::-1])))
    literal: list[Areas] = []
    for method in (LITERAL, *methods):
        found: list[Areas] = []
        for i, (seed, (mine, others)) in enumerate(ways):
            limit = None if epochs > 1 else 20
            plain = method == LITERAL and not literal
            recorder = searched(nested, method, limit, seed, Scorer(images=mine), plain=plain)
            end = literal[i].seconds / 10 if literal else math.inf
            found.append(_areas(nested, recorder, others, end))
        literal = literal or found
        yield _on_unseen(subject.name, method, found, literal)


def _areas(nested: NestedModel, recorder: Recorder, others: Tensor, end: float) -> Areas:
    """Score the front again on other images, and the one that was known by second ``end``."""
    events = recorder.events()
    early = [event for event in events if event.seconds <= end]
    again = [_again(nested, recorder, part, others) for part in (events, early)]
    return Areas(events[-1].seconds, hypervolume(events), again[0], hypervolume(early), again[1])


def _again(nested: NestedModel, recorder: Recorder, events: list[Event], others: Tensor) -> float:
    front = pareto([e.share for e in events], [e.score for e in events])
    scores = [accuracy(nested, recorder.done[i][1], others) for i in front]
    there = [events[i]._replace(score=score) for i, score in zip(front, scores, strict=True)]
    return hypervolume(there, as_chosen=True)


def _on_unseen(network: str, method: str, found: list[Areas], literal: list[Areas]) -> Row:
    """One line of the table; differences from the literal algorithm are of the same images."""
    row: Row = {
        "network": network,
        "method": method,
        "searches": len(found),
        "seconds": round(fmean(areas.seconds for areas in found), 1),
        "images searched on": round(fmean(areas.here for areas in found), 4),
        "unseen images": round(fmean(areas.there for areas in found), 4),
    }
    if found is literal:
        return row
    ahead = [mine.early_there - theirs.there for mine, theirs in zip(found, literal, strict=True)]
    error = stdev(ahead) / math.sqrt(len(ahead)) if len(ahead) > 1 else math.nan
    return row | {
        "searched on, at a tenth": round(fmean(areas.early_here for areas in found), 4),
        "unseen, at a tenth": round(fmean(areas.early_there for areas in found), 4),
        "unseen, at a tenth, ahead": f"{fmean(ahead):+.4f} ± {error:.4f}",
    }


def accuracy(nested: NestedModel, subnet: Subnet, images: Tensor) -> float:
    """The accuracy of one subnet on some of the test images."""
    scorer = Scorer(images=images)
    nested.calibrate(subnet, scorer.calibration)
    with nested.activate(subnet):
        return float(scorer.hits(nested, scorer.batch).mean())


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch, a few evaluations")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--unseen", action="store_true", help="fronts on unseen images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="searches a half, with --unseen")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _untimed()
    epochs = 1 if options.quick else 40
    methods = options.methods.split(",")
    subjects = [subject for subject in (MOBILENET, RESNEXT) if options.only in subject.name]
    if options.unseen:
        seeds = range(options.seed, options.seed + options.seeds)
        fronts = [row for subject in subjects for row in unseen(subject, methods, epochs, seeds)]
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
