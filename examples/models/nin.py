"""Network in Network for CIFAR-10 (Lin et al., 2014), as Deep Roots trains it.

    nestify inspect examples/models/nin.py
    nestify plan examples/models/nin.py --recipe root-8+fn3-channel --out out/nin

Three spatial convolutions of 192 filters, each followed by two 1 x 1 convolutions, with
BatchNorm after every one of them. Each spatial convolution and the 1 x 1 after it are what Deep
Roots (Ioannou et al., 2017) turns into a root module: ``root-8`` gives conv2a 8 filter groups and
conv3a 4. Counted as Caffe does (``convention="caffe"``): 222,487,946 multiply-adds and 966,986
parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Sequential):
    """Convolution, BatchNorm, ReLU; the size of the map stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


class NiN(nn.Module):
    """Three stages on maps of 32, 16 and 8 pixels; ``width`` scales all but the classes."""

    def __init__(self, classes: int = 10, width: float = 1.0):
        super().__init__()
        wide, middle, narrow = (int(filters * width) for filters in (192, 160, 96))
        self.conv1a = Layer(3, wide, 5)
        self.conv1b = Layer(wide, middle, 1)
        self.conv1c = Layer(middle, narrow, 1)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2a = Layer(narrow, wide, 5)
        self.conv2b = Layer(wide, wide, 1)
        self.conv2c = Layer(wide, wide, 1)
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.conv3a = Layer(wide, wide, 3)
        self.conv3b = Layer(wide, wide, 1)
        self.conv3c = Layer(wide, classes, 1)
        self.pool3 = nn.AdaptiveAvgPool2d(1)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 32, 32) to logits (batch, classes)."""
        x = self.pool1(self.conv1c(self.conv1b(self.conv1a(x))))
        x = self.pool2(self.conv2c(self.conv2b(self.conv2a(x))))
        x = self.conv3c(self.conv3b(self.conv3a(x)))
        return self.pool3(x).flatten(1)


def initialise(module: nn.Module) -> None:
    """Random weights that keep the scale of the signal (He et al., 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return NiN()


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
