"""The fuzzer's laws of training and of batches can fail: each fault that was found is planted."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from nestify.capture import captured as capture
from nestify.capture import train_diff as training_trace
from nestify.graph.fixed_batch import FixedBatch
from tests.fuzz.bundles import Network, at_another_batch
from tests.fuzz.checks import check_model
from tests.fuzz.prelude import double_precision


class Net(nn.Module):
    """Every module at two paths, a norm, and other outputs in training where asked for."""

    def __init__(self, *, swaps: bool = False, counts: bool = False) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.again = nn.ModuleList(list(self.children()))
        self.swaps, self.counts = swaps, counts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.norm(self.body(x)).relu())
        if self.counts:
            y = y - y.sum(0) / x.shape[0]
        return -y if self.swaps and self.training else y


def law_of(model_options: dict[str, bool]) -> str:
    with double_precision():
        torch.manual_seed(0)
        model, x = Net(**model_options), torch.randn(2, 4)
    case = check_model(model, (x,), (torch.cat([x, x[:1]]),), seed=0)
    return case.outcome if case.failure is None else case.failure.law


OPTIONS = [{}, {"swaps": True}, {"counts": True}]


@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_is_wrong(options: dict[str, bool]) -> None:
    assert law_of(options) == "checked"


def test_a_lost_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def nobody(model: nn.Module) -> Generator[set[nn.Module]]:
        yield set()

    monkeypatch.setattr(capture, "mode_readers", nobody)
    assert law_of({}) == "step"


def test_outputs_of_training_that_nobody_mentions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_trace, "_notes", lambda *_: iter(()))
    monkeypatch.setattr(training_trace, "_output_notes", lambda *_: iter(()))
    assert law_of({"swaps": True}) == "step"


def test_a_warning_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_trace, "_output_notes", lambda *_: iter(["lies in training"]))
    assert law_of({"swaps": True}) == "checked"
    monkeypatch.setattr(
        capture,
        "training_arguments",
        lambda *given: training_trace.training_arguments(*given)._replace(
            notes=("the model lies in training",)
        ),
    )
    assert law_of({}) == "warning"


def test_a_fixed_batch_that_is_taken_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FixedBatch, "of", classmethod(lambda *_: None))
    assert law_of({"counts": True}) == "refusal"


def test_onnxruntime_is_asked_at_another_batch() -> None:
    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.ones(2, 1)

    x = torch.randn(2, 3)
    free = torch.fx.symbolic_trace(nn.Linear(3, 4))
    fixed = torch.fx.symbolic_trace(Baked())
    other = (torch.randn(3, 3),)
    assert at_another_batch(
        Network(free.double(), (x.double(),)), (other[0].double(),)
    ).outcome == ("equal")
    verdict = at_another_batch(Network(fixed, (x,)), other)
    assert verdict.outcome == "equal", "it is refused, and not said to be free"
