"""``init=project``: exact where the blocks are there, better than plain ones where they are not."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nestify
from examples.models import nin
from nestify.passes.deep_roots.partition import Partition, equal_blocks, free_blocks, in_order
from nestify.rules import bind_arguments
from nestify.runtime.im2col import Window
from nestify.support.closeness import relative_distance, relative_error
from nestify.support.least_squares import Fit, unexplained
from tests.laws.equalities import check_subnets


class Rooted(nn.Module):
    """A spatial convolution between two 1 x 1, with everything that may stand between."""

    def __init__(self, inputs: int = 16, outputs: int = 24, *, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, inputs, 3, padding=1)
        self.spatial = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(outputs)
        self.mix = nn.Conv2d(outputs, 8, 1, bias=bias)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = self.mix(F.relu(self.norm(self.spatial(x))))
        return self.head(F.relu(x).mean((2, 3)))


def calibration(count: int = 2, seed: int = 1) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 10, 10, generator=draw).double() for _ in range(count)]


def project(model: nn.Module, recipe: str, **options: Any) -> nestify.NestedModel:
    x = (torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(2)).double(),)
    options.setdefault("calibration", calibration())
    return nestify.transform(model.double().eval(), recipe, x, **options).eval()


def with_blocks(model: Rooted, groups: int, seed: int) -> Rooted:
    """Zero the kernel but for blocks on the diagonal, and shuffle its channels on both sides."""
    draw = torch.Generator().manual_seed(seed)
    outputs, inputs = model.spatial.weight.shape[:2]
    mask = torch.block_diag(*[torch.ones(outputs // groups, inputs // groups)] * groups)
    mask = mask[torch.randperm(outputs, generator=draw)][:, torch.randperm(inputs, generator=draw)]
    with torch.no_grad():
        model.spatial.weight.mul_(mask[:, :, None, None])
    return model


# --- exactness ------------------------------------------------------------------------------------


class Mixed(Rooted):
    """All of it but the stem under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.mix(F.relu(self.norm(self.spatial(x))))
            x = self.head(F.relu(x).mean((2, 3)))
        return x.float()


def test_blocks_are_found_and_fitted_under_autocast() -> None:
    torch.manual_seed(0)
    model = with_blocks(Mixed(), 4, 0).eval()
    data = [x.float() for x in calibration()]
    nested = nestify.transform(model, "column-4{init=project}", (data[0],), calibration=data).eval()
    assert nested.get_submodule("spatial").groups == 4
    for x in calibration(seed=3):
        assert relative_error(model(x.float()), nested(x.float())) < 0.02  # bfloat16


@settings(max_examples=12)
@given(st.sampled_from([2, 4, 8]), st.booleans(), st.integers(0, 10**6))
def test_exact_where_the_kernel_is_block_diagonal_up_to_a_permutation(
    groups: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = with_blocks(Rooted(bias=bias), groups, seed)
    nested = project(model, f"column-{groups}{{init=project}}")
    assert nested.get_submodule("spatial").groups == groups
    for x in calibration(seed=3):
        assert relative_error(model(x), nested(x)) < 1e-10
        assert relative_error(model(x), nested.extract({})(x)) < 1e-10


def test_exact_for_fewer_groups_than_there_are_blocks() -> None:
    torch.manual_seed(0)
    model = with_blocks(Rooted(), 8, 0)
    for number in (2, 4):
        nested = project(model, f"column-{number}{{init=project}}")
        assert relative_error(model(*calibration(1)), nested(*calibration(1))) < 1e-10


def test_exact_in_float32() -> None:
    torch.manual_seed(0)
    model, x = with_blocks(Rooted(), 4, 0).eval(), calibration(1)[0].float()
    nested = nestify.transform(model, "root-4{init=project}", (x,)).eval()
    assert relative_error(model(x), nested(x)) < 1e-5


# --- better than plain blocks ---------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ",sizes=free", ",embed=insert", ",embed=none"])
@pytest.mark.parametrize("bias", [True, False])
def test_closer_to_the_dense_network_than_its_plain_blocks(options: str, bias: bool) -> None:
    torch.manual_seed(0)
    model = Rooted(bias=bias)
    plain = project(model, "root-4{init=extract}")
    fitted = project(model, f"root-4{{init=project{options}}}")
    held_out = calibration(3, seed=9)
    errors = [
        relative_distance([model(x) for x in held_out], [net(x) for x in held_out])
        for net in (plain, fitted)
    ]
    assert errors[1] < 0.8 * errors[0]
    costs = [net.estimate([net.space.largest()]).row(0).macs for net in (plain, fitted)]
    assert costs[1] <= costs[0]


def test_the_report_tells_the_errors_that_are_measured() -> None:
    torch.manual_seed(0)
    model, data = Rooted(), calibration()
    nested, plain = project(model, "root-4{init=project}"), project(model, "root-4{init=extract}")
    layer, whole = (change.what for change in nested.graph.changes)
    assert "error " in layer and "plain block extraction" in layer
    expected = relative_distance([model(x) for x in data], [nested(x) for x in data])
    blocks = relative_distance([model(x) for x in data], [plain(x) for x in data])
    assert f"calibration data: {expected:.2e} (plain block extraction: {blocks:.2e})" in whole


def test_without_calibration_the_example_inputs_are_taken_and_it_is_said() -> None:
    nested = project(Rooted(), "root-4{init=project}", calibration=None)
    assert "on the example inputs" in nested.graph.changes[-1].what


def test_too_little_calibration_data_is_said() -> None:
    few = [torch.randn(1, 3, 10, 10).double()]
    with pytest.warns(nestify.NestifyWarning, match="fewer calibration positions .* in spatial"):
        project(Rooted(), "root-4{init=project}", calibration=few)


def test_an_inserted_embedding_is_fitted_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 4, 3))
    nested = project(net, "root-4{init=project,embed=insert,groups=2:4;3:1}")
    weight = nested.get_parameter("2_embedding.weight").squeeze()
    assert weight.shape == (12, 12)
    assert not torch.equal(weight, torch.eye(12).double())
    fitted, plain = re.findall(r"\d\.\d+e[-+]\d+", nested.graph.changes[-1].what)
    assert float(fitted) < float(plain)


