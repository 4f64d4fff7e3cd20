"""The captured graph as a flat list of steps that run any subnet on slices of the full tensors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from nestify.depth import bypassed, live_nodes
from nestify.groups import Graph
from nestify.layouts import (
    channels_last,
    contiguous,
    is_contiguous_map,
    reads_in_order,
    run_in_order,
)
from nestify.padding import Room
from nestify.rules import PAIRED, STRIDED, VIEWS, bind_arguments, is_mutable, op_name
from nestify.slicing import Keep
from nestify.trees import find, get_tensor, submodule

__all__ = ["Bound", "Program"]

_STATISTICS = {"batch_norm": ("running_mean", "running_var")}
_STATISTICS["instance_norm"] = _STATISTICS["batch_norm"]
_NONE: Mapping[str, torch.Tensor] = MappingProxyType({})


class _Slot(NamedTuple):
    at: int


class _Step(NamedTuple):
    """One call with slots for tensors: in eval, in training, and the slots that are free
    afterwards.
    """

    node: fx.Node
    out: int
    path: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    in_training: tuple[tuple[Any, ...], Mapping[str, Any]] | None
    frees: tuple[int, ...]


class Bound(NamedTuple):
    """A program with the literals and slices of one subnet and batch size, and the tensors that it
    reads.
    """

    keep: Keep
    steps: list[_Step]
    attrs: list[fx.Node]
    pads: dict[fx.Node, list[int]]
    channels_last: bool = False


class Program:
    """The captured graph, ready to be bound to subnets and run on any module tree that holds its
    tensors.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = {node: i for i, node in enumerate(graph.nodes)}
        self.inputs = [n for n in graph.nodes if n.op == "placeholder"]
        self.attrs = [n for n in graph.nodes if n.op == "get_attr"]
        self.written = _written(graph)
        self.room = Room(graph)
        ops = {call.op for call in graph.calls.values()}
        self.images = "conv2d" in ops and not ops & STRIDED
        self.ordered = {node for node in graph.nodes if reads_in_order(node)}
        frees = _last_uses(graph)
        self.steps = [
            self._step(node, tuple(self.slots[n] for n in frees.get(node, ())))
            for node in graph.nodes
            if node.op == "call_function"
        ]
        output = next(n for n in graph.nodes if n.op == "output")
        self.values = cast(list[Any], self._slotted(output.args[0]))

    def batch_size(self, flat: Sequence[Any]) -> int:
        """The batch size of these inputs; 0 where the graph has no batch."""
        batched = self.graph.capture.batched
        sizes = (v.shape[0] for n, v in zip(self.inputs, flat, strict=True) if n.name in batched)
        return next(sizes, 0)

    def _slotted(self, value: Any) -> Any:
        return fx.map_arg(value, lambda n: _Slot(self.slots[n]))

    def _step(self, node: fx.Node, frees: tuple[int, ...]) -> _Step:
        run: Any = _RUNS.get(op_name(node.target), node.target)
        args, kwargs = self._slotted(node.args), self._slotted(dict(node.kwargs))
        modes = self.graph.capture.mode_args
        changed = {
            name: modes[node.name, name]
            for name in bind_arguments(node)
            if (node.name, name) in modes
        }
        in_training = _replaced(node, args, kwargs, changed) if changed else None
        path = str(node.meta["path"])
        return _Step(node, self.slots[node], path, run, args, kwargs, in_training, frees)

    def bind(self, keep: Keep, batch: int, *, pad: bool = False) -> Bound:
        """Fill in what a subnet keeps; steps without a size among their arguments are shared.

        ``pad`` gives dims room for zeros where that is cheaper in training.
        """
        room = self.room.padded(keep) if pad else keep
        smaller = any(size < dim.size for dim, size in keep.sizes.items())
        for held in (keep, room):
            if self.graph.batch is not None:
                held.hold(self.graph.batch, batch)
        steps, attrs = self._undropped(bypassed(self.graph, keep))
        for node in attrs:
            keep.plan(self.graph.tensor_dims[str(node.target)])
        steps = [self._respelled(step, room) for step in steps]
        pads = self._pads(attrs, keep, room)
        return Bound(keep, steps, attrs, pads, pad and smaller and self.images)

    def _pads(self, attrs: Sequence[fx.Node], keep: Keep, room: Keep) -> dict[fx.Node, list[int]]:
        """The zeros behind each tensor as torch's pad wants them, the last dim first."""
        pads: dict[fx.Node, list[int]] = {}
        for node in attrs if room is not keep else ():
            dims = self.graph.tensor_dims[str(node.target)]
            zeros = [room.size(e) - keep.size(e) for e in reversed(dims)]
            if any(zeros):
                pads[node] = [n for count in zeros for n in (0, count)]
        return pads

    def _undropped(self, bypass: Mapping[fx.Node, fx.Node]) -> tuple[list[_Step], list[fx.Node]]:
        """The steps and tensors that are left without the dropped blocks."""
        if not bypass:
            return self.steps, self.attrs
        live = live_nodes(self.graph, bypass)
        steps = [
            self._stand_in(s, bypass[s.node]) if s.node in bypass else s
            for s in self.steps
            if s.node in live
        ]
        attrs = [node for node in self.attrs if node in live]
        return _freeing(steps, set(_reads(self.values))), attrs

    def _stand_in(self, step: _Step, stays: fx.Node) -> _Step:
        """Hand on the operand that stays in place of a block's sum."""
        args = (_Slot(self.slots[stays]),)
        return step._replace(run=_hand_on, args=args, kwargs={}, in_training=None)

    def _respelled(self, step: _Step, keep: Keep) -> _Step:
        literals = self.graph.calls[step.node].literals
        if not literals or step.run is _hand_on:
            return step
        bound = bind_arguments(step.node)
        spelled = {
            name: keep.literal(self._slotted(bound[name]), expr)
            for name, expr in literals.items()
            if bound[name] is not None
        }
        args, kwargs = _replaced(step.node, step.args, step.kwargs, spelled)
        in_training = step.in_training
        if in_training is not None:
            in_training = _replaced(step.node, *in_training, spelled)
        return step._replace(args=args, kwargs=kwargs, in_training=in_training)

    def run(
        self,
        root: nn.Module,
        bound: Bound,
        flat: Sequence[Any],
        own: Mapping[str, torch.Tensor] = _NONE,
    ) -> list[Any]:
        """Run on the tensors of ``root``, each module of it in its own mode; returns the flat
        outputs. ``own`` has tensors, by name and of the full size, to use instead.
        """
        walk = self.walk(root, bound, flat, own)
        while True:
            try:
                next(walk)
            except StopIteration as done:
                return done.value

    def walk(
        self,
        root: nn.Module,
        bound: Bound,
        flat: Sequence[Any],
        own: Mapping[str, torch.Tensor] = _NONE,
    ) -> Generator[tuple[fx.Node, list[Any], dict[str, Any]], None, list[Any]]:
        """Run, and stop before each call with its node and its arguments; returns the flat outputs.

        What a caller writes into the tensors of ``root`` while it stops there, or puts in the place
        of an argument, is what runs.
        """
        env: list[Any] = [None] * len(self.slots)
        turned = bound.channels_last and any(map(is_contiguous_map, flat))
        for node, value in zip(self.inputs, flat, strict=True):
            env[self.slots[node]] = channels_last(value) if turned else value
        for node in bound.attrs:
            name = str(node.target)
            full = own[name] if name in own else get_tensor(root, name)
            cut = bound.keep.slice(full, self.graph.tensor_dims[name])
            cut = F.pad(cut, bound.pads[node]) if node in bound.pads else cut
            env[self.slots[node]] = channels_last(cut) if turned else cut
        values = ((node, env[self.slots[node]]) for node in self.written)
        written = [(node, value) for node, value in values if value is not None]
        for step in bound.steps:
            args, kwargs = step.args, step.kwargs
            if step.in_training is not None and _trains(root, step.path):
                args, kwargs = step.in_training
            args = [_fill(arg, env) for arg in args]
            kwargs = {name: _fill(arg, env) for name, arg in kwargs.items()}
            yield step.node, args, kwargs
            if turned and step.node in self.ordered:
                env[step.out] = run_in_order(step.node, step.run, args, kwargs)
            elif step.run is step.node.target:
                env[step.out] = step.run(*args, **kwargs)
            else:
                env[step.out] = step.run(root, step, args)
            for index in step.frees:
                env[index] = None
        for node, value in written:
            name = str(node.target)
            full = own[name] if name in own else get_tensor(root, name)
            self._write_back(full, bound, node, value)
        values = [_fill(value, env) for value in self.values]
        return [contiguous(value) for value in values] if turned else values

    def _write_back(
        self, full: torch.Tensor, bound: Bound, node: fx.Node, value: torch.Tensor
    ) -> None:
        """What calls wrote into a copied slice of a buffer; views wrote into the buffer itself."""
        keep, dims = bound.keep, self.graph.tensor_dims[str(node.target)]
        views = all(isinstance(cut, int) for _, cut in keep.plan(dims))
        if views and node not in bound.pads:
            return
        value = value[tuple(slice(keep.size(expr)) for expr in dims)]
        # As torch's own batch norm does, without a sign that the tensor changed: autograd saves
        # running statistics though backward does not read them, and the next step may come first.
        if views:
            keep.slice(full.data, dims).copy_(value)
            return
        grid = torch.meshgrid(*(keep.indices(e).to(full.device) for e in dims), indexing="ij")
        full.data[grid] = value


