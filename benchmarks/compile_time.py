"""How long compiling takes: capture, analysis and rewrite of known networks, next to torch-pruning.

    python benchmarks/compile_time.py

Prints tables and writes ``results/compile_time.json``. Needs the extra ``bench`` (torch-pruning),
and torchvision without its dependencies: ``pip install --no-deps torchvision==0.28.0``. Where
torchvision is missing, the models of ``examples/`` stand in; where torch-pruning is, its columns
stay empty.

The peer does the same job on the same model and input, in turns with ours: all its groups, from
``build_dependency`` and ``get_all_groups``, the classifier left out as its README does. Times are
medians, wall clock, with the garbage collector on.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.support.clock import (
    Row,
    Spent,
    Stopwatch,
    limit,
    machine,
    seconds,
    show,
    timed,
    write,
)
from benchmarks.support.networks import example, networks
from nestify.capture.captured import Capture, capture
from nestify.compiler import trace
from nestify.graph.analysis import analyse
from nestify.graph.cost import Pricing
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel
from nestify.passes import apply_passes, parse_recipe

REPEATS = 5
PEER_LIMIT = 120.0  # seconds that the peer gets for one model
SUBNETS = 1_000_000
RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}"
IMPORTS = {
    "import nestify": ("import torch", "import nestify"),
    "import nestify.compiler": ("import torch", "import nestify.compiler"),
}


def analysis(captured: Capture) -> Graph:
    """Every dim of every tensor, and every group."""
    graph = analyse(captured)
    assert graph.groups
    return graph


def rewrite(graph: Graph) -> NestedModel:
    """The nested model, every group a choice."""
    graph = apply_passes(graph, parse_recipe(RECIPE))
    return NestedModel(graph, graph.units, RECIPE)


def peer(model: nn.Module, x: Tensor) -> int:
    """All groups that torch-pruning finds; their number."""
    pruning = importlib.import_module("torch_pruning")
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    return len(list(graph.get_all_groups(ignored_layers=[classifier])))


def captured(model: nn.Module, x: Tensor) -> tuple[Capture, Spent, float]:
    """The capture, its time, and that of torch.export in it; nothing is cached before."""
    FakeTensorMode.cache_clear()
    watch = Stopwatch(torch.export.export)
    with mock.patch.object(torch.export, "export", watch):
        found, spent = timed(lambda: capture(model, (x,)))
    return found, spent, watch.total


def compile_row(name: str, model: nn.Module, x: Tensor) -> Row:
    """The times of one model; the peer is not repeated once it has taken half of its limit."""
    captures = [captured(model, x) for _ in range(3)]
    source, note = captures[-1][0], ""
    if not importlib.util.find_spec("torch_pruning"):
        note = "not installed"
    ours: list[Spent] = []
    theirs: list[float] = []
    for _ in range(REPEATS):
        ours.append(timed(lambda: analysis(source))[1])
        if not note and sum(theirs) < PEER_LIMIT / 2:
            try:
                with limit(PEER_LIMIT):
                    theirs.append(seconds(lambda: peer(model, x)))
            except Exception as error:  # it fails in many ways; each is noted
                note = f"{type(error).__name__}: {error}".splitlines()[0][:60]
    graph = analysis(source)
    stages = {
        "capture": [spent for _, spent, _ in captures],
        "analysis": ours,
        "rewrite": [timed(lambda: rewrite(graph))[1] for _ in range(3)],
    }
    wall = {f"{stage} s": median(s.wall for s in spent) for stage, spent in stages.items()}
    return {
        "model": name,
        "nodes": len(graph.nodes),
        "groups": len(graph.groups),
        "torch.export s": median(export for *_, export in captures),
        **wall,
        "total s": sum(wall.values()),
        "total cpu s": sum(median(s.cpu for s in spent) for spent in stages.values()),
        "peer s": median(theirs) if theirs else note,
        "peer runs": len(theirs),
        "analysis / peer": wall["analysis s"] / median(theirs) if theirs else None,
    }


def import_rows() -> list[Row]:
    """Best of five fresh interpreters: what an import adds to torch's, and the help text."""
    rows: list[Row] = []
    for name, (first, then) in IMPORTS.items():
        text = (
            f"import time; {first}; t = time.perf_counter(); {then}; print(time.perf_counter() - t)"
        )
        command = [sys.executable, "-c", text]
        times = [
            float(subprocess.run(command, capture_output=True, check=True).stdout)
            for _ in range(REPEATS)
        ]
        rows.append({"what": f"{name}, after {first}", "best s": min(times), "bar s": 0.3})
    command = [str(Path(sys.executable).with_name("nestify")), "--help"]
    times = [
        seconds(lambda: subprocess.run(command, capture_output=True, check=True))
        for _ in range(REPEATS)
    ]
    return [*rows, {"what": "nestify --help", "best s": min(times), "bar s": 0.5}]


def pricing_row() -> Row:
    """All costs of a million random subnets of MobileNetV2."""
    model, x = example("mobilenet_v2")
    graph = trace(model, (x,))
    rng = np.random.default_rng(0)
    columns = {group.dim: rng.integers(1, group.size + 1, SUBNETS) for group in graph.groups}
    pricing = Pricing(graph)
    times = [seconds(lambda: pricing.costs(columns, SUBNETS)) for _ in range(REPEATS)]
    return {"what": f"cost of {SUBNETS:,} subnets", "median s": median(times), "bar s": 2.0}


def main() -> None:
    """Measure, print, write."""
    warnings.simplefilter("ignore")
    print(machine())
    capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.randn(1, 3, 8, 8),))  # warm up
    rows: list[Row] = []
    for name, build in networks().items():
        model, x = build()
        rows.append(compile_row(name, model.eval(), x))
        print(rows[-1], flush=True)
    imports, pricing = import_rows(), pricing_row()
    show("Compile time, and the analysis next to torch-pruning", rows)
    show("Imports", imports)
    show("Costs", [pricing])
    write("compile_time", {"models": rows, "imports": imports, "pricing": pricing})


if __name__ == "__main__":
    main()
