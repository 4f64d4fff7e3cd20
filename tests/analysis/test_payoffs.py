"""What a rewrite saves on a target, as a whole and layer by layer, and what ``plan`` says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestify
from examples.models import nin
from nestify.analysis import payoff, payoffs
from nestify.targets import Target
from tests.cli.conftest import nestify as run

MODEL = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
)
example_inputs = (torch.randn(4, 3, 9, 9),)
calibration = [torch.randn(4, 3, 9, 9)]
"""


class Device:
    """A device on which a parameter takes a microsecond, and a grouped convolution ten times that
    where it has more than ``bad`` groups.
    """

    def __init__(self, bad: int) -> None:
        self.bad = bad
        self.timed: list[nn.Module] = []

    def measure(
        self, model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> float:
        self.timed.append(model)
        assert not model.training
        model(*inputs, **(kwargs or {}))
        return sum(self._time(m) for m in model.modules())

    def _time(self, layer: nn.Module) -> float:
        own = sum(p.numel() for p in layer.parameters(recurse=False)) / 1000
        slow = isinstance(layer, nn.Conv2d) and layer.groups > self.bad
        return own * (10 if slow else 1)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device(bad=4)
    target = Target("board", "made up", 1, found.measure)
    monkeypatch.setattr(payoffs, "usable_target", {"board": target}.__getitem__)
    return found


def rooted(recipe: str) -> nestify.NestedModel:
    torch.manual_seed(0)
    return nestify.transform(nin.NiN(width=1 / 6), recipe, nin.example_inputs()).eval()


def test_costs_are_those_of_the_original_and_of_the_largest_subnet(device: Device) -> None:
    found = payoff(rooted("root-4+fn3-channel"), "board")
    assert found.recipe == "root-4"
    before = nestify.estimate(nin.NiN(width=1 / 6), nin.example_inputs())
    assert (found.before.macs, found.before.params) == (before.macs, before.params)
    assert found.before.latency_ms == pytest.approx(before.params / 1000)
    assert found.after.latency_ms == pytest.approx(found.after.params / 1000)
    assert found.text == (
        "root-4 saves 34% of MACs, 48% of parameters and 48% of time on board (29.79 to 15.58 ms)"
    )


def test_layers_that_are_slower_in_groups_are_named(device: Device) -> None:
    found = payoff(rooted("root-8"), "board")
    assert [(x.layer, x.groups, x.pays) for x in found.layers] == [
        ("conv2a.conv", 8, False),
        ("conv3a.conv", 4, True),
    ]
    assert found.layers[0].dense_ms == pytest.approx((16 * 32 * 25 + 32) / 1000)
    assert found.layers[0].grouped_ms == pytest.approx((16 * 32 * 25 / 8 + 32) / 100)
    assert found.text.endswith(
        "\nslower there in groups than dense: conv2a.conv with 8; "
        "groups=conv2a.conv:1 leaves one dense"
    )
    advised = payoff(rooted("root-8{groups=conv2a.conv:1}"), "board")
    assert [x.layer for x in advised.layers] == ["conv3a.conv"]


def test_layers_of_one_shape_are_timed_once_and_can_be_left_out(device: Device) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 8, 1)
            self.a, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.mix(torch.cat([self.a(x), self.b(x)], 1))

    nested = nestify.transform(Twins(), "root-2", (torch.randn(1, 3, 6, 6),))
    assert len(payoff(nested, "board").layers) == 2
    assert len(device.timed) == 2 + 2
    assert payoff(nested, "board", layers=False).layers == ()


def test_a_recipe_that_rewrites_nothing_has_no_payoff() -> None:
    with pytest.raises(nestify.UsageError, match="rewrites nothing"):
        payoff(rooted("fn3-channel"))


def test_the_mode_of_the_model_is_left_as_it_was(device: Device) -> None:
    model = nin.NiN(width=1 / 6).train()
    payoff(nestify.transform(model, "root-2", nin.example_inputs()), "board", layers=False)
    assert model.training


def test_plan_says_what_the_rewrite_saves(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    shown = run(tmp_path, "plan", "model.py", "--recipe", "root-4", "--out", "plain")
    assert shown.code == 0, shown.stderr
    assert "root-4 saves 62% of MACs" in shown.stdout
    assert "of time on cpu" in shown.stdout
    recipe = "root-4{init=project}+fn3-channel{where=all}"
    options = ("--recipe", recipe, "--evaluations", "4", "--json", "--out", "nested")
    told = run(tmp_path, "plan", "model.py", *options)
    assert told.code == 0, told.stderr
    rewrite = json.loads(told.stdout)["rewrite"]
    assert rewrite["recipe"] == "root-4"
    assert rewrite["layers"][0]["groups"] == 4
    assert rewrite["before"]["macs"] > rewrite["after"]["macs"]
    again = run(tmp_path, "export", "nested/plan.json", "--out", "slim.onnx")
    assert again.code == 0, again.stderr
    assert "warning" not in again.stderr.lower()


def test_verify_does_not_ask_a_rewritten_network_to_be_the_original(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    done = run(tmp_path, "verify", "model.py", "--recipe", "root-4", "--subnets", "1")
    assert done.code == 0, done.stderr
    assert "verified" in done.stdout
