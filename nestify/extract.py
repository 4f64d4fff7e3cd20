"""Extraction: one subnet of an analysed graph as a plain, physically smaller ``torch.fx.GraphModule``.

Every tensor is cut to its kept positions, every literal that spells a size is respelled, calls become
ordinary torch modules under their original names, and what nothing reads is gone. The result imports
nothing of nestify.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from nestify.dims import Const, Dim, Expr, Product, dims_of, resolve
from nestify.groups import Graph
from nestify.modules import MODULES, build_module
from nestify.rules import bind_arguments, op_name
from nestify.slicing import Keep
from nestify.trees import place_module, put_tensor, submodule

__all__ = ["emit"]

_VIEWS = ("view", "reshape", "_unsafe_view", "unflatten")


def emit(graph: Graph, tensors: Mapping[str, torch.Tensor], keep: Keep) -> fx.GraphModule:
    """Build the subnet that ``keep`` describes from ``tensors`` (full-size, by the graph's names)."""
    return _Emitter(graph, tensors, keep).run()


class _Emitter:
    def __init__(self, graph: Graph, tensors: Mapping[str, torch.Tensor], keep: Keep) -> None:
        self.source, self.tensors, self.keep = graph, tensors, keep
        self.captured = graph.capture
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.cut: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, list[str]] = {}
        for alias, name in self.captured.aliases.items():
            self.aliases.setdefault(name, []).append(alias)
        self.placed: dict[str, str] = {}
        self.batch_node: fx.Node | None = None

    def run(self) -> fx.GraphModule:
        for node in self.source.nodes:
            if node.op == "placeholder":
                self.new[node] = self.graph.placeholder(node.name)
                self.new[node].meta = _meta(node)
            elif node.op == "call_function":
                self.new[node] = self.module_call(node) or self.function_call(node)
                self.new[node].meta = _meta(node)
            elif node.op == "output":
                self.output(node)
        module = fx.GraphModule(self.root, self.graph, type(self.captured.model).__name__)
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.delete_all_unused_submodules()
        module.recompile()
        return module.eval()

    # --- tensors ------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> torch.Tensor:
        """The cut tensor of that name, made once so that tied weights stay tied."""
        if name not in self.cut:
            full = self.tensors[name]
            cut = self.keep.slice(full.detach(), self.source.tensor_dims[name])
            cut = cut.clone(memory_format=torch.contiguous_format)
            if isinstance(full, nn.Parameter):
                cut = nn.Parameter(cut, requires_grad=full.requires_grad)
            self.cut[name] = cut
        return self.cut[name]

    def read(self, node: fx.Node) -> fx.Node:
        """The new node for an operand; tensors are read where a call needs them raw."""
        if node.op != "get_attr":
            return self.new[node]
        name = str(node.target)
        put_tensor(self.root, name, self.tensor(name))
        return self.graph.get_attr(name)

    # --- calls --------------------------------------------------------------------------------------------

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by name, literals respelled for what is kept."""
        bound = bind_arguments(node)
        for name, expr in self.source.calls[node].literals.items():
            bound[name] = self.respell(node, bound[name], expr)
        return bound

    def respell(self, node: fx.Node, value: Any, expr: Any) -> Any:
        if isinstance(expr, tuple):
            free = [i for i, e in enumerate(expr) if isinstance(e, Expr) and self.is_batch(e)]
            sizes = [
                v if e is None or i in free else self.keep.literal(v, e)
                for i, (v, e) in enumerate(zip(value, expr, strict=True))
            ]
            if len(free) == 1 and -1 not in value and op_name(node.target) in _VIEWS:
                sizes[free[0]] = -1
            else:
                for i in free:
                    sizes[i] = self.symbolic(expr[i])
            return sizes
        return self.symbolic(expr) if self.is_batch(expr) else self.keep.literal(value, expr)

    def is_batch(self, expr: Any) -> bool:
        return not isinstance(expr, int) and any(dim.batch for dim in dims_of(expr))

    def symbolic(self, expr: Expr) -> Any:
        """Spell a size that depends on the batch as nodes."""
        expr = resolve(expr)
        if isinstance(expr, Dim) and expr.batch:
            return self.batch_size()
        if isinstance(expr, Dim | Const):
            return self.keep.size(expr)
        parts = [
            self.symbolic(p) for p in (expr.factors if isinstance(expr, Product) else expr.parts)
        ]
        join: Callable[[Any, Any], Any] = (
            operator.mul if isinstance(expr, Product) else operator.add
        )
        total = parts[0]
        for part in parts[1:]:
            known = isinstance(total, int) and isinstance(part, int)
            total = join(total, part) if known else self.graph.call_function(join, (total, part))
        return total

    def batch_size(self) -> fx.Node:
        if self.batch_node is None:
            first = next(n for n in self.graph.nodes if n.name in self.captured.batched)
            self.batch_node = self.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
        return self.batch_node

    def function_call(self, node: fx.Node) -> fx.Node:
        if op_name(node.target) == "nestify::stochastic":
            return self.original_module(node, str(node.args[1]))
        if op_name(node.target) == "dropout":
            return self.dropout(node)
        args, kwargs = node.args, dict(node.kwargs)
        literals = self.source.calls[node].literals
        if literals:
            bound = self.arguments(node)
            names = list(bound)
            args = tuple(
                bound[name] if name in literals else a for name, a in zip(names, args, strict=False)
            )
            given = names[: len(args)]
            kwargs |= {
                n: bound[n]
                for n in literals
                if n not in given and (n in kwargs or _changed(node, n, bound))
            }
        args = fx.map_arg(args, lambda n: self.read(n) if n in self.source.dims else n)
        kwargs = fx.map_arg(kwargs, lambda n: self.read(n) if n in self.source.dims else n)
        return self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)

    def module_call(self, node: fx.Node) -> fx.Node | None:
        """Turn a call whose tensors all belong to one module back into a call of that module."""
        entry = MODULES.get(op_name(node.target))
        if entry is None:
            return None
        bound = self.arguments(node)
        own = {name: bound[name] for name in entry[1]}
        activation = bound[entry[0]]
        if activation.op == "get_attr" or any(
            t is not None and t.op != "get_attr" for t in own.values()
        ):
            return None
        path = self.module_path(node, own)
        if path is None:
            return None
        tensors = {n: None if t is None else self.tensor(str(t.target)) for n, t in own.items()}
        momentum = getattr(submodule(self.captured.model, path), "momentum", None)
        if "momentum" in bound:
            bound["momentum"] = momentum
        rank = len(self.source.dims[activation])
        module = build_module(node.target, bound, tensors, rank)
        if module is None or self.placed.setdefault(path, repr(module)) != repr(module):
            return None
        if not isinstance(submodule(self.root, path), type(module)):
            self.fill(module, path, tensors)
        return self.graph.call_module(path, (self.read(activation),))

    def module_path(self, node: fx.Node, own: Mapping[str, fx.Node | None]) -> str | None:
        """The module whose tensors these are: the one that made the call, else any that holds them all."""
        held = [
            {
                alias[: -len(arg) - 1]
                for alias in self.aliases.get(str(t.target), ())
                if alias.endswith(f".{arg}")
            }
            for arg, t in own.items()
            if t is not None
        ]
        paths = set[str].intersection(*held) if held else {str(node.meta["path"])}
        paths.discard("")
        own_path = str(node.meta["path"])
        return own_path if own_path in paths else min(paths, default=None)

    def fill(
        self, module: nn.Module, path: str, tensors: Mapping[str, torch.Tensor | None]
    ) -> None:
        for name, tensor in tensors.items():
            if tensor is not None:
                put_tensor(module, name, tensor)
        if getattr(module, "num_batches_tracked", None) is not None:
            original = submodule(self.captured.model, path)
            counted = self.tensors.get(f"{path}.num_batches_tracked")
            counted = getattr(original, "num_batches_tracked", None) if counted is None else counted
            module.num_batches_tracked = (
                torch.tensor(0) if counted is None else counted.detach().clone()
            )
        place_module(self.root, path, module)

    def dropout(self, node: fx.Node) -> fx.Node:
        path = str(node.meta["path"])
        original = submodule(self.captured.model, path)
        if not isinstance(original, nn.Dropout):
            path = f"{path}.{node.name}".lstrip(".")  # F.dropout inside a larger module
        source, p, _ = node.args
        assert isinstance(source, fx.Node) and isinstance(p, float)
        if not isinstance(submodule(self.root, path), nn.Dropout):
            place_module(self.root, path, nn.Dropout(p))
        return self.graph.call_module(path, (self.read(source),))

    def original_module(self, node: fx.Node, path: str) -> fx.Node:
        original = submodule(self.captured.model, path)
        assert original is not None and isinstance(node.args[0], fx.Node)
        if type(submodule(self.root, path)) is not type(original):
            place_module(self.root, path, copy.deepcopy(original))
        return self.graph.call_module(path, (self.read(node.args[0]),))

    # --- output -------------------------------------------------------------------------------------------

    def output(self, node: fx.Node) -> None:
        values = list(fx.map_arg(node.args[0], self.read))
        captured = self.captured
        out_spec = captured.out_spec
        args_spec, kwargs_spec = captured.in_spec.children()
        plain_in = not kwargs_spec.num_children and all(c.is_leaf() for c in args_spec.children())
        if plain_in and out_spec.is_leaf():
            self.graph.output(values[0])
        elif plain_in and out_spec.type is tuple and all(c.is_leaf() for c in out_spec.children()):
            self.graph.output(tuple(values))
        else:
            names = _argument_names(
                captured.model, args_spec.num_children, list(kwargs_spec.context or ())
            )
            self.graph.output(tuple(values))
            self.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, captured.in_spec, out_spec)))


def _meta(node: fx.Node) -> dict[str, Any]:
    return {key: node.meta[key] for key in ("stack_trace", "path") if node.meta.get(key)}


def _changed(node: fx.Node, name: str, bound: Mapping[str, Any]) -> bool:
    return bound[name] != bind_arguments(node)[name]


def _argument_names(model: nn.Module, positional: int, keywords: list[str]) -> list[str]:
    """Names of the forward arguments that the example inputs filled, in the order of the input spec."""
    names = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    names += [f"arg_{i}" for i in range(len(names), positional)]
    return [*names[:positional], *keywords]
