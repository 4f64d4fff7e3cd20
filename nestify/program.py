"""The captured graph as a flat list of steps that run any subnet on slices of the full tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from nestify.groups import Graph
from nestify.rules import bind_arguments, op_name
from nestify.slicing import Keep
from nestify.trees import get_tensor

__all__ = ["Program", "Step"]


class _Slot(NamedTuple):
    index: int


class Step(NamedTuple):
    """One call: the node, what runs, arguments with slots, and the slots that are free afterwards."""

    node: fx.Node
    run: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    frees: tuple[int, ...]


class Program:
    """The captured graph as a flat list of steps; binding a subnet fills in its literals and slices."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = {node: i for i, node in enumerate(graph.nodes)}
        self.inputs = [n for n in graph.nodes if n.op == "placeholder"]
        self.attrs = [n for n in graph.nodes if n.op == "get_attr"]
        self.calls = [n for n in graph.nodes if n.op == "call_function"]
        self.modules = {path for path, _ in graph.capture.model.named_modules()}
        self.output = next(n for n in graph.nodes if n.op == "output")
        last: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            for source in node.all_input_nodes:
                last[source] = node
        frees: dict[fx.Node, list[int]] = {}
        for source, node in last.items():
            frees.setdefault(node, []).append(self.slots[source])
        self.steps = [self._step(node, tuple(frees.get(node, ()))) for node in self.calls]
        self.elastic = [i for i, node in enumerate(self.calls) if graph.calls[node].literals]
        self.batched = next(
            (i for i, n in enumerate(self.inputs) if n.name in graph.capture.batched), None
        )
        self.values = fx.map_arg(self.output.args[0], lambda n: _Slot(self.slots[n]))

    def batch_size(self, flat: Sequence[Any]) -> int:
        return 0 if self.batched is None else int(flat[self.batched].shape[0])

    def _step(self, node: fx.Node, frees: tuple[int, ...]) -> Step:
        name = op_name(node.target)
        args = fx.map_arg(node.args, lambda n: _Slot(self.slots[n]))
        kwargs = fx.map_arg(dict(node.kwargs), lambda n: _Slot(self.slots[n]))
        run = {
            "batch_norm": _batch_norm,
            "dropout": _dropout,
            "nestify::stochastic": _stochastic,
        }.get(name)
        return Step(node, run, args, kwargs, frees)

    def bind(self, keep: Keep, batch: int) -> list[Step]:
        if self.graph.batch is not None:
            keep.sizes[self.graph.batch] = batch
        steps = list(self.steps)
        for i in self.elastic:
            steps[i] = self._respell(steps[i], keep)
        plans = [self.graph.tensor_dims[str(node.target)] for node in self.attrs]
        for dims in plans:
            keep.plan(dims)
        return [Step(self.output, keep, (), {}, ()), *steps]

    def _respell(self, step: Step, keep: Keep) -> Step:
        literals = self.graph.calls[step.node].literals
        names = list(bind_arguments(step.node))
        args, kwargs = list(step.args), dict(step.kwargs)
        for name, expr in literals.items():
            at = names.index(name)
            if at < len(args):
                args[at] = keep.literal(args[at], expr)
            elif name in kwargs:
                kwargs[name] = keep.literal(kwargs[name], expr)
            else:
                default = bind_arguments(step.node)[name]
                if default is not None:
                    kwargs[name] = keep.literal(default, expr)
        return step._replace(args=tuple(args), kwargs=kwargs)

    def run(self, root: nn.Module, steps: Sequence[Step], flat: Sequence[Any]) -> list[Any]:
        keep: Keep = steps[0].run
        env: list[Any] = [None] * len(self.slots)
        for node, value in zip(self.inputs, flat, strict=True):
            env[self.slots[node]] = value
        for node in self.attrs:
            name = str(node.target)
            env[self.slots[node]] = keep.slice(get_tensor(root, name), self.graph.tensor_dims[name])
        for step in steps[1:]:
            args = [_fill(arg, env) for arg in step.args]
            kwargs = {name: _fill(arg, env) for name, arg in step.kwargs.items()}
            slot = self.slots[step.node]
            if step.run is None:
                env[slot] = step.node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                env[slot] = step.run(self, root, step.node, keep, args)
            for index in step.frees:
                env[index] = None
        return [_fill(value, env) for value in self.values]


def _fill(arg: Any, env: list[Any]) -> Any:
    if arg.__class__ is _Slot:
        return env[arg.index]
    if isinstance(arg, list | tuple) and not isinstance(arg, torch.Size):
        return [_fill(item, env) for item in arg]
    return arg


def _batch_norm(
    program: Program, root: nn.Module, node: fx.Node, keep: Keep, args: list[Any]
) -> torch.Tensor:
    """BatchNorm in the mode of its module; statistics of a subnet are written to its prefix."""
    x, weight, bias, mean, var, training, momentum, eps, _ = args
    module = root.get_submodule(str(node.meta["path"])) if node.meta["path"] else root
    if not (module.training and mean is not None):
        return F.batch_norm(x, mean, var, weight, bias, bool(training), momentum, eps)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        momentum = module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            momentum = 1.0 / float(module.num_batches_tracked) if momentum is None else momentum
    out = F.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
    for stat, source in ((mean, node.args[3]), (var, node.args[4])):
        assert isinstance(source, fx.Node)
        dims = program.graph.tensor_dims[str(source.target)]
        for position, cut in keep.plan(dims):
            if not isinstance(cut, int):  # a copy, not a view: write the new statistics back
                get_tensor(root, str(source.target)).index_copy_(
                    position, cut.to(stat.device), stat
                )
    return out


def _dropout(
    program: Program, root: nn.Module, node: fx.Node, keep: Keep, args: list[Any]
) -> torch.Tensor:
    path = str(node.meta["path"])
    return F.dropout(
        args[0],
        args[1],
        root.get_submodule(path).training if path in program.modules else root.training,
    )


def _stochastic(
    program: Program, root: nn.Module, node: fx.Node, keep: Keep, args: list[Any]
) -> torch.Tensor:
    return root.get_submodule(args[1])(args[0])
