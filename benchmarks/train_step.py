"""What a training step of a nested network costs, relative to one of the dense network.

    python benchmarks/train_step.py [--steps 40] [--batch 64] [--threads 2] [--device cuda]

Forward, backward and SGD with momentum, on one batch, variants in turns in one process: dense,
sliced (one uniform draw a unit, as nested networks train), masked (the paper's literal masks) and
sandwich of four. The ratio is to the dense network in the same memory format and precision, of mean
times. A few dozen draws are cheaper or dearer than the law's by some percent, so the seed is one
under which their MACs are the expected ones. The first quarter of the steps is not counted: oneDNN
compiles kernels for sizes that are new. Writes ``results/train_step.json``, each row as soon as it
is there; with ``--only`` those of these networks. Memory is measured by ``train_memory.py``.

On a GPU cuDNN plans every convolution of a new size anew: ``--warm 200`` takes so many sliced steps
first, after which few sizes are new. The rows go to ``results/train_step_cuda.json``, where others
stay; ``memory`` is the most that a sliced step takes beyond what it finds, relative to a dense one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from benchmarks.support.clock import RESULTS, Row, machine, show, write
from benchmarks.support.training_networks import CLASSES, LARGE, SUBJECTS, Subject
from nestify.nested.draw_stream import Draws
from nestify.training import cost_multiplier, step

FORMATS = ("contiguous", "channels_last")
VARIANTS = ("dense", "sliced", "masked", "sandwich")
WARM = 4  # the first of so many parts is not counted
SEEDS = 200
One = Callable[[], None]


def variants(
    subject: Subject,
    layout: str,
    bf16: bool,
    batch: int,
    device: str,
    names: tuple[str, ...],
    count: int,
    warm: int,
) -> tuple[Mapping[str, One], float]:
    """A training step by variant, each with a network and an optimizer of its own; and the MACs of
    the sliced one.
    """
    torch.manual_seed(0)
    x = torch.randn(batch, *subject.batch[1:])
    y = torch.randint(CLASSES, (batch,)).to(device)
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def placed(net: nn.Module) -> nn.Module:
        return net.to(device).to(memory_format=memory).train()

    def nest() -> nestify.NestedModel:
        nested = nestify.transform(subject.model(), subject.recipe, (x[:2],))
        placed(nested)
        return nested

    inputs = x.to(device)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=memory)
    made: dict[str, One] = {}
    typical = nest()
    multiplier = cost_multiplier(typical)
    seed = typical_seed(typical, count, multiplier)
    for name in names:
        net = placed(subject.model()) if name == "dense" else nest()
        run = net.masked() if isinstance(net, nestify.NestedModel) and name == "masked" else net
        made[name] = one_step(name, run, inputs, y, bf16)
        for _ in range(warm if name == "sliced" else 0):
            made[name]()
        if isinstance(net, nestify.NestedModel):
            net.draws.restart(seed)
    return made, multiplier


def one_step(
    name: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    bf16: bool,
) -> One:
    """Zero the gradients, forward, backward, optimizer."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def one() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            if name == "sandwich":
                step(net, x, y, F.cross_entropy, "sandwich")
            else:
                loss = F.cross_entropy(net(x), y)
        if name != "sandwich":
            loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return one


def typical_seed(nested: nestify.NestedModel, count: int, expected: float) -> int:
    """The seed whose counted draws take, on average, the share ``expected`` of all MACs."""
    space = nested.space
    full = nested.estimate([space.largest()]).macs[0]
    draws = Draws()

    def distance(seed: int) -> float:
        draws.restart(seed)
        subnets = draws.upcoming(space.units, count)[count // WARM :]
        return abs(nested.estimate(subnets).macs.mean() / full - expected)

    return min(range(SEEDS), key=distance)


class Measured(NamedTuple):
    """Mean milliseconds of a step, and the most bytes of a GPU that it takes."""

    ms: float
    bytes: int


def measure(steps: Mapping[str, One], count: int) -> dict[str, Measured]:
    """What each takes, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks: dict[str, list[int]] = {name: [] for name in steps}
    for _ in range(count):
        for name, one in steps.items():
            before = torch.cuda.memory_allocated()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            one()
            times[name].append(1e3 * (time.perf_counter() - start))
            peaks[name].append(torch.cuda.max_memory_allocated() - before)
    first = count // WARM
    return {n: Measured(statistics.mean(times[n][first:]), max(peaks[n][first:])) for n in steps}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--warm", type=int, default=0, help="sliced steps before all others")
    parser.add_argument("--only", default="", help="parts of networks' names, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    results = "train_step" if options.device == "cpu" else f"train_step_{options.device}"
    rows: list[Row] = []
    subjects = SUBJECTS if options.device == "cpu" else SUBJECTS + LARGE
    chosen = [s for s in subjects if any(part in s.name for part in options.only.split(","))]
    for subject in chosen:
        count = options.steps * (1 if subject.images else 20)
        for layout in FORMATS if subject.images else FORMATS[:1]:
            for bf16 in (False, True):
                made, multiplier = variants(
                    subject,
                    layout,
                    bf16,
                    options.batch,
                    options.device,
                    VARIANTS,
                    count,
                    options.warm,
                )
                found = measure(made, count)
                dense, sliced = found["dense"], found["sliced"]
                on_gpu = {"memory": sliced.bytes / dense.bytes} if dense.bytes else {}
                rows.append(
                    {
                        "network": subject.name,
                        "batch": options.batch,
                        "format": layout,
                        "precision": "bf16" if bf16 else "fp32",
                        "dense ms": dense.ms,
                        **{name: found[name].ms / dense.ms for name in VARIANTS[1:]},
                        "bar": subject.bar,
                        "MACs": multiplier,
                        **on_gpu,
                    }
                )
                print(rows[-1], flush=True)
                write(results, {"steps": kept(results, rows)})
    show("A training step, relative to the dense network", rows)


def kept(name: str, rows: list[Row]) -> list[Row]:
    """The rows, and those that the results file has of other cases, in order."""
    path = RESULTS / f"{name}.json"
    before: list[Row] = json.loads(path.read_text())["steps"] if path.exists() else []
    names = [subject.name for subject in SUBJECTS + LARGE]

    def case(row: Row) -> tuple[int, int, int, bool]:
        layout, half = FORMATS.index(row["format"]), row["precision"] == "bf16"
        return names.index(row["network"]), row["batch"], layout, half

    anew = set(map(case, rows))
    return sorted([*rows, *(row for row in before if case(row) not in anew)], key=case)


if __name__ == "__main__":
    main()
