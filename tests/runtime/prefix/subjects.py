"""Networks whose evaluations start in the middle, each with its recipe and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.support.training_networks import (
    BasicBlock,
    Classifier,
    Encoder,
    ResNeXtBlock,
)
from examples.mobilenet_v2 import ConvNormAct, InvertedResidual

Batch = tuple[Tensor, ...]
CHANNELS = "fn3-channel{where=all,draw=uniform}"


class Subject(NamedTuple):
    """A network, its recipe, and what makes a batch of inputs."""

    model: Callable[[], nn.Module]
    recipe: str
    batch: Callable[[int], Batch]


def images(n: int) -> Batch:
    """Images of 16 x 16."""
    return (torch.randn(n, 3, 16, 16),)


def mobile() -> nn.Module:
    """A short MobileNetV2."""
    blocks: list[nn.Module] = [InvertedResidual(8, 8, 3, 1), InvertedResidual(8, 12, 3, 2)]
    blocks += [InvertedResidual(12, 12, 3, 1), ConvNormAct(12, 24, 1)]
    return Classifier(ConvNormAct(3, 8, 3), blocks, 24)


def resnext() -> nn.Module:
    """Paths."""
    blocks: list[nn.Module] = [ResNeXtBlock(8, 16, 16, 4, 1), ResNeXtBlock(16, 16, 16, 4, 2)]
    return Classifier(ConvNormAct(3, 8, 3), blocks, 16)


class InPlaceBlock(BasicBlock):
    """Adds and bends in place, as torchvision's blocks do."""

    def forward(self, x: Tensor) -> Tensor:
        """Writes into its own sums only."""
        y = self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu_(y)


def residual() -> nn.Module:
    """Blocks that may be dropped, with in-place sums and activations."""
    blocks: list[nn.Module] = [InPlaceBlock(8, 8, 1) for _ in range(3)]
    blocks += [InPlaceBlock(8, 12, 2), *(InPlaceBlock(12, 12, 1) for _ in range(2))]
    return Classifier(ConvNormAct(3, 8, 3), blocks, 12)


class DenseLayer(nn.Module):
    """Norm, activation in place, convolution; its output lies beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """A longer concatenation."""
        return torch.cat([x, self.conv(self.act(self.norm(x)))], 1)


def dense() -> nn.Module:
    """DenseNet: every value lives to the end of its block."""
    blocks: list[nn.Module] = [DenseLayer(8 + 4 * i, 4) for i in range(4)]
    return Classifier(ConvNormAct(3, 8, 3), blocks, 24)


class Recurrent(nn.Module):
    """An embedding, two recurrent nets, a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first, self.second = nn.LSTM(8, 12, batch_first=True), nn.GRU(12, 10, batch_first=True)
        self.head = nn.Linear(10, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (batch, length) to logits."""
        x, _ = self.first(self.embed(ids))
        x, _ = self.second(x)
        return self.head(x[:, -1])


class Masked(nn.Module):
    """Reads a view of a second input in every layer, and part of the first at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Rows where the mask is zero do not count."""
        mask, y = mask[:, :, None], x
        for layer in self.layers:
            y = torch.relu(layer(y)) * mask
        return (y + x[:, ::2].sum(1, keepdim=True)).sum(1)


def masked_batch(n: int) -> Batch:
    """Numbers and which of them count."""
    return torch.randn(n, 5, 6), (torch.rand(n, 5) > 0.3).float()


class Pyramid(nn.Module):
    """Gives the maps of all its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3) for i in range(4))
        self.heads = nn.ModuleList(nn.Conv2d(6, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by stage, the input itself among them."""
        found = {"input": x}
        for i, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            x = torch.relu(stage(x))
            found[f"map{i}"] = head(x)
        return found


class Impure(nn.Module):
    """Draws noise, counts its calls in a buffer, or writes into its input, behind some layers."""

    calls: Tensor

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.what = what
        self.register_buffer("calls", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        """The third layer is not like the others."""
        y = x
        for i, layer in enumerate(self.layers):
            y = torch.relu(layer(y))
            if i == 2 and self.what == "noise":
                y = F.dropout(y, 0.3, training=True)
            elif i == 2 and self.what == "buffer":
                self.calls.add_(1)
                y = y * self.calls
            elif i == 2 and self.what == "input":
                y = y + x.mul_(0.5)
        return y


def rows(n: int) -> Batch:
    """Vectors of six."""
    return (torch.randn(n, 6),)


def pictures(n: int) -> Batch:
    """Images of 32 x 32."""
    return (torch.randn(n, 3, 32, 32),)


def sentences(n: int) -> Batch:
    """Ids of seven words."""
    return (torch.randint(11, (n, 7)),)


NEURONS = "fn3-neuron{where=all}"
SUBJECTS: dict[str, Subject] = {
    "mobilenet": Subject(mobile, CHANNELS, images),
    "resnext": Subject(resnext, f"{CHANNELS}+fn3-path", images),
    "residual": Subject(residual, f"{CHANNELS}+fn3-layer", images),
    "dense": Subject(dense, CHANNELS, images),
    "vit": Subject(
        lambda: Encoder(16, 3, 4),
        "fn3-head+fn3-neuron{where=all}+fn3-layer",
        pictures,
    ),
    "recurrent": Subject(Recurrent, NEURONS, sentences),
    "masked": Subject(Masked, NEURONS, masked_batch),
    "pyramid": Subject(Pyramid, CHANNELS, images),
    "noise": Subject(lambda: Impure("noise"), NEURONS, rows),
    "buffer": Subject(lambda: Impure("buffer"), NEURONS, rows),
    "input": Subject(lambda: Impure("input"), NEURONS, rows),
}
WITH_NORMS = ("mobilenet", "resnext", "residual", "dense")
