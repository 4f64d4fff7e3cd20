"""Extraction: one subnet of an analysed graph as a plain, physically smaller
``torch.fx.GraphModule``.

Every tensor is cut to its kept positions, every literal that spells a size is respelled, calls
become ordinary torch modules under their original names, and what nothing reads is gone. The result
imports nothing of nestify. Dropout, stochastic depth and BatchNorm are modules again and act in
``train()``; other arguments that depend on the mode (the ``dropout_p`` of attention) keep their
value of eval.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, cast

import torch
from torch import fx, nn
from torch.fx.graph import (
    _PyTreeCodeGen,  # pyright: ignore[reportPrivateUsage]  # there is no public pytree codegen
    _PyTreeInfo,  # pyright: ignore[reportPrivateUsage]
)

from nestify.capture.autocast import ENTER, BlockWriter, blocks_of
from nestify.dims.selection import Keep
from nestify.emit.module.rebuild import Rebuilder
from nestify.emit.module.size_literals import Spelling
from nestify.errors import UsageError
from nestify.graph.fixed_batch import FixedBatch
from nestify.graph.graph import Graph
from nestify.graph.liveness import bypassed, live_nodes, overwritten
from nestify.graph.memory import roots, written_operands
from nestify.rules import bind_arguments, facts_of, op_name
from nestify.support.module_tree import put_tensor, refuse_names, tensors_of

__all__ = ["emit", "module_tree", "norm_paths"]


_TAKEN = {*dir(fx.GraphModule), *vars(fx.GraphModule(nn.Module(), fx.Graph()))}

Edit = Callable[[fx.Graph, nn.Module, Mapping[fx.Node, fx.Node]], None]


def emit(
    graph: Graph, tensors: Mapping[str, torch.Tensor], keep: Keep, edit: Edit | None = None
) -> fx.GraphModule:
    """Build the subnet that ``keep`` describes from full-size ``tensors`` by the graph's names.

    ``edit`` may change the new graph, given the root of its modules, and its node for each node of
    ``graph``.

    Raises:
        UsageError: a module or tensor has a name that every GraphModule uses itself.
    """
    emitter = _Emitter(graph, tensors, keep)
    emitter.run()
    if edit is not None:
        edit(emitter.graph, emitter.modules.root, emitter.new)
    root, made = emitter.modules.root, emitter.graph
    refuse_names(root, _TAKEN, "a GraphModule, as an extracted network is one,")
    made.owning_module = root  # pyright: ignore[reportAttributeAccessIssue]  # knows what is impure
    made.eliminate_dead_code()
    # It takes over what the graph still reads, and writes its code: once, as that takes a while.
    blocks = made.find_nodes(op="call_function", target=ENTER)
    kind = _WithBlocks if blocks else fx.GraphModule
    module = kind(root, made, type(graph.capture.model).__name__)
    module.graph.lint()
    return module.eval()


class _WithBlocks(fx.GraphModule):
    """A network with a block under autocast."""

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a network with a block under autocast cannot be pickled: torch.fx runs its code anew "
            "to load one, and loses the block. Save its state_dict(), or export it"
        )


def module_tree(graph: Graph) -> nn.Module:
    """The whole network as modules with tensors of their own: every name of the original, in its
    order.
    """
    emitter = _Emitter(
        graph, dict(tensors_of(graph.capture.model)) | dict(graph.capture.tensors), Keep({})
    )
    emitter.run()
    return emitter.modules.complete()


def norm_paths(graph: Graph) -> dict[fx.Node, str]:
    """The module of each batch norm call that an extracted network makes a BatchNorm of, with
    running statistics.
    """
    emitter = _Emitter(
        graph, {name: tensor.to("meta") for name, tensor in graph.capture.tensors.items()}, Keep({})
    )
    emitter.run()
    return {
        node: str(made.target)
        for node, made in emitter.new.items()
        if made.op == "call_module" and op_name(node.target) == "batch_norm"
        if bind_arguments(node)["running_mean"] is not None
    }


class _Emitter:
    def __init__(self, graph: Graph, tensors: Mapping[str, torch.Tensor], keep: Keep) -> None:
        self.source, self.keep = graph, keep
        self.modules = Rebuilder(graph, tensors, keep)
        self.graph = fx.Graph()
        self.spelling = Spelling(graph, keep, self.graph)
        self.blocks = BlockWriter(self.graph, self.spelling.device_type)
        self.new: dict[fx.Node, fx.Node] = {}
        self.reshaped = set(_views_that_may_copy(graph))

    def run(self) -> None:
        bypass = bypassed(self.source, self.keep)
        live = live_nodes(self.source, bypass) if bypass else None
        copied = overwritten(self.source) if bypass else set[fx.Node]()
        for node in self.source.nodes:
            if live is not None and node not in live:
                continue
            if node in bypass and node not in copied:
                self.new[node] = self.new[bypass[node]]
                continue
            self.blocks.move_to(blocks_of(node))
            if node in bypass:
                self.new[node] = self.graph.call_method("clone", (self.new[bypass[node]],))
            elif node.op == "placeholder":
                self.new[node] = self.graph.placeholder(node.name)
            elif node.op == "call_function":
                self.new[node] = self.call(node)
            elif node.op == "output":
                self.output(node)
            if node in self.new:
                kept = {k: node.meta[k] for k in ("stack_trace", "path") if node.meta.get(k)}
                self.new[node].meta = kept
        if (fixed := FixedBatch.of(self.source)) is not None:
            fixed.guard(self.graph)

    def read(self, node: fx.Node) -> fx.Node:
        """The new node for an operand; a tensor is read where a call needs it raw."""
        if node.op != "get_attr":
            return self.new.get(node, node)  # sizes of the batch are nodes of the new graph already
        name = str(node.target)
        put_tensor(self.modules.root, name, self.modules.tensor(name))
        return self.graph.get_attr(name)

    def call(self, node: fx.Node) -> fx.Node:
        module = self.modules.place(node, self.spelling)
        if module is not None:
            path, operand = module
            return self.graph.call_module(path, (self.read(operand),))
        args, kwargs = self.spelling.call(node)
        args, kwargs = fx.map_arg(args, self.read), fx.map_arg(kwargs, self.read)
        target = torch.ops.aten.reshape.default if node in self.reshaped else node.target
        if facts_of(node.target).pairs:  # a smaller operand may start between two of a pair
            packed: dict[str, Any] = {"memory_format": torch.contiguous_format}
            args = (self.graph.call_function(torch.ops.aten.clone.default, tuple(args), packed),)
        return self.graph.create_node("call_function", target, args, kwargs, name=node.name)

    def output(self, node: fx.Node) -> None:
        values = tuple(cast(list[Any], fx.map_arg(node.args[0], self.read)))
        captured = self.source.capture
        out_spec = captured.out_spec
        args_spec, kwargs_spec = captured.in_spec.children()
        plain = not kwargs_spec.num_children and all(c.is_leaf() for c in args_spec.children())
        if plain and out_spec.is_leaf():
            self.graph.output(values[0])
            return
        self.graph.output(values)
        if not (plain and out_spec.type is tuple and all(c.is_leaf() for c in out_spec.children())):
            keywords = [str(name) for name in kwargs_spec.context or ()]
            names = _argument_names(captured.model, args_spec.num_children, keywords)
            info = _PyTreeInfo(names, captured.in_spec, out_spec)
            self.graph.set_codegen(_PyTreeCodeGen(info))


def _views_that_may_copy(graph: Graph) -> Iterator[fx.Node]:
    """Views of what nothing writes in place. A smaller net may hold the same tensor in another
    order in memory (attention with heads of width one does), where a view must be a copy.
    """
    base = roots(graph)
    written = {base[operand] for node in graph.nodes for operand in written_operands(node)}
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default and base[node] not in written:
            yield node


def _argument_names(model: nn.Module, positional: int, keywords: list[str]) -> list[str]:
    """Names of the forward arguments that the example inputs filled, in the order of the input
    spec.
    """
    names = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    names += [f"arg_{i}" for i in range(len(names), positional)]
    return [*names[:positional], *keywords]
