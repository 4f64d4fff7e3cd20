"""Whether time grows with the number of nodes and no faster, up to 20,000 nodes.

    python benchmarks/scaling.py

Prints microseconds a node for graphs of five shapes, of 1,250 to 20,000 nodes each, and writes
``results/scaling.json``. The graphs are built by hand on meta tensors, as torch.export takes long
to trace that many; a second table has capture itself, on plain chains of modules. Each time is the
lesser of two, in seconds of processor time; the garbage collector rests meanwhile, as in
``timeit``, because its full collections fall on one size or the other by chance.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn

from benchmarks.support.clock import Row, Stopwatch, machine, show, timed, write
from benchmarks.support.synthetic import BUILDERS
from nestify.capture.captured import capture
from nestify.dims.selection import Keep
from nestify.emit.module.extract import emit
from nestify.graph.analysis import analyse
from nestify.graph.cost import Pricing

SIZES = (1_250, 2_500, 5_000, 10_000, 20_000)
CAPTURE_SIZES = (1_000, 2_000, 4_000)
REPEATS = 2


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """No garbage collection inside."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def best(call: Callable[[], Any]) -> float:
    """The least processor time of a few calls."""
    times: list[float] = []
    for _ in range(REPEATS):
        gc.collect()
        with quiet():
            times.append(timed(call)[1].cpu)
    return min(times)


def stage_row(shape: str, size: int) -> Row:
    """Microseconds a node of each stage."""
    source = BUILDERS[shape](size)
    graph = analyse(source)
    pricing = Pricing(graph)
    stages: dict[str, Callable[[], Any]] = {
        "analysis": lambda: analyse(source).groups,
        "fixed": lambda: analysed().fixed,
        "coverage": lambda: analysed().coverage,
        "blocks": lambda: analysed().blocks,
        "pricing": lambda: Pricing(graph),
        "one cost": lambda: pricing.costs({}, 1),
        "emit": lambda: emit(graph, source.tensors, Keep({})),
    }

    def analysed() -> Any:
        for name in ("fixed", "coverage", "blocks"):
            graph.__dict__.pop(name, None)
        return graph

    nodes = len(graph.nodes)
    row: Row = {"graph": shape, "nodes": nodes}
    for name, stage in stages.items():
        time = best(stage)
        if name == "analysis":
            row["analysis s"] = time
        row[f"{name} us"] = time / nodes * 1e6
    return row


def capture_row(size: int) -> Row:
    """Capture of a chain of linear layers and ReLUs of about ``size`` nodes."""
    layers: list[nn.Module] = []
    for _ in range(size // 4):
        layers += [nn.Linear(8, 8), nn.ReLU()]
    model, watch = nn.Sequential(*layers), Stopwatch(torch.export.export)
    before, torch.export.export = torch.export.export, watch
    try:
        with quiet():
            source, spent = timed(lambda: capture(model, (torch.randn(1, 8),)))
    finally:
        torch.export.export = before
    nodes = len(source.graph.nodes)
    return {
        "nodes": nodes,
        "capture s": spent.wall,
        "torch.export us": watch.total / nodes * 1e6,
        "the rest us": (spent.wall - watch.total) / nodes * 1e6,
    }


def main() -> None:
    """Measure, print, write."""
    print(machine())
    stages: list[Row] = []
    for shape in BUILDERS:
        for size in SIZES:
            stages.append(stage_row(shape, size))
            print(*(f"{v:.1f}" if isinstance(v, float) else v for v in stages[-1].values()))
    show("Microseconds a node", stages)
    capture(nn.Linear(8, 8), (torch.randn(1, 8),))  # warm up
    captures = [capture_row(size) for size in CAPTURE_SIZES]
    show("Capture", captures)
    write("scaling", {"stages": stages, "captures": captures})


if __name__ == "__main__":
    main()
