"""What a failure's script runs: the laws again, on the model that stands in the script."""

from __future__ import annotations

import sys

import torch
from torch import nn

from tests.fuzz.bundles import Network, in_onnxruntime, native_output_silenced
from tests.fuzz.checks import Inputs, check_model

__all__ = ["replay"]


def replay(model: nn.Module, inputs: Inputs, *, seed: int) -> None:
    """Check ``model``, say how it fared, and exit with 4 where a law is broken."""
    other = tuple(torch.cat([x, x[:1]]) for x in inputs)
    case = check_model(model, inputs, other, seed=seed)
    text, broken = case.outcome, case.failure is not None
    if case.failure is not None:
        text = f"{case.failure.law}: {case.failure.message}"
    elif case.slim is not None:
        with native_output_silenced():
            (verdict,) = in_onnxruntime([Network(case.slim, inputs)], set())
        text = f"{case.outcome}; onnxruntime: {verdict.outcome} {verdict.detail}"
        broken = verdict.outcome == "different"
    sys.stdout.write(f"{text}\n")
    raise SystemExit(4 if broken else 0)
