"""AlexNet (Krizhevsky et al., 2012) in one tower: filter groups before they were a choice.

    nestify inspect examples/models/alexnet.py

The published network has two filter groups in conv2, conv4 and conv5, because it was trained on
two GPUs. This one has none; ``column-2{embed=none,groups=conv3:1}`` puts them back. Nothing mixes
the groups between two of these convolutions, hence ``embed=none``. Counted as Caffe does
(``convention="caffe"``) at 227 x 227: 1,135,266,664 multiply-adds and 62,378,344 parameters, and
724,417,384 and 60,965,224 with the two groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and three linear layers."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, 4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.norm = nn.LocalResponseNorm(5)
        self.pool = nn.MaxPool2d(3, 2)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 227, 227) to logits (batch, classes)."""
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = self.pool(self.relu(self.conv5(x)))
        x = self.dropout(self.relu(self.fc6(x.flatten(1))))
        return self.fc8(self.dropout(self.relu(self.fc7(x))))


def initialise(module: nn.Module) -> None:
    """Random weights that keep the scale of the signal (He et al., 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return AlexNet()


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0)),)
