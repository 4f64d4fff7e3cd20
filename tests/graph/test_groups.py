"""What an analysis tells: groups, names, kinds, sites; fixed dims with op and line; blocks."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import nn

import nestify
from examples import resnet50, vit
from nestify.dims.reasons import ADVICE, Kind
from nestify.graph.graph import Graph
from nestify.graph.groups import Site

HERE = Path(__file__).name


class Net(nn.Module):
    """A residual block, a projection shortcut, attention scores, an op without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 1)
        self.outer = nn.Conv2d(6, 8, 1)
        self.wide, self.short = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1)
        self.scores = nn.Linear(12, 7)
        self.odd = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.outer(F.relu(self.inner(x)))
        x = self.short(x) + self.wide(x)
        y = F.softmax(self.scores(x.mean((2, 3))), 1)
        return torch.linalg.ldl_factor(self.odd(y)[:, :, None] * y[:, None]).LD


def graph() -> Graph:
    return nestify.trace(Net(), example_inputs=(torch.randn(2, 3, 8, 8),))


def test_groups_are_named_after_their_producer() -> None:
    found = {group.name: (group.size, group.kind) for group in graph().groups}
    assert found == {
        "stem": (8, "channel"),
        "inner": (6, "channel"),
        "wide": (12, "channel"),
    }


def test_sites_are_every_place_that_is_sliced() -> None:
    (stem,) = (group for group in graph().groups if group.name == "stem")
    assert set(stem.sites) == {
        Site("stem.weight", 0),
        Site("stem.bias", 0),
        Site("inner.weight", 1),
        Site("outer.weight", 0),
        Site("outer.bias", 0),
        Site("wide.weight", 1),
        Site("short.weight", 1),
    }


def test_fixed_dims_name_op_and_line() -> None:
    fixed = {site: dim for dim in graph().fixed for site in dim.sites}
    assert "input" in fixed[Site("stem.weight", 1)].reason
    scores = fixed[Site("scores.weight", 0)]
    assert scores.op == "softmax"
    assert HERE in scores.source_line
    odd = fixed[Site("odd.weight", 0)]
    assert odd.reason == "linalg_ldl_factor has no rule"


def test_fixed_dims_say_what_would_free_them() -> None:
    fixed = {site: dim for dim in graph().fixed for site in dim.sites}
    kinds = {name: fixed[Site(name, 1)].kind for name in ("stem.weight",)}
    kinds |= {name: fixed[Site(name, 0)].kind for name in ("scores.weight", "odd.weight")}
    assert kinds == {"stem.weight": "input", "scores.weight": "positions", "odd.weight": "rule"}
    assert "another dim" in fixed[Site("scores.weight", 0)].advice
    assert "nestify/rules" in fixed[Site("odd.weight", 0)].advice


def test_a_view_that_no_part_explains_advises_on_sizes() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(4, 12)
            self.out = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            columns = self.wide(x).view(-1, 3, 4).transpose(1, 2)
            return self.out(columns.reshape(-1, 3, 4).relu())

    found = nestify.trace(Uneven(), example_inputs=(torch.randn(2, 4),)).fixed
    assert {dim.kind for dim in found} >= {"parts", "input", "output"}


def test_a_window_over_channels_is_a_reason() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.mix = nn.Linear(4, 12), nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(self.wide(x)[:, None]).mean()

    found = nestify.trace(Mixing(), example_inputs=(torch.randn(2, 4),)).fixed
    (slid,) = (dim for dim in found if dim.op == "conv1d")
    assert (slid.size, slid.kind) == (12, "positions")
    assert all(dim.size != 3 for dim in found), "the size of a window is no choice"


def test_every_kind_of_reason_has_its_advice() -> None:
    assert set(ADVICE) == set(get_args(Kind))


def test_coverage_is_a_share_of_parameters_and_macs() -> None:
    coverage = graph().coverage
    rigid = 7 * 7 + 7 + 7  # the last layer and the bias before it touch no elastic dim
    total = sum(p.numel() for p in Net().parameters())
    assert coverage.params == 1 - rigid / total
    assert 0.99 < coverage.macs < 1


def test_a_branch_without_contraction_is_no_projection() -> None:
    (block,) = graph().blocks
    assert (block.entry, block.exit) == ("conv2d", "add")


def test_blocks_of_known_networks() -> None:
    image = (torch.empty(2, 3, 224, 224, device="meta"),)
    with torch.device("meta"):
        residual, transformer = resnet50.model(), vit.model()
    assert len(nestify.trace(residual, example_inputs=image).blocks) == 16
    assert len(nestify.trace(transformer, example_inputs=image).blocks) == 24


def test_norms_keep_two_values_to_take_statistics_of() -> None:
    """A token mixer makes positions elastic; torch refuses to normalise over a single one."""

    class Mixer(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 6)
            self.norm = nn.InstanceNorm1d(channels)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.mix(x)))

    graph = nestify.trace(Mixer(3), (torch.randn(2, 3, 4),))
    assert graph.groups == ()
    assert any("of two values at least" in fixed.reason for fixed in graph.fixed)


def test_a_standardised_weight_stays_elastic() -> None:
    """Its statistics span the kernel too, which does not shrink."""

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = self.weight.reshape(1, 6, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return self.head(F.conv2d(self.first(x), weight))

    graph = nestify.trace(Standardised(), (torch.randn(2, 3, 8, 8),))
    assert 6 in {group.size for group in graph.groups}
    assert not any("of two values at least" in fixed.reason for fixed in graph.fixed)


class Unread(nn.Module):
    """A head that is not used, and one whose result is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.unused, self.ignored = nn.Linear(6, 5), nn.Linear(6, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ignored(x)
        return self.outer(F.relu(self.inner(x)))


def test_what_no_call_reads_leaves_nothing_to_choose() -> None:
    found = nestify.trace(Unread(), example_inputs=(torch.randn(2, 6),))
    assert [group.name for group in found.groups] == ["inner"]
    unread = {site.tensor for dim in found.fixed if dim.kind == "unread" for site in dim.sites}
    names = ("unused.weight", "unused.bias", "ignored.weight", "ignored.bias")
    assert unread == set(names)
    nested = nestify.transform(Unread(), "fn3-neuron{where=all}", (torch.randn(2, 6),))
    assert [unit.name for unit in nested.space.units] == ["inner"]
    assert nested.extract({"inner": 2})(torch.randn(4, 6)).shape == (4, 3)
