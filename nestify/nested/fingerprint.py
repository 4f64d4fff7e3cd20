"""Know a nested model again: two hashes, one of its structure and one of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx

    from nestify.graph.graph import Graph
    from nestify.nested.model import NestedModel


@dataclass(frozen=True)
class Fingerprint:
    """Two hashes of a nested model.

    Attributes:
        structure: of the recipe, the units, the calls, and every tensor's name, shape and dtype: a
            plan's subnets mean something only for this structure. Neither the size of a batch nor
            the device of the capture is a part of it.
        weights: of the values: a plan's scores hold only for these.
    """

    structure: str
    weights: str


def fingerprint(nested: NestedModel) -> Fingerprint:
    """Return the fingerprint of ``nested``.

    Example:
        >>> import nestify
        >>> fingerprint(nested) == fingerprint(nestify.transform(model, "fn3-channel", (x,)))
        True
    """
    import torch

    from nestify.nested.draw_stream import BUFFER

    # Constants and buffers that are not saved decide what is computed as well; what is drawn next
    # does not.
    unsaved = {name: tensor for name, tensor in nested.named_tensors() if name != BUFFER}
    tensors = sorted((unsaved | nested.state_dict()).items())
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    units = [(u.name, u.kind, list(u.choices)) for u in nested.space.units]
    structure = json.dumps([nested.recipe, units, shapes, list(_calls(nested.graph))])
    weights = hashlib.sha256()
    for _, tensor in tensors:
        # A clone, as a single element may count as contiguous with any stride, which view refuses.
        flat = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        weights.update(flat.view(torch.uint8).numpy().data)
    return Fingerprint(hashlib.sha256(structure.encode()).hexdigest(), weights.hexdigest())


def _calls(graph: Graph) -> Iterator[list[Any]]:
    """What each node computes from which others; sizes that follow the batch are left out."""
    from torch.utils import _pytree as pytree

    from nestify.capture.autocast import blocks_of
    from nestify.dims import dims_of
    from nestify.rules import bind_arguments

    places = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function":
            yield [
                node.op,
                str(node.target) if node.op == "get_attr" else _spelled(node.args, places),
            ]
            continue
        literals = graph.calls[node].literals if node in graph.calls else {}
        batched = {
            name
            for name, exprs in literals.items()
            for expr in pytree.tree_leaves(exprs)
            if expr is not None and not isinstance(expr, int)
            if graph.batch is not None and graph.batch in dims_of(expr)
        }
        arguments = bind_arguments(node).items()
        yield [
            str(getattr(node.target, "__name__", node.target)),
            {name: _spelled(value, places) for name, value in arguments if name not in batched},
            *[list(map(str, block)) for block in blocks_of(node)],
        ]


def _spelled(value: Any, places: dict[fx.Node, int]) -> Any:
    """An argument as JSON: nodes by their places; of what has no lasting name only its type."""
    import torch
    from torch import fx

    if isinstance(value, fx.Node):
        return f"%{places[value]}"
    if isinstance(value, list | tuple):
        return [_spelled(item, places) for item in value]
    if isinstance(value, dict):
        return {str(key): _spelled(item, places) for key, item in value.items()}
    if isinstance(value, slice):
        return _spelled(["slice", value.start, value.stop, value.step], places)
    named = (bool, int, float, complex, str, torch.dtype, torch.layout, torch.memory_format)
    return repr(value) if value is None or isinstance(value, named) else type(value).__name__
