"""What a nested network costs the host beside the dense one, where kernels take next to no time.

    python benchmarks/host_overhead.py [--rounds 300]

Two networks, every width, neuron and head elastic, batch 2, one thread: 20 convolutions of 8
channels on 4x4 maps with BatchNorm and ReLU, and a vision transformer of 12 layers, width 24. The
dense network and the nested one under an active subnet of half of every width take turns; a figure
is the median of the nested one's times over the median of the dense one's. A training step is
zero_grad, forward, cross entropy, backward and SGD with momentum; eval is a forward under
``torch.no_grad``. ``drawn`` is a training step that draws its subnet, as nested training does.
Writes ``results/host_overhead.json``.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import nestify
from benchmarks.support.clock import Row, machine, show, write
from benchmarks.support.vision_ops import declare_vision_ops

BATCH, CLASSES, CHANNELS, CONVOLUTIONS = 2, 10, 8, 20
RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head"
One = Callable[[], object]


def convolutions() -> nn.Module:
    """20 convolutions, each with BatchNorm and ReLU, and a classifier."""
    layers: list[nn.Module] = []
    for _ in range(CONVOLUTIONS):
        conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)]
    return nn.Sequential(*layers, *pool)


def vision_transformer() -> nn.Module:
    """Timm's vision transformer: 12 layers, width 24, 3 heads, 4 patches."""
    declare_vision_ops()
    build: Any = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    return build(img_size=8, patch_size=4, embed_dim=24, depth=12, num_heads=3, num_classes=CLASSES)


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "20 convolutions": (convolutions, (BATCH, CHANNELS, 4, 4)),
    "ViT, 12 layers": (vision_transformer, (BATCH, 3, 8, 8)),
}


def training_step(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> One:
    """Zero the gradients, forward, backward, optimizer."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def one() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return one


def evaluation(net: nn.Module, x: torch.Tensor) -> One:
    """A forward without gradients."""

    def one() -> None:
        with torch.no_grad():
            net(x)

    return one


def medians(steps: dict[str, One], rounds: int) -> dict[str, float]:
    """Median microseconds of each, in turns; the first tenth is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + rounds // 10):
        for name, one in steps.items():
            start = time.perf_counter()
            one()
            times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(taken[rounds // 10 :]) for name, taken in times.items()}


def measured(name: str, rounds: int) -> Row:
    """The ratios of one network."""
    make, shape = SUBJECTS[name]
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(CLASSES, (BATCH,))
    dense, net = make(), make()
    nested, drawing = (nestify.transform(net, RECIPE, (x,)) for _ in range(2))
    nested.activate(nested.space.at(0.5))
    for each in (dense, nested, drawing):
        each.train()
    training = medians(
        {
            "dense": training_step(dense, x, y),
            "nested": training_step(nested, x, y),
            "drawn": training_step(drawing, x, y),
        },
        rounds,
    )
    dense.eval()
    nested.eval()
    evaluations = medians({"dense": evaluation(dense, x), "nested": evaluation(nested, x)}, rounds)
    return {
        "network": name,
        "training, dense us": training["dense"],
        "training": training["nested"] / training["dense"],
        "drawn": training["drawn"] / training["dense"],
        "eval, dense us": evaluations["dense"],
        "eval": evaluations["nested"] / evaluations["dense"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    rows = [measured(name, options.rounds) for name in SUBJECTS]
    show("Host time of a nested network over the dense one's", rows)
    write("host_overhead", {"ratios": rows})


if __name__ == "__main__":
    main()
