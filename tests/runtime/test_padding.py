"""Room for zeros: which dims get it, and that a padded step is the step without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.runtime.padding import Room
from tests.nested.test_model import train_alike
from tests.nested.test_training import gradients, put_back


class Bottleneck(nn.Module):
    """Plain, depthwise and 1 x 1 convolutions with norms, on and off a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1)
        self.expand, self.norm1 = nn.Conv2d(40, 300, 1, bias=False), nn.BatchNorm2d(300)
        self.depthwise, self.norm2 = nn.Conv2d(300, 300, 3, 1, 1, groups=300), nn.BatchNorm2d(300)
        self.slope = nn.PReLU(300)
        self.project, self.norm3 = nn.Conv2d(300, 40, 1), nn.BatchNorm2d(40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.silu(self.norm1(self.expand(x)))
        y = torch.sigmoid(self.slope(self.norm2(self.depthwise(y))))
        return self.head((x + self.norm3(self.project(y))).mean((2, 3)))


def pair(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 40, 3), *between, nn.Conv2d(40, 4, 3))


class Reads(nn.Module):
    """The second convolution reads its input through ``how``."""

    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor], width: int = 40) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 40, 3), nn.Conv2d(width, 4, 1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.how(self.a(x)))


PADDED: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: pair(nn.BatchNorm2d(40), nn.ReLU()),
    "pool": lambda: pair(nn.Hardswish(), nn.MaxPool2d(2, 1)),
    "squeeze": lambda: Reads(lambda x: x * x.mean((2, 3), keepdim=True)),
}
BARE: dict[str, Callable[[], nn.Module]] = {
    "draws noise": lambda: pair(nn.Dropout(0.5)),
    "statistics over channels": lambda: Reads(lambda x: x - x.mean(1, keepdim=True)),
    "group norm": lambda: pair(nn.GroupNorm(4, 40)),
    "infinite at zero": lambda: Reads(lambda x: x.exp().log().sqrt()),
    "no epsilon": lambda: pair(nn.BatchNorm2d(40, eps=0.0)),
    "concatenated": lambda: Reads(lambda x: torch.cat([x, x], 1), 80),
    "channels multiplied by each other": lambda: Reads(
        lambda x: x * x.flatten(2).transpose(1, 2).matmul(x.flatten(2)).mean()
    ),
}


def rooms(model: nn.Module) -> dict[str, int]:
    graph = nestify.trace(model, (torch.randn(2, 3, 7, 7),))
    quanta = Room(graph).quanta
    return {group.name: quanta[group.dim] for group in graph.groups if group.dim in quanta}


@pytest.mark.parametrize("name", PADDED)
def test_channels_that_stand_alone_are_padded(name: str) -> None:
    assert list(rooms(PADDED[name]()).values()) == [16]


@pytest.mark.parametrize("name", BARE)
def test_channels_that_zeros_could_disturb_are_not(name: str) -> None:
    assert rooms(BARE[name]()) == {}


def test_a_dim_has_at_most_sixteen_sizes() -> None:
    assert rooms(Bottleneck()) == {"stem": 16, "expand": 32}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (13, 150), (16, 32), (33, 299), (40, 300)])
def test_a_padded_step_is_a_step_of_the_extracted_network(
    sizes: tuple[int, int], channels_last: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6).double()
    nested = nestify.transform(Bottleneck().double(), "fn3-channel{where=all}", (x,)).train()
    if channels_last:
        nested = nested.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    subnet = nestify.Subnet(dict(zip(("stem", "expand"), sizes, strict=True)))
    before = {name: b.clone() for name, b in nested.named_buffers()}
    slim = nested.extract(subnet, verify=False)
    train_alike(slim, nested)
    with nested.activate(subnet):
        out = nested(x)
    expected = slim(x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    for result in (out, expected):
        result.square().sum().backward()
    grads = put_back(nested, subnet, slim)
    for name, grad in gradients(nested).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-8, atol=1e-11, msg=name)
        assert grad.stride() == nested.get_parameter(name).stride(), name
    for name, buffer in slim.named_buffers():
        full = nested.get_buffer(name)
        kept = full[: len(buffer)] if buffer.ndim else full
        torch.testing.assert_close(kept, buffer, rtol=1e-10, atol=1e-12)
        if buffer.ndim:
            assert torch.equal(full[len(buffer) :], before[name][len(buffer) :])


class Mlp(nn.Module):
    """A hidden width that stands alone, and one that is split into pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 100), nn.Linear(100, 40), nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.b(F.relu(self.a(x))))
        return self.c(y.view(len(y), 20, 2).flip(2).flatten(1))


def test_matrices_get_room_in_16_bits_only() -> None:
    """There a kernel is compiled for every new size; in float32 zeros would only cost."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    nested = nestify.transform(Mlp(), "fn3-neuron", (x,)).train()
    subnet = nested.space.complete({"a": 51})

    def zeros(net: nestify.NestedModel, autocast: bool) -> list[str]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            bound = net._bind(subnet, 4)  # pyright: ignore[reportPrivateUsage]
        return [
            read.name for read, cut in zip(bound.line.tensors, bound.cuts, strict=True) if cut.zeros
        ]

    assert zeros(nested, autocast=False) == []
    assert zeros(nested, autocast=True) == ["a.weight", "a.bias", "b.weight"]
    slim = nested.extract(subnet, verify=False).train()
    with torch.autocast("cpu", torch.bfloat16), nested.activate(subnet):
        out, expected = nested(x), slim(x)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
        out.float().square().sum().backward()
    assert nested.get_parameter("a.weight").grad[51:].count_nonzero() == 0
    low = nestify.transform(Mlp().bfloat16(), "fn3-neuron", (x.bfloat16(),)).train()
    assert zeros(low, autocast=False) == ["a.weight", "a.bias", "b.weight"]


