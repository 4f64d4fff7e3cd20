"""The op table: for each op, what its dims mean, which literals spell them out, and what it costs.

Everything else is derived from it: dims, slicing, new literals, MACs, masks, and the law tests that prove
each rule by running the op. An op without a rule fixes the dims it touches and is listed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nestify.rules.calls import Call, Dims, Literal, bind_arguments, op_name, shape_of
from nestify.rules.lines import LINES
from nestify.rules.math import MATH
from nestify.rules.shapes import SHAPES

__all__ = ["RULES", "Call", "Dims", "Literal", "bind_arguments", "op_name", "shape_of"]

RULES: dict[str, Callable[[Call], Any]] = {**LINES, **MATH, **SHAPES}
