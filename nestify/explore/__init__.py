"""Search: which subnets to score, what they score, and what they cost.

Imports: all rooms up to analysis. Start reading: ``driver``, then ``protocol``
(what a method is) and ``methods``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestify.explore.driver import MAX_EVALUATIONS, search
    from nestify.explore.fidelity import fidelity
    from nestify.explore.methods import METHODS

__all__ = ["MAX_EVALUATIONS", "METHODS", "fidelity", "search"]

# Loaded on first use: the command line reads constraints before it needs torch.
_LAZY = {
    "MAX_EVALUATIONS": "nestify.explore.driver",
    "METHODS": "nestify.explore.methods",
    "fidelity": "nestify.explore.fidelity",
    "search": "nestify.explore.driver",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