def test_the_original_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Rooted().double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    project(model, "root-4{init=project,sizes=free}")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- dims that must keep their order --------------------------------------------------------------


class Stream(nn.Module):
    """Two spatial convolutions on one residual stream, whose channels have one order for both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first, self.up1 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.second, self.up2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.up1(F.relu(self.first(x)))
        x = x + self.up2(F.relu(self.second(x)))
        return torch.cat([x[:, :4], x[:, 4:]], 1).mean((2, 3)) @ torch.ones(8, 2).to(x)


def test_one_dim_read_by_two_grouped_convolutions_has_one_order() -> None:
    torch.manual_seed(0)
    model = Stream().double().eval()
    nested = project(model, "column-2{init=project}")
    plain = project(model, "column-2{init=extract}")
    x = calibration(1, seed=5)[0]
    assert relative_distance(model(x), nested(x)) < relative_distance(model(x), plain(x))


def test_a_convolution_from_a_dim_to_itself() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.spatial = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            return self.mix(F.relu(x + self.spatial(x)))

    torch.manual_seed(0)
    model = Same().double().eval()
    nested = project(model, "column-4{init=project,embed=none}")
    plain = project(model, "column-4{init=extract,embed=none}")
    x = calibration(1, seed=5)[0]
    assert relative_distance(model(x), nested(x)) < relative_distance(model(x), plain(x))


# --- unequal groups -------------------------------------------------------------------------------


def unequal() -> Rooted:
    """A kernel of one large block and four small ones, which equal groups would cut."""
    torch.manual_seed(0)
    model = Rooted(16, 16).double().eval()
    mask = torch.block_diag(*[torch.ones(n, n) for n in (8, 2, 2, 2, 2)])[torch.randperm(16)]
    with torch.no_grad():
        model.spatial.weight.mul_(mask[:, torch.randperm(16), None, None])
    return model


def test_unequal_blocks_are_found_where_equal_ones_would_cut_them() -> None:
    model, x = unequal(), calibration(1, seed=4)[0]
    free = project(model, "column-2{init=project,sizes=free}")
    equal = project(model, "column-4{init=project}")
    assert relative_error(model(x), free(x)) < 1e-10 < relative_error(model(x), equal(x))


def test_unequal_groups_are_several_convolutions_that_extract_and_nest() -> None:
    recipe = "column-4{init=project,sizes=free}+fn3-channel{where=all}"
    nested = project(unequal(), recipe)
    parts = [n for n, _ in nested.extract({}).named_modules() if n.startswith("spatial.")]
    assert parts == [f"spatial.{i}" for i in range(len(parts))]
    assert len(parts) > 1
    assert "spatial.weight" not in nested.state_dict()
    check_subnets(nested, (calibration(1)[0][:2],), subnets=4)


@given(st.integers(0, 10**6), st.sampled_from([(16, 16, 4), (24, 12, 2), (32, 48, 8)]))
def test_partitions_are_partitions_and_keep_more_than_plain_blocks(
    seed: int, shape: tuple[int, int, int]
) -> None:
    outputs, inputs, groups = shape
    energy = (
        torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)).double() ** 4
    )
    plain = in_order(outputs, inputs, groups)
    equal = equal_blocks(energy, groups)
    free = free_blocks(energy, equal_blocks(energy, 2 * groups), plain.weights)
    for blocks in (plain, equal, free):
        assert sorted(torch.cat(blocks.outputs).tolist()) == list(range(outputs))
        assert sorted(torch.cat(blocks.inputs).tolist()) == list(range(inputs))
        assert blocks.weights <= plain.weights
    assert equal.kept(energy) > plain.kept(energy)
    assert equal.sizes == plain.sizes
    half = equal_blocks(energy, groups, fixed_inputs=True)
    assert torch.equal(torch.cat(half.inputs), torch.arange(inputs))
    assert half.kept(energy) >= plain.kept(energy)


def test_tied_sides_get_one_partition() -> None:
    energy = torch.rand(12, 12).double()
    blocks = equal_blocks(energy, 3, tied=True)
    assert all(torch.equal(o, i) for o, i in zip(blocks.outputs, blocks.inputs, strict=True))


def test_blocks_of_one_size_come_side_by_side() -> None:
    one, two = torch.arange(1), torch.arange(2)
    assert Partition((one, two, one), (two, two, two)).by_size().sizes == ((2, 2), (1, 2), (1, 2))


# --- the linear problems --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), padding=(0, 3)),
        nn.Conv2d(4, 6, 4, padding="same", bias=False),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv1d(4, 6, 5, stride=3, padding=2),
        nn.Conv3d(4, 6, 2, padding=1),
        nn.Linear(4, 6),
    ],
    ids=str,
)
def test_rows_times_the_kernel_are_the_layer(layer: Any) -> None:
    rank = layer.weight.ndim - 2
    x = torch.randn(2, 4, *[7] * rank) if rank else torch.randn(2, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch pads an even window by a copy
        node = next(iter(nestify.trace(layer, (x,)).calls))
        y = layer(x)
    window = Window(node)
    chosen = torch.randperm(window.positions(y))[:5]
    rows = window.rows(x, chosen).flatten(1)
    bias = 0.0 if bind_arguments(node)["bias"] is None else layer.bias
    made = rows @ layer.weight.flatten(1).T + bias
    torch.testing.assert_close(made, window.outputs(y, chosen), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_fit_is_the_least_squares_solution(bias: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(500, 6).double() + 1, torch.randn(500, 3).double() + 2
    fit = Fit(torch.zeros(3, 6), torch.zeros(3) if bias else None)
    for rows, target in zip(x.split(170), y.split(170), strict=True):
        fit.add(rows, target)
    weight, offset = fit.solve()
    design = torch.cat([x, torch.ones(500, 1).double()], 1) if bias else x
    exact = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(weight, exact[:6].T, rtol=1e-2, atol=1e-2)
    if offset is not None:
        torch.testing.assert_close(offset, exact[6], rtol=1e-2, atol=1e-2)


def test_what_no_row_speaks_of_stays_as_it_was() -> None:
    weight = torch.randn(2, 3).double()
    fit = Fit(weight, None)
    rows = torch.randn(50, 3).double() * torch.tensor([1.0, 1.0, 0.0])
    fit.add(rows, rows @ weight.T)
    assert torch.allclose(fit.solve()[0], weight)


def test_unexplained_energy_is_what_a_fit_leaves() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 5).double() @ torch.randn(5, 5).double()
    weight, kept = torch.randn(2, 5).double(), torch.tensor([0, 3])
    second = x.T @ x / (len(x) - 1)
    fit = Fit(weight[:, kept], None)
    fit.add(x[:, kept], x @ weight.T)
    left = (x @ weight.T - x[:, kept] @ fit.solve()[0].T).square().sum() / (len(x) - 1)
    assert unexplained(second, weight, kept) == pytest.approx(float(left), rel=1e-3)


# --- wrong use ------------------------------------------------------------------------------------


def test_wrong_options_and_calibration_are_refused() -> None:
    with pytest.raises(nestify.UsageError, match="sizes=free needs init=project"):
        project(Rooted(), "root-4{sizes=free}")
    with pytest.raises(nestify.UsageError, match="sizes of pass root-N must be one of equal, free"):
        project(Rooted(), "root-4{sizes=any}")
    with pytest.raises(nestify.UsageError, match="hold no batch"):
        project(Rooted(), "root-4{init=project}", calibration=[])
    x = torch.zeros(2, 3, 10, 10).double()
    words = r"structure of the example inputs, \(tensor\); got \(tensor, tensor\)\. Several inputs"
    with pytest.raises(nestify.UsageError, match=words):
        project(Rooted(), "root-4{init=project}", calibration=[((x, x), None)])
    with pytest.raises(nestify.UsageError, match="no option 'calibration'"):
        project(Rooted(), "root-4{calibration=data}")


def test_a_whole_network_with_labels_beside_its_batches() -> None:
    torch.manual_seed(0)
    model = nin.NiN(width=1 / 6).eval()
    batches = [(torch.randn(4, 3, 32, 32), torch.zeros(4)) for _ in range(2)]
    nested = nestify.transform(
        model, "root-8{init=project}", nin.example_inputs(), calibration=batches
    )
    assert [change.where for change in nested.graph.changes] == ["conv2a.conv", "conv3a.conv", ""]
    assert relative_error(nested.eval()(batches[0][0]), nested.extract({})(batches[0][0])) < 1e-5
