"""The laws of every captured model as one check: nested = extracted = silenced original."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.dims import dims_of
from nestify.graph.graph import Graph
from nestify.support.closeness import relative_error
from tests.applied import applied
from tests.fuzz.oracle import flat_inputs, silenced

EVERYTHING = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head+fn3-path+fn3-layer"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

Inputs = tuple[Any, ...]


def check_laws(
    model: nn.Module, inputs: Inputs, *, subnets: int = 3, seed: int = 0, other: Inputs = ()
) -> int:
    """Assert every equality on ``subnets`` random subnets; return the number of elastic groups.

    ``other`` holds inputs of another batch size.
    """
    model.eval()
    graph = nestify.trace(model, inputs)
    if not graph.groups and len(graph.blocks) < 2:  # one block alone is no choice
        return 0
    nested = applied(graph, EVERYTHING).eval()
    # Gradients on: without them nn.MultiheadAttention takes a fused path that rounds otherwise.
    for batch in filter(None, (inputs, other if nested.graph.batch is not None else ())):
        assert _bit_equal(nested(*batch), model(*batch)), "the largest subnet is not the original"
    check_subnets(nested, inputs, subnets=subnets, seed=seed, other=other)
    return len(graph.groups)


def check_subnets(
    nested: Any, inputs: Inputs, *, subnets: int = 3, seed: int = 0, other: Inputs = ()
) -> None:
    """Assert nested = extracted = silenced on ``subnets`` random subnets of a nested model."""
    tolerance = TOLERANCE[_dtype(nested)]
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    with torch.no_grad():
        for _ in range(subnets):
            _check_subnet(nested, nested.space.sample(generator), inputs, other, tolerance)
            _check_silenced(nested, draw, tolerance)


def _check_subnet(
    nested: Any, subnet: nestify.Subnet, inputs: Inputs, other: Inputs, tolerance: float
) -> None:
    slim = nested.extract(subnet, verify=False)
    with nested.activate(subnet):
        for batch in (inputs, other if nested.graph.batch is not None else ()):
            if batch:
                error = relative_error(nested(*batch), slim(*batch))
                assert error <= tolerance, (
                    f"nested and extracted differ by {error:.1e} under {subnet}"
                )
    costs = nested.estimate([subnet]).row(0)
    assert costs.params == sum(p.numel() for p in slim.parameters()), (
        "predicted parameters are wrong"
    )


def _check_silenced(nested: Any, draw: random.Random, tolerance: float) -> None:
    """Arbitrary kept positions in every group that no statistic spans, and arbitrary blocks."""
    graph: Graph = nested.graph
    spanned = {
        d for call in graph.calls.values() for expr in call.normalised for d in dims_of(expr)
    }
    sizes = {group.name: group.size for group in graph.groups if group.dim not in spanned}
    sizes |= {name: len(moves) for name, moves in graph.moves.items() if len(moves) > 1}
    picks = {
        name: torch.tensor(sorted(draw.sample(range(size), draw.randint(1, size))))
        for name, size in sizes.items()
    }
    slim = nested.extract(picks, verify=False)
    reference = silenced(
        graph, dict(nested.named_tensors()), nested.keep(picks), flat_inputs(nested.example_inputs)
    )
    sliced = pytree.tree_leaves(slim(*nested.example_inputs))
    error = relative_error(reference, sliced)
    assert error <= tolerance, (
        f"extracted and silenced original differ by {error:.1e}, kept {picks}"
    )


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)


def _bit_equal(a: Any, b: Any) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) for x, y in zip(left, right, strict=True)
    )
