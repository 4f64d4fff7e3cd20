"""scikit-learn's digits and a small convolutional network on them, trained in one plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor, nn

EPOCHS, BATCH, RATE = 40, 64, 0.2
WIDTHS = (1.0, 0.5, 0.25, 0.125)


class Split(NamedTuple):
    """Images (samples, 1, 8, 8) from 0 to 1, and labels."""

    x: Tensor
    y: Tensor


@cache
def digits() -> tuple[Split, Split]:
    """70 % to train, 30 % to test, stratified; always the same."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (np.asarray(part) for part in parts)
    return _split(train_x, train_y), _split(test_x, test_y)


@cache
def folds(count: int) -> list[tuple[Split, Split]]:
    """All images cut in ``count`` parts, stratified; each in turn tests what the rest trains."""
    images, labels = load_digits(return_X_y=True)
    cut = StratifiedKFold(count, shuffle=True, random_state=0).split(images, labels)
    return [
        (_split(images[train], labels[train]), _split(images[test], labels[test]))
        for train, test in cut
    ]


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Split(x, torch.tensor(labels))


def network(width: float = 1.0) -> nn.Sequential:
    """Three convolutions of 32, 32 and 64 channels with BatchNorm, pooled into a classifier."""
    layers: list[nn.Module] = []
    inputs = 1
    for size in (32, 32, 64):
        outputs = round(size * width)
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    layers.insert(6, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


Step = Callable[[nn.Module, Tensor, Tensor], object]


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward, cross entropy, backward."""
    F.cross_entropy(net(x), y).backward()


def train(net: nn.Module, seed: int, step: Step = plain_step, epochs: int = EPOCHS) -> float:
    """SGD with momentum and a cosine schedule; returns the seconds of processor time."""
    data = digits()[0]
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    batches = len(data.y) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * batches, pct_start=0.1)
    net.train()
    start = time.process_time()
    for _ in range(epochs):
        for index in torch.randperm(len(data.y), generator=order)[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            step(net, data.x[index], data.y[index])
            optimizer.step()
            schedule.step()
    return time.process_time() - start


def calibration() -> list[Tensor]:
    """The training images in batches of 256, from which BatchNorm statistics are re-estimated."""
    return list(digits()[0].x.split(256))


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """Percent of the test images."""
    net.eval()
    data = digits()[1]
    return 100 * (net(data.x).argmax(1) == data.y).float().mean().item()
