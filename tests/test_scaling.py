"""Work grows with the number of nodes and no faster; counted in calls, since time is noisy."""

from __future__ import annotations

import math
import random
import resource
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import fx

import nestify
from benchmarks.support.networks import transformer
from benchmarks.support.synthetic import BUILDERS
from nestify.dims import Const, Dim, Expr, Product, concat
from nestify.dims.selection import Keep
from nestify.emit.module.extract import emit
from nestify.graph.analysis import analyse
from nestify.graph.cost import Pricing
from nestify.graph.dominators import immediate_dominators
from nestify.graph.graph import Graph
from nestify.graph.polynomials import Algebra, Chunk, total
from nestify.passes import apply_passes, parse_recipe
from nestify.runtime.prefix_cuts import Cuts
from nestify.runtime.program import Program


def calls_in(work: Callable[[], Any]) -> int:
    """How many functions, of Python or C, ``work`` calls."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def layered(graph: Graph) -> Graph:
    """The graph with a unit for its depth, if it has residual blocks."""
    return apply_passes(graph, parse_recipe("fn3-layer"))


def half(graph: Graph) -> Keep:
    """Every second residual block, as the graph's own Dims."""
    return Keep({block.presence: i % 2 for i, block in enumerate(graph.blocks)})


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that Python objects made by ``work`` take at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


STAGES: dict[str, Callable[[Graph], Any]] = {
    "analysis": lambda graph: analyse(graph.capture),
    "groups": lambda graph: analyse(graph.capture).groups,
    "fixed": lambda graph: graph.fixed,
    "coverage": lambda graph: graph.coverage,
    "blocks": lambda graph: graph.blocks,
    "pricing": lambda graph: Pricing(graph).costs({}, 1),
    "units": lambda graph: apply_passes(graph, parse_recipe("fn3-channel")),
    "pricing of layers": lambda graph: Pricing(layered(graph)).costs({}, 1),
    "a program of half the layers": lambda graph: Program(layered(graph)).bind(half(graph), 2),
    "program": lambda graph: Program(graph).bind(Keep({}), 2),
    "cuts": lambda graph: (program := Program(graph), Cuts(program).of(program.bind(Keep({}), 2))),
    "emit": lambda graph: emit(graph, graph.capture.tensors, Keep({})),
}


@pytest.mark.parametrize("shape", BUILDERS)
def test_twice_the_nodes_take_about_twice_the_calls(shape: str) -> None:
    ratios: dict[str, float] = {}
    graphs = [analyse(BUILDERS[shape](size)) for size in (600, 1200)]
    nodes = len(graphs[1].nodes) / len(graphs[0].nodes)
    for name, stage in STAGES.items():
        short, long = (calls_in(lambda graph=graph, stage=stage: stage(graph)) for graph in graphs)
        ratios[name] = long / short
    assert all(ratio < 1.15 * nodes for ratio in ratios.values()), ratios


@pytest.mark.parametrize("shape", BUILDERS)
def test_twice_the_nodes_take_about_twice_the_memory(shape: str) -> None:
    sources = [BUILDERS[shape](size) for size in (1000, 2000)]
    nodes = len(sources[1].graph.nodes) / len(sources[0].graph.nodes)
    short, long = (peak_bytes(lambda s=source: analyse(s).groups) for source in sources)
    assert long / short < 1.15 * nodes


def test_a_transformer_of_96_layers_and_170_billion_parameters_needs_no_weights() -> None:
    with torch.device("meta"):
        model, x = transformer(96, 12288)
    assert sum(p.numel() for p in model.parameters()) > 170e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nested = nestify.transform(model, "fn3-head+fn3-neuron+fn3-layer", (x,))
    costs = nested.estimate([nested.space.sample() for _ in range(100)])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 500e6, "a thousandth of the weights"
    assert len(nested.graph.blocks) == 192
    assert nested.graph.coverage.params > 0.999
    assert (np.diff(np.sort(costs.params)) > 0).any()


