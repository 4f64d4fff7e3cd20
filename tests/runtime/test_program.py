"""Programs: what they remember of how subnets cut tensors, and both ways to run their steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from nestify.dims.selection import Keep
from nestify.runtime.program import Program
from nestify.runtime.run import Run


class SideBySide(nn.Module):
    """Two layers whose outputs lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.left(x), self.right(x)], dim=1))


def test_positions_are_not_remembered_from_where_they_have_no_values() -> None:
    x = torch.randn(2, 4)
    nested = nestify.transform(SideBySide(), "fn3-neuron{where=all}", (x,)).eval()
    subnet = {"left": 3, "right": 2}
    with torch.device("meta"):
        nested._program.plans(nested.keep(subnet))
    ((position, kept),) = nested._program.plans(nested.keep(subnet))["last.weight"]
    assert isinstance(kept, torch.Tensor)
    assert (position, kept.tolist()) == (1, [0, 1, 2, 4, 5])


class Attends(nn.Module):
    """Heads, a norm and dropout behind a convolution, so that maps are turned in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.qkv, self.last = nn.Linear(16, 48), nn.Linear(16, 4)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.stem(x)).relu().flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(self.drop(seen).mean(1))


class Drops(nn.Module):
    """Residual blocks that may be dropped, one of them under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)) for _ in "abc")

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        with torch.autocast("cpu", torch.bfloat16):
            return (x @ x.T).float().relu()


class Draws(nn.Module):
    """Noise whose bounds are named by a word of Python, and no tensor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.empty_like(x).uniform_(**{"from": 0.25, "to": 0.5})


BOTH: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "heads": (Attends, "fn3-channel+fn3-head", (2, 3, 5, 5)),
    "blocks": (Drops, "fn3-layer+fn3-neuron", (3, 6)),
}


def one_by_one(run: Run) -> list[Tensor]:
    walk = run.walk()
    while True:
        try:
            next(walk)
        except StopIteration as done:
            return done.value


def at_once(run: Run) -> list[Tensor]:
    line = run.bound.line
    while line.function() is None:
        pass
    return run.finish()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", BOTH)
def test_the_function_of_a_line_does_what_its_steps_do(
    name: str, share: float, training: bool
) -> None:
    make, recipe, shape = BOTH[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    nested = nestify.transform(make(), recipe, (x,)).train(training)
    before = {key: value.clone() for key, value in nested.state_dict().items()}
    bound = nested._bind(nested.space.at(share), nested._program.batch_size([x]))
    found: list[list[Tensor]] = []
    for way in (one_by_one, at_once):
        torch.manual_seed(1)
        nested.load_state_dict(before)
        nested.zero_grad()
        outputs = way(Run(nested, bound, [x]))
        sum(out.square().sum() for out in outputs).backward()
        grads = [p.grad for p in nested.parameters() if p.grad is not None]
        buffers = [b.clone() for b in nested.buffers()]
        found.append([*outputs, *grads, *buffers])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_arguments_may_be_called_as_words_of_python_are() -> None:
    x = torch.zeros(2, 3)
    graph = nestify.trace(Draws(), (x,))
    program = Program(graph)
    run = Run(graph.capture.model, program.bind(Keep({}), 2), [x])
    (out,) = at_once(run)
    assert out.min() >= 0.25
    assert out.max() < 0.5
