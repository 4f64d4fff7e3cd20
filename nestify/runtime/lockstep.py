"""A graph running on calibration batches, all stopped before the same call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn

from nestify.capture.autocast import blocks_of, inside
from nestify.dims.selection import Keep
from nestify.graph.graph import Graph
from nestify.rules import STOCHASTIC, op_name
from nestify.runtime.program import Program
from nestify.support.module_tree import find, place_module, put_tensor, skeleton

__all__ = ["Stop", "Walk", "change_operand", "holder"]


_NONE: Mapping[str, torch.Tensor] = MappingProxyType({})


class Stop(NamedTuple):
    """Before one call: its node, and its arguments in each batch."""

    node: fx.Node
    args: list[list[Any]]
    kwargs: list[Any]

    def values(self, source: fx.Node) -> list[torch.Tensor]:
        """What an operand holds in each batch."""
        found: list[torch.Tensor] = []
        for args, kwargs in zip(self.args, self.kwargs, strict=True):
            seen: list[torch.Tensor] = []
            change_operand(self.node, source, args, kwargs, lambda x, seen=seen: seen.append(x))
            found.append(seen[0])
        return found

    def put(self, source: fx.Node, value: torch.Tensor) -> None:
        """Let the call run with ``value``, in the shape and dtype of an operand, in its place."""

        def shaped(old: torch.Tensor) -> torch.Tensor:
            return value.reshape(old.shape).to(old)

        for args, kwargs in zip(self.args, self.kwargs, strict=True):
            given, named = change_operand(self.node, source, args, kwargs, shaped)
            args[:] = given
            kwargs.update(named)

    def outputs(self) -> list[torch.Tensor]:
        """What the call gives, batch by batch, under autocast where it is in a block."""
        op: Any = self.node.target
        calls = zip(self.args, self.kwargs, strict=True)
        with torch.no_grad(), inside(blocks_of(self.node)):
            return [op(*args, **kwargs) for args, kwargs in calls]


class Walk:
    """Runs the subnet that ``keep`` describes in eval on every batch in step.

    ``root`` holds the tensors, and ``own`` those to use instead, as for :meth:`Program.run`. What
    is written at a stop into a tensor of ``root`` of which all is kept is what runs from there on.
    """

    def __init__(
        self,
        program: Program,
        root: nn.Module,
        batches: Sequence[list[Any]],
        keep: Keep,
        own: Mapping[str, torch.Tensor] = _NONE,
    ) -> None:
        self.root = root
        self._walks = [
            program.walk(root, program.bind(keep, program.batch_size(flat)), list(flat), own)
            for flat in batches
        ]
        self.outputs: list[list[Any]] = []

    @classmethod
    def of(cls, graph: Graph, batches: Sequence[list[Any]]) -> Walk:
        """The whole of ``graph``, on copies of its tensors."""
        return cls(Program(graph), holder(graph), batches, Keep({}))

    def stops(self) -> Iterator[Stop]:
        """Every call in order; afterwards ``outputs`` holds the flat outputs of each batch."""
        while True:
            steps: list[tuple[fx.Node, list[Any], Any]] = []
            for walk in self._walks:
                try:
                    with torch.no_grad():
                        steps.append(next(walk))
                except StopIteration as done:
                    self.outputs.append(done.value)
            if not steps:
                return
            yield Stop(steps[0][0], [args for _, args, _ in steps], [kw for _, _, kw in steps])

    def run(self) -> list[torch.Tensor]:
        """Run to the end; the flat outputs of every batch, one after the other."""
        for _ in self.stops():
            pass
        return self.leaves()

    def leaves(self) -> list[torch.Tensor]:
        """The flat outputs of every batch, once all have run."""
        leaves = (value for values in self.outputs for value in values)
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def change_operand(
    node: fx.Node,
    source: fx.Node,
    args: list[Any],
    kwargs: Mapping[str, Any],
    change: Callable[[torch.Tensor], Any],
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call with ``change`` made to its operand ``source``."""

    def changed(spec: Any, value: Any) -> Any:
        if isinstance(spec, list | tuple) and isinstance(value, list):
            pairs = zip(cast(list[Any], spec), cast(list[Any], value), strict=True)
            return [changed(part, item) for part, item in pairs]
        return change(value) if spec is source else value

    given = [changed(spec, value) for spec, value in zip(node.args, args, strict=True)]
    named = {name: changed(node.kwargs.get(name), value) for name, value in kwargs.items()}
    return given, named


def holder(graph: Graph) -> nn.Module:
    """A module tree in eval with copies of the tensors of ``graph``, to run it on."""
    model = graph.capture.model
    root = skeleton(model).eval()
    for name, tensor in graph.capture.tensors.items():
        copied = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=False)
        put_tensor(root, name, copied)
    for node in graph.calls:
        if op_name(node.target) == STOCHASTIC:
            path = str(node.args[1])
            place_module(root, path, copy.deepcopy(find(model, path)))
    return root
