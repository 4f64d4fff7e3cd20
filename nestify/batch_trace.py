"""What follows the batch size beside shapes: numbers that the traced code worked out from it.

``x.sum(0) / len(x)`` divides by a number that a trace bakes in. A second trace at another batch
size tells such numbers from true constants. It is made only where calls compute with numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.errors import CaptureError
from nestify.lowering import lower
from nestify.rules import bind_arguments
from nestify.tracing import align, export_program

__all__ = ["BatchArguments", "batch_arguments"]

# Arguments that compute with a number, as opposed to naming a dim or a size.
_NUMBERS = frozenset(
    "self other value exponent alpha beta scalar fill_value min max end start step weight "
    "correction scale threshold tensor1 tensor2 diagonal k".split()
)


class BatchArguments(NamedTuple):
    """Arguments whose value differs at another batch size, with that value; ``refused`` says why
    the model has no other batch size, and ``elsewhere`` names the first call that only one of the
    two sizes makes.
    """

    values: Mapping[tuple[str, str], Any]
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
    if not any(batched) or not any(_computes_with_numbers(node) for node in graph.nodes):
        return BatchArguments({})
    longer = [
        torch.cat([leaf, leaf[:1]]) if wide else leaf
        for leaf, wide in zip(flat, batched, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(longer, spec)
    try:
        other = lower(model, export_program(model, args, kwargs)).graph
    except CaptureError as error:
        return BatchArguments({}, refused=str(error))
    pairs, mine, theirs = align(graph, other)
    values = {(n.name, key): value for n, twin in pairs for key, value in _differences(n, twin)}
    alone = [*mine, *theirs]
    return BatchArguments(values, elsewhere=alone[0].name if alone else "")


def _computes_with_numbers(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    names = list(bind_arguments(node))
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return any(name in _NUMBERS and _is_number(value) for name, value in given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differences(node: fx.Node, twin: fx.Node) -> Iterator[tuple[str, Any]]:
    theirs = bind_arguments(twin)
    for name, value in bind_arguments(node).items():
        other = theirs.get(name)
        sizes = isinstance(value, list | tuple) and not any(isinstance(v, fx.Node) for v in value)
        if (_is_number(value) or sizes) and value != other:
            yield name, other
