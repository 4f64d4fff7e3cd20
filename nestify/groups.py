"""Analysis: run every node's rule, then read off the elastic dims, and the fixed ones and why."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

from nestify.batches import Batch
from nestify.blocks import find_blocks
from nestify.capture import Capture, source_line
from nestify.dims import Const, Dim, Expr, Reason, dims_of, fix, leaves_of, new_dim
from nestify.errors import UsageError
from nestify.rules import RULES, Call, Dims, fix_numbered, fix_plural, op_name
from nestify.space import Unit

__all__ = ["Block", "Change", "Coverage", "DimGroup", "FixedDim", "Graph", "Site", "analyse"]


class Site(NamedTuple):
    """One place where a group lives: a parameter or buffer by name, and the position of the dim."""

    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class DimGroup:
    """One elastic dim with all its sites: slicing it slices every site alike.

    ``kind`` is ``channel``, ``neuron``, ``head`` or ``path``.
    """

    name: str
    size: int
    kind: str
    sites: tuple[Site, ...]
    dim: Dim


@dataclass(frozen=True, slots=True)
class FixedDim:
    """A dim that could not be made elastic, the op and source line that fixed it, why, and what
    would free it.
    """

    size: int
    sites: tuple[Site, ...]
    reason: str
    op: str
    node: str
    source_line: str
    kind: str
    advice: str


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block, the sum ``exit`` of ``f(entry)`` and of what ``stays`` without ``f``.

    What stays is the entry, or a projection of it. ``presence`` is a Dim of size 1 that a subnet
    keeps none of where it drops the block.
    """

    name: str
    entry: str
    exit: str
    stays: str
    presence: Dim


@dataclass(frozen=True, slots=True)
class Change:
    """What a rewrite pass did at one place of the model, or left undone there, and why.

    ``where`` is the path of the module, ``done`` whether anything changed, ``preserves`` whether
    the network computes the same as before, at the same cost.
    """

    recipe: str
    where: str
    what: str
    done: bool = True
    preserves: bool = False


class Coverage(NamedTuple):
    """Shares, 0 to 1, of the parameters and of the MACs that touch at least one elastic dim."""

    params: float
    macs: float


