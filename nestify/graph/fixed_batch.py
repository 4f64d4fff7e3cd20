"""The batch size where it is baked in: another one is refused, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

import torch
from torch import fx

from nestify.errors import UsageError
from nestify.graph.graph import Graph

__all__ = ["ASSERT", "FixedBatch"]

# What torch.fx keeps in a graph though nothing reads it; it has no public name.
ASSERT: Any = vars(torch)["_assert"]


@dataclass(frozen=True, slots=True)
class FixedBatch:
    """The size that dim 0 of these inputs must have, and why."""

    model: str
    sizes: Mapping[str, int]
    reason: str

    @classmethod
    def of(cls, graph: Graph) -> FixedBatch | None:
        """What is baked into ``graph``; None where the batch is free, or no input has one."""
        sizes = graph.capture.leading
        if graph.batch is not None or not sizes:
            return None
        return cls(type(graph.capture.model).__name__, sizes, graph.batch_reason)

    def said(self, name: str) -> str:
        """What is wanted of an input, and why."""
        return (
            f"{self.model} was captured with a batch of {self.sizes[name]}, and takes no other: "
            f"{self.reason or 'it was captured one sample at a time'}. Give {name} that size in "
            "dim 0, or capture at another one"
        )

    def check(self, inputs: Sequence[fx.Node], flat: Sequence[Any]) -> None:
        """Refuse inputs of another size.

        Raises:
            UsageError: there is one.
        """
        for node, value in zip(inputs, flat, strict=True):
            size = self.sizes.get(node.name)
            shape = list(getattr(value, "shape", ()))
            if size is not None and shape[:1] != [size]:
                raise UsageError(f"input {node.name} has shape {shape}. {self.said(node.name)}")

    def guard(self, graph: fx.Graph) -> None:
        """Let ``graph`` assert it, in plain torch: torch.export takes the size from that, too."""
        inputs = [n for n in graph.nodes if n.op == "placeholder" and n.name in self.sizes]
        after = next(n for n in graph.nodes if n.op != "placeholder")
        with graph.inserting_before(after):
            for node in inputs:
                size = graph.call_function(torch.ops.aten.sym_size.int, (node, 0))
                same = graph.call_function(eq, (size, self.sizes[node.name]))
                graph.call_function(ASSERT, (same, self.said(node.name)))
