"""What each layer costs before and after a rewrite (Deep Roots, A.4 and Fig. 15)."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from nestify.dims import Dim
from nestify.dims.fold import Fold
from nestify.errors import UsageError
from nestify.graph.cost import CONVENTIONS
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel

__all__ = ["LayerSaving", "layer_savings"]


class LayerSaving(NamedTuple):
    """One layer that multiplies: its MACs and parameters (for one sample) in both networks."""

    layer: str
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


def layer_savings(nested: NestedModel, convention: str = "torch") -> tuple[LayerSaving, ...]:
    """MACs and parameters of every layer of a rewritten model and of its original, in graph order.

    >>> import torch, nestify
    >>> net = torch.nn.Sequential(*(torch.nn.Conv2d(*a) for a in ((3, 8, 1), (8, 8, 3), (8, 2, 1))))
    >>> nested = nestify.transform(net, "root-4", (torch.randn(1, 3, 5, 5),))
    >>> layer_savings(nested)[1]
    LayerSaving(layer='1', macs_before=5184, macs_after=1296, params_before=584, params_after=152)

    Raises:
        UsageError: no pass of the recipe rewrote the model, or an unknown convention.
    """
    if nested.graph.original is None:
        raise UsageError(
            f"recipe {nested.recipe!r} rewrites nothing, so there is nothing to compare"
        )
    if convention not in CONVENTIONS:
        raise UsageError(f"unknown convention {convention!r}; choose from {', '.join(CONVENTIONS)}")
    bias = CONVENTIONS[convention].bias_macs
    before, after = _layers(nested.graph.original, bias=bias), _layers(nested.graph, bias=bias)
    names = [*before, *(name for name in after if name not in before)]
    none = (0, 0)
    rows: list[LayerSaving] = []
    for name in names:
        (macs_0, params_0), (macs_1, params_1) = before.get(name, none), after.get(name, none)
        rows.append(LayerSaving(name, macs_0, macs_1, params_0, params_1))
    return tuple(rows)


def _layers(graph: Graph, *, bias: bool) -> dict[str, tuple[int, int]]:
    """Layer -> MACs and parameters; a layer that runs twice has the MACs of both runs."""
    size = Fold(lambda leaf: 1 if isinstance(leaf, Dim) and leaf.batch else leaf.size, prod, sum)
    found: dict[str, tuple[int, int]] = {}
    for node, call in graph.calls.items():
        if not call.macs:
            continue
        held = [str(s.target) for s in node.all_input_nodes if s.op == "get_attr"]
        name = held[0].rpartition(".")[0] if held else node.name
        macs = sum(prod(size(expr) for expr in loop) for loop in call.macs)
        macs += sum(size(expr) for expr in (call.dims("bias") or () if bias else ()))
        params = sum(graph.capture.tensors[tensor].numel() for tensor in held)
        found[name] = (found.get(name, (0, 0))[0] + macs, params)
    return found
