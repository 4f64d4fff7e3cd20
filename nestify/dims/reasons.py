"""Why a dim is fixed, and what would free it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = ["ADVICE", "Kind", "Reason"]

Kind = Literal[
    "input",
    "output",
    "batch",
    "positions",
    "named",
    "window",
    "parts",
    "constant",
    "unread",
    "form",
    "rule",
]


class Reason(NamedTuple):
    """Why a dim is fixed: the node and op that fixed it, a clause that says how, and of which kind
    that is.
    """

    node: str
    op: str
    text: str
    kind: Kind = "positions"

    @property
    def advice(self) -> str:
        """What the user can do to free the dim."""
        return ADVICE[self.kind]


ADVICE: Mapping[Kind, str] = {
    "input": "nothing: what the model reads keeps its size",
    "output": "nothing where the task sets this size; else end the model with a layer of its own",
    "batch": "take the batch size from an input's shape, not from the example",
    "positions": "run the op along another dim, or put a linear map or 1x1 convolution before it",
    "named": "nothing where each position has a name of its own (q, k, v); else index a dim",
    "window": "nothing: windows keep their size",
    "parts": "choose sizes so that all cuts and reshapes of this dim fall on the same positions",
    "constant": "give the other operand as a parameter, or make it from the sizes of an input",
    "unread": "nothing: it may go; or let forward use it",
    "form": "write the call in the form that is understood, or with other ops",
    "rule": "write it with ops of the table in nestify/rules, or add a row for this op there",
}
