"""From outside of the package: a new op (one row), a new pass and a new kind of unit, each in one
place, and everything works with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import nestify
from nestify.graph.graph import Graph
from nestify.graph.moves import Moves
from nestify.passes import PASSES, Data, recipe_text
from nestify.rules import OPS, Op
from nestify.rules.notation import Line
from nestify.space import Unit
from nestify.support.closeness import relative_error
from tests.laws.harness import Sample, analyse_sample, draw_keeps
from tests.laws.test_rules import check_sizes, check_slices, elasticity

NAME = "outside::soft_clip"


def _register() -> None:
    library = torch.library.Library("outside", "DEF")
    library.define("soft_clip(Tensor x, float limit) -> Tensor")
    library.impl(
        "soft_clip", lambda x, limit: x / (1 + x.abs() / limit), "CompositeImplicitAutograd"
    )
    KEPT.append(library)  # an op lives as long as its library


KEPT: list[torch.library.Library] = []
_register()

ROW = Op(Line("*b -> *b", ("x",)), nonlinear=True)
SAMPLE = Sample(lambda x: torch.ops.outside.soft_clip(x, 2.0), "3* 4*")


@dataclass(frozen=True, slots=True)
class Thirds:
    """One unit, ``level``, that moves every hidden channel together: a third, two thirds, all."""

    name: ClassVar[str] = "thirds"
    role: ClassVar[str] = "chooses"
    levels: int = 3

    def apply(self, graph: Graph, data: Data) -> Graph:
        sizes = range(self.levels + 1)
        moves: Moves = {
            group.dim: tuple(group.size * level // self.levels for level in sizes)
            for group in graph.groups
        }
        return graph.with_units([Unit("level", "level", self.levels)], {"level": moves})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.second, self.head = nn.Conv2d(12, 24, 3), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.ops.outside.soft_clip(self.norm(self.first(x)), 3.0)
        return self.head(torch.ops.outside.soft_clip(self.second(x), 1.0).mean((2, 3)))


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    OPS[NAME], PASSES["thirds"] = ROW, Thirds
    yield
    del OPS[NAME], PASSES["thirds"]


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def nested(recipe: str = "thirds") -> nestify.NestedModel:
    torch.manual_seed(0)
    return nestify.transform(Net().eval(), recipe, (X,)).eval()


def test_a_new_op_obeys_the_law_of_the_table() -> None:
    analysis = analyse_sample(SAMPLE)
    assert elasticity(SAMPLE, analysis) == SAMPLE.operands
    check_sizes(analysis)
    for keep in draw_keeps(analysis, 3):
        check_slices(SAMPLE, analysis, keep)


def test_without_its_row_the_op_fixes_its_dims() -> None:
    del OPS[NAME]
    graph = nestify.trace(Net().eval(), (X,))
    assert graph.unknown_ops.keys() == {NAME}
    assert not graph.groups
    OPS[NAME] = ROW


def test_a_new_op_is_analysed_and_hidden() -> None:
    network = nested("fn3-channel")
    assert [unit.name for unit in network.space.units] == ["first"]  # second is pooled
    assert network.graph.coverage.params > 0.99


def test_a_new_unit_runs_sliced_masked_extracted_and_in_onnxruntime(tmp_path: Path) -> None:
    network = nested()
    assert network.space.num_subnets == 3
    for level, channels in ((1, (4, 8)), (2, (8, 16)), (3, (12, 24))):
        subnet = nestify.Subnet({"level": level})
        slim = network.extract(subnet)
        assert (slim.first.out_channels, slim.second.out_channels) == channels
        with network.activate(subnet), torch.no_grad():
            expected = network(X)
            assert relative_error(expected, network.masked()(X)) < 1e-5
        assert relative_error(expected, slim(X)) < 1e-5
        report = nestify.export(slim, tmp_path / f"{level}.onnx", example_inputs=(X,))
        assert report.free_batch
        costs = network.estimate([subnet]).row(0)
        assert costs.params == sum(p.numel() for p in slim.parameters())
        assert costs.macs == nestify.estimate(slim, (X,)).macs


def test_a_new_unit_is_scaled_by_how_often_it_was_kept() -> None:
    network = nested("thirds")
    network.scaling = "expected"
    with network.activate(nestify.Subnet({"level": 3})), torch.no_grad():
        scaled = network.own_tensors(network.active)["second.weight"]
    ratio = (scaled / network.get_parameter("second.weight")).detach().mean((0, 2, 3))
    often = [float(ratio[i]) for i in (0, 4, 8)]
    assert often[0] == 1
    assert often[0] > often[1] > often[2] > 0
    assert torch.allclose(ratio[4:8], ratio[4])


def test_a_new_unit_trains_is_searched_and_planned(tmp_path: Path) -> None:
    network = nested()
    network.train()
    network(X).square().mean().backward()
    assert network.drawn is not None
    network.eval()
    plan = nestify.search(
        network, lambda m: -float(m(X).detach().square().mean()), max_evaluations=8
    )
    assert {point.subnet["level"] for point in plan.points} == {1, 2, 3}
    plan.save(tmp_path / "plan.json")
    most = network.estimate([network.space.largest()]).row(0)
    loaded = nestify.Plan.load(tmp_path / "plan.json")
    assert loaded.recipe == "thirds"
    assert loaded.best(macs=most.macs * 0.6).subnet["level"] < 3


def test_a_new_pass_joins_others_and_prints_back() -> None:
    from nestify.passes import parse_recipe

    assert recipe_text(parse_recipe("rank{by=magnitude}+thirds{levels=2}")) == (
        "rank{by=magnitude}+thirds{levels=2}"
    )
    assert nested("rank+thirds{levels=4}").space.num_subnets == 4
    with pytest.raises(nestify.UsageError, match=r"'level'.*'second' decide the same dim|pass fn3"):
        nested("thirds+fn3-channel{where=all}")


def test_a_table_that_does_not_fit_is_refused() -> None:
    graph = nestify.trace(Net().eval(), (X,))
    dim = graph.groups[0].dim
    for table in ((0, 4, 12), (0, 8, 4, 12), (0, 4, 8, 10)):
        with pytest.raises(nestify.UsageError, match="keeps"):
            graph.with_units([Unit("level", "level", 3)], {"level": {dim: table}})


def test_positions_of_a_unit_that_moves_several_dims_are_refused() -> None:
    with pytest.raises(nestify.UsageError, match="give its size, not positions"):
        nested().extract({"level": [0, 2]})
