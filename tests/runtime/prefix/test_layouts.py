"""Evaluations that run images with their channels last give what others do, but for rounding."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nestify
from nestify.runtime.channels_last import channels_last, contiguous, merged_groups
from tests.runtime.prefix.evaluations import evaluate, neighbours, nest
from tests.runtime.prefix.subjects import SUBJECTS

LAST = torch.channels_last


class Narrow(nn.Module):
    """One channel, narrow groups, one channel a group, and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 16, 3, padding=1, groups=4)
        self.deep, self.deep_norm = nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = self.deep_norm(self.deep(self.grouped(x).relu())).relu()
        return self.head(x.mean((2, 3)))


class Layouts(TorchDispatchMode):
    """Notes for each convolution whether its input and its output have channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            maps = (args[0], out)
            self.last.append(all(map(is_last, maps)))
        return out


def is_last(x: torch.Tensor) -> bool:
    """By the strides alone, as torch chooses kernels."""
    return x.stride(1) == 1 and x.is_contiguous(memory_format=LAST)


def nested_narrow() -> tuple[nestify.NestedModel, list[torch.Tensor]]:
    torch.manual_seed(0)
    batches = [torch.randn(n, 1, 6, 6, dtype=torch.float64) for n in (7, 4)]
    nested = nestify.transform(Narrow().double(), "fn3-channel{where=all}", (batches[0],))
    return nested.eval(), batches


def scores(nested: nestify.NestedModel, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of subnets that share a beginning, their norms re-estimated."""
    found: list[torch.Tensor] = []
    sizes = itertools.product(*({1, u.size // 2, u.size} for u in nested.space.units))
    for row in sizes:
        subnet = nestify.Subnet({u.name: n for u, n in zip(nested.space.units, row, strict=True)})
        nested.calibrate(subnet, batches)
        with nested.activate(subnet):
            found += [nested(x) for x in batches]
    return found


@torch.no_grad()
def test_outputs_are_the_same_but_for_rounding() -> None:
    nested, batches = nested_narrow()
    plain = scores(nested, batches)
    with nested.reusing(turned=True) as reuse:
        turned = scores(nested, batches)
    assert reuse.hits
    torch.testing.assert_close(turned, plain, rtol=1e-10, atol=1e-12)
    assert all(out.is_contiguous() for out in turned)


@torch.no_grad()
@pytest.mark.parametrize("name", SUBJECTS)
def test_all_kinds_of_networks_give_the_same(name: str) -> None:
    nested, batches = nest(name)
    for subnet in neighbours(nested.space, 8):
        with nested.activate(subnet):
            torch.manual_seed(0)
            plain = evaluate(copy.deepcopy(nested), batches)  # some count their calls
            torch.manual_seed(0)
            with nested.reusing(turned=True):
                turned = evaluate(nested, batches)
        torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_reused_is_bit_for_bit_what_is_computed() -> None:
    nested, batches = nested_narrow()
    with nested.reusing(turned=True, limit_bytes=1) as reuse:
        computed = scores(nested, batches)
    assert not reuse.hits
    with nested.reusing(turned=True) as reuse:
        reused = scores(nested, batches)
    assert reuse.hits
    assert all(map(torch.equal, reused, computed))


@torch.no_grad()
@pytest.mark.parametrize("turned", [False, True])
def test_every_convolution_has_its_channels_last_from_one_channel_on(turned: bool) -> None:
    nested, (x, _) = nested_narrow()
    with nested.reusing(turned=turned), Layouts() as layouts:
        nested(x)
    assert layouts.last == [turned] * 3


@torch.no_grad()
def test_a_block_ends_with_its_layout() -> None:
    nested, (x, _) = nested_narrow()
    before = nested(x)
    with nested.reusing():
        with nested.reusing(turned=True):
            nested(x)
        with Layouts() as layouts:
            again = nested(x)
    assert layouts.last == [False] * 3
    assert torch.equal(again, before)


maps = st.tuples(*(st.integers(1, 4) for _ in range(4)))


@given(maps)
def test_a_map_that_lies_both_ways_is_turned_by_its_strides(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    turned = channels_last(x)
    _, channels, height, width = shape
    assert torch.equal(turned, x)
    assert turned.stride() == (x[0].numel(), 1, width * channels, channels)
    back = contiguous(turned)
    assert torch.equal(back, x)
    assert back.stride() == (x[0].numel(), height * width, width, 1)


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 3]))
def test_merged_groups_are_the_same_convolution(
    groups: int, inputs: int, outputs: int, kernel: int
) -> None:
    x = torch.randn(2, groups * inputs, 4, 5, dtype=torch.float64)
    weight = torch.randn(groups * outputs, inputs, kernel, kernel, dtype=torch.float64)
    merged, count = merged_groups(weight, groups)
    depthwise = inputs == outputs == 1
    fits = any(groups % n == 0 and n * inputs <= 24 for n in range(2, 10))
    fits |= groups > 1 and groups * inputs <= 32
    assert merged.shape[1] * count == inputs * groups
    assert merged.shape[1] <= 32
    assert (merged is weight) == (depthwise or inputs >= 8 or not fits)
    expected = F.conv2d(x, weight, groups=groups)
    torch.testing.assert_close(F.conv2d(x, merged, groups=count), expected)
