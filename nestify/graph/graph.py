"""The analysed graph: a captured model whose every dim is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx

from nestify.capture.captured import Capture
from nestify.capture.source_lines import source_line
from nestify.dims import Const, Dim, Expr, Reason, dims_of, leaves_of, new_dim
from nestify.errors import UsageError
from nestify.graph.groups import Block, Change, Coverage, DimGroup, FixedDim, Site
from nestify.graph.moves import Moves, check_moves, width
from nestify.graph.naming import GroupNames, kind_of_group
from nestify.graph.residual_blocks import find_blocks
from nestify.rules import Call, Dims
from nestify.space import Unit

__all__ = ["Graph"]


class Graph:
    """A captured model whose every dim is known.

    ``dims`` gives each node's dims, ``calls`` what each node's rule found, ``tensor_dims`` the dims
    of each parameter and buffer by name, ``read`` the names of those that a call reads, ``batch``
    the free batch dim, or None for the ``batch_reason``, ``moves`` what each unit decides.
    ``changes`` says what rewrite passes did, and ``original`` is the graph before the first that
    made another network of it (None: it is still the same one).

    >>> import torch
    >>> from nestify.capture.captured import capture
    >>> from nestify.graph.analysis import analyse
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
        self.moves: dict[str, Moves] = {}
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
        names = GroupNames(self.capture.tensors)
        return tuple(
            DimGroup(
                names.give(dim, where),
                dim.size,
                kind_of_group(dim, where, self.capture.tensors),
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

    def with_changes(self, changes: Sequence[Change]) -> Graph:
        """This graph with more notes of what a pass did."""
        noted = copy.copy(self)
        noted.changes = (*self.changes, *changes)
        return noted

    def with_units(self, units: Sequence[Unit], moves: Mapping[str, Moves] | None = None) -> Graph:
        """This graph with more units of the search space; how a pass hands on its choice.

        ``moves`` says what units move that are not the width of the group of their name.

        Raises:
            UsageError: two units decide the same dim, or a table does not fit its unit.
        """
        twice = {u.name for u in self.units} & {u.name for u in units}
        if twice:
            raise UsageError(
                f"two passes of the recipe choose {', '.join(sorted(twice))}; drop one of them"
            )
        given = moves or {}
        groups = {group.name: group.dim for group in self.groups}
        chosen = copy.copy(self)
        vars(chosen).pop("droppable", None)
        chosen.units = (*self.units, *units)
        chosen.moves = self.moves | {
            u.name: given[u.name] if u.name in given else width(groups[u.name]) for u in units
        }
        check_moves(chosen.units, chosen.moves)
        return chosen

    @property
    def width_names(self) -> dict[Dim, str]:
        """The unit that decides each Dim, presences of blocks apart."""
        presences = {block.presence for block in self.droppable}
        return {dim: u for u, moves in self.moves.items() for dim in moves if dim not in presences}

    @cached_property
    def droppable(self) -> tuple[Block, ...]:
        """The residual blocks that some unit may drop."""
        if "blocks" not in vars(self):
            return ()  # a pass that lets a unit drop blocks has looked for them
        moved = {dim for moves in self.moves.values() for dim in moves}
        return tuple(block for block in self.blocks if block.presence in moved)

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters that the graph reads, by name."""
        for name, tensor in self.capture.tensors.items():
            if isinstance(tensor, torch.nn.Parameter) and name in self.read:
                yield name, tensor


def _unread(name: str, tensor: torch.Tensor) -> Dims:
    """Dims of which nothing depends on a choice."""
    why = Reason(name, "get_attr", "is a dim of a tensor that no call reads", "unread")
    return tuple(Const(int(n), why) for n in tensor.shape)


def _size(loop: tuple[Expr, ...]) -> int:
    return math.prod(expr.size for expr in loop)


def _elastic_share(items: list[tuple[int, Dims]]) -> float:
    total = sum(size for size, _ in items)
    elastic = sum(
        size for size, dims in items if any(not dim.batch for expr in dims for dim in dims_of(expr))
    )
    return elastic / total if total else 0.0
