"""The registry of targets, and the one target there is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from nestify.errors import UsageError
from nestify.targets import TARGETS, list_targets, load_target, usable_target


def test_names_are_listed_sorted() -> None:
    assert list_targets() == tuple(sorted(TARGETS))
    assert "cpu" in list_targets()


@pytest.mark.parametrize("name", list_targets())
def test_every_target_loads_under_its_own_name(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert target.step >= 1


@pytest.mark.parametrize(("typo", "meant"), [("cpuu", "'cpu'"), ("CPU", "'cpu'")])
def test_unknown_target_names_the_closest_and_all(typo: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown target '{typo}'.*are cpu.*mean {meant}"):
        load_target(typo)


def test_unlike_anything_gets_no_hint() -> None:
    with pytest.raises(UsageError) as caught:
        load_target("quantum-annealer")
    assert "did you mean" not in str(caught.value)


def test_targets_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_target("cpu").name = "other"


def test_cpu_measures_milliseconds() -> None:
    small, large = nn.Linear(8, 8).eval(), nn.Linear(2048, 2048).eval()
    measure = load_target("cpu").measure
    fast = measure(small, (torch.randn(1, 8),), None)
    slow = measure(large, (torch.randn(64, 2048),), None)
    assert 0 < fast < slow < 10_000


def test_cpu_passes_keyword_inputs_and_keeps_the_mode() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, *, by: torch.Tensor) -> torch.Tensor:
            assert torch.is_inference_mode_enabled()
            return x * by

    model = Scaled()
    assert load_target("cpu").measure(model, (torch.ones(2),), {"by": torch.ones(2)}) > 0
    assert model.training


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_says_that_there_is_no_gpu() -> None:
    with pytest.raises(UsageError, match="'cuda' cannot measure here: torch sees no CUDA device"):
        usable_target("cuda")
