"""Training methods: their losses and gradients are those of their formulas, and their cost."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify import NestedModel
from nestify.training import METHODS, Method, cost_multiplier, step
from tests.nested.test_model import nest
from tests.nested.test_training import Block, classes


def test_odo_is_the_plain_loop() -> None:
    nested, x, y = classes("block")
    twin = copy.deepcopy(nested)
    torch.manual_seed(1)
    loss = step(nested, x, y, F.cross_entropy)
    torch.manual_seed(1)
    expected = F.cross_entropy(twin(x), y)
    expected.backward()
    assert torch.equal(loss, expected.detach())
    for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def by_hand(nested: NestedModel, x: torch.Tensor, y: torch.Tensor, method: Method) -> torch.Tensor:
    """The loss of the paper's formula, all subnets in one graph."""
    space = nested.space
    draws = [nested.draws.next(space.units) for _ in range(method.random)]
    with nested.activate(space.largest()):
        full = nested(x)
    loss = F.cross_entropy(full, y)
    soft = (full.detach() / method.temperature).softmax(1)
    for subnet in (*draws, *([space.smallest()] if method.smallest else [])):
        with nested.activate(subnet):
            out = nested(x)
        cross = -(soft * (out / method.temperature).log_softmax(1)).sum(1).mean()
        entropy = -(soft * soft.log()).sum(1).mean()
        loss = loss + method.distill * (cross - entropy) * method.temperature**2
        loss = loss + (1 - method.distill) * F.cross_entropy(out, y)
    return loss


@pytest.mark.parametrize(
    "method",
    [METHODS["sandwich"], METHODS["joint"], Method(full=True, distill=0.3, temperature=2.0)],
    ids=str,
)
def test_gradients_of_a_method_are_those_of_its_formula(method: Method) -> None:
    nested, x, y = classes("block")
    nested, x = nested.double(), x.double()
    twin = copy.deepcopy(nested)
    for net in (nested, twin):
        net.draws.restart(3)
    loss = step(nested, x, y, F.cross_entropy, method)
    expected = by_hand(twin, x, y, method)
    expected.backward()
    for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert loss < expected
    assert not loss.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_methods_learn(method: str) -> None:
    nested, x, y = classes("block")
    optimizer = torch.optim.Adam(nested.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        step(nested, x, y, F.cross_entropy, method)
        optimizer.step()
        with nested.activate(nested.space.at(0.5)):
            losses.append(F.cross_entropy(nested(x), y).item())
    assert losses[-1] < 0.3 * losses[0]


def test_cost_is_predicted_from_macs_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    nested, x, y = classes("block")
    full, small = nested.estimate([nested.space.largest(), nested.space.smallest()]).macs
    assert cost_multiplier(nested, Method(full=True, smallest=True, random=0)) == pytest.approx(
        1 + small / full
    )
    assert cost_multiplier(nested, "odo") < cost_multiplier(nested, "joint") - 0.99
    before = nested.draws.state_dict()
    with caplog.at_level(logging.INFO, logger="nestify.training"):
        for _ in range(2):
            step(nested, x, y, F.cross_entropy, "sandwich")
    assert caplog.text.count("nestify.training") == 1
    assert f"{cost_multiplier(nested, 'sandwich'):.2f} times the MACs" in caplog.text
    assert nested.draws.step == before["step"] + 2 * 2  # two draws a step, none for the prediction


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random": 0}, "at least one subnet"),
        ({"distill": 0.5}, "full=True"),
        (
            {"full": True, "distill": 1.5},
            r"distill of Method must be .* in \[0, 1\]; got 1.5",
        ),
        ({"full": True, "distill": "half"}, "distill of Method must be a number.*got 'half'"),
        ({"full": True, "temperature": 0.0}, "a finite number above 0; got 0.0"),
        ({"full": True, "temperature": math.inf}, "a finite number above 0; got inf"),
        ({"random": 1.5}, "random of Method must be a whole number from 0 on; got 1.5"),
        ({"full": "no"}, "full of Method must be True or False; got 'no'"),
    ],
)
def test_wrong_methods_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(nestify.UsageError, match=words):
        Method(**options)


