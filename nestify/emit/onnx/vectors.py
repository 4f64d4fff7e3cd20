"""Products of a matrix and a vector, in a form that onnxruntime computes rightly.

onnxruntime (seen in 1.32) fuses ``MatMul(Transpose(a), v)`` and forgets the transpose where ``v``
has one dim. With ``v`` as a matrix of one column the fusion is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["vectors_as_columns"]

_PARTS = ("last", "column", "product")


def vectors_as_columns(model: onnx.ModelProto) -> None:
    """Rewrite each product with a vector on the right as one with a column, in place."""
    from onnx import helper

    ranks = _ranks(model.graph)
    taken = {name for node in model.graph.node for name in node.output} | ranks.keys()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or ranks.get(node.input[1]) != 1:
            nodes.append(node)
            continue
        name = node.output[0]
        last, column, product = (_fresh(f"{name}_{part}", taken) for part in _PARTS)
        axis = helper.make_node("Constant", [], [last], value_ints=[-1])
        widened = helper.make_node("Unsqueeze", [node.input[1], last], [column])
        squeezed = helper.make_node("Squeeze", [product, last], [name])
        node.input[1], node.output[0] = column, product
        nodes += [axis, widened, node, squeezed]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """How many dims each value has, where the graph says it."""
    values = (*graph.input, *graph.value_info, *graph.output)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return ranks | {tensor.name: len(tensor.dims) for tensor in graph.initializer}
