"""Whether a rewrite pays on a target: MACs and parameters by formula, time by running it there.

Filter groups save MACs for sure, and time only where the target has good kernels for them (Deep
Roots, section 5). So each grouped layer is timed beside the dense one that it replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from nestify.emit.module.layers import build_module
from nestify.errors import UsageError
from nestify.graph.cost import Cost, Pricing
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel
from nestify.rules import bind_arguments, facts_of, shape_of
from nestify.targets import usable_target

if TYPE_CHECKING:
    from nestify.targets import Target

__all__ = ["LayerPayoff", "Payoff", "payoff"]


@dataclass(frozen=True, slots=True)
class LayerPayoff:
    """One grouped convolution and the dense one it replaced, both timed alone, in milliseconds."""

    layer: str
    groups: int
    dense_ms: float
    grouped_ms: float

    @property
    def pays(self) -> bool:
        """Whether the groups save time."""
        return self.grouped_ms < self.dense_ms


@dataclass(frozen=True, slots=True)
class Payoff:
    """What a rewritten network costs beside its original on one target."""

    recipe: str
    target: str
    before: Cost
    after: Cost
    layers: tuple[LayerPayoff, ...]

    @property
    def text(self) -> str:
        """One line for people, and one of the layers that are better left dense, if there are any.

        >>> def cost(n, ms):
        ...     return Cost(macs=n, params=n, size_bytes=n, activation_bytes=n, latency_ms=ms)
        >>> print(Payoff("root-16", "cpu", cost(100, 4.0), cost(65, 3.0), ()).text)
        root-16 saves 35% of MACs, 35% of parameters and 25% of time on cpu (4.00 to 3.00 ms)
        """
        before, after = self.before.latency_ms or 0.0, self.after.latency_ms or 0.0
        shares = [
            _share(self.before.macs, self.after.macs, "of MACs"),
            _share(self.before.params, self.after.params, "of parameters"),
            _share(before, after, "of time"),
        ]
        line = (
            f"{self.recipe} saves {shares[0]}, {shares[1]} and {shares[2]} on {self.target} "
            f"({before:.2f} to {after:.2f} ms)"
        )
        slower = [layer for layer in self.layers if not layer.pays]
        if slower:
            listed = ", ".join(f"{x.layer} with {x.groups}" for x in slower)
            example = f"groups={slower[0].layer}:1"
            line += f"\nslower there in groups than dense: {listed}; {example} leaves one dense"
        return line


def payoff(nested: NestedModel, target: str = "cpu", *, layers: bool = True) -> Payoff:
    """Compare the largest subnet of a rewritten model with the original on ``target``.

    ``layers`` times each regrouped convolution, too, on random inputs of its size.

    >>> import nestify
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    >>> found = payoff(nestify.transform(net, "root-4", (torch.randn(1, 3, 9, 9),)))
    >>> found.before.macs, found.after.macs, [layer.groups for layer in found.layers]
    (30952, 9784, [4])

    Raises:
        UsageError: no pass of the recipe rewrote the model, or an unknown target.
    """
    original = nested.graph.original
    if original is None:
        raise UsageError(
            f"recipe {nested.recipe!r} rewrites nothing, so there is nothing to compare"
        )
    device = usable_target(target)
    model = original.capture.model
    before = _timed(original, model, nested, device)
    after = _timed(nested.graph, nested.extract(nested.space.largest()), nested, device)
    rewrites = (c for c in nested.graph.changes if c.done and not c.preserves)
    steps = dict.fromkeys(change.recipe for change in rewrites)
    timed = _layers(original, nested.graph, device) if layers else ()
    return Payoff("+".join(steps), target, before, after, tuple(timed))


def _share(before: float, after: float, what: str) -> str:
    return f"{1 - after / before:.0%} {what}" if before else f"0% {what}"


def _timed(graph: Graph, model: nn.Module, nested: NestedModel, device: Target) -> Cost:
    cost = Pricing(graph).costs({}, 1).row(0)
    mode = model.training
    model.eval()
    try:
        latency = device.measure(model, nested.example_inputs, nested.example_kwargs)
    finally:
        model.train(mode)
    return Cost(cost.macs, cost.params, cost.size_bytes, cost.activation_bytes, latency)


def _layers(original: Graph, rewritten: Graph, device: Target) -> Sequence[LayerPayoff]:
    """Every convolution that both graphs call, where its number of groups differs."""
    dense = {node.name: node for node in original.calls}
    known: dict[str, float] = {}
    found: list[LayerPayoff] = []
    for node, call in rewritten.calls.items():
        twin = dense.get(node.name)
        if twin is None or not facts_of(call.node.target).slides:
            continue
        groups: int = bind_arguments(node)["groups"]
        if groups == bind_arguments(twin)["groups"]:
            continue
        times = [_time(n, device, known) for n in (twin, node)]
        weight = str(bind_arguments(node)["weight"].target)
        found.append(LayerPayoff(weight.rpartition(".")[0], groups, *times))
    return found


def _time(node: fx.Node, device: Target, known: dict[str, float]) -> float:
    """Time one convolution alone; those of one shape are timed once."""
    bound: dict[str, Any] = bind_arguments(node)
    x: Any = bound["input"].meta["val"]
    tensors = {
        name: None if bound[name] is None else bound[name].meta["val"]
        for name in ("weight", "bias")
    }
    module = build_module(node.target, bound, tensors, x.ndim)
    assert module is not None  # torch has a module for every convolution
    key = f"{module} on {shape_of(bound['input'])}"
    if key not in known:
        module.to_empty(device="cpu")
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1)
        inputs = torch.randn(shape_of(bound["input"]))
        known[key] = device.measure(module.to(x.dtype).eval(), (inputs.to(x.dtype),), None)
    return known[key]
