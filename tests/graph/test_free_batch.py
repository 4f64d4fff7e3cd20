"""A free batch: masks and positions that the traced code counts with ``arange``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nestify
from nestify.dims import Const, leaves_of
from tests.laws.equalities import check_laws


class Masked(nn.Module):
    """Attention under a mask that is read at counted batches, as transformers builds it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Embedding(9, 8), *(nn.Linear(8, 8) for _ in "qkv")
        self.place, self.head = nn.Embedding(7, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        positions = torch.arange(length).unsqueeze(0).expand(batch, -1)
        document = (positions.diff(prepend=positions[:, :1], dim=1) != 1).cumsum(-1)
        rows, at = torch.arange(batch), torch.arange(length)
        rows = rows[:, None, None]
        same = document[rows, at[None, :, None]] == document[rows, at[None, None, :]]
        mask = same & (at[:, None] >= at[None, :])
        x = self.embed(ids) + self.place(positions)
        y = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), mask)
        return self.head(x + y)


class Last(nn.Module):
    """The state of each sequence's last token, picked by its number in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Embedding(9, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.up(self.embed(ids)))
        last = (ids != 0).sum(1).clamp(1, 6) - 1
        return self.head(x[torch.arange(ids.shape[0]), last])


class Counted(nn.Module):
    """Channels that are told apart by number, and places counted by floats and from one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rates = torch.arange(6) * 0.5 + torch.arange(1, 7) + torch.arange(6.0)
        return self.head(torch.tanh(self.up(x)) * rates)


class Centred(nn.Module):
    """Takes the mean over the batch with a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.head(torch.tanh(y - y.sum(0, keepdim=True) / x.shape[0]))


class Unbiased(Centred):
    """The same with one less."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.head(torch.tanh(y * (y.sum(0, keepdim=True) / (len(x) - 1))))


class Switching(Centred):
    """Other code for larger batches."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x) * 0.5
        return self.head(torch.tanh(y) if len(x) > 2 else y)


class Halving(Centred):
    """Only even batches."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x)) * 0.5
        if len(x) % 2:
            raise ValueError("pairs, please")
        return self.head(y)


class FirstTwo(Centred):
    """Reads two samples whatever the batch: a number that is the example's batch size."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        return self.head(y[:2].mean(0, keepdim=True))


class LastTwo(Centred):
    """The same from the end."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        return self.head(y[-2:].mean(0, keepdim=True))


class Narrowed(Centred):
    """The same, by a call of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        return self.head(y.narrow(0, 0, 2).mean(0, keepdim=True))


class TwoRows(Centred):
    """The batch read as two rows, with no number that it computes with."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        return self.head(y.reshape(2, -1, 6).mean(1))


class SixRows(Centred):
    """Two samples of three rows each, told by one number."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x[:, None].expand(-1, 3, 4)))
        return self.head(y).reshape(6, -1)


class InTwos(Centred):
    """The first two samples of the batch cut in twos."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        return self.head(y.split(2)[0].mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Centred, "computes with 2, which is 3 with one sample more"),
        (Unbiased, "computes with 1, which is 2 with one sample more"),
        (Switching, "is made at one batch size only"),
        (Halving, "pairs, please"),
        (FirstTwo, "gives a size of 2 with one sample more, where 3 was expected"),
        (LastTwo, "gives a size of 2 with one sample more, where 3 was expected"),
        (Narrowed, "gives a size of 2 with one sample more, where 3 was expected"),
        (TwoRows, "is invalid for input of size 18"),
        (SixRows, "gives a size of 6 with one sample more, where 9 was expected"),
        (InTwos, "with one sample more"),
    ],
)
def test_numbers_worked_out_from_the_batch_size_fix_it(cls: type[nn.Module], words: str) -> None:
    model, x = cls().double(), torch.randn(2, 4, dtype=torch.float64)
    graph = nestify.trace(model, (x,))
    assert graph.batch is None
    assert graph.example_batch is not None
    (batch,) = leaves_of(graph.example_batch)
    assert isinstance(batch, Const)
    assert batch.reason is not None
    assert words in batch.reason.text
    assert check_laws(model, (x,), subnets=4) == 1


def test_a_single_sample_stays_single_where_the_code_computes_with_the_batch_size() -> None:
    model, x = Centred().double(), torch.randn(1, 4, dtype=torch.float64)
    assert nestify.trace(model, (x,)).batch is None
    assert check_laws(model, (x,), subnets=4) == 1


def test_sizes_of_the_input_leave_the_batch_free() -> None:
    """The same cuts and shapes as above, with the batch size taken from the input."""

    class Rows(Centred):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.up(x))
            y = y.reshape(x.shape[0], -1, 6).narrow(0, 0, len(x))[: len(x)]
            return self.head(y.split(len(x))[0].mean(1))

    assert nestify.trace(Rows(), (torch.randn(2, 4),)).batch is not None


def test_numbers_that_stay_leave_the_batch_free() -> None:
    class Scaled(Centred):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.up(x) * 0.5 + 2)) / 6

    assert nestify.trace(Scaled(), (torch.randn(2, 4),)).batch is not None


@pytest.mark.parametrize("cls", [Masked, Last])
def test_counted_batches_are_free(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cls().double()
    two, five = torch.randint(1, 9, (2, 7)), torch.randint(1, 9, (5, 7))
    graph = nestify.trace(model, (two,))
    assert graph.batch is not None
    assert check_laws(model, (two,), subnets=6, other=(five,)) == len(graph.groups) > 0


def test_counted_channels_are_fixed_with_the_reason() -> None:
    graph = nestify.trace(Counted(), (torch.randn(2, 4),))
    assert graph.batch is not None
    assert not graph.groups
    reasons = {(dim.op, dim.reason) for dim in graph.fixed if dim.size == 6}
    assert reasons == {("arange", "arange counts this dim")}


@torch.no_grad()
def test_a_subnet_is_bound_once_where_no_call_has_the_batch_size_among_its_arguments() -> None:
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 3)
    free = nestify.transform(nn.Sequential(*layers), "fn3-channel", (torch.ones(2, 1, 6, 6),))
    spelled = nestify.transform(Views(), "fn3-channel", (torch.ones(2, 1, 6, 6),))
    for nested, bound in ((free, 1), (spelled, 2)):
        nested.eval()
        with nested.activate(nested.space.at(0.5)):
            for size in (5, 7):
                x = torch.randn(size, 1, 6, 6)
                slim = nested.extract(nested.active)
                torch.testing.assert_close(nested(x), slim(x))
        assert len(nested._bindings._bound) == bound


class Views(nn.Module):
    """Flattens by a view that names the size of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x.view(x.shape[0], -1))
