"""Modules again: the calls of a graph as ordinary torch modules under the paths of the original."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from nestify.dims.selection import Keep
from nestify.emit.module.layers import MODULES, build_module, dropout_module
from nestify.emit.module.size_literals import Spelling
from nestify.graph.graph import Graph
from nestify.rules import STOCHASTIC, bind_arguments, op_name
from nestify.support.module_tree import (
    children,
    find,
    first_paths,
    is_saved,
    made_like,
    place_module,
    put_tensor,
    skeleton,
    submodule,
)

__all__ = ["Rebuilder"]

Placed = tuple[str, fx.Node]


class Rebuilder:
    """Cuts the tensors of one subnet and puts them into modules, one path at a time."""

    def __init__(self, graph: Graph, tensors: Mapping[str, torch.Tensor], keep: Keep) -> None:
        self.source, self.tensors, self.keep = graph, tensors, keep
        self.captured = graph.capture
        self.root = skeleton(graph.capture.model)
        self._cut: dict[str, torch.Tensor] = {}
        self._spoken: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        for alias, name in self.captured.aliases.items():
            self._names.setdefault(name, []).append(alias)

    def tensor(self, name: str) -> torch.Tensor:
        """The cut tensor of that name, made once so that tied weights stay tied."""
        if name not in self._cut:
            full = self.tensors[name]
            cut = self.keep.slice(full.detach(), self.source.tensor_dims.get(name, ())).clone()
            self._cut[name] = made_like(full, cut)
        return self._cut[name]

    def complete(self) -> nn.Module:
        """The tree with what the graph does not read too: every name of the original, tied tensors
        tied.
        """
        model = self.captured.model
        first = first_paths(model)
        for path, module in model.named_modules():
            siblings = children(find(self.root, path))
            for name in children(module):
                known = first.get(f"{path}.{name}".lstrip("."))
                if known is not None:
                    child = find(self.root, known)
                    siblings.pop(name, None)
                    siblings[name] = child
        for name, canonical in self.captured.aliases.items():
            put_tensor(self.root, name, self.tensor(canonical), persistent=is_saved(model, name))
        for name in self.captured.tensors.keys() - self.captured.aliases.keys():
            put_tensor(self.root, name, self.tensor(name), persistent=False)
        return self.root

    def place(self, node: fx.Node, spelling: Spelling) -> Placed | None:
        """Put the module for a call in its place: (path, operand), or None where no module computes
        it.
        """
        name = op_name(node.target)
        if name == STOCHASTIC:
            return self._stochastic(node)
        if name in MODULES:
            return self._with_tensors(node, spelling.arguments(node))
        return self._dropout(node)

    # --- modules with tensors ---------------------------------------------------------------------

    def _with_tensors(self, node: fx.Node, bound: dict[str, Any]) -> Placed | None:
        """A call whose tensors all belong to one module is a call of that module."""
        operand, names, _ = MODULES[op_name(node.target)]
        activation, own = bound[operand], {name: bound[name] for name in names}
        if own.get("running_mean") is not None and not self._switched(node):
            return None  # statistics that are frozen in both modes: a module would update them
        if op_name(node.target) == "group_norm" and self._lonely(activation, bound["num_groups"]):
            return None  # the module refuses a batch of one, where its op gives the bias
        raw = all(t is None or t.op == "get_attr" for t in own.values())
        plain = activation.op != "get_attr" or self._switched(node)
        path = self._path(node, own) if raw and plain else None
        if path is None:
            return None
        original = submodule(self.captured.model, path)
        if "momentum" in bound and hasattr(original, "momentum"):
            bound["momentum"] = getattr(original, "momentum", None)
        tensors = {n: None if t is None else self.tensor(str(t.target)) for n, t in own.items()}
        module = build_module(node.target, bound, tensors, len(self.source.dims[activation]))
        if module is None or self._spoken.setdefault(path, repr(module)) != repr(module):
            return None
        if not isinstance(submodule(self.root, path), type(module)):
            self._fill(module, path, tensors)
        return path, activation

    def _lonely(self, activation: fx.Node, groups: int) -> bool:
        """Whether a sample has a single value in each group."""
        sizes = [self.keep.size(expr) for expr in self.source.dims[activation][1:]]
        return math.prod(sizes) == groups

    def _path(self, node: fx.Node, own: Mapping[str, fx.Node | None]) -> str | None:
        """The module whose tensors these are: the one that made the call, else any other."""
        own_path = str(node.meta["path"])
        held = [
            {
                alias[: -len(arg) - 1]
                for alias in self._names.get(str(tensor.target), ())
                if alias.endswith(f".{arg}")
            }
            for arg, tensor in own.items()
            if tensor is not None
        ]
        paths = set[str].intersection(*held) if held else {own_path}
        paths.discard("")
        return own_path if own_path in paths else min(paths, default=None)

    def _fill(
        self, module: nn.Module, path: str, tensors: Mapping[str, torch.Tensor | None]
    ) -> None:
        for name, tensor in tensors.items():
            if tensor is not None:
                put_tensor(module, name, tensor)
        if hasattr(module, "num_batches_tracked"):
            counted = self.tensors.get(f"{path}.num_batches_tracked")
            vars(module)["_buffers"]["num_batches_tracked"] = (
                None if counted is None else counted.detach().clone()
            )
        place_module(self.root, path, module)

    # --- modules of the mode ----------------------------------------------------------------------

    def _switched(self, node: fx.Node) -> bool:
        """Whether the call acts otherwise in training."""
        switches = ("train", "training", "use_input_stats", "p")
        return any((node.name, name) in self.captured.mode_args for name in switches)

    def _dropout(self, node: fx.Node) -> Placed | None:
        """Dropout that follows the mode: its own module, or a new one beside the call's module."""
        if not self._switched(node):
            return None
        bound = bind_arguments(node)
        modes = self.captured.mode_args
        bound = {name: modes.get((node.name, name), value) for name, value in bound.items()}
        module = dropout_module(node, bound, len(self.source.dims[node]))
        if module is None:
            return None
        path = str(node.meta["path"])
        if not isinstance(submodule(self.captured.model, path), type(module)):
            path = f"{path}.{node.name}".lstrip(".")  # F.dropout inside a larger module
        if not isinstance(submodule(self.root, path), type(module)):
            place_module(self.root, path, module)
        return path, next(iter(bound.values()))

    def _stochastic(self, node: fx.Node) -> Placed:
        operand, path = node.args
        assert isinstance(operand, fx.Node) and isinstance(path, str)
        original = find(self.captured.model, path)
        if type(submodule(self.root, path)) is not type(original):
            place_module(self.root, path, copy.deepcopy(original))
        return path, operand
