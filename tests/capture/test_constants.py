"""Numbers that constants decide are folded; numbers that only assertions read are dropped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.rules import op_name
from tests.capture.serving import assert_serves, nest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 4)
        self.stride = torch.tensor([8.0, 16.0])

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(x)))


class Filled(Net):
    """A fill value, as the anchors of YOLO have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x) / torch.full((4,), self.stride[1])


class Checked(Net):
    """A sum of shapes that an assertion reads, as in RT-DETR."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shapes = torch.as_tensor([[2, 4], [1, 1]])
        torch._check((shapes[:, 0] * shapes[:, 1]).sum().item() == 9)
        return self.scores(x)


class Asserted(Net):
    """A check of the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._check(x.abs().max().item() < 1e9)
        return self.scores(x)


class Sized(Net):
    """A size, from a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.as_tensor([[2, 4]])[0, 1].item()
        return self.scores(x) + torch.ones(count)


@pytest.mark.parametrize("kind", [Filled, Checked, Asserted, Sized])
def test_they_are_no_choice_of_the_data(kind: type[nn.Module]) -> None:
    nested = assert_serves(kind(), torch.randn(3, 4))
    assert nested.graph.batch is not None
    assert not {"item", "_assert_scalar"} & {op_name(n.target) for n in nested.graph.nodes}


class Scaled(Net):
    """A number of a buffer, which may change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x) * self.scale.item()


class Written(Net):
    """A number of a constant that forward writes before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = torch.as_tensor([2, 4])
        sizes += x.shape[1]
        return self.scores(x)[:, : sizes[0].item() - 4]


@pytest.mark.parametrize(("kind", "what"), [(Scaled, "number"), (Written, "size|number")])
def test_what_may_change_is_refused(kind: type[nn.Module], what: str) -> None:
    match = rf"test_constants.py:\d+ gives a ({what}) that depends on the data"
    with pytest.raises(nestify.CaptureError, match=match):
        nest(kind(), torch.randn(3, 4))
