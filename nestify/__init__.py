"""nestify: a graph-rewriting model-transformation compiler for PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nestify.errors import (
    ArtifactError,
    CaptureError,
    InfeasibleError,
    NestifyError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from nestify.api import estimate as estimate
    from nestify.api import trace as trace
    from nestify.api import transform as transform
    from nestify.cost import Cost as Cost
    from nestify.nested import NestedModel as NestedModel
    from nestify.space import SearchSpace as SearchSpace
    from nestify.space import Subnet as Subnet
    from nestify.space import Unit as Unit

# Loaded on first use, so that `import nestify` costs next to nothing.
_LAZY = {
    "Cost": "nestify.cost",
    "NestedModel": "nestify.nested",
    "SearchSpace": "nestify.space",
    "Subnet": "nestify.space",
    "Unit": "nestify.space",
    "estimate": "nestify.api",
    "trace": "nestify.api",
    "transform": "nestify.api",
}

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "CaptureError",
    "InfeasibleError",
    "NestifyError",
    "UsageError",
    "VerificationError",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nestify' has no attribute {name!r}")
