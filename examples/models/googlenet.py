"""GoogLeNet (Szegedy et al., 2015) as Deep Roots trains it: branches that are joined by ``cat``.

    nestify inspect examples/models/googlenet.py
    nestify plan examples/models/googlenet.py --recipe root-8+fn3-channel --out out/googlenet

Every inception module joins a 1 x 1, a 3 x 3, a 5 x 5 and a pooled branch. What mixes the channels
of its spatial filters are the 1 x 1 convolutions of the next module, behind the ``cat``.

Deep Roots counts both auxiliary classifiers, so ``GoogLeNet(auxiliary=True)`` returns their logits
too, in both modes; they are there to help training, and ``model`` leaves them out. Pools 3 and 4
are padded, which makes maps of 15 and 8 pixels where others have 14 and 7, so the last 7 x 7 pool
leaves 2 x 2. BatchNorm has no scale and no bias. Counted as Caffe does (``convention="caffe"``),
with the auxiliary classifiers: 1,716,324,392 multiply-adds and 18,809,576 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Sequential):
    """Convolution, BatchNorm without scale and bias, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs, affine=False)
        self.relu = nn.ReLU(inplace=True)


class Inception(nn.Module):
    """Four branches side by side.

    ``widths``: the 1 x 1; before and in the 3 x 3; before and in the 5 x 5; behind the pool.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        one, before3, three, before5, five, pooled = widths
        self.branch1 = Layer(inputs, one, 1)
        self.branch3 = nn.Sequential(Layer(inputs, before3, 1), Layer(before3, three, 3))
        self.branch5 = nn.Sequential(Layer(inputs, before5, 1), Layer(before5, five, 5))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), Layer(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to the four branches' channels, on the same map."""
        return torch.cat(
            (self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)), 1
        )


class Auxiliary(nn.Module):
    """A classifier on a map of the middle: 5 x 5 pool, 1 x 1 convolution, two linear layers."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3, ceil_mode=True)
        self.conv = Layer(inputs, 128, 1)
        self.hidden = nn.Linear(128 * 5 * 5, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.classifier = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """A map (batch, inputs, 15, 15) to logits (batch, classes)."""
        x = self.relu(self.hidden(self.conv(self.pool(x)).flatten(1)))
        return self.classifier(self.dropout(x))


class GoogLeNet(nn.Module):
    """A stem, nine inception modules on three resolutions, a linear classifier."""

    def __init__(self, classes: int = 1000, *, auxiliary: bool = False):
        super().__init__()
        self.conv1 = Layer(3, 64, 7, 2)
        self.conv2_reduce = Layer(64, 64, 1)
        self.conv2 = Layer(64, 192, 3)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.padded_pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.inception3a = Inception(192, (64, 96, 128, 16, 32, 32))
        self.inception3b = Inception(256, (128, 128, 192, 32, 96, 64))
        self.inception4a = Inception(480, (192, 96, 208, 16, 48, 64))
        self.inception4b = Inception(512, (160, 112, 224, 24, 64, 64))
        self.inception4c = Inception(512, (128, 128, 256, 24, 64, 64))
        self.inception4d = Inception(512, (112, 144, 288, 32, 64, 64))
        self.inception4e = Inception(528, (256, 160, 320, 32, 128, 128))
        self.inception5a = Inception(832, (256, 160, 320, 32, 128, 128))
        self.inception5b = Inception(832, (384, 192, 384, 48, 128, 128))
        self.last_pool = nn.AvgPool2d(7, 1)
        self.dropout = nn.Dropout(0.4)
        self.classifier = nn.Linear(1024 * 2 * 2, classes)
        self.auxiliary1 = Auxiliary(512, classes) if auxiliary else None
        self.auxiliary2 = Auxiliary(528, classes) if auxiliary else None
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (batch, 3, 224, 224) to logits (batch, classes), or those of three classifiers."""
        others: list[Tensor] = []
        x = self.pool(self.conv2(self.conv2_reduce(self.pool(self.conv1(x)))))
        x = self.padded_pool(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        if self.auxiliary1 is not None:
            others.append(self.auxiliary1(x))
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        if self.auxiliary2 is not None:
            others.append(self.auxiliary2(x))
        x = self.padded_pool(self.inception4e(x))
        x = self.last_pool(self.inception5b(self.inception5a(x)))
        logits = self.classifier(self.dropout(x.flatten(1)))
        return (logits, *others) if others else logits


def initialise(module: nn.Module) -> None:
    """Random weights that keep the scale of the signal (He et al., 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return GoogLeNet()


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
