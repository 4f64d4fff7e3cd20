"""A small classifier that is really trained: plan for accuracy, not for likeness.

    nestify plan examples/mlp.py --target cpu --constraint params=2e5 --out out/mlp

The other examples have random weights, so that a smaller version can only be judged by how
closely it follows the full one. This file defines what nestify uses when it is there:

- ``evaluate(model) -> float``, higher is better: here the accuracy on held-out data. ``plan``
  calls it for each subnet it tries; every row of its table is a network that was really run.
  (``evaluate(model, batch)``, the score of each sample, goes with ``batches``.)
- ``calibration``, batches of inputs with which a subnet's statistics are re-estimated where it
  has any.

The data are made up but not arbitrary. Points of a 16-dimensional space are blurred and mapped
into 784 dimensions (the size of a 28 x 28 image), and a fixed random network, the teacher, names
the class of each. There is structure to learn, in fewer dims than the student has widths: so
there is something to cut.

The student is the textbook's 784-512-128-10, trained for a second or two when ``model`` is called.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT, PIXELS, CLASSES = 16, 784, 10


def make_data(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 784) and labels (samples,); ``seed`` draws the points, never the task."""
    task = torch.Generator().manual_seed(2024)
    embed = torch.randn(LATENT, PIXELS, generator=task) / LATENT**0.5
    teacher_in = torch.randn(LATENT, 32, generator=task) / LATENT**0.5
    teacher_out = torch.randn(32, CLASSES, generator=task)

    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(samples, LATENT, generator=draw)
    labels = (torch.relu(points @ teacher_in) @ teacher_out).argmax(1)
    noise = torch.randn(samples, PIXELS, generator=draw)
    return points @ embed + 0.2 * noise, labels


def train(student: nn.Module, *, epochs: int = 6, batch: int = 128) -> None:
    """A plain training loop, the same at each call."""
    inputs, labels = make_data(8192, seed=0)
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    student.train()
    for _ in range(epochs):
        for index in torch.randperm(len(inputs), generator=order).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(student(inputs[index]), labels[index]).backward()
            optimizer.step()
    student.eval()


def model() -> nn.Module:
    """The trained model, the same at each call."""
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Linear(PIXELS, 512),
        nn.ReLU(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )
    train(student)
    return student


def evaluate(model: nn.Module) -> float:
    """Accuracy on 2048 points that were not trained on, between 0 and 1."""
    inputs, labels = make_data(2048, seed=1)
    model.eval()
    with torch.no_grad():
        return (model(inputs).argmax(1) == labels).float().mean().item()


example_inputs = (make_data(16, seed=2)[0],)
calibration = make_data(512, seed=3)[0].split(128)