@pytest.mark.parametrize("shape", ["residual convs", "slices of one dim"])
def test_twenty_thousand_nodes_need_no_deep_stack(shape: str) -> None:
    source = BUILDERS[shape](20_000)
    assert len(source.graph.nodes) >= 19_000
    assert all(tensor.is_meta for tensor in source.tensors.values())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        graph = analyse(source)
        groups = graph.groups
        cost = Pricing(graph).costs({}, 1).row(0)
        assert graph.coverage.params > 0.9
        assert (len(graph.blocks) > 3000) == (shape == "residual convs")
    finally:
        sys.setrecursionlimit(limit)
    assert len(groups) > 3000
    assert len({group.name for group in groups}) == len(groups)
    assert cost.params == sum(tensor.numel() for tensor in source.tensors.values())


def random_flow(rng: random.Random, size: int) -> dict[fx.Node, list[fx.Node]]:
    graph = fx.Graph()
    flow: dict[fx.Node, list[fx.Node]] = {}
    for i in range(size):
        near = list(flow)[-rng.choice((2, 5, 50)) :]
        feeds = rng.sample(near, min(len(near), rng.choice((0, 1, 1, 2, 3)) if i else 0))
        flow[graph.placeholder(f"n{i}")] = feeds
    return flow


@pytest.mark.parametrize("seed", range(20))
def test_dominators_are_those_of_networkx(seed: int) -> None:
    flow = random_flow(random.Random(seed), 80)
    reference = nx.DiGraph()
    for node, feeds in flow.items():
        reference.add_edges_from((feed, node) for feed in feeds or ["start"])
    expected = nx.immediate_dominators(reference, "start")
    found = immediate_dominators(flow)
    assert {node: top or "start" for node, top in found.items()} == {n: expected[n] for n in flow}


def evaluate(expr: Expr, sizes: dict[Dim, int]) -> int:
    if isinstance(expr, Dim):
        return sizes[expr]
    if isinstance(expr, Const):
        return expr.size
    if isinstance(expr, Product):
        return math.prod(evaluate(part, sizes) for part in expr.factors)
    return sum(evaluate(part, sizes) for part in expr.parts)


@pytest.mark.parametrize("seed", range(10))
def test_polynomials_are_exact(seed: int) -> None:
    rng = random.Random(seed)
    dims = [Dim(rng.randint(2, 40)) for _ in range(4)]
    exprs: list[Expr] = [*dims, Const(3)]
    for _ in range(6):
        parts = rng.choices([expr for expr in exprs if expr.size < 1000], k=rng.randint(2, 3))
        exprs.append(concat(parts) if rng.random() < 0.5 else Product(tuple(parts)))
    columns = {dim: np.random.default_rng(seed).integers(1, dim.size + 1, 50) for dim in dims[:3]}
    volumes = [rng.choices(exprs, k=2) for _ in range(5)]
    algebra = Algebra()
    sum_of_all = total(algebra.volume(volume) for volume in volumes)
    found = np.empty(50, dtype=np.int64)
    Chunk(algebra, columns, 50).add(sum_of_all, found, clear=True)
    for i, value in enumerate(found.tolist()):
        sizes = {dim: int(columns[dim][i]) if dim in columns else dim.size for dim in dims}
        assert value == sum(math.prod(evaluate(e, sizes) for e in volume) for volume in volumes)


def test_costs_do_not_depend_on_how_many_are_asked_for() -> None:
    graph = analyse(BUILDERS["transformer"](120))
    drawn = np.random.default_rng(0)
    columns = {g.dim: drawn.integers(1, g.size + 1, 20_000) for g in graph.groups}
    pricing = Pricing(graph)
    together = pricing.costs(columns, 20_000)
    for i in (0, 8191, 8192, 19_999):
        alone = pricing.costs({dim: sizes[i : i + 1] for dim, sizes in columns.items()}, 1)
        assert together.row(i) == alone.row(0)
