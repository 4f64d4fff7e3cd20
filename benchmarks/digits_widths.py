"""Accuracy of one nested network at four widths, against networks of each width trained alone.

    python benchmarks/digits_widths.py [--seeds 8] [--quick]

scikit-learn's digits, three convolutions of 32, 32 and 64 channels with BatchNorm, every channel
elastic, 40 epochs of the same plain loop. BatchNorm statistics are re-estimated for each width.
Time is processor time of training, relative to a dense network trained right before. The last table
searches for widths by loss on the training images, at no more MACs than uniform ones have. Writes
``results/digits_widths.json``.
"""

from __future__ import annotations

import argparse
import statistics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from benchmarks.support.clock import Row, machine, show, write
from benchmarks.support.digits import (
    EPOCHS,
    WIDTHS,
    accuracy,
    calibration,
    digits,
    network,
    plain_step,
    train,
)
from nestify.training import METHODS, Method, step

EVALUATIONS = 400


class Way(NamedTuple):
    """A way to train a nested network: the draw of its recipe, and the method of a step."""

    name: str
    recipe: str
    method: Method


ALL = "fn3-channel{where=all}"
CORE = "fn3-channel{where=all,core=0.125,draw=shared-log-uniform}"
BEST = Method(full=True, smallest=True, random=1, distill=0.5)
WAYS = (
    Way("default", ALL, METHODS["odo"]),
    Way("uniform, as in the paper", "fn3-channel{where=all,draw=uniform}", METHODS["odo"]),
    Way("shared uniform", "fn3-channel{where=all,draw=shared-uniform}", METHODS["odo"]),
    Way("log-uniform", "fn3-channel{where=all,draw=log-uniform}", METHODS["odo"]),
    Way("shared log-uniform", "fn3-channel{where=all,draw=shared-log-uniform}", METHODS["odo"]),
    Way("joint", ALL, METHODS["joint"]),
    Way("distilled", ALL, METHODS["distilled"]),
    Way("sandwich", ALL, METHODS["sandwich"]),
    Way("joint, smallest of 12.5 %", CORE, METHODS["joint"]),
    Way("largest, one drawn, smallest of 12.5 %", CORE, BEST),
)
SEARCHED = (WAYS[0], WAYS[1], WAYS[8])


def trained(way: Way, seed: int, epochs: int) -> tuple[nestify.NestedModel, float]:
    """A nested network after training, and the seconds it took."""
    torch.manual_seed(seed)
    nested = nestify.transform(network(), way.recipe, (digits()[0].x[:2],))

    def one(net: nn.Module, x: Tensor, y: Tensor) -> None:
        step(net, x, y, F.cross_entropy, way.method)

    plain = way.method == METHODS["odo"]
    return nested, train(nested, seed, plain_step if plain else one, epochs)


def score(nested: nestify.NestedModel, subnet: nestify.Subnet) -> float:
    """Accuracy of a subnet as it ships."""
    return accuracy(nested.extract(subnet, calibrate=calibration(), verify=False))


def relative_time(way: Way, epochs: int) -> float:
    """Training time beside that of a dense network trained right before, of the first seed."""
    torch.manual_seed(0)
    dense = train(network(), 0, epochs=epochs)
    return trained(way, 0, epochs)[1] / dense


def alone(seed: int, epochs: int) -> list[float]:
    """Accuracy of a network of each width."""
    scores: list[float] = []
    for width in WIDTHS:
        torch.manual_seed(seed)
        net = network(width)
        train(net, seed, epochs=epochs)
        scores.append(accuracy(net))
    return scores


def searched(nested: nestify.NestedModel) -> list[tuple[float, float]]:
    """For each width: accuracy at that uniform width, and of the best subnet of no more MACs.

    Subnets are chosen by their loss on the training images, and scored on the test images.
    """
    data = digits()[0]

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return -F.cross_entropy(model(data.x), data.y).item()

    uniform = [nested.space.at(width) for width in WIDTHS]
    macs = nested.estimate(uniform).macs
    nested.eval()
    plan = nestify.search(nested, evaluate, calibrate=calibration(), max_evaluations=EVALUATIONS)
    best = [plan.best(macs=float(most)).subnet for most in macs]
    return [(score(nested, u), score(nested, b)) for u, b in zip(uniform, best, strict=True)]


def row(name: str, scores: list[list[float]], ratio: float) -> Row:
    """Means over seeds, and the largest deviation of a column."""
    columns = list(zip(*scores, strict=True))
    spread = max(statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns)
    means = {f"{width:.1%}": statistics.mean(c) for width, c in zip(WIDTHS, columns, strict=True)}
    return {"training": name, **means, "largest sd": spread, "time": ratio}


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two epochs, one seed")
    options = parser.parse_args()
    seeds, epochs = (range(1), 2) if options.quick else (range(options.seeds), EPOCHS)
    torch.set_num_threads(1)
    print(machine())
    references = [alone(seed, epochs) for seed in seeds]
    rows = [row("each width alone", references, 1.0)]
    pairs: dict[str, list[list[tuple[float, float]]]] = {}
    for way in WAYS:
        scores: list[list[float]] = []
        ratio = relative_time(way, epochs)
        for seed in seeds:
            nested = trained(way, seed, epochs)[0]
            scores.append([score(nested, nested.space.at(width)) for width in WIDTHS])
            if way in SEARCHED:
                pairs.setdefault(way.name, []).append(searched(nested))
        rows.append(row(way.name, scores, ratio))
        print(rows[-1])
    search = [
        {
            "training": name,
            "MACs of width": f"{width:.1%}",
            "uniform": statistics.mean(p[i][0] for p in mine),
            "searched": statistics.mean(p[i][1] for p in mine),
        }
        for name, mine in pairs.items()
        for i, width in enumerate(WIDTHS)
    ]
    show("Accuracy, %, by width", rows)
    show("Uniform widths and searched ones of no more MACs, %", search)
    if not options.quick:
        write("digits_widths", {"widths": rows, "search": search})


if __name__ == "__main__":
    main()
