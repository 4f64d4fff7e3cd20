"""What a nested model takes: keyword arguments in any order, and no values but those captured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestify


class Pair(nn.Module):
    """Two tensors, a factor and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, factor: float = 1.0, negate: bool = False
    ) -> torch.Tensor:
        out = self.head(torch.relu(self.a(x) - self.b(y))) * factor
        return -out if negate else out


def test_keyword_arguments_come_in_any_order() -> None:
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    model = Pair().eval()
    nested = nestify.transform(model, "fn3-neuron", (), {"x": x, "y": y}).eval()
    torch.testing.assert_close(nested(y=y, x=x), model(x, y))


def test_inputs_of_another_structure_are_refused_in_words() -> None:
    x = torch.randn(4, 6)
    nested = nestify.transform(Pair(), "fn3-neuron", (x,), {"y": x}).eval()
    for args, kwargs, words in (
        ((x,), {}, r"\(tensor\)"),
        ((x, x), {}, r"\(tensor, tensor\)"),
        (([x, None],), {"y": (x,)}, r"\(\[tensor, None\], y=\(tensor,\)\)"),
        (({"x": x},), {"z": Pair()}, r"\(\{'x': tensor\}, z=Pair\)"),
    ):
        with pytest.raises(
            nestify.UsageError, match=rf"inputs, \(tensor, y=tensor\); got {words}$"
        ):
            nested(*args, **kwargs)


@pytest.mark.parametrize("other", [{"factor": 3.0}, {"negate": True}, {"factor": None}])
def test_another_value_than_the_captured_one_is_refused(other: dict[str, object]) -> None:
    x = torch.randn(4, 6)
    options = {"factor": 2.0, "negate": False}
    nested = nestify.transform(Pair(), "fn3-neuron", (x, x), options).eval()
    nested(x, x, **options)
    (name,) = other
    with pytest.raises(
        nestify.UsageError, match=rf"input {name} was .* when the model was captured"
    ):
        nested(x, x, **options | other)
