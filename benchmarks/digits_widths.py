"""Accuracy of one nested network at four widths, against networks of each width trained alone.

    python benchmarks/digits_widths.py [--seeds 3] [--quick]

scikit-learn's digits, three convolutions of 32, 32 and 64 channels with BatchNorm, every channel
elastic, 40 epochs of the same plain loop. BatchNorm statistics are re-estimated for each width.
Time is processor time of training, relative to the dense network's. The last table chooses the
widths by loss on the training images, at no more MACs than uniform ones have. Writes
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

SEARCH_SAMPLES = 512


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


def alone(seed: int, epochs: int) -> tuple[list[float], float]:
    """Accuracy of a network of each width, and the seconds of the widest one."""
    scores: list[float] = []
    times: list[float] = []
    for width in WIDTHS:
        torch.manual_seed(seed)
        net = network(width)
        times.append(train(net, seed, epochs=epochs))
        scores.append(accuracy(net))
    return scores, times[0]


def searched(nested: nestify.NestedModel) -> list[tuple[float, float]]:
    """For each width: accuracy at that uniform width, and of the best subnet of no more MACs.

    Subnets are chosen by their loss on the training images, and scored on the test images.
    """
    generator = torch.Generator().manual_seed(0)
    space = nested.space
    uniform = [space.at(width) for width in WIDTHS]
    budgets = nested.estimate(uniform).macs
    found: list[tuple[float, float]] = []
    for subnet, budget in zip(uniform, budgets, strict=True):
        candidates = near(space, subnet, generator)
        macs = nested.estimate(candidates).macs
        fitting = [c for c, m in zip(candidates, macs, strict=True) if m <= budget]
        ranked = sorted([subnet, *fitting[:24]], key=lambda s: training_loss(nested, s))
        found.append((score(nested, subnet), score(nested, ranked[0])))
    return found


def near(
    space: nestify.SearchSpace, subnet: nestify.Subnet, generator: torch.Generator
) -> list[nestify.Subnet]:
    """Subnets whose sizes are from a half to twice those of ``subnet``."""
    factors = 2 ** (2 * torch.rand(SEARCH_SAMPLES, len(space.units), generator=generator) - 1)
    return [
        nestify.Subnet(
            {
                unit.name: unit.nearest(subnet[unit.name] * factor)
                for unit, factor in zip(space.units, row, strict=True)
            }
        )
        for row in factors.tolist()
    ]


@torch.no_grad()
def training_loss(nested: nestify.NestedModel, subnet: nestify.Subnet) -> float:
    """Cross entropy on the training images, with re-estimated statistics."""
    slim = nested.extract(subnet, calibrate=calibration(), verify=False)
    data = digits()[0]
    return F.cross_entropy(slim(data.x), data.y).item()


def row(name: str, scores: list[list[float]], ratios: list[float]) -> Row:
    """Means over seeds, and the largest deviation of a column."""
    columns = list(zip(*scores, strict=True))
    spread = max(statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns)
    means = {f"{width:.1%}": statistics.mean(c) for width, c in zip(WIDTHS, columns, strict=True)}
    return {"training": name, **means, "largest sd": spread, "time": statistics.mean(ratios)}


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two epochs, one seed")
    options = parser.parse_args()
    seeds, epochs = (range(1), 2) if options.quick else (range(options.seeds), EPOCHS)
    torch.set_num_threads(1)
    print(machine())
    references = [alone(seed, epochs) for seed in seeds]
    rows = [row("each width alone", [scores for scores, _ in references], [1.0])]
    pairs: list[list[tuple[float, float]]] = []
    for way in WAYS:
        scores: list[list[float]] = []
        ratios: list[float] = []
        for seed in seeds:
            nested, seconds = trained(way, seed, epochs)
            scores.append([score(nested, nested.space.at(width)) for width in WIDTHS])
            ratios.append(seconds / references[seed][1])
            if way.name == "joint, smallest of 12.5 %":
                pairs.append(searched(nested))
        rows.append(row(way.name, scores, ratios))
        print(rows[-1])
    search = [
        {
            "MACs of width": f"{width:.1%}",
            "uniform": statistics.mean(p[i][0] for p in pairs),
            "searched": statistics.mean(p[i][1] for p in pairs),
        }
        for i, width in enumerate(WIDTHS)
    ]
    show("Accuracy, %, by width", rows)
    show("Searched widths of the joint network, %", search)
    if not options.quick:
        write("digits_widths", {"widths": rows, "search": search})


if __name__ == "__main__":
    main()
