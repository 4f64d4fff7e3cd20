"""Weights, statistics and settings that change are noticed; gradients see every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import nestify
from tests.runtime.prefix.evaluations import chain, nest, plainly, same
from tests.runtime.prefix.subjects import WITH_NORMS


def test_gradients_and_modes_of_torch_see_every_call() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with nested.reusing() as reuse:
        with torch.no_grad():
            nested(x)
        nested(x).sum().backward()
        assert all(p.grad is not None for p in nested.parameters())
        with torch.no_grad():
            counter = FlopCounterMode(display=False)
            with counter:
                nested(x)
            assert counter.get_total_flops() == 6 * 2 * 3 * 8 * 8
        assert reuse.hits == 0


def _scaled(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


CHANGES: dict[str, Callable[[nestify.NestedModel], Any]] = {
    "in place": lambda net: _scaled(net.get_parameter("0.0.weight")),
    "through a view": lambda net: _scaled(net.get_parameter("0.0.weight")[2]),
    "data": lambda net: setattr(net.get_parameter("0.0.bias"), "data", torch.ones(8)),
    "other parameter": lambda net: setattr(
        net.get_submodule("0.0"), "weight", nn.Parameter(torch.ones(8, 8))
    ),
    "other module": lambda net: setattr(net.get_submodule("0"), "0", nn.Linear(8, 8)),
    "state dict": lambda net: net.load_state_dict(
        {name: 2 * tensor for name, tensor in net.state_dict().items()}
    ),
    "optimizer": lambda net: _step(net),
    "transposed": lambda net: setattr(
        net.get_parameter("0.0.weight"), "data", net.get_parameter("0.0.weight").data.t()
    ),
}


def _step(nested: nestify.NestedModel) -> None:
    with torch.enable_grad():
        nested(torch.ones(2, 8)).sum().backward()
    torch.optim.Adam(nested.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_are_noticed(change: str) -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as reuse:
        before = nested(x)
        CHANGES[change](nested)
        after = nested(x)
        assert not torch.equal(before, after)
        assert same(after, plainly(nested, x))
        assert reuse.hits == 0
        assert same(nested(x), after)
        assert reuse.hits == 1


def test_a_late_weight_leaves_early_states_alone() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as reuse:
        nested(x)
        _scaled(nested.get_parameter("3.0.weight"))
        assert same(nested(x), plainly(nested, x))
        assert (reuse.hits, reuse.steps_skipped) == (1, 6)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_statistics_written_in_training_are_noticed(name: str) -> None:
    nested, ((x, *_), *_) = nest(name)
    with torch.no_grad(), nested.reusing() as reuse:
        before = nested(x)
        nested.train()(x)
        nested.eval()
        assert not torch.equal(nested(x), before)
        assert same(nested(x), plainly(nested, x))
        norm = next(m for m in nested.modules() if isinstance(m, nn.BatchNorm2d))
        hits = reuse.hits
        norm.train()  # one module in training: nothing is kept
        nested(x)
        norm.eval()
        assert same(nested(x), plainly(nested, x))
        assert reuse.hits == hits


@pytest.mark.filterwarnings("ignore:norms switch among")
def test_what_a_subnet_has_of_its_own_is_told_apart() -> None:
    nested, batches = nest("mobilenet")
    half, full = nested.space.at(0.5), nested.space.largest()
    (x,) = batches[0]
    with torch.no_grad(), nested.reusing() as reuse:
        norms = nested.switch_norms([0.5, 1.0])
        for parameter in norms.parameters():
            parameter.add_(torch.rand_like(parameter))
        for rule in ("none", "expected", "conditional"):
            nested.scaling = rule
            for subnet in (half, full, nested.space.at(0.7)):
                with nested.activate(subnet):
                    for _ in range(2):
                        assert same(nested(x), plainly(nested, x))
        assert reuse.hits >= 9


def test_copies_and_nested_blocks_keep_apart() -> None:
    nested, x = chain(), torch.randn(3, 8)
    with torch.no_grad(), nested.reusing() as outer:
        nested(x)
        twin = copy.deepcopy(nested)
        twin(x)
        with nested.reusing() as inner:
            nested(x)
            assert (inner.hits, inner.misses) == (0, 1)
        nested(x)
        assert (outer.hits, outer.misses) == (1, 1)
    with torch.no_grad():
        nested(x)
    assert (outer.hits, outer.misses, outer.bytes_held) == (1, 1, 0)
