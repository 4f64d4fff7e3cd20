"""The op table: for each op, what its dims mean, which literals spell them out, what it costs.

Everything else is derived from it: dims, slicing, new literals, MACs, masks, and the law tests that
prove each rule by running the op. An op without a rule fixes the dims it touches and is listed.

Imports: errors, support, dims. Start reading: ``call``, then ``one_liners``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nestify.rules.call import (
    Call,
    Dims,
    Literal,
    bind_arguments,
    fix_numbered,
    fix_plural,
    is_mutable,
    op_name,
    shape_of,
)
from nestify.rules.diagonals import DIAGONALS
from nestify.rules.indexing import INDEXING
from nestify.rules.linalg import LINALG
from nestify.rules.losses import LOSSES
from nestify.rules.math import MATH
from nestify.rules.norms import STATISTICS
from nestify.rules.one_liners import LINES
from nestify.rules.op import STOCHASTIC, UNKNOWN, Layer, Op, Rule, mode_argument, schema_views
from nestify.rules.recurrent import RECURRENT
from nestify.rules.scatter import WRITES
from nestify.rules.shapes import SHAPES
from nestify.rules.spectra import SPECTRA

__all__ = [
    "OPS",
    "STOCHASTIC",
    "UNKNOWN",
    "Call",
    "Dims",
    "Layer",
    "Literal",
    "Op",
    "bind_arguments",
    "facts_of",
    "fix_numbered",
    "fix_plural",
    "is_mutable",
    "mode_argument",
    "op_name",
    "schema_views",
    "shape_of",
]

_TABLES: tuple[Mapping[str, Rule | Op], ...] = (
    LINES,
    MATH,
    LINALG,
    SPECTRA,
    STATISTICS,
    LOSSES,
    RECURRENT,
    SHAPES,
    INDEXING,
    WRITES,
    DIAGONALS,
)
OPS: dict[str, Op] = {
    name: row if isinstance(row, Op) else Op(row)
    for table in _TABLES
    for name, row in table.items()
}
"""The op table: a row for each op name. A new op is a row and a sample of it."""


def facts_of(target: Any) -> Op:
    """The row of what a node calls; for an op that the table lacks, the safe answers.

    >>> import torch
    >>> facts_of(torch.ops.aten.relu.default).nonlinear
    True
    """
    return OPS.get(op_name(target), UNKNOWN)