class Graph:
    """A captured model whose every dim is known.

    ``dims`` gives each node's dims, ``calls`` what each node's rule found, ``tensor_dims`` the dims
    of each parameter and buffer by name, ``read`` the names of those that a call reads, ``batch``
    the free batch dim, or None for the ``batch_reason``. ``changes`` says what rewrite passes did,
    and ``original`` is the graph before the first that made another network of it (None: it is
    still the same one).

    >>> import torch
    >>> from nestify.capture import capture
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(g.name, g.size, g.kind) for g in analyse(capture(net, (torch.randn(1, 4),))).groups]
    [('0', 8, 'neuron')]
    """

    def __init__(self, captured: Capture) -> None:
        self.capture = captured
        self.dims: dict[fx.Node, Any] = {}
        self.calls: dict[fx.Node, Call] = {}
        self.read = {str(node.target) for node in captured.graph.find_nodes(op="get_attr")}
        self.tensor_dims: dict[str, Dims] = {
            name: tuple(map(new_dim, tensor.shape)) if name in self.read else _unread(name, tensor)
            for name, tensor in captured.tensors.items()
        }
        self.unknown_ops: dict[str, str] = {}
        self.units: tuple[Unit, ...] = ()
        self.changes: tuple[Change, ...] = ()
        self.original: Graph | None = None
        self.stacks: Mapping[str, tuple[Block, ...]] = {}
        self.example_batch: Dim | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """The captured nodes, in order."""
        return list(self.capture.graph.nodes)

    @property
    def batch(self) -> Dim | None:
        """The batch dim while it is free, else None (the batch size of the example is baked in)."""
        found = [d for d in dims_of(self.example_batch) if d.batch] if self.example_batch else []
        return found[0] if found else None

    @property
    def batch_reason(self) -> str:
        """Why the batch size of the example is baked in, with the line; empty where it is free."""
        if self.batch is not None or not self.capture.leading:
            return ""
        if self.example_batch is None:
            return self.capture.untiled
        reasons = (leaf.reason for leaf in leaves_of(self.example_batch) if isinstance(leaf, Const))
        why = next((r for r in reasons if r is not None), Reason("", "", "it is a constant"))
        node = next((n for n in self.nodes if n.name == why.node), None)
        line = "" if node is None else source_line(node)
        said = why.text if node is None or why.op in why.text else f"{why.op} {why.text}"
        return f"{said} ({line})" if line else said

    @property
    def sizes_by_mode(self) -> list[str]:
        """Notes on calls that spell other sizes in training: a subnet decides these."""
        calls = {node.name: call for node, call in self.calls.items()}
        spelled = [
            (calls[name], argument, value)
            for (name, argument), value in self.capture.mode_args.items()
            if argument in calls[name].literals
        ]
        return [
            f"{call.op} ({source_line(call.node) or 'unknown line'}) has {argument}={value!r} in "
            f"training and {call.args[argument]!r} in eval; the nested model has that of eval in "
            "training too"
            for call, argument, value in spelled
        ]

    @cached_property
    def groups(self) -> tuple[DimGroup, ...]:
        """Every elastic dim, in graph order."""
        sites: dict[Dim, list[Site]] = {}
        for name, dims in self.tensor_dims.items():
            for position, expr in enumerate(dims):
                for dim in dict.fromkeys(dims_of(expr)):
                    sites.setdefault(dim, []).append(Site(name, position))
        names = _Names(self.capture.tensors)
        return tuple(
            DimGroup(
                names.give(dim, where),
                dim.size,
                _kind(dim, where, self.capture.tensors),
                tuple(where),
                dim,
            )
            for dim, where in sites.items()
        )

    @cached_property
    def fixed(self) -> tuple[FixedDim, ...]:
        """Every parameter dim that is not elastic although its size is a choice, and why."""
        nodes = {node.name: node for node in self.capture.graph.nodes}
        found: dict[tuple[Reason, int], list[Site]] = {}
        for name, dims in self.tensor_dims.items():
            for position, expr in enumerate(dims):
                for leaf in leaves_of(expr):
                    if isinstance(leaf, Const) and leaf.reason and leaf.reason.kind != "window":
                        found.setdefault((leaf.reason, leaf.size), []).append(Site(name, position))
        return tuple(
            FixedDim(
                size,
                tuple(dict.fromkeys(where)),
                reason.text,
                reason.op,
                reason.node,
                source_line(nodes[reason.node]) if reason.node in nodes else "",
                reason.kind,
                reason.advice,
            )
            for (reason, size), where in found.items()
        )

    @cached_property
    def coverage(self) -> Coverage:
        """How much of the model is elastic."""
        params = [(t.numel(), self.tensor_dims[name]) for name, t in self.parameters()]
        macs = [(_size(loop), loop) for call in self.calls.values() for loop in call.macs]
        return Coverage(_elastic_share(params), _elastic_share(macs))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Residual blocks that may be dropped, found with dominators."""
        calls = self.calls
        found = find_blocks(self.capture.graph, lambda n: n in calls and bool(calls[n].macs))
        return tuple(Block(b.name, b.entry.name, b.exit.name, b.stays.name, Dim(1)) for b in found)

    def with_units(
        self, units: Sequence[Unit], stacks: Mapping[str, tuple[Block, ...]] | None = None
    ) -> Graph:
        """This graph with more units of the search space; how a pass hands on its choice.

        ``stacks`` gives the blocks of the units that count layers; the last ones are dropped first.

        Raises:
            UsageError: a group or a block is chosen twice.
        """
        twice = {u.name for u in self.units} & {u.name for u in units}
        if twice:
            raise UsageError(
                f"two passes of the recipe choose {', '.join(sorted(twice))}; drop one of them"
            )
        for name, blocks in (stacks or {}).items():
            for other, others in self.stacks.items():
                if {block.exit for block in blocks} & {block.exit for block in others}:
                    raise UsageError(
                        f"units {other!r} and {name!r} drop the same blocks: two passes of the "
                        "recipe choose layers; drop one of them"
                    )
        chosen = copy.copy(self)
        chosen.units = (*self.units, *units)
        chosen.stacks = {**self.stacks, **(stacks or {})}
        return chosen

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters that the graph reads, by name."""
        for name, tensor in self.capture.tensors.items():
            if isinstance(tensor, torch.nn.Parameter) and name in self.read:
                yield name, tensor


def analyse(captured: Capture) -> Graph:
    """Give every dim of ``captured`` its expression; time is near-linear in the number of nodes."""
    graph = Graph(captured)
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            graph.dims[node] = _placeholder_dims(graph, node)
        elif node.op == "get_attr":
            graph.dims[node] = graph.tensor_dims[str(node.target)]
        elif node.op == "call_function":
            _run_rule(graph, node)
        else:
            _fix_outputs(graph, node)
    fix_numbered(graph.calls.values())
    fix_plural(graph.calls.values())
    if graph.example_batch is not None:
        traced = captured.by_batch
        Batch(graph.example_batch, traced, graph.calls, graph.dims, graph.tensor_dims).check()
    return graph


