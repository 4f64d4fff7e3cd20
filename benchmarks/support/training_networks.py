"""Networks whose training step is measured, each with its recipe and a batch of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.support.networks import Block
from examples import resnet50
from examples.mobilenet_v2 import ConvNormAct, InvertedResidual

CLASSES = 10


class Subject(NamedTuple):
    """A network under test: its recipe, one batch, and the bar for its sliced step, if any."""

    name: str
    model: Callable[[], nn.Module]
    recipe: str
    batch: tuple[int, ...]
    bar: float | None = None
    images: bool = True


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The hidden width between the two convolutions is on no residual stream."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNeXtBlock(nn.Module):
    """1 x 1, grouped 3 x 3, 1 x 1, and a shortcut (Xie et al., 2017)."""

    def __init__(self, inputs: int, outputs: int, width: int, paths: int, stride: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(inputs, width, 1)
        self.paths = ConvNormAct(width, width, 3, stride, groups=paths)
        self.expand = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The paths are summed by the last convolution."""
        return F.relu(self.norm(self.expand(self.paths(self.reduce(x)))) + self.shortcut(x))


class Classifier(nn.Module):
    """A stem, blocks, the mean over pixels, a linear classifier."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.stem, self.blocks = stem, nn.Sequential(*blocks)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Encoder(nn.Module):
    """A ViT: square patches, pre-norm blocks, the mean over tokens."""

    def __init__(self, dim: int, depth: int, heads: int, patch: int = 4, tokens: int = 64) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, side, side), as large as the tokens' patches, to logits."""
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def resnet18() -> nn.Module:
    """ResNet-18 as it is trained on images of 32 x 32: a 3 x 3 stem, no pooling."""
    blocks: list[nn.Module] = []
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [BasicBlock(width, outputs, stride), BasicBlock(outputs, outputs, 1)]
        width = outputs
    return Classifier(ConvNormAct(3, 64, 3), blocks, 512)


def resnext() -> nn.Module:
    """A ResNeXt of 8 paths, three stages of two blocks."""
    blocks: list[nn.Module] = []
    width = 64
    for outputs, inner, stride in ((128, 128, 1), (256, 256, 2), (512, 512, 2)):
        blocks += [ResNeXtBlock(width, outputs, inner, 8, stride)]
        blocks += [ResNeXtBlock(outputs, outputs, inner, 8, 1)]
        width = outputs
    return Classifier(ConvNormAct(3, 64, 3), blocks, 512)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 as it is trained on images of 32 x 32: the first strides are 1."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    blocks: list[nn.Module] = []
    width = 32
    for expansion, outputs, repeats, stride in (*stages, (6, 160, 3, 2), (6, 320, 1, 1)):
        for i in range(repeats):
            blocks.append(InvertedResidual(width, outputs, expansion, stride if i == 0 else 1))
            width = outputs
    blocks.append(ConvNormAct(width, 1280, 1))
    return Classifier(ConvNormAct(3, 32, 3), blocks, 1280)


def encoder() -> nn.Module:
    """Four blocks of width 192 with six heads."""
    return Encoder(192, 4, 6)


def vit_base() -> nn.Module:
    """A ViT-B/16, without a class token."""
    return Encoder(768, 12, 12, patch=16, tokens=196)


def mlp() -> nn.Module:
    """The multilayer perceptron of FN3: 784-512-128-10."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    )


IMAGES = (64, 3, 32, 32)
SUBJECTS = (
    Subject("ResNet-18, 32x32", resnet18, "fn3-channel{draw=uniform}", IMAGES, 0.60),
    Subject("MobileNetV2, 32x32", mobilenet_v2, "fn3-channel{draw=uniform}", IMAGES, 0.60),
    Subject(
        "ViT, 4 x 192", encoder, "fn3-head{draw=uniform}+fn3-neuron{draw=uniform}", IMAGES, 0.53
    ),
    Subject("ResNeXt, 8 paths", resnext, "fn3-path{draw=uniform}", IMAGES, 0.72),
    Subject("MLP 784-512-128-10", mlp, "fn3-neuron{draw=uniform}", (64, 784), 0.90, images=False),
)
# What keeps a GPU busy: no bar was set for these.
LARGE = (
    Subject("ResNet-50, 224x224", resnet50.model, "fn3-channel{draw=uniform}", (64, 3, 224, 224)),
    Subject(
        "ViT-B/16, 224x224",
        vit_base,
        "fn3-head{draw=uniform}+fn3-neuron{draw=uniform}",
        (64, 3, 224, 224),
    ),
)