def test_wrong_steps_say_what_to_do() -> None:
    nested, x, y = classes("block")
    with pytest.raises(nestify.UsageError, match="odo, sandwich, distilled, joint"):
        step(nested, x, y, F.cross_entropy, "sandwhich")
    with pytest.raises(nestify.UsageError, match=r"\['odo'\]; choose from odo, sandwich"):
        step(nested, x, y, F.cross_entropy, cast(Any, ["odo"]))
    for samples in (0, 10.5):
        with pytest.raises(nestify.UsageError, match="samples of cost_multiplier must be a whole"):
            cost_multiplier(nested, samples=cast(Any, samples))
    with pytest.raises(nestify.UsageError, match=r"nestify\.transform"):
        step(Block(), x, y, F.cross_entropy)
    with pytest.raises(nestify.UsageError, match=r"nested\.train\(\)"):
        step(nested.eval(), x, y, F.cross_entropy)
    pair = nest(TwoHeads(), x).train()
    with pytest.raises(nestify.UsageError, match=r"distill=0\.0"):
        step(pair, x, y, lambda out, y: F.cross_entropy(out[0], y), "sandwich")


class Gated(nn.Module):
    """A network with an input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, *, gate: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu() * gate)


def test_inputs_by_keyword_lie_in_a_dict_behind_the_others() -> None:
    torch.manual_seed(0)
    x, gate, y = torch.randn(5, 6), torch.rand(5, 1), torch.randint(3, (5,))
    nested = nestify.transform(Gated(), "fn3-neuron", (x,), {"gate": gate}).train()
    twin = copy.deepcopy(nested)
    method = Method(full=True, random=0)
    loss = step(nested, (x, {"gate": gate}), y, F.cross_entropy, method)
    with twin.activate(twin.space.largest()):
        expected = F.cross_entropy(twin(x, gate=gate), y)
    expected.backward()
    assert torch.equal(loss, expected)
    for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    with pytest.raises(nestify.UsageError, match=r"keyword inputs gate: .*\(x, \{'gate': ...\}\)"):
        step(nested, x, y, F.cross_entropy, "sandwich")


@pytest.mark.parametrize(
    ("layers", "shape", "labels", "dim"),
    [
        ((nn.Linear(4, 8), nn.Linear(8, 3)), (6, 5, 4), (6, 5), -1),
        ((nn.Conv1d(4, 8, 1), nn.Conv1d(8, 3, 1)), (6, 4, 5), (6, 5), 1),
        ((nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 1)), (2, 4, 5, 5), (2, 5, 5), 1),
    ],
    ids=["sequence", "signal", "map"],
)
def test_what_is_distilled_is_a_distribution_over_classes(
    layers: tuple[nn.Module, nn.Module], shape: tuple[int, ...], labels: tuple[int, ...], dim: int
) -> None:
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).double()
    x, y = torch.randn(shape).double(), torch.zeros(labels, dtype=torch.long)
    nested = nest(model, x).train()
    method = Method(full=True, smallest=True, random=0, distill=1.0)

    def loss_fn(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out.movedim(dim, 1), y)

    step(nested, x, y, loss_fn, method)
    found = [p.grad for p in nested.parameters()]
    nested.zero_grad()
    outs = []
    for subnet in (nested.space.largest(), nested.space.smallest()):
        with nested.activate(subnet):
            outs.append(nested(x).movedim(dim, 1).transpose(0, 1).flatten(1).t())
    wide, narrow = outs
    y = y.flatten()
    taught = F.kl_div(narrow.log_softmax(1), wide.detach().softmax(1), reduction="batchmean")
    (F.cross_entropy(wide, y) + taught).backward()
    for mine, parameter in zip(found, nested.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    for explicit in (dim, dim % len(shape)):
        nested.zero_grad()
        step(nested, x, y.view(labels), loss_fn, dataclasses.replace(method, classes=explicit))
        for mine, parameter in zip(found, nested.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize("labels", [(6, 3), (6, 3, 3), None])
def test_logits_whose_classes_are_unclear_are_refused(labels: tuple[int, ...] | None) -> None:
    nested = nest(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(6, 3, 4)).train()
    x, y = torch.randn(6, 3, 4), None if labels is None else torch.zeros(labels)

    def loss_fn(out: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        return out.sum()

    with pytest.raises(nestify.UsageError, match=r"\(6, 3, 3\) holds the classes .*classes=-1"):
        step(nested, x, y, loss_fn, "sandwich")
    for dim in (0, 3, -3):
        with pytest.raises(nestify.UsageError, match=rf"classes={dim} is no dim .* from 1 to 2"):
            step(nested, x, y, loss_fn, Method(full=True, distill=1.0, classes=dim))


class TwoHeads(Block):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = super().forward(x)
        return out, out * 2