def _unread(name: str, tensor: torch.Tensor) -> Dims:
    """Dims of which nothing depends on a choice."""
    why = Reason(name, "get_attr", "is a dim of a tensor that no call reads", "unread")
    return tuple(Const(int(n), why) for n in tensor.shape)


def _placeholder_dims(graph: Graph, node: fx.Node) -> Dims:
    val = node.meta["val"]
    if not isinstance(val, torch.Tensor):
        return ()
    why = Reason(node.name, "input", "is a dim of the model's input", "input")
    dims: list[Expr] = [Const(int(n), why) for n in val.shape]
    if node.name in graph.capture.batched:
        graph.example_batch = graph.example_batch or Dim(int(val.shape[0]), batch=True)
        dims[0] = graph.example_batch
    return tuple(dims)


def _run_rule(graph: Graph, node: fx.Node) -> None:
    call = Call(node, graph.dims)
    rule = RULES.get(call.op)
    problem = f"{call.op} has no rule"
    if rule is not None:
        try:
            rule(call)
            problem = _mismatch(call)
        except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
            problem = str(error) or type(error).__name__
    else:
        graph.unknown_ops.setdefault(call.op, source_line(node))
    if problem:
        call = _give_up(node, graph, problem)
    graph.dims[node] = call.out
    graph.calls[node] = call


def _mismatch(call: Call) -> str:
    """A rule whose output does not have the op's real sizes was wrong about this call."""
    val = call.node.meta["val"]
    pairs = zip(val, call.out, strict=False) if isinstance(val, list | tuple) else [(val, call.out)]
    for tensor, dims in pairs:
        if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) != tuple(e.size for e in dims):
            return f"the rule of {call.op} does not describe this call"
    return ""


def _give_up(node: fx.Node, graph: Graph, problem: str) -> Call:
    """Fix every dim the node touches; its output is as constant as its inputs."""
    fresh = Call(node, graph.dims)
    why = fresh.why(problem, "form" if fresh.op in RULES else "rule")
    for source in fresh.tensors():
        for expr in pytree.tree_leaves(graph.dims[source]):
            fix(expr, why)

    def constant(val: Any) -> Dims:
        return tuple(Const(int(n), why) for n in getattr(val, "shape", ()))

    fresh.out = pytree.tree_map(constant, node.meta["val"])
    return fresh


def _fix_outputs(graph: Graph, node: fx.Node) -> None:
    for source in node.all_input_nodes:
        for expr in graph.dims[source]:
            why = Reason(
                source.name, op_name(source.target), "is a dim of the model's output", "output"
            )
            for dim in [dim for dim in dims_of(expr) if not dim.batch]:
                fix(dim, why)


def _kind(dim: Dim, where: list[Site], tensors: Mapping[str, torch.Tensor]) -> str:
    for role in ("head", "path"):
        if role in dim.tags:
            return role
    return "channel" if any(tensors[site.tensor].ndim > 2 for site in where) else "neuron"


class _Names:
    """Names groups after the module that produces them; a module's second group gets a suffix."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.taken: set[str] = set()
        self.numbers: dict[str, Iterator[int]] = {}

    def give(self, dim: Dim, where: list[Site]) -> str:
        wide = [s for s in where if self.tensors[s.tensor].ndim > 1]
        site = next((s for s in wide if s.dim == 0), (wide or where)[0])
        path, _, leaf = site.tensor.rpartition(".")
        base = path if path and leaf == "weight" else site.tensor
        role = next(iter(sorted(dim.tags)), "")
        candidates = [base, *([f"{base}:{role}"] if role else [])]
        if role and base not in self.taken:
            candidates.reverse()
        while candidates[0] in self.taken:
            candidates.pop(0)
            if not candidates:
                number = next(self.numbers.setdefault(base, count(2)))
                candidates = [f"{base}:{number}"]
        self.taken.add(candidates[0])
        return candidates[0]


def _size(loop: tuple[Expr, ...]) -> int:
    return math.prod(expr.size for expr in loop)


def _elastic_share(items: list[tuple[int, Dims]]) -> float:
    total = sum(size for size, _ in items)
    elastic = sum(
        size for size, dims in items if any(not dim.batch for expr in dims for dim in dims_of(expr))
    )
    return elastic / total if total else 0.0
