"""A nested model is known again by what it computes; how it was captured does not count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import nestify
from nestify.nested.fingerprint import Fingerprint, fingerprint


class Scaled(nn.Module):
    """A factor that ``state_dict`` does not hold."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("factor", torch.tensor(factor), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.relu(self.up(x)) * self.factor)
        return y.reshape(x.shape[0], 4, -1)


def network(act: Callable[[], nn.Module] = nn.ReLU, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=stride), act(), nn.Conv2d(8, 4, 3))


def known(make: Callable[[], nn.Module], batch: int = 2) -> Fingerprint:
    torch.manual_seed(0)
    model = make().eval()
    return fingerprint(nestify.transform(model, "fn3-channel", (torch.ones(batch, 1, 9, 9),)))


@pytest.mark.parametrize(
    "other",
    [
        lambda: network(nn.Tanh),
        lambda: network(stride=2),
        lambda: network(lambda: nn.LeakyReLU(0.2)),
        lambda: nn.Sequential(network(), nn.ReLU()),
    ],
    ids=["activation", "stride", "slope", "one more"],
)
def test_another_function_of_the_same_weights_is_another_structure(
    other: Callable[[], nn.Module],
) -> None:
    assert known(other).structure != known(network).structure


def test_a_buffer_that_is_not_saved_is_a_weight() -> None:
    one, three = known(lambda: Scaled(1.0)), known(lambda: Scaled(3.0))
    assert one.structure == three.structure
    assert one.weights != three.weights


@pytest.mark.parametrize("make", [network, lambda: Scaled(2.0)])
def test_the_batch_of_the_capture_does_not_count(make: Callable[[], nn.Module]) -> None:
    assert known(make, 2) == known(make, 5)
