"""Any inputs and outputs are served, and the batch is free or says why it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from tests.capture.serving import assert_serves

# --- inputs and outputs ---------------------------------------------------------------------------


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None = None


pytree.register_dataclass(Output)


class Many(nn.Module):
    """Positional, keyword, nested, None, bool and int inputs; a dataclass of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(
        self,
        x: torch.Tensor,
        extra: dict[str, Any],
        mask: torch.Tensor | None = None,
        *,
        double: bool = False,
        power: int = 1,
    ) -> Output:
        h = F.relu(self.a(x + extra["bias"][0])) ** power
        if mask is not None:
            h = h.masked_fill(mask[:, None], 0.0)
        y = self.b(h)
        return Output(y * 2 if double else y, (y, extra["bias"][1]))


def test_any_pytree_in_and_out() -> None:
    extra = {"bias": [torch.randn(2, 6), torch.randn(2, 3)]}
    x = torch.randn(2, 6)
    assert_serves(Many(), x, extra)
    assert_serves(Many(), x, extra, None, double=True, power=2)
    nested = assert_serves(Many(), x, extra, mask=torch.tensor([True, False]), double=True)
    with pytest.raises(nestify.UsageError, match="structure of the example inputs"):
        nested(x)


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor, types: torch.Tensor | None = None) -> dict[str, Any]:
        h = self.embed(ids)
        return {"logits": self.head(F.relu(h)), "nothing": None, "both": [h.sum((1, 2)), h.mean()]}


def test_dict_output_and_integer_inputs() -> None:
    assert_serves(Dictionary(), torch.randint(9, (2, 5)))
    assert_serves(Dictionary(), ids=torch.randint(9, (2, 5)), types=None)


# --- the batch ------------------------------------------------------------------------------------


class Baked(nn.Module):
    """The batch size as a Python int in views, expands, zeros and repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        x = torch.cat([self.token.expand(n, -1, -1), x], 1)
        x = self.a(x.reshape(n * (t + 1), c)).relu().view(n, t + 1, 8)
        x = x + torch.zeros(n, t + 1, 1) + torch.ones(t + 1, 1).repeat(n, 1, 1)
        return self.b(x.flatten(0, 1)).view(n, -1)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_is_free_where_the_code_bakes_it(batch: int) -> None:
    nested = assert_serves(Baked(), torch.randn(batch, 3, 6))
    assert nested.graph.batch is not None
    assert nested.example_inputs[0].shape[0] == batch


class Positional(nn.Module):
    """A parameter as long as the batch: the batch cannot be free."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.offset = nn.Parameter(torch.randn(batch, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x))) + self.offset


def test_a_fixed_batch_says_why() -> None:
    nested = assert_serves(Positional(3), torch.randn(3, 6))
    assert nested.graph.batch is None
    reasons = [f.reason for f in nested.graph.fixed if ("offset", 0) in f.sites]
    assert reasons == ["offset is as long as the example's batch"]


class OneSample(nn.Module):
    """Reads the batch away: tracing two samples is refused or means another thing."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__()
        self.a, self.b, self.refuses = nn.Linear(6, 8), nn.Linear(8, 4), refuses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.refuses and x.shape[0] != 1:
            raise ValueError("one sample at a time")
        return self.b(F.relu(self.a(x.squeeze(0)))).softmax(0)


@pytest.mark.parametrize("refuses", [True, False])
def test_one_sample_at_a_time(refuses: bool) -> None:
    assert_serves(OneSample(refuses=refuses), torch.randn(1, 6))


def test_unbatched_inputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert assert_serves(net, torch.randn(3, 8, 8)).graph.batch is None
    grey = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert assert_serves(grey, torch.randn(1, 8, 8)).graph.batch is None
    assert_serves(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(6))
