"""The captured graph as a flat list of steps that run any subnet on slices of the full tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from nestify.capture.autocast import Block, blocks_of
from nestify.capture.example_inputs import call_in_words
from nestify.dims import Dim, Expr, all_dims, resolve
from nestify.dims.selection import Keep, Kept, Plan
from nestify.errors import UsageError
from nestify.graph.fixed_batch import FixedBatch
from nestify.graph.graph import Graph
from nestify.graph.liveness import bypassed, live_nodes, overwritten
from nestify.graph.memory import written
from nestify.rules import STOCHASTIC, Dims, bind_arguments, facts_of, op_name
from nestify.runtime.bound import Bound, Cut, Line
from nestify.runtime.channels_last import orders_in
from nestify.runtime.padding import Room
from nestify.runtime.run import Run, copied, hand_on, run_of
from nestify.runtime.steps import Frame, Read, Slot, Step, reads
from nestify.runtime.tensor_identity import readable

__all__ = ["Program"]

_NONE: Mapping[str, torch.Tensor] = MappingProxyType({})
_MOST = 256  # sizes of an expression that are remembered
_LINES = 64  # sets of dropped blocks

_BAKED = (bool, int, float, complex, str, type(None))  # inputs whose values a trace takes over


class Program:
    """The captured graph, ready to be bound to subnets and run on any module tree that holds its
    tensors.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = {node: i for i, node in enumerate(graph.nodes)}
        self._sizes: dict[Expr, Slot] = {}  # that calls spell out
        self.inputs = [n for n in graph.nodes if n.op == "placeholder"]
        self.attrs = [n for n in graph.nodes if n.op == "get_attr"]
        self.room = Room(graph)
        self._batch = graph.batch if _spells(graph, graph.batch) else None
        self._baked = FixedBatch.of(graph)
        self.images = _is_of_images(graph)
        last = {source: node for node in graph.nodes for source in node.all_input_nodes}
        frees: dict[fx.Node, list[int]] = {}
        for source, node in last.items():
            frees.setdefault(node, []).append(self.slots[source])
        self.steps = [
            self._step(node, tuple(frees.get(node, ())))
            for node in graph.nodes
            if node.op == "call_function"
        ]
        output = next(n for n in graph.nodes if n.op == "output")
        followed = {s.path for s in self.steps if s.in_training is not None}
        followed |= {
            str(node.args[1]) for node in graph.calls if op_name(node.target) == STOCHASTIC
        }
        self.frame = Frame(
            self.slots,
            self.inputs,
            cast(list[Any], self._slotted(output.args[0])),
            dict.fromkeys(written(graph), False)
            | dict.fromkeys(written(graph, in_eval=True), True),
            orders_in(graph.capture.graph) if self.images else {},
            {node: self._placeless(blocks_of(node)) for node in graph.nodes if blocks_of(node)},
            sorted(followed),
        )
        alike: dict[Dims, Dims] = {}  # the tensors of a norm are cut alike: worked out once
        self._tensors: list[Read] = []
        for node in self.attrs:
            name = str(node.target)
            kept = tuple(map(resolve, graph.tensor_dims[name]))
            place = name, name.rpartition(".")[2], _registry(graph.capture.tensors[name])
            dims = alike.setdefault(kept, kept)
            self._tensors.append(Read(node, self.slots[node], *place, dims, self.slots[last[node]]))
        self._alike = [(dims, _Kept.of_all(dims)) for dims in alike]
        self._whole = Line(self.frame, self.steps, self._tensors)
        self._lines: OrderedDict[frozenset[fx.Node], Line] = OrderedDict()

    @cached_property
    def _overwritten(self) -> set[fx.Node]:
        return overwritten(self.graph)

    @cached_property
    def _takes_tensors(self) -> int:
        """How many inputs the model takes, if they are all plain positional ones; else -1."""
        spec = self.graph.capture.in_spec
        count = spec.num_leaves
        return count if spec == pytree.tree_structure(((0,) * count, {})) else -1

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The inputs of a call in a row.

        Keyword arguments may come in any order.

        Raises:
            UsageError: their structure, or a value that is no tensor, is not that of the example
                inputs.
        """
        if len(args) == self._takes_tensors and not kwargs:
            if all(isinstance(arg, torch.Tensor) for arg in args):
                return list(args)  # a call of a small network is short: pytree takes a part of it
        names = self.graph.capture.example_kwargs
        if kwargs.keys() == names.keys():
            kwargs = {name: kwargs[name] for name in names}
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.graph.capture.in_spec:
            capture = self.graph.capture
            wanted = call_in_words(capture.example_inputs, capture.example_kwargs)
            raise UsageError(
                f"inputs must have the structure of the example inputs, {wanted}; "
                f"got {call_in_words(args, kwargs)}"
            )
        for node, given, known in zip(self.inputs, flat, self.examples, strict=True):
            other = isinstance(given, torch.Tensor) or given != known
            if isinstance(known, _BAKED) and given is not known and other:
                raise UsageError(
                    f"input {node.name} was {known!r} when the model was captured, which is a part "
                    f"of the graph; got {given!r}. Capture again with that value"
                )
        return flat

    @cached_property
    def examples(self) -> list[Any]:
        """The example inputs of the capture in a row."""
        capture = self.graph.capture
        return pytree.tree_leaves((capture.example_inputs, dict(capture.example_kwargs)))

    def batch_size(self, flat: Sequence[Any]) -> int:
        """The batch size of these inputs; 0 where no call has it among its arguments.

        Raises:
            UsageError: it is not that of the example inputs, and that is baked in.
        """
        if self._baked is not None:
            self._baked.check(self.inputs, flat)
        return 0 if self._batch is None else self.samples(flat)

    def samples(self, flat: Sequence[Any]) -> int:
        """The batch size of these inputs; 0 where none has a batch."""
        batched = self.graph.capture.batched
        sizes = (v.shape[0] for n, v in zip(self.inputs, flat, strict=True) if n.name in batched)
        return next(sizes, 0)

    def _placeless(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks for the type of devices that the trace had its inputs on follow the inputs."""
        home = self.graph.capture.device.type
        return [b._replace(device_type="") if b.device_type == home else b for b in blocks]

    def _slotted(self, value: Any) -> Any:
        """Slots for nodes, and for the device that follows the inputs."""
        return map_aggregate(value, self._slot)

    def _slot(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Slot(self.slots[value])
        return Slot(len(self.slots)) if self.graph.capture.is_home(value) else value

    def _step(self, node: fx.Node, frees: tuple[int, ...]) -> Step:
        bound, literals = bind_arguments(node), self.graph.calls[node].literals
        sizes = {
            name: self._spelled(self._slotted(bound[name]), expr)
            for name, expr in literals.items()
            if bound[name] is not None
        }
        modes, names = self.graph.capture.mode_args, list(bound)
        changed = {name: modes[node.name, name] for name in names if (node.name, name) in modes}
        args, kwargs = self._slotted(node.args), self._slotted(dict(node.kwargs))
        said = {name: self._slotted(bound[name]) for name in changed} | sizes
        args, kwargs = _replaced(names, args, kwargs, said)
        in_training = _replaced(names, args, kwargs, changed) if changed else None
        path = str(node.meta["path"])
        return Step(node, self.slots[node], path, run_of(node), args, kwargs, in_training, frees)

    def _spelled(self, value: Any, expr: Any) -> Any:
        """An argument with slots for the sizes in it (None: unchanged)."""
        if expr is None or isinstance(expr, int):
            return value if expr is None else expr
        if isinstance(expr, tuple):
            return [self._spelled(v, e) for v, e in zip(value, cast(Any, expr), strict=True)]
        return self._sizes.setdefault(expr, Slot(len(self.slots) + 1 + len(self._sizes)))

    def bind(
        self,
        keep: Keep,
        batch: int,
        *,
        pad: bool = False,
        half: bool = False,
        turn: bool = False,
    ) -> Bound:
        """Fill in what a subnet keeps; steps without a size among their arguments are shared.

        ``pad`` gives dims room for zeros where that is cheaper in training, ``half`` in 16 bits.
        ``turn`` has images run with their channels last.
        """
        room = self.room.padded(keep, half=half) if pad else keep
        smaller = any(size < dim.size for dim, size in keep.sizes.items())
        if self._batch is not None:
            keep.hold(self._batch, batch)
            if room is not keep:
                room.hold(self._batch, batch)
        line = self._undropped(bypassed(self.graph, keep))
        found = {id(dims): _cut(dims, kept, keep, room) for dims, kept in self._alike}
        cuts = [found[id(read.dims)] for read in line.tensors]
        turned = self.images and (turn or (pad and smaller and self.room.convolves_wide))
        sizes = [room.size(expr) for expr in self._sizes]
        return Bound(self.frame, keep, line, sizes, cuts, turned)

    def plans(self, keep: Keep) -> dict[str, Plan]:
        """How ``keep`` cuts each tensor of the model."""
        cuts = {id(dims): _cut(dims, kept, keep, keep) for dims, kept in self._alike}
        return {read.name: cuts[id(read.dims)].plan for read in self._tensors}

    def _undropped(self, bypass: Mapping[fx.Node, fx.Node]) -> Line:
        """The steps and the tensors that are left without the dropped blocks."""
        if not bypass:
            return self._whole
        dropped = frozenset(bypass)
        if dropped not in self._lines:
            self._lines[dropped] = self._without(bypass)
            if len(self._lines) > _LINES:
                self._lines.popitem(last=False)
        self._lines.move_to_end(dropped)
        return self._lines[dropped]

    def _without(self, bypass: Mapping[fx.Node, fx.Node]) -> Line:
        live = live_nodes(self.graph, bypass)
        steps = [
            self._stand_in(s, bypass[s.node]) if s.node in bypass else s
            for s in self.steps
            if s.node in live
        ]
        tensors = [read for read in self._tensors if read.node in live]
        steps = _freeing(steps, set(reads(self.frame.outputs)), range(len(self.slots)))
        return Line(self.frame, steps, tensors)

    def _stand_in(self, step: Step, stays: fx.Node) -> Step:
        """Hand on the operand that stays in place of a block's sum."""
        run = copied if step.node in self._overwritten else hand_on
        args = (Slot(self.slots[stays]),)
        return step._replace(run=run, args=args, kwargs={}, in_training=None)

    def run(
        self,
        root: nn.Module,
        bound: Bound,
        flat: Sequence[Any],
        own: Mapping[str, torch.Tensor] = _NONE,
    ) -> list[Any]:
        """Run on the tensors of ``root``, each module of it in the mode that it has now; returns
        the flat outputs. ``own`` has tensors, by name and of the full size, to use instead.
        """
        return Run(root, bound, flat, own).finish()

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
        return Run(root, bound, flat, own).walk()


class _Kept:
    """What subnets keep of one expression, by the sizes of its Dims: the same ones come again."""

    def __init__(self, position: int, expr: Expr) -> None:
        self.position = position
        self._expr, self._dims = expr, sorted(all_dims([expr]), key=attrgetter("uid"))
        self._dim = expr if isinstance(expr, Dim) else None
        self._known: dict[tuple[int, ...], Kept | None] = {}

    @classmethod
    def of_all(cls, dims: Dims) -> list[_Kept]:
        """One for each of ``dims`` of which not all need be kept."""
        made = [cls(position, expr) for position, expr in enumerate(dims)]
        return [kept for kept in made if kept._dims]

    def under(self, keep: Keep) -> Kept | None:
        """What :meth:`Keep.kept` says."""
        if keep.picks and not keep.picks.keys().isdisjoint(self._dims):
            return keep.kept(self._expr)
        if (dim := self._dim) is not None:  # most are
            size = keep.sizes.get(dim, dim.size)
            return None if size == dim.size else size
        sizes = tuple([keep.sizes.get(dim, dim.size) for dim in self._dims])
        if (known := self._known.get(sizes, self)) is not self:
            return cast(Kept | None, known)
        found = keep.kept(self._expr)
        if not isinstance(found, torch.Tensor) or readable(found):  # not of a trace
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[sizes] = found
        return found


def _is_of_images(graph: Graph) -> bool:
    """Whether maps may run with channels last: nothing reads them by their place in memory."""
    read_by_place = any(facts_of(node.target).strided for node in graph.calls)
    return any(call.op == "conv2d" for call in graph.calls.values()) and not read_by_place


def _spells(graph: Graph, dim: Dim | None) -> bool:
    """Whether the size of ``dim`` is among the arguments of a call."""
    literals = pytree.tree_leaves([list(call.literals.values()) for call in graph.calls.values()])
    return dim in all_dims(e for e in literals if e is not None and not isinstance(e, int))


def _cut(dims: Dims, kept: Sequence[_Kept], keep: Keep, room: Keep) -> Cut:
    """How ``keep`` cuts a tensor, and the zeros that go behind it, the last dim's first."""
    plan = [(one.position, some) for one in kept if (some := one.under(keep)) is not None]
    zeros: list[int] = []
    if room is not keep:
        counts = [room.size(e) - keep.size(e) for e in reversed(dims)]
        zeros = [n for count in counts for n in (0, count)] if any(counts) else []
    return Cut.by([expr.size for expr in dims], plan, zeros)


def _registry(tensor: torch.Tensor) -> str:
    return "_parameters" if isinstance(tensor, nn.Parameter) else "_buffers"


def _replaced(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with some values replaced by name, wherever they are given."""
    given = names[: len(args)]
    spelled = tuple(new.get(name, arg) for name, arg in zip(given, args, strict=False))
    return spelled, {**kwargs, **{n: v for n, v in new.items() if n not in given}}


def _freeing(steps: Sequence[Step], outputs: set[int], values: range) -> list[Step]:
    """The steps, each freeing those ``values`` that no later one of them reads."""
    last = {slot: i for i, step in enumerate(steps) for slot in reads((step.args, step.kwargs))}
    frees: dict[int, list[int]] = {}
    for slot, i in last.items():
        if slot in values and slot not in outputs:
            frees.setdefault(i, []).append(slot)
    return [step._replace(frees=tuple(frees.get(i, ()))) for i, step in enumerate(steps)]
