"""Counts: published figures, formulas by hand, and predicted = counted on what is extracted."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nestify
from examples import mobilenet_v2, resnet50, vit
from tests.laws.equalities import EVERYTHING

X = torch.randn(1, 3, 8, 8)


def vit_macs() -> int:
    """ViT-B/16 at 224 by formula: patches, 12 blocks of projections, MLP and attention, head."""
    tokens, width = 197, 768
    block = tokens * (4 * width * width + 2 * width * 4 * width) + 2 * tokens * tokens * width
    return 196 * 16 * 16 * 3 * width + 12 * block + width * 1000


@pytest.mark.parametrize(
    ("example", "macs", "params"),
    [
        (mobilenet_v2, 300_774_272, 3_504_872),
        (resnet50, 4_089_184_256, 25_557_032),
        (vit, vit_macs(), 86_567_656),
    ],
    ids=["mobilenet_v2", "resnet50", "vit"],
)
def test_published_networks(example: Any, macs: int, params: int) -> None:
    with torch.device("meta"):
        model = example.model()
    cost = nestify.estimate(model, example_inputs=(torch.empty(1, 3, 224, 224, device="meta"),))
    assert (cost.macs, cost.params) == (macs, params)
    assert cost.flops == 2 * macs


class Mixed(nn.Module):
    """Every kind of cost term: convolutions, norms, views, in-place ops, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.deep = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.head = nn.Linear(12 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.act(self.norm(self.stem(x)))).flatten(1))


def test_conventions_by_hand() -> None:
    macs = 64 * 8 * 27 + 64 * 12 * 2 * 9 + 12 * 64 * 5
    weights = 8 * 27 + 8 + 12 * 18 + 12 + 12 * 64 * 5 + 5
    cost = nestify.estimate(Mixed(), example_inputs=(X,))
    assert (cost.macs, cost.params) == (macs, weights + 16)
    caffe = nestify.estimate(Mixed(), example_inputs=(X,), convention="caffe")
    assert (caffe.macs, caffe.params) == (macs + 8 + 12 + 5, weights)


def test_peak_activations_share_views_and_in_place_ops() -> None:
    """Alive at most together: the stem's output and its normalised copy, 8 maps each."""
    cost = nestify.estimate(Mixed(), example_inputs=(X,))
    assert cost.activation_bytes == 4 * 64 * (8 + 12)


def test_sizes_count_parameters_and_buffers() -> None:
    cost = nestify.estimate(nn.Linear(4, 8), example_inputs=(torch.randn(1, 4),))
    assert cost.size_bytes == 4 * (32 + 8)


def test_predicted_costs_are_those_of_the_extracted_network() -> None:
    nested = nestify.transform(Mixed(), EVERYTHING, example_inputs=(X,)).eval()
    generator = torch.Generator().manual_seed(0)
    subnets = [nested.space.sample(generator) for _ in range(20)]
    columns = nested.estimate(subnets)
    for i, subnet in enumerate(subnets):
        slim = nested.extract(subnet)
        counted = nestify.estimate(slim, example_inputs=(X,))
        assert columns.row(i) == counted
        assert counted.params == sum(p.numel() for p in slim.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_are_those_of_the_dtype_that_the_model_was_cast_to(dtype: torch.dtype) -> None:
    nested = nestify.transform(Mixed(), "fn3-channel", example_inputs=(X,)).eval()
    subnet = nested.space.at(0.5)
    before = nested.estimate([subnet]).row(0)
    cast = copy.deepcopy(nested).to(dtype)
    counted = nestify.estimate(cast.extract(subnet), example_inputs=(X.to(dtype),))
    assert cast.estimate([subnet]).row(0) == counted
    assert counted.size_bytes == before.size_bytes * dtype.itemsize // 4
    assert cast.float().estimate([subnet]).row(0) == before
    assert nested.estimate([subnet]).row(0) == before, "a copy that is cast changes its own alone"


def test_the_batch_of_the_example_does_not_matter() -> None:
    one = nestify.estimate(Mixed(), example_inputs=(X,))
    assert one == nestify.estimate(Mixed(), example_inputs=(torch.cat([X] * 5),))


def test_latency_is_measured_where_a_target_is_named() -> None:
    nested = nestify.transform(Mixed(), "fn3-channel", example_inputs=(X,)).eval()
    costs = nested.estimate([nested.space.largest()], target="cpu")
    assert costs.latency_ms is not None
    assert np.all(costs.latency_ms > 0)
    assert nestify.estimate(Mixed(), example_inputs=(X,)).latency_ms is None


def test_a_single_subnet_to_estimate_belongs_in_a_list() -> None:
    nested = nestify.transform(Mixed(), "fn3-channel", example_inputs=(X,))
    with pytest.raises(nestify.UsageError, match=r"for one subnet, pass a list of it: \[subnet\]"):
        nested.estimate(nested.space.at(0.5))


def test_unknown_conventions_and_targets_are_refused() -> None:
    with pytest.raises(nestify.UsageError, match="torch, caffe"):
        nestify.estimate(Mixed(), example_inputs=(X,), convention="tensorflow")
    with pytest.raises(nestify.UsageError, match="cpu"):
        nestify.estimate(Mixed(), example_inputs=(X,), target="tpu")


def test_what_no_call_reads_costs_nothing() -> None:
    class WithSpare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.spare = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 50)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu())

    nested = nestify.transform(WithSpare(), "fn3-neuron", (torch.randn(4, 6),))
    for subnet in (nested.space.largest(), nested.space.smallest()):
        extracted = sum(p.numel() for p in nested.extract(subnet).parameters())
        assert nested.estimate([subnet]).row(0).params == extracted


class Unread(nn.Module):
    """A last block that draws, and that no output reads, as Beit's for segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.last = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 6), nn.Dropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).relu()
        self.last(features)
        return self.head(features)


def test_what_no_output_reads_costs_nothing_and_is_no_unit() -> None:
    nested = nestify.transform(Unread(), EVERYTHING, (torch.randn(2, 4),))
    assert [unit.name for unit in nested.space.units] == ["body"]
    largest = nested.space.largest()
    cost, slim = nested.estimate([largest]).row(0), nested.extract(largest)
    assert cost.params == sum(p.numel() for p in slim.parameters()) == 4 * 6 + 6 + 6 * 2 + 2
    assert cost.macs == 4 * 6 + 6 * 2
