"""An exported program as one flat graph: named parameters, ATen calls in one spelling, nested
blocks inlined.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator  # no public name
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from nestify.capture.autocast import Block, place_in
from nestify.capture.constants import Constants, is_assertion, is_symbolic, only_asserted
from nestify.capture.source_lines import source_line
from nestify.errors import CaptureError
from nestify.rules import facts_of, is_mutable, op_name, shape_of
from nestify.rules.canonical import canonical
from nestify.support.module_tree import first_paths, get_tensor, tensors_of

__all__ = ["Lowered", "drop_unused", "lower"]

_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_BLOCKS = {"cond": "torch.cond"}
_INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


class Lowered(NamedTuple):
    """The graph, its placeholders in order, and the tensors that its ``get_attr`` nodes name."""

    graph: fx.Graph
    inputs: list[fx.Node]
    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]


def lower(model: nn.Module, program: ExportedProgram) -> Lowered:
    """Copy an exported program into a graph of placeholder, get_attr and call_function nodes."""
    lowering = _Lowering(model, program)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            lowering.placeholder(node, specs[node.name])
        elif node.op == "output":
            lowering.output(node)
        else:
            lowering.call(node)
    lowering.graph.lint()
    drop_unused(lowering.graph)
    return Lowered(lowering.graph, lowering.inputs, lowering.tensors, lowering.aliases)


class _Lowering:
    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.model, self.program = model, program
        self.graph = fx.Graph()
        first: dict[int, str] = {}
        self.aliases = {name: first.setdefault(id(t), name) for name, t in tensors_of(model)}
        self.paths = first_paths(model)
        self.tensors: dict[str, torch.Tensor] = {}
        self.new: dict[Any, Any] = {}
        self.inputs: list[fx.Node] = []
        self.constants = Constants(dict(_constants(program)))
        self.asserted = cache(only_asserted)
        self.blocks: tuple[Block, ...] = ()  # of autocast, that the next call is in
        self.off = False  # whether gradients are, in this block
        self.without: set[fx.Node] = set()  # what was made where they are
        self.detached: dict[fx.Node, fx.Node] = {}

    def placeholder(self, node: fx.Node, spec: InputSpec) -> None:
        if spec.kind == InputKind.USER_INPUT:
            made = self.graph.placeholder(node.name)
            self.inputs.append(made)
        elif spec.kind in _STATE:
            name, tensor = self.tensor(spec)
            made = self.graph.get_attr(name)
            self.tensors[name] = tensor
        else:
            raise CaptureError(
                f"{type(self.model).__name__} reads {spec.target!r}, a {spec.kind.name.lower()}, "
                "which cannot be served; keep plain tensors in the model"
            )
        made.meta.update(val=node.meta.get("val"), path="")
        self.new[node] = made

    def tensor(self, spec: InputSpec) -> tuple[str, torch.Tensor]:
        target = str(spec.target)
        if spec.kind == InputKind.CONSTANT_TENSOR:
            return target.replace(".", "_"), cast(torch.Tensor, self.program.constants[target])
        name = self.aliases.get(target, target)
        return name, get_tensor(self.model, name)

    def output(self, node: fx.Node) -> None:
        values = fx.map_arg(node.args[0], self.new.__getitem__)
        if not any(isinstance(value, fx.Node) for value in cast(tuple[Any, ...], values)):
            raise CaptureError(
                f"{type(self.model).__name__} returns no tensor, so there is nothing to compile; "
                "let forward return its result"
            )
        self.graph.output(values)

    def call(self, node: fx.Node) -> None:
        self.constants.see(node)
        if isinstance(node.target, HigherOrderOperator):
            self.inline(node, node.target)
        elif node.op == "get_attr" or is_assertion(node) or node in self.asserted(node.graph):
            return
        elif node.target is operator.getitem and isinstance(self.new[node.args[0]], tuple):
            self.new[node] = self.new[node.args[0]][node.args[1]]
        elif (number := self.constants.number(node)) is not None:
            self.new[node] = number
        elif _drops_nothing(node):
            self.new[node] = self.new[node.args[0]]
        else:
            node.meta["val"] = self.constants.sized(node.meta["val"])
            _refuse_data_dependent(node)
            target, args, kwargs = canonical(node)
            read = self.detach if facts_of(target).cuts_gradients else self.read
            args, kwargs = (fx.map_arg(a, read) for a in (args, kwargs))
            made = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
            stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
            path = str(next(reversed(stack.values()))[0]) if stack else ""
            made.meta.update(val=_value(node), stack_trace=node.meta.get("stack_trace"))
            made.meta["path"] = self.paths.get(path, path)
            place_in(made, self.blocks)
            self.new[node] = made
            if self.off and target is not operator.getitem:
                self.without.add(made)
                written = node.args[0] if is_mutable(node) else None
                if isinstance(written, fx.Node) and self.new[written] is not made.args[0]:
                    self.new[node] = self.new[written]  # it has its gradients still

    def inline(self, node: fx.Node, block: HigherOrderOperator) -> None:
        """Copy the body of a ``no_grad`` or ``autocast`` block: detach what the one reads, note of
        each call of the other that it is in there.
        """
        name = block.name()
        bodies = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        if name not in _INLINED or not bodies:
            raise CaptureError(
                f"{type(self.model).__name__} uses {_BLOCKS.get(name, name)}{self.place(node)}, "
                "which cannot be served; move that block out of forward"
            )
        body = cast(fx.GraphModule, getattr(_owner(node), str(bodies[0].target)))
        operands = iter(node.args[node.args.index(bodies[0]) + 1 :])
        around = self.blocks, self.off
        if name == "wrap_with_autocast":
            kind, dtype, enabled = cast(Any, node.args[:3])
            self.blocks = Block(kind, dtype if enabled else None, enabled).around(self.blocks)
        else:
            self.off = node.args[0] is False
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                operand = next(operands)
                self.new[inner] = self.new[operand] if isinstance(operand, fx.Node) else operand
            elif inner.op == "output":
                values = inner.args[0]
                flat = values if isinstance(values, list | tuple) else (values,)
                self.new[node] = tuple(self.leave(value) for value in flat)
            else:
                self.call(inner)
        self.blocks, self.off = around

    def place(self, node: fx.Node) -> str:
        """Where a block stands, as far as its own calls or the block's own node tell."""
        bodies = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        inner = [
            call for body in bodies for call in getattr(_owner(node), str(body.target)).graph.nodes
        ]
        lines = (source_line(call) for call in [node, *inner])
        return next((f" at {line}" for line in lines if line), "")

    def leave(self, value: Any) -> Any:
        """What a block gives: an operand, or a tensor that it wrote into, as it came."""
        if not isinstance(value, fx.Node):
            return value
        inner = self.new[value]
        return (
            self.read(value) if inner in self.without or value.target is operator.getitem else inner
        )

    def read(self, node: fx.Node) -> Any:
        """An operand, detached where gradients are off."""
        return self.detach(node) if self.off else self.new[node]

    def detach(self, node: fx.Node) -> Any:
        """An operand, detached where it may have gradients."""
        inner = self.new[node]
        if inner in self.without or not self.differentiable(inner):
            return inner
        if inner not in self.detached:
            made = self.graph.call_function(torch.ops.aten.detach.default, (inner,))
            made.meta.update(inner.meta)
            place_in(made, self.blocks)
            self.detached[inner] = made
        return self.detached[inner]

    def differentiable(self, node: Any) -> bool:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, torch.Tensor):
            return False
        state = self.tensors.get(str(node.target)) if node.op == "get_attr" else None
        varies = value.is_floating_point() or value.is_complex()
        return varies and (state is None or isinstance(state, nn.Parameter))


