"""Where an evaluation may start in the middle: cuts of the graph that few bytes cross.

A cut is chosen once for a graph. Nothing before it draws random numbers or writes into a tensor of
the model, and nothing behind it writes into a value that crosses it: what crosses can be kept and
handed on as it is. Between two places where a new choice comes in, one cut is enough.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import fx
from torch._ops import OpOverload  # no public name
from torch.utils import _pytree as pytree

from nestify.dims import Dim, Expr, all_dims
from nestify.graph.graph import Graph
from nestify.graph.liveness import sums_of_blocks
from nestify.graph.memory import roots, statistics_of, written_operands
from nestify.rules import STOCHASTIC, bind_arguments, mode_argument, op_name
from nestify.runtime.bound import Bound
from nestify.runtime.program import Program
from nestify.runtime.steps import reads

__all__ = ["Cuts", "Mark"]

_MOST = 24
_NEAR = 0.01  # of the cost: a cut may lie so much earlier if fewer bytes cross it
_TRIFLE = 0.02  # of the cost: what starts this late saves nothing
_ELEMENTWISE = 8  # multiply-accumulates that an element costs which is only read and written
_RATES = ("p", "dropout", "dropout_p")


class Mark(NamedTuple):
    """A cut in the steps of one subnet: before which step, which slots cross it, and on which
    choices they depend: sizes by Dim, and the first of the tensors in the order of their use.
    """

    step: int
    slots: tuple[int, ...]
    sizes: tuple[int, ...]
    place: int


class Cuts:
    """The cuts of a program's graph.

    Example:
        >>> cuts = Cuts(program)
        >>> marks = cuts.of(program.bind(keep, batch))
        >>> [mark.step for mark in marks] == sorted(mark.step for mark in marks)
        True

    Attributes:
        places: the slots of the last calls before the cuts, in order.
        before: of each unit, the share of the cost that lies before the last cut at which its
            choice has not come in.
        first_reads: the slot of the first call that reads each tensor of the model.
    """

    def __init__(self, program: Program) -> None:
        graph = program.graph
        self.slots = program.slots
        self.first_reads: dict[str, int] = {}
        for node in program.attrs:
            read = min(self.slots[user] for user in node.users)
            name = str(node.target)
            self.first_reads[name] = min(read, self.first_reads.get(name, read))
        first = _first_uses(graph, self.slots)
        self._dims = [dim for dims in first.values() for dim in dims]
        costs = _Costs(graph, self.slots)
        self.places = _choose(graph, costs, _safe(graph, self.slots), first)
        self._known = [
            sum(len(dims) for slot, dims in first.items() if slot <= place) for place in self.places
        ]
        shares = [0.0, *(costs.spent[place] / costs.spent[-1] for place in self.places)]
        entrances = _entrances(graph, self._dims)
        self.before = {u: shares[bisect_right(self._known, i)] for u, i in entrances.items()}
        self._marks: WeakKeyDictionary[Bound, list[Mark]] = WeakKeyDictionary()

    def of(self, bound: Bound) -> list[Mark]:
        """The cuts in the steps of one subnet, in order; of several at one place the last."""
        found = self._marks.get(bound)
        if found is None:
            found = self._marks[bound] = self._find(bound)
        return found

    def _find(self, bound: Bound) -> list[Mark]:
        outs = [step.out for step in bound.line.steps]
        sizes = [bound.keep.sizes.get(dim, dim.size) for dim in self._dims]
        crossing = _crossing(bound, outs, self.places)
        marks = [
            Mark(index, slots, tuple(sizes[:known]), place)
            for place, known, (index, slots) in zip(self.places, self._known, crossing, strict=True)
        ]
        last = {mark.step: mark for mark in marks}
        return [mark for step, mark in last.items() if 0 < step < len(outs)]


def _crossing(
    bound: Bound, outs: Sequence[int], places: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """For each place the index of the first step behind it, and the slots that are made before it
    and read behind.
    """
    kept = set(reads(bound.frame.outputs))
    dies = {slot: i for i, step in enumerate(bound.line.steps) for slot in step.frees}
    live: dict[int, int] = {}
    index = 0
    for place in places:
        while index < len(outs) and outs[index] <= place:
            out = outs[index]
            death = len(outs) if out in kept else dies.get(out, index)
            live[out] = death
            index += 1
        live = {slot: death for slot, death in live.items() if death >= index}
        yield index, tuple(live)


# --- choosing -------------------------------------------------------------------------------------


class _Costs:
    """What has been spent up to each slot, and the bytes that cross behind it."""

    def __init__(self, graph: Graph, slots: dict[fx.Node, int]) -> None:
        count = len(slots)
        each = [0] * count
        changes = [0] * (count + 1)
        base = roots(graph)
        born: dict[fx.Node, int] = {}
        dies: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            each[slots[node]] = _cost(graph, node)
            root = base[node]
            born.setdefault(root, slots[node])
            dies[root] = max([dies.get(root, 0), *(slots[user] for user in node.users)])
        for root, birth in born.items():
            if root.op != "get_attr" and dies[root] > birth:
                changes[birth] += _bytes(root)
                changes[dies[root]] -= _bytes(root)
        self.spent = list(accumulate(each))
        self.bytes = list(accumulate(changes))


def _cost(graph: Graph, node: fx.Node) -> int:
    macs = 0
    for loop in graph.calls[node].macs:
        size = 1
        for expr in loop:
            size *= expr.size
        macs += size
    return macs + _ELEMENTWISE * sum(t.numel() for t in _tensors(node))


def _bytes(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(node))


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(node.meta["val"]) if isinstance(v, torch.Tensor)]


def _first_uses(graph: Graph, slots: dict[fx.Node, int]) -> dict[int, list[Dim]]:
    """The choices that come in at each slot for the first time: Dims of units, and blocks."""
    names = {unit.name for unit in graph.units}
    chosen = {group.dim for group in graph.groups if group.name in names}
    sums = sums_of_blocks(graph)
    seen: dict[int, Expr] = {}
    found: dict[int, list[Dim]] = {}
    for node, call in graph.calls.items():
        attrs = [graph.dims[n] for n in node.all_input_nodes if n.op == "get_attr"]
        exprs = pytree.tree_leaves([list(call.literals.values()), attrs])
        spelled = (e for e in exprs if e is not None and not isinstance(e, int))
        new = [dim for dim in all_dims(spelled, seen=seen) if dim in chosen]
        new += [sums[node][0].presence] if node in sums else []
        if new:
            found[slots[node]] = new
    return found


def _entrances(graph: Graph, dims: Sequence[Dim]) -> dict[str, int]:
    """Where in ``dims`` the choice of each unit comes in."""
    order = {dim: i for i, dim in enumerate(dims)}
    return {
        unit: min(order.get(dim, len(dims)) for dim in moves) for unit, moves in graph.moves.items()
    }


def _safe(graph: Graph, slots: dict[fx.Node, int]) -> list[bool]:
    """Whether a cut behind each slot has pure calls before it, and values that stay as they are."""
    base = roots(graph)
    writes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        for operand in written_operands(node):
            writes[base[operand]] = slots[node]
    changes = [0] * (len(slots) + 1)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        last = max((slots[user] for user in node.users), default=-1)
        end = min(last, writes.get(base[node], -1))
        if end > slots[node]:
            changes[slots[node]] += 1
            changes[end] -= 1
    endangered = list(accumulate(changes))
    impure = (slots[n] for n in graph.nodes if n.op == "call_function" and not _pure(n, base))
    barrier = min(impure, default=len(slots))
    return [
        node.op == "call_function" and slot < barrier and not endangered[slot]
        for node, slot in slots.items()
    ]


def _pure(node: fx.Node, base: dict[fx.Node, fx.Node]) -> bool:
    """Whether a call in eval gives the same for the same operands and leaves the model alone."""
    if not isinstance(node.target, OpOverload):
        return getattr(operator, getattr(node.target, "__name__", ""), None) is node.target
    bound = bind_arguments(node)
    switch = mode_argument(node)
    still = (switch and bound[switch] is False) or any(bound.get(rate) == 0 for rate in _RATES)
    if torch.Tag.nondeterministic_seeded in node.target.tags and not still:
        return False
    known = node.target.namespace in ("aten", "torchvision")
    if not known and op_name(node.target) != STOCHASTIC:
        return False
    if statistics_of(node) and not still:
        return False
    return all(base[operand].op == "call_function" for operand in written_operands(node))


def _choose(
    graph: Graph, costs: _Costs, safe: Sequence[bool], first: dict[int, list[Dim]]
) -> list[int]:
    """One cut before each place where a choice comes in, at most ``_MOST`` spread over the cost."""
    total = costs.spent[-1]
    found: list[int] = []
    for after, before in pairwise([0, *first]):
        places = [slot for slot in range(after, before) if safe[slot]]
        if not places or costs.spent[places[-1]] < _TRIFLE * total:
            continue
        most = costs.spent[places[-1]] - _NEAR * total
        near = [place for place in places if costs.spent[place] >= most]
        found.append(min(near, key=lambda place: (costs.bytes[place], -place)))
    if len(found) <= _MOST:
        return found
    bins: dict[int, list[int]] = {}
    for place in found:
        bins.setdefault(int(_MOST * costs.spent[place] / total), []).append(place)
    return [min(b, key=lambda place: (costs.bytes[place], -place)) for b in bins.values()]
