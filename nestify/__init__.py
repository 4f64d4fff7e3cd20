"""nestify: a graph-rewriting model-transformation compiler for PyTorch.

One training run gives a nested family of networks: smaller ones live inside larger ones.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nestify.errors import (
    ArtifactError,
    CaptureError,
    InfeasibleError,
    NestifyError,
    NestifyWarning,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from nestify import analysis, training
    from nestify.compiler import estimate, trace, transform
    from nestify.emit import export
    from nestify.explore import search
    from nestify.explore.plan import Plan
    from nestify.graph.cost import Cost
    from nestify.nested.model import NestedModel
    from nestify.space import SearchSpace, Subnet, Unit
    from nestify.targets import list_targets

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "CaptureError",
    "Cost",
    "InfeasibleError",
    "NestedModel",
    "NestifyError",
    "NestifyWarning",
    "Plan",
    "SearchSpace",
    "Subnet",
    "Unit",
    "UsageError",
    "VerificationError",
    "analysis",
    "estimate",
    "export",
    "list_targets",
    "search",
    "trace",
    "training",
    "transform",
]

# Loaded on first use, so that `import nestify` costs next to nothing.
_LAZY = {
    "Cost": "nestify.graph.cost",
    "NestedModel": "nestify.nested.model",
    "Plan": "nestify.explore.plan",
    "SearchSpace": "nestify.space",
    "Subnet": "nestify.space",
    "Unit": "nestify.space",
    "estimate": "nestify.compiler",
    "export": "nestify.emit",
    "list_targets": "nestify.targets",
    "search": "nestify.explore",
    "trace": "nestify.compiler",
    "transform": "nestify.compiler",
}


def __getattr__(name: str) -> Any:
    if name in ("analysis", "training"):
        return importlib.import_module(f"nestify.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nestify' has no attribute {name!r}")
