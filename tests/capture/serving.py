"""Nested and extracted networks serve every call as the original does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestify

RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}"


def nest(model: nn.Module, *inputs: Any, **kwargs: Any) -> nestify.NestedModel:
    return nestify.transform(model, RECIPE, inputs, kwargs)


def leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def assert_equal(a: Any, b: Any) -> None:
    assert len(leaves(a)) == len(leaves(b)) > 0
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def assert_serves(model: nn.Module, *inputs: Any, **kwargs: Any) -> nestify.NestedModel:
    """Nested and extracted equal the original at full size, and each other at half of it."""
    model.eval()
    nested = nest(model, *inputs, **kwargs).eval()
    slim = nested.extract(nested.space.largest())
    for batch in (None,) if nested.graph.batch is None else (None, 1, 2, 5):
        call = resized((inputs, kwargs), batch, nested)
        with torch.no_grad():
            out = model(*copy.deepcopy(call[0]), **call[1])
            assert_equal(out, nested(*copy.deepcopy(call[0]), **call[1]))
            assert_equal(out, slim(*copy.deepcopy(call[0]), **call[1]))
            assert type(out) is type(nested(*copy.deepcopy(call[0]), **call[1]))
    half = nested.space.at(0.5)
    small = nested.extract(half)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for batch in (1, 5) if nested.graph.batch is not None else (None,):
        args, kw = resized((inputs, kwargs), batch, nested)
        with nested.activate(half), torch.no_grad():
            got, expected = small(*copy.deepcopy(args), **kw), nested(*copy.deepcopy(args), **kw)
        for a, b in zip(leaves(got), leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return nested


def resized(call: Any, batch: int | None, nested: nestify.NestedModel) -> Any:
    """The call with another batch size, on the inputs that carry the batch."""
    if batch is None:
        return call
    flat, spec = pytree.tree_flatten(call)
    names = [n.name for n in nested.graph.nodes if n.op == "placeholder"]
    batched = nested.graph.capture.batched
    grown = [
        torch.cat([leaf] * batch)[:batch] if name in batched else leaf
        for name, leaf in zip(names, flat, strict=True)
    ]
    return pytree.tree_unflatten(grown, spec)
