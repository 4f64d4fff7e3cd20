"""What a pass is: a rewrite of an analysed graph, or a choice of units in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from nestify.graph.graph import Graph

__all__ = ["NO_DATA", "Data", "Pass", "Reading", "Role"]

Role = Literal["rewrites", "chooses"]


@dataclass(frozen=True, slots=True)
class Data:
    """What passes may measure on: batches of inputs or (inputs, labels), and a loss.

    ``loss(outputs, labels)`` is a scalar. None: there are none.
    """

    calibration: Sequence[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None


NO_DATA = Data()


class Pass(Protocol):
    """A frozen dataclass whose fields are the options of a recipe.

    The runner (:mod:`nestify.passes.runner`) holds a pass to what it claims: one that ``chooses``
    adds units and leaves the network as it is; one that ``rewrites`` comes before any choice; one
    that ``preserves`` gives a network of the same function.
    """

    @property
    def name(self) -> str:
        """How recipes call it; ``N`` at the end stands for a number."""
        ...

    @property
    def role(self) -> Role:
        """Whether it rewrites the network or chooses units."""
        ...

    def apply(self, graph: Graph, data: Data) -> Graph:
        """Return the graph with the pass's change; ``graph`` itself stays as it is."""
        ...


@runtime_checkable
class Reading(Protocol):
    """A pass that reads data."""

    @property
    def reads(self) -> frozenset[str]:
        """Fields of :class:`Data` that it reads."""
        ...

    def without_data(self) -> Pass:
        """Return the pass that makes the same graph, but for the values of tensors, of no data."""
        ...