def _owner(node: fx.Node) -> fx.GraphModule:
    """The module of the graph that a node is in: a block inside of a block is in that one's."""
    return cast(fx.GraphModule, node.graph.owning_module)


def _value(node: fx.Node) -> Any:
    """What a call gives.

    Torch 2.11 traces the last states of an LSTM with a dim too many, which a call does not have;
    what reads them there has shapes that no rule explains.
    """
    found, source = node.meta["val"], node.args[0] if node.args else None
    if node.target is not torch.ops.aten.lstm.input or not isinstance(source, fx.Node):
        return found
    output, *states = found
    extra = states[0].ndim > source.meta["val"].ndim
    return output, *(state.squeeze(1) if extra else state for state in states)


def _refuse_data_dependent(node: fx.Node) -> None:
    """What only the data decide, a number or a size (``nonzero``), no graph can spell."""
    value = node.meta["val"]
    if is_symbolic(value):
        line = source_line(node)
        sized = isinstance(value, torch.Tensor | list | tuple)
        raise CaptureError(
            f"{op_name(node.target)}{f' at {line}' if line else ''} gives a "
            f"{'size' if sized else 'number'} that depends on the data; "
            + (
                "use a mask or torch.where in its place, which keep the shape"
                if sized
                else "compute with the tensor itself, which needs no number"
            )
        )


def _drops_nothing(node: fx.Node) -> bool:
    """Whether a call squeezes no dim, as none that it names has size one."""
    operand = node.args[0] if op_name(node.target) == "squeeze" else None
    return isinstance(operand, fx.Node) and shape_of(node) == shape_of(operand)


def _constants(program: ExportedProgram) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """The constant tensors of a program by their placeholders."""
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.find_nodes(op="placeholder"):
        spec = kinds[node.name]
        if spec.kind == InputKind.CONSTANT_TENSOR:
            yield node, cast(torch.Tensor, program.constants[str(spec.target)])


def drop_unused(graph: fx.Graph) -> None:
    """Erase what nothing reads; ops that write in place stay, ops that draw numbers do not."""
    graph.eliminate_dead_code(is_impure_node=_has_effects)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _has_effects(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or is_mutable(node)
