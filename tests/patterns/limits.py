"""Limits: ops that compare, order or mix the positions of a dim fix it, and say so; no other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.patterns.pattern import Patterns

LIMITS = Patterns()
UP = "up 5 neuron up.weight:0 up.bias:0 head.weight:1"


def fixed(op: str) -> str:
    return f"8 {op} stem.weight:0 stem.bias:0 up.weight:1"


class Between(nn.Module):
    """An op between two layers: what it reads is the first layer's output of size 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.odd(self.stem(x))).relu())

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@LIMITS.add("4 6", UP, fixed=fixed("softmax"), why="relates the positions of this dim")
class Softmax(Between):
    """A share of each of eight: without one of them the others' shares are other shares."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)


@LIMITS.add("4 6", UP, fixed=fixed("sort"), why="relates the positions of this dim")
class Sort(Between):
    """The place of a value depends on all the others."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x.sort(-1).values


@LIMITS.add("4 6", UP, fixed=fixed("argmax"), why="compares the positions of this dim")
class Argmax(Between):
    """The number of the largest position."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.argmax(-1, keepdim=True)


@LIMITS.add("4 6", UP, fixed=fixed("amax"), why="compares the positions of this dim")
class Largest(Between):
    """The largest value, which a removed position may have held."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.amax(-1, keepdim=True)


@LIMITS.add("4 6", UP, fixed=fixed("topk"), why="compares the positions of this dim")
class TopK(Between):
    """The best four of eight, and a mask of them."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x >= x.topk(4, -1).values[..., -1:])


@LIMITS.add("4 6", UP, fixed=fixed("cumsum"), why="relates the positions of this dim")
class Cumsum(Between):
    """Running sums: every position holds all before it."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(-1)


@LIMITS.add("4 6", UP, fixed=fixed("roll"), why="moves positions along this dim")
class Roll(Between):
    """Channels moved by three: which comes where depends on how many there are."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(3, -1)


@LIMITS.add("4 6", UP, fixed=fixed("flip"), why="moves positions along this dim")
class Flip(Between):
    """Channels in reverse order."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)


@LIMITS.add("4 6", UP, fixed=fixed("fft_fft"), why="mixes all positions of this dim", exports=False)
class Fourier(Between):
    """FNet over channels: every frequency is of all of them."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).real


@LIMITS.add("4 6", UP, fixed=fixed("pad"), why="pads with other positions of this dim")
class Reflect(Between):
    """Padded by its own ends and cut again: the ends are told apart."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (2, 2), mode="reflect")[..., 1:9]


@LIMITS.add("4 6", UP, fixed=fixed("avg_pool1d"), why="reads this dim by position")
class PooledChannels(Between):
    """Neighbouring channels averaged, as local response norms do."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool1d(x, 3, 1, 1)


@LIMITS.add("8 6", UP, fixed=fixed("linalg_inv"), why="reads its matrix as a whole", exports=False)
class Inverse(Between):
    """The inverse of a matrix of tokens and channels."""

    def odd(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)


@LIMITS.add(
    "3 6 6",
    """
    stem 4 channel stem.weight:0 stem.bias:0 first.weight:1
    second 4 channel head.weight:1 second.weight:0 second.bias:0
    """,
    fixed="""
    3 conv2d stem.weight:0 stem.bias:0 head.weight:1 second.weight:0 second.bias:0
    12 conv2d first.weight:0 first.bias:0
    4 conv2d second.weight:1
    """,
    why="cannot read (4*3) as 3 x 4",
)
class UnevenShuffle(nn.Module):
    """Four channels of each of three groups cannot be dealt evenly over the next three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.first = nn.Conv2d(12, 12, 1, groups=3)
        self.second = nn.Conv2d(12, 12, 1, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(F.channel_shuffle(self.first(self.stem(x)).relu(), 3)))
