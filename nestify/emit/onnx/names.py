"""An exported program as an ONNX model with names a person can read and nothing that a person must
not.

The exporter writes absolute source paths into every node, names the batch ``s77`` and the outputs
after the op that made them. Here all node metadata goes, the batch is ``batch``, inputs are named
after the signature, outputs after their keys, and a bias that came out of a folded BatchNorm after
its layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nestify.emit.onnx.vectors import vectors_as_columns
from nestify.emit.report import quiet
from nestify.errors import CaptureError

if TYPE_CHECKING:
    import onnx


def translate(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """The program in ONNX, with the given names for its tensors.

    Raises:
        CaptureError: an op has no ONNX form, or an input or output disappeared.
    """
    import onnx_ir

    with quiet():
        try:
            result = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False)
        except Exception as error:
            raise CaptureError(
                f"cannot express the model in ONNX: {_cause(error)}; export .pt2 or a folder"
            ) from error
    assert result is not None
    model = onnx_ir.to_proto(result.model)
    vectors_as_columns(model)
    _name(model, inputs, outputs)
    scrub(model, {})
    return model


def scrub(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Drop all notes of the tools (source paths, settings) and set our properties, in
    place.
    """
    for part in _parts(model):
        for name in ("doc_string", "metadata_props"):
            if name in part.DESCRIPTOR.fields_by_name:
                part.ClearField(name)
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)


def name_transposed(model: onnx.ModelProto, parameters: Mapping[str, torch.Tensor]) -> None:
    """Name constants that are a transposed weight after it, ``fc.weight.T``, in place.

    A linear layer over more than one dim becomes a MatMul, whose folded weight is ``val_3`` else.
    """
    taken = {tensor.name for tensor in model.graph.initializer}
    nameless = {
        (tuple(tensor.dims), tensor.raw_data): tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.name not in parameters
    }
    shapes = {shape for shape, _ in nameless}
    mapping: dict[str, str] = {}
    for name, weight in parameters.items():
        shape = tuple(weight.shape)[::-1]
        if shape in shapes and f"{name}.T" not in taken:
            # numpy copies row by row, whatever the stride of a dim of size 1.
            data = weight.detach().t().numpy().tobytes()
            mapping.setdefault(nameless.get((shape, data), ""), f"{name}.T")
    mapping.pop("", None)
    _rename(model, lambda name: mapping.get(name, name))


def batch_is_free(model: onnx.ModelProto, batched: Sequence[str]) -> bool:
    """Whether every named input still has a symbol for its dim 0."""
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.input}
    return all(name in shapes and bool(shapes[name].dim[0].dim_param) for name in batched)


def _name(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    graph = model.graph
    for kind, values, names in (
        ("inputs", graph.input, inputs),
        ("outputs", graph.output, outputs),
    ):
        if len(values) != len(names):
            raise CaptureError(
                f"the ONNX graph has {len(values)} {kind}, the model has {len(names)} "
                f"({', '.join(names)}); an input that is not used as a tensor cannot be exported"
            )
    mapping = dict(zip([v.name for v in graph.input], inputs, strict=True))
    mapping |= dict(zip([v.name for v in graph.output], outputs, strict=True))
    taken = {t.name for t in graph.initializer} | set(mapping.values())
    for tensor in graph.initializer:
        # A BatchNorm folded into a layer without a bias: the exporter calls the new bias
        # x.weight_bias.
        bias = re.sub(r"\.weight_bias$", ".bias", tensor.name)
        if tensor.name not in mapping and bias != tensor.name and bias not in taken:
            mapping[tensor.name] = bias
            taken.add(bias)
    _keep_clear(model, mapping)
    _rename(model, lambda name: mapping.get(name, name))
    _rename_batch(model, inputs)


def _keep_clear(model: onnx.ModelProto, mapping: dict[str, str]) -> None:
    """Move inner values away from the names that inputs and outputs are about to take."""
    wanted = set(mapping.values())
    inner = {name for node in model.graph.node for name in node.output}
    inner |= {tensor.name for tensor in model.graph.initializer}
    for name in sorted(inner & wanted - mapping.keys()):
        mapping[name] = f"{name}_inner"


def _rename(model: onnx.ModelProto, new: Callable[[str], str]) -> None:
    for part in _parts(model):
        fields = part.DESCRIPTOR.fields_by_name
        if part.DESCRIPTOR.name == "NodeProto":
            part.input[:] = map(new, part.input)
            part.output[:] = map(new, part.output)
        elif part.DESCRIPTOR.name in ("ValueInfoProto", "TensorProto") and "name" in fields:
            part.name = new(part.name)


def _rename_batch(model: onnx.ModelProto, inputs: Sequence[str]) -> None:
    symbols = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in model.graph.input
        if value.type.tensor_type.shape.dim
    } - {""}
    if len(symbols) != 1 or "batch" in inputs:
        return
    symbol = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for part in _parts(model):
        if part.DESCRIPTOR.name == "ValueInfoProto":
            for dim in part.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = symbol.sub("batch", dim.dim_param)


def _parts(model: onnx.ModelProto) -> Iterator[Any]:
    """The model, its graphs and functions, and every node, value and tensor in them."""
    yield model
    yield from model.functions
    bodies: list[Any] = [model.graph, *model.functions]
    while bodies:
        body = bodies.pop()
        yield from body.node
        yield from body.value_info
        for node in body.node:
            for attribute in node.attribute:
                bodies += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        if body.DESCRIPTOR.name == "GraphProto":
            yield body
            yield from (*body.input, *body.output, *body.initializer)


def _cause(error: BaseException) -> str:
    # The exporter wraps the telling message ("No decompositions registered for ...") in its own
    # advice.
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
