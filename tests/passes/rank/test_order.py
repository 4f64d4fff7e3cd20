"""``rank`` leaves the function as it is and puts the best positions first."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.analysis import importance
from nestify.dims import dims_of
from nestify.dims.selection import Keep
from nestify.graph.rewriter import Rewriter, permuted
from nestify.passes.ranking.importance import measure
from nestify.support.closeness import relative_error
from tests.applied import applied
from tests.fuzz.oracle import flat_inputs, silenced
from tests.laws.equalities import EVERYTHING
from tests.laws.generator import ModelSpec, random_spec, specs
from tests.passes.rank.nets import WAYS, made, trace
from tests.patterns.test_patterns import PATTERNS

# --- the function stays ---------------------------------------------------------------------------


def check_function(model: nn.Module, batches: list[Any], limit: float = 1e-10) -> None:
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, batches[0])
    if not graph.groups:
        return
    for by in WAYS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nestify.NestifyWarning)
            data = [(batch,) for batch in (batches if graph.batch is not None else batches[:1])]
            moved = applied(graph, f"rank{{by={by}}}", data)
        for (batch,) in data:
            assert relative_error(model(*batch), moved.eval()(*batch)) < limit
        assert moved.graph.original is None
        assert [group.name for group in moved.graph.groups] == [g.name for g in graph.groups]
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_compute_the_same(name: str) -> None:
    pattern = PATTERNS[name]
    if pattern.dtype is torch.float64:
        check_function(pattern.build(), [pattern.example(2), pattern.example(3)])


@pytest.mark.parametrize("seed", range(20))
def test_generated_models_compute_the_same(seed: int) -> None:
    check_function(*made(random_spec(seed), seed), limit=1e-9)


@pytest.mark.campaign
@given(spec=specs())
def test_many_generated_models_compute_the_same(spec: ModelSpec) -> None:
    check_function(*made(spec, 0), limit=1e-9)


# --- the best come first --------------------------------------------------------------------------


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("seed", range(12))
def test_importance_moves_with_the_positions_and_then_descends(seed: int, by: str) -> None:
    model, batches = made(random_spec(seed), seed)
    graph, data = trace(model, batches[0]), [(batches[0],)]
    scores = measure(graph, by, data).scores
    edit = Rewriter(graph)
    orders = {group.dim: scores[group.name].order for group in graph.groups}
    for name, tensor in permuted(graph, orders).items():
        edit.replace_tensor(name, tensor)
    moved = importance(edit.finish(()), by, calibration=data)
    for name, (values, order) in scores.items():
        assert sorted(order.tolist()) == list(range(len(values)))
        assert bool((values[order].diff() <= 0).all())
        scale = max(float(values.max()), 1e-200)
        assert torch.allclose(moved[name] / scale, values[order] / scale, atol=1e-7), name


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("seed", [1, 4, 9, 20, 22])
def test_a_prefix_is_the_original_without_its_least_important_positions(seed: int, by: str) -> None:
    model, batches = made(random_spec(seed), seed)
    graph, data = trace(model, batches[0]), [(batches[0],)]
    spanned = {
        dim for call in graph.calls.values() for expr in call.normalised for dim in dims_of(expr)
    }
    halves = {g.name: -(-g.size // 2) for g in graph.groups if g.dim not in spanned}
    scores = measure(graph, by, data).scores
    picks = {
        group.dim: scores[group.name].order[: halves[group.name]].sort().values
        for group in graph.groups
        if group.name in halves
    }
    assert picks, "a law about nothing proves nothing"
    expected = silenced(graph, graph.capture.tensors, Keep({}, picks), flat_inputs(batches[0]))
    recipe = f"rank{{by={by}}}+{EVERYTHING}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nestify.NestifyWarning)
        nested = applied(graph, recipe, data)
    slim = nested.extract(halves, verify=False)
    found = pytree.tree_leaves(slim(*batches[0]))
    assert relative_error(expected, found) < 1e-9
