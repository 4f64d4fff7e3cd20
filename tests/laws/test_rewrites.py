"""The laws of rewritten models: nested = extracted = silenced after filter groups were made, and
the same function after channels were put in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import count, islice
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

import nestify
from nestify.graph.rewriter import Rewriter, permuted
from nestify.passes.deep_roots.spatial import find_spatial
from nestify.support.closeness import relative_error
from tests.applied import applied
from tests.laws.equalities import EVERYTHING, check_subnets
from tests.laws.generator import ModelSpec, build, example_inputs, random_spec, specs
from tests.laws.test_models import doubled

RECIPES = [
    "column-2{embed=insert}",
    "root-4{embed=none,init=extract}",
    "column-2{embed=none,init=project}",
    "column-4{embed=insert,init=project,sizes=free}",
]


def made(spec: ModelSpec, seed: int) -> tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    model = build(spec, seed).double().eval()
    x, other = (doubled(example_inputs(spec, n, seed + n)) for n in (2, 3))
    return model, x, other


def check_groups(spec: ModelSpec, seed: int, recipes: Iterable[str]) -> int:
    """With how many recipes there was anything to group; raises where a law is broken."""
    model, x, other = made(spec, seed)
    grouped, graph = 0, nestify.trace(model, x)
    for recipe in recipes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nestify.NestifyWarning)
            try:
                nested = applied(graph, f"{recipe}+{EVERYTHING}").eval()
            except nestify.UsageError as error:
                if "nothing to group" not in str(error):
                    raise
                continue
        check_subnets(nested, x, subnets=3, seed=seed, other=other)
        grouped += 1
    return grouped


def check_order(spec: ModelSpec, seed: int) -> None:
    model, x, _ = made(spec, seed)
    graph = nestify.trace(model, x)
    draw = torch.Generator().manual_seed(seed)
    edit = Rewriter(graph)
    order = {group.dim: torch.randperm(group.size, generator=draw) for group in graph.groups}
    for name, tensor in permuted(graph, order).items():
        edit.replace_tensor(name, tensor)
    moved = nestify.NestedModel(edit.finish(()), (), "another order").eval()
    assert relative_error(model(*x), moved(*x)) < 1e-9


def spatial_models(number: int) -> list[tuple[int, ModelSpec]]:
    """The first generated models with a spatial convolution that may have groups."""
    drawn = ((seed, random_spec(seed)) for seed in count())
    found = (
        (seed, spec)
        for seed, spec in drawn
        if any(not conv.obstacle for conv in find_spatial(nestify.trace(*made(spec, seed)[:2])))
    )
    return list(islice(found, number))


@pytest.mark.slow
def test_generated_models_obey_the_laws_in_groups() -> None:
    grouped = sum(check_groups(spec, seed, RECIPES) for seed, spec in spatial_models(10))
    assert grouped >= 20, "a law about nothing proves nothing"


@pytest.mark.parametrize("seed", range(20))
def test_generated_models_are_the_same_in_another_order(seed: int) -> None:
    check_order(random_spec(seed), seed)


@pytest.mark.campaign
@given(spec=specs())
def test_many_generated_models_obey_the_laws_in_groups_and_another_order(spec: ModelSpec) -> None:
    check_order(spec, 0)
    check_groups(spec, 0, RECIPES)