def _fill(arg: Any, env: list[Any]) -> Any:
    if arg.__class__ is _Slot:
        return env[arg.at]
    if isinstance(arg, list | tuple) and not isinstance(arg, torch.Size):
        return [_fill(item, env) for item in cast(Sequence[Any], arg)]
    return arg


def _replaced(
    node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with some values replaced by name, wherever they are given."""
    names = list(bind_arguments(node))
    given = names[: len(args)]
    spelled = tuple(new.get(name, arg) for name, arg in zip(given, args, strict=False))
    return spelled, {**kwargs, **{n: v for n, v in new.items() if n not in given}}


def _last_uses(graph: Graph) -> dict[fx.Node, list[fx.Node]]:
    """Each node -> the values that nothing reads after it."""
    last = {source: node for node in graph.nodes for source in node.all_input_nodes}
    frees: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        frees.setdefault(node, []).append(source)
    return frees


def _freeing(steps: Sequence[_Step], outputs: set[int]) -> list[_Step]:
    """The steps, each freeing what no later one of them reads."""
    last = {slot: i for i, step in enumerate(steps) for slot in _reads((step.args, step.kwargs))}
    frees: dict[int, list[int]] = {}
    for slot, i in last.items():
        if slot not in outputs:
            frees.setdefault(i, []).append(slot)
    return [step._replace(frees=tuple(frees.get(i, ()))) for i, step in enumerate(steps)]


def _reads(value: Any) -> Iterator[int]:
    if value.__class__ is _Slot:
        yield value.at
    elif isinstance(value, Mapping):
        yield from _reads(tuple(cast(Mapping[str, Any], value).values()))
    elif isinstance(value, list | tuple):
        for item in cast(Sequence[Any], value):
            yield from _reads(item)


def _written(graph: Graph) -> list[fx.Node]:
    """The buffers and constants that some call writes into, in place or as running statistics."""
    base: dict[fx.Node, fx.Node] = {n: n for n in graph.nodes if n.op == "get_attr"}
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        bound = bind_arguments(node)
        targets = [bound.get(name) for name in _STATISTICS.get(op_name(node.target), ())]
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source in base and is_mutable(node):
            targets.append(source)
        if source in base and (op_name(node.target) in VIEWS or source in targets):
            base[node] = base[source]
        found |= {base[t]: None for t in targets if isinstance(t, fx.Node) and t in base}
    tensors = graph.capture.tensors
    return [n for n in found if not isinstance(tensors[str(n.target)], nn.Parameter)]


# --- calls that need their module -----------------------------------------------------------------


def _trains(root: nn.Module, path: str) -> bool:
    return (submodule(root, path) or root).training


def _batch_norm(root: nn.Module, step: _Step, args: list[Any]) -> torch.Tensor:
    """In training a BatchNorm counts its batches, and may average over all of them."""
    x, weight, bias, mean, var, training, momentum, eps, _ = args
    owner: Any = submodule(root, step.path)
    if training and mean is not None and isinstance(owner, _BATCH_NORMS):
        momentum = owner.momentum
        if owner.num_batches_tracked is not None:
            owner.num_batches_tracked.add_(1)
            momentum = 1.0 / float(owner.num_batches_tracked) if momentum is None else momentum
    if mean is None:  # a weight that is standardised may be one value wide: it becomes its bias
        return torch.batch_norm(x, weight, bias, mean, var, training, 0.0, eps, args[-1])
    return F.batch_norm(x, mean, var, weight, bias, training, momentum or 0.0, eps)


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _stochastic(root: nn.Module, step: _Step, args: list[Any]) -> torch.Tensor:
    return find(root, args[1])(args[0])


def _hand_on(root: nn.Module, step: _Step, args: list[Any]) -> Any:
    return args[0]


def _view(root: nn.Module, step: _Step, args: list[Any]) -> torch.Tensor:
    """A slice of a parameter is not contiguous: what is viewed whole may need a copy here."""
    source, shape = args
    if isinstance(shape, torch.Tensor):
        return source.reshape(shape.shape)
    return source.reshape(shape) if isinstance(shape, list | tuple) else source.view(shape)


def _paired(root: nn.Module, step: _Step, args: list[Any]) -> torch.Tensor:
    """A slice may start between the two values of a pair: then they need a place of their own."""
    (source,) = args
    odd = source.storage_offset() % 2 or any(stride % 2 for stride in source.stride()[:-1])
    return torch.view_as_complex(
        source.clone(memory_format=torch.contiguous_format) if odd else source
    )


_RUNS: dict[str, Callable[..., Any]] = {
    "nestify::stochastic": _stochastic,
    "batch_norm": _batch_norm,
    "view": _view,
    "view_as": _view,
    **dict.fromkeys(PAIRED, _paired),
}
