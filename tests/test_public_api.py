"""The public face: what ``import nestify`` offers, and what it must not cost."""

from __future__ import annotations

import subprocess
import sys

import nestify

PUBLIC = [
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


def imported_by(code: str, *libraries: str) -> list[str]:
    """Those of ``libraries`` that a fresh interpreter holds after running ``code``."""
    script = f"import sys\n{code}\nprint(*(n for n in {libraries!r} if n in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_public_names_are_frozen() -> None:
    assert sorted(nestify.__all__) == PUBLIC, "a public name is a promise: see CONTRIBUTING.md"


def test_public_names_exist_and_are_documented() -> None:
    for name in nestify.__all__:
        assert getattr(nestify, name).__doc__, f"nestify.{name} has no docstring"


def test_import_is_light() -> None:
    heavy = (
        "matplotlib",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "onnxsim",
        "networkx",
        "typer",
        "rich",
    )
    assert imported_by("import torch, nestify", *heavy) == []


def test_the_functions_come_without_the_compiler() -> None:
    """It takes longer to import than torch; marking a method with torch's own decorator does it."""
    code = "import torch, nestify.compiler, nestify.training, nestify.explore"
    assert imported_by(code, "torch._dynamo", "torch._inductor") == []


def test_command_line_starts_without_torch() -> None:
    assert imported_by("import nestify.cli", "torch", "onnx", "onnxruntime", "networkx") == []