def test_no_room_is_given_in_eval() -> None:
    """There sizes stay for long, and the subnet is the one that ships."""
    nested = nestify.transform(Bottleneck(), "fn3-channel", (torch.randn(2, 3, 6, 6),))
    subnet = nestify.Subnet({"expand": 33})
    for training in (False, True):
        nested.train(training)
        bound = nested._bind(subnet, 2)  # pyright: ignore[reportPrivateUsage]
        assert any(cut.zeros for cut in bound.cuts) is training


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_come_out_in_the_format_they_came_in(channels_last: bool) -> None:
    """Inside a drawn step they are channels last on a CPU, where convolutions are cheaper so."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    nested = nestify.transform(PADDED["relu"](), "fn3-channel", (x,)).train()
    nested, x = nested.to(memory_format=layout), x.contiguous(memory_format=layout)
    slim = nested.extract(nestify.Subnet({"0": 19}), verify=False).train()
    with nested.activate(nestify.Subnet({"0": 19})):
        out = nested(x)
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out, slim(x), rtol=1e-4, atol=1e-5)
    bound = nested._bind(nestify.Subnet({"0": 19}), 4)  # pyright: ignore[reportPrivateUsage]
    assert bound.channels_last
    full = nested._bind(nested.space.largest(), 4)  # pyright: ignore[reportPrivateUsage]
    assert not full.channels_last  # the full network is the original, bit for bit


class Unbatched(nn.Module):
    """One volume to a sample: its maps have four dims, but no dim of channels."""

    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 40, 3), nn.Conv2d(40, 6, 1), nn.Conv2d(6, 4, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.max_pool3d(self.b(self.a(x).relu()), (1, 2, 2)))


class Viewed(nn.Module):
    """Draws on a view of a map that is no map with its channels first."""

    def __init__(
        self,
        view: Callable[[torch.Tensor], torch.Tensor],
        back: Callable[[torch.Tensor], torch.Tensor],
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.a, self.drop, self.c = (
            nn.Conv2d(3, 40, 3),
            nn.Dropout(0.5, inplace),
            nn.Conv2d(40, 4, 1),
        )
        self.view, self.back = view, back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.back(self.drop(self.view(self.a(x)))))


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def as_map(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).unflatten(2, (7, 7))


ORDERED: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: pair(nn.Dropout(0.5)),
    "dropout in place": lambda: pair(nn.Dropout(0.5, inplace=True)),
    "alpha dropout": lambda: pair(nn.AlphaDropout(0.5)),
    "dropout of channels": lambda: pair(nn.Dropout2d(0.5)),
    "random slopes": lambda: pair(nn.RReLU()),
    "noise": lambda: Reads(lambda x: x * torch.rand_like(x)),
    "coins": lambda: Reads(lambda x: x * torch.bernoulli(x.sigmoid())),
    "noise in place": lambda: Reads(lambda x: x * torch.empty_like(x).uniform_()),
    "one channel in place": lambda: nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.Conv2d(40, 1, 1), nn.Dropout(0.5, inplace=True), nn.Conv2d(1, 4, 3)
    ),
    "tokens": lambda: Viewed(as_tokens, as_map),
    "tokens in place": lambda: Viewed(as_tokens, as_map, inplace=True),
    "channels last by hand": lambda: Viewed(
        lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)
    ),
    "repeats": lambda: Viewed(lambda x: x.expand(2, *x.shape), lambda x: x.sum(0)),
    "clips": lambda: Viewed(lambda x: x.unsqueeze(2), lambda x: x.squeeze(2)),
    "volumes": Unbatched,
    "volumes whose gradients have channels last": lambda: Unbatched(3),
}


@pytest.mark.parametrize("name", ORDERED)
def test_what_is_drawn_lies_where_it_does_in_the_extracted_network(name: str) -> None:
    """Channels lie last inside a drawn step, and numbers are drawn in the order of memory."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    nested = nestify.transform(ORDERED[name]().double(), "fn3-channel{where=all}", (x,)).train()
    (unit,) = nested.space.units
    subnet = nestify.Subnet({unit.name: 19})
    slim = nested.extract(subnet, verify=False).train()
    assert nested._bind(subnet, 4).channels_last  # pyright: ignore[reportPrivateUsage]
    with nested.activate(subnet):
        torch.manual_seed(1)
        out = nested(x)
    torch.manual_seed(1)
    expected = slim(x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    for result in (out, expected):
        result.square().sum().backward()
    for path, param in slim.named_parameters():
        grad = nested.get_parameter(path).grad
        assert grad is not None and param.grad is not None
        kept = grad[tuple(slice(size) for size in param.shape)]
        torch.testing.assert_close(kept, param.grad, rtol=1e-8, atol=1e-11, msg=path)
