"""Wrong use of ``rank`` is refused, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.analysis import importance
from tests.passes.rank.nets import graph_of, net


class Sure(nn.Module):
    """Gives classes in place of scores, through one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).relu()).argmax(-1)


class Two(Sure):
    """Gives two tensors."""

    def forward(self, x: torch.Tensor) -> Any:
        found = self.head(self.hidden(x).relu())
        return found, found.sum(-1)


def first_output(outputs: Any, labels: Any) -> Any:
    return outputs[0]


def half(outputs: Any, labels: Any) -> Any:
    return 0.5


X = torch.randn(5, 4)
Y = torch.arange(5) % 3


@pytest.mark.parametrize(
    ("cls", "recipe", "data", "loss", "words"),
    [
        (
            Two,
            "rank{by=size}",
            None,
            None,
            "by of pass rank must be one of auto, magnitude, .* got 'size'",
        ),
        (Two, "rank{by=taylor}", None, None, "rank by taylor needs data: pass calibration=batches"),
        (Two, "rank", [], None, "hold no batch"),
        (Two, "rank", [((X, X), Y)], None, "structure of the example inputs"),
        (Two, "rank", [(X, Y)], None, "gives 2 tensors, none of which is called logits"),
        (Sure, "rank", [X], None, "the outputs gave nothing that has a gradient; pass loss="),
        (Sure, "rank", [(X, [1, 2])], None, "labels are a list: what is the loss"),
        (Sure, "rank", [(X, Y[:2])], None, r"labels of shape \(2,\) and torch.int64 fit neither"),
        (Two, "rank", [(X, Y)], first_output, r"gave a tensor of shape \(5, 3\)"),
        (Two, "rank", [(X, Y)], half, "gave a float"),
        (Two, "fn3-neuron", [(X, Y)], F.cross_entropy, "loss= is for passes that measure by it"),
        (Two, "fn3-neuron+rank", None, None, "units were chosen before a rewrite"),
        (nn.ReLU, "rank", None, None, "rank finds no elastic dim"),
    ],
)
def test_wrong_use_is_refused(cls: Any, recipe: str, data: Any, loss: Any, words: str) -> None:
    with pytest.raises(nestify.UsageError, match=words):
        nestify.transform(cls(), recipe, (X,), calibration=data, loss=loss)


def test_a_loss_that_fails_shows_its_line() -> None:
    def broken(outputs: Any, labels: Any) -> Any:
        raise KeyError("no such label")

    with pytest.raises(nestify.CaptureError, match=r"loss\(outputs, labels\) failed: KeyError"):
        nestify.transform(Two(), "rank", (X,), calibration=[(X, Y)], loss=broken)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = net()
    with torch.no_grad():
        model.second.weight[0, 4] = torch.nan
    with pytest.raises(nestify.UsageError, match="by magnitude is nan in group 'first'"):
        importance(graph_of(model), "magnitude")


def test_a_model_without_weights_yet_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        graph = nestify.trace(model, (torch.randn(2, 4),))
    with pytest.raises(nestify.UsageError, match="meta device"):
        importance(graph)
    wrong: Any = model
    with pytest.raises(nestify.UsageError, match="not a Sequential"):
        importance(wrong)
