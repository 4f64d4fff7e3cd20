"""What follows the batch size, and what does not: a second trace at another batch size tells.

``x.sum(0) / len(x)`` divides by a number that a trace bakes in; ``x[:2]`` has one that happens to
be the batch size. The second trace is made only where calls compute with numbers, or spell sizes
that the batch divides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.capture.diff import align
from nestify.capture.export_program import export_program
from nestify.capture.lowering import lower
from nestify.errors import CaptureError
from nestify.rules import bind_arguments

__all__ = ["BatchArguments", "batch_arguments"]

# Arguments that compute with a number, as opposed to naming a dim or a size.
_NUMBERS = frozenset(
    "self other value exponent alpha beta scalar fill_value min max end start step weight "
    "correction scale threshold tensor1 tensor2 diagonal k".split()
)

_SIZES = frozenset("size shape sizes split_sizes".split())


class BatchArguments(NamedTuple):
    """Arguments whose value differs at another batch size, with that value; ``refused`` says why
    the model has no other batch size, and ``elsewhere`` names the first call that only one of the
    two sizes makes. ``sizes`` are those of all tensors that a call gives with one sample more.
    """

    values: Mapping[tuple[str, str], Any]
    sizes: Mapping[str, tuple[int, ...]]
    refused: str = ""
    elsewhere: str = ""


def batch_arguments(
    model: nn.Module,
    flat: Sequence[Any],
    spec: pytree.TreeSpec,
    graph: fx.Graph,
    batched: Sequence[bool],
) -> BatchArguments:
    """Compare ``graph`` with a trace of one more sample; ``batched`` marks inputs with a batch.

    Call it where the model is in eval mode, with its stochastic modules marked.
    """
    size = next((leaf.shape[0] for leaf, wide in zip(flat, batched, strict=True) if wide), 0)
    if not size or not any(_holds_numbers(node, size) for node in graph.nodes):
        return BatchArguments({}, {})
    longer = [
        torch.cat([leaf, leaf[:1]]) if wide else leaf
        for leaf, wide in zip(flat, batched, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(longer, spec)
    try:
        other = lower(model, export_program(model, args, kwargs)).graph
    except CaptureError as error:
        return BatchArguments({}, {}, refused=str(error))
    pairs, mine, theirs = align(graph, other)
    values = {(n.name, key): value for n, twin in pairs for key, value in _differences(n, twin)}
    alone = [*mine, *theirs]
    sizes = {node.name: _sizes(twin) for node, twin in pairs if _sizes(node) and _sizes(twin)}
    return BatchArguments(values, sizes, elsewhere=alone[0].name if alone else "")


def _holds_numbers(node: fx.Node, batch: int) -> bool:
    """Whether a call computes with a number, or spells a size that the batch divides."""
    if node.op != "call_function":
        return False
    names = list(bind_arguments(node))
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return any(
        (name in _NUMBERS and _is_number(value))
        or (name in _SIZES and isinstance(value, list | tuple) and _has_multiple(value, batch))
        for name, value in given
    )


def _has_multiple(sizes: Sequence[Any], batch: int) -> bool:
    return any(isinstance(size, int) and size > 0 and size % batch == 0 for size in sizes)


def _sizes(node: fx.Node) -> tuple[int, ...]:
    tensors = pytree.tree_leaves(node.meta.get("val"))
    return tuple(int(n) for t in tensors if isinstance(t, torch.Tensor) for n in t.shape)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differences(node: fx.Node, twin: fx.Node) -> Iterator[tuple[str, Any]]:
    theirs = bind_arguments(twin)
    for name, value in bind_arguments(node).items():
        other = theirs.get(name)
        sizes = isinstance(value, list | tuple) and not any(isinstance(v, fx.Node) for v in value)
        if (_is_number(value) or sizes) and value != other:
            yield name, other
