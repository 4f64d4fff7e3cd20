"""``init=project``: filter groups for a network that is trained, fitted to calibration data.

Beyond the paper, which trains from scratch. Channels are put in an order in which the diagonal
blocks of each kernel keep the most (that alone changes nothing: every tensor moves alike); then,
call by call, each grouped kernel and each 1 x 1 convolution behind it is fitted, by least squares,
to what the dense network gives, on inputs as the grouped network has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from nestify.capture.batches import flat_batches
from nestify.graph.graph import Graph
from nestify.graph.rewriter import Rewriter, permuted
from nestify.passes.deep_roots.choose_blocks import Choice, choose_blocks
from nestify.passes.deep_roots.grouped_weights import divide, regroup
from nestify.passes.deep_roots.spatial import Spatial, embeddings, find_spatial
from nestify.rules import bind_arguments
from nestify.runtime.im2col import Window, by_group, sampled
from nestify.runtime.lockstep import Stop, Walk
from nestify.support.closeness import relative_distance
from nestify.support.least_squares import MOST_INPUTS, Fit
from nestify.support.module_tree import get_tensor, made_like

__all__ = ["Projected", "project"]


@dataclass(frozen=True, slots=True)
class Projected:
    """The grouped network, what was chosen for each kernel, and how far its outputs are off.

    ``error`` and ``plain_error`` are relative errors of the network's outputs on the calibration
    batches: of this network, and of the one that plain block extraction gives.
    """

    graph: Graph
    choices: Mapping[str, Choice]
    error: float
    plain_error: float
    unfitted: tuple[str, ...]


class _Part(NamedTuple):
    """What a call of the grouped network must follow: outputs from ``first`` on of a dense call."""

    dense: str
    first: int = 0


def project(
    graph: Graph,
    plan: Mapping[Spatial, int],
    inserts: Mapping[str, bool],
    calibration: Any,
    *,
    free: bool,
) -> Projected:
    """Give each convolution of ``plan`` its number of groups, fitted to ``calibration`` batches.

    ``inserts`` says by weight where a 1 x 1 convolution is added; ``free`` lets the sizes of the
    groups of a layer differ, at no more MACs.
    """
    batches = flat_batches(graph.capture, calibration)
    choices, layout = choose_blocks(graph, plan, batches, free=free)
    moved = Rewriter(graph)
    for name, tensor in permuted(graph, layout.orders).items():
        moved.replace_tensor(name, tensor)
    dense = moved.finish(())
    convs = [conv for conv in find_spatial(dense) if conv.weight in choices]
    edit = Rewriter(dense)
    parts: dict[str, _Part] = {}
    for conv in convs:
        parts |= _rewritten(edit, conv, choices[conv.weight], inserts=inserts[conv.weight])
    grouped = edit.finish(())
    wide: list[str] = []
    for conv in convs:
        for node in embeddings(dense, conv):
            if bind_arguments(node)["weight"].meta["val"].shape[1] > MOST_INPUTS:
                wide.append(node.name)
            else:
                parts.setdefault(node.name, _Part(node.name))
    error, fitted = _fitted(dense, grouped, parts, batches)
    final = Rewriter(grouped)
    for name, tensor in fitted.items():
        final.replace_tensor(name, tensor)
    plain = Rewriter(graph)
    for conv, groups in plan.items():
        regroup(plain, conv, groups, "extract", inserts=inserts[conv.weight])
    reference = Walk.of(graph, batches).run()
    plain_error = relative_distance(reference, Walk.of(plain.finish(()), batches).run())
    return Projected(final.finish(()), choices, error, plain_error, tuple(dict.fromkeys(wide)))


def _rewritten(edit: Rewriter, conv: Spatial, choice: Choice, *, inserts: bool) -> dict[str, _Part]:
    """Group one convolution; which call of the new graph follows which of the dense one."""
    node = conv.nodes[0]
    parts: dict[str, _Part] = {}
    if len(set(choice.sizes)) == 1:
        added = regroup(edit, conv, len(choice.sizes), "extract", inserts=inserts)
        parts[node.name] = _Part(node.name)
    else:
        divided, added = divide(edit, conv, choice.sizes, inserts=inserts)
        for made, (whole, first) in divided.items():
            parts[made.name] = _Part(whole.name, first)
    return parts | {call.name: _Part(node.name) for call in added}


def _fitted(
    dense: Graph, grouped: Graph, parts: Mapping[str, _Part], batches: Sequence[list[Any]]
) -> tuple[float, dict[str, Tensor]]:
    """Fit every call of ``parts`` in order; the error of the outputs, and the new tensors."""
    pending = Counter(part.dense for part in parts.values())
    reference, walk = Walk.of(dense, batches), Walk.of(grouped, batches)
    targets = _targets(reference, set(pending))
    seen: dict[str, list[Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for stop in walk.stops():
        part = parts.get(stop.node.name)
        if part is None:
            continue
        while part.dense not in seen:
            name, outputs = next(targets)
            seen[name] = outputs
        names = _weights(stop.node)
        if names[0] not in tensors:  # a shared layer is fitted where it runs first
            _fit(walk.root, stop, names, [y[:, part.first :] for y in seen[part.dense]])
            tensors |= {name: get_tensor(walk.root, name) for name in names if name}
        pending[part.dense] -= 1
        if not pending[part.dense]:
            seen[part.dense] = []
    for _ in targets:
        pass
    error = relative_distance(reference.leaves(), walk.leaves())
    old = grouped.capture.tensors
    return error, {name: made_like(old[name], t.detach().clone()) for name, t in tensors.items()}


def _targets(walk: Walk, wanted: set[str]) -> Iterator[tuple[str, list[Tensor]]]:
    for stop in walk.stops():
        if stop.node.name in wanted:
            yield stop.node.name, stop.outputs()


def _weights(node: fx.Node) -> tuple[str, str | None]:
    bound = bind_arguments(node)
    bias = bound["bias"]
    return str(bound["weight"].target), None if bias is None else str(bias.target)


def _fit(
    root: nn.Module, stop: Stop, names: tuple[str, str | None], targets: Sequence[Tensor]
) -> None:
    """Fit one call group by group, and write what was found into ``root``."""
    window = Window(stop.node)
    groups: int = bind_arguments(stop.node).get("groups", 1)
    weight = get_tensor(root, names[0])
    bias = None if names[1] is None else get_tensor(root, names[1])
    apart = weight.detach().unflatten(0, (groups, -1)).flatten(2)
    fit = Fit(apart, None if bias is None else bias.detach().unflatten(0, (groups, -1)))
    if window.rank:
        targets = [y[:, : len(weight)] for y in targets]
    for rows, outputs in sampled(window, stop.args, targets):
        fit.add(by_group(rows, groups).flatten(2), by_group(outputs, groups))
    found, shift = fit.solve()
    with torch.no_grad():
        weight.copy_(found.reshape(weight.shape))
        if bias is not None and shift is not None:
            bias.copy_(shift.flatten())
