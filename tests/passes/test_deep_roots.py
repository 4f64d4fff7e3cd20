"""Deep Roots: every row of the paper's tables from the original model; what a root module is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nestify
from examples.models import alexnet, googlenet, nin, resnet50_caffe, resnet200
from nestify.graph.graph import Graph
from nestify.graph.rewriter import Rewriter, permuted
from nestify.passes.deep_roots.grouped_weights import diagonal_blocks
from nestify.passes.deep_roots.spatial import find_spatial
from nestify.support.closeness import relative_error
from tests.applied import applied
from tests.forks import run_code
from tests.laws.equalities import check_subnets

Golden = Callable[[str, str], None]

ORIGINALS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "nin": (nin.NiN, 32),
    "resnet50": (resnet50_caffe.ResNet50, 224),
    "googlenet": (lambda: googlenet.GoogLeNet(auxiliary=True), 224),
    "alexnet": (alexnet.AlexNet, 227),
    "resnet200": (lambda: resnet200.PreActResNet((3, 24, 36, 3)), 224),
}

# (MACs, parameters) by the "caffe" convention. Tables 2 and 8, 4, 6, Fig. 2; for ResNet-200 the
# true counts, as Table 5 comes from a counter that multiplied each layer by its filters.
ROWS: dict[tuple[str, str], tuple[int, int]] = {
    ("nin", ""): (222_487_946, 966_986),
    ("nin", "root-2"): (163_505_546, 736_586),
    ("nin", "root-4"): (123_397_514, 455_498),
    ("nin", "root-8"): (103_343_498, 314_954),
    ("nin", "root-16"): (93_316_490, 244_682),
    ("nin", "tree-2"): (147_580_298, 487_754),
    ("nin", "tree-4"): (115_434_890, 331_082),
    ("nin", "tree-8"): (99_362_186, 252_746),
    ("nin", "tree-16"): (91_325_834, 213_578),
    ("nin", "column-2"): (152_888_714, 570_698),
    ("nin", "column-4"): (118_089_098, 372_554),
    ("nin", "column-8"): (100_689_290, 273_482),
    ("nin", "column-16"): (91_989_386, 223_946),
    ("resnet50", ""): (3_857_974_312, 25_503_976),
    ("resnet50", "root-2"): (3_684_566_056, 25_448_680),
    ("resnet50", "root-4"): (3_366_650_920, 25_126_120),
    ("resnet50", "root-8"): (2_860_876_840, 23_195_368),
    ("resnet50", "root-16"): (2_434_581_544, 18_691_048),
    ("resnet50", "root-32"): (2_221_433_896, 16_438_888),
    ("resnet50", "root-64"): (2_114_860_072, 15_312_808),
    ("googlenet", ""): (1_716_324_392, 18_809_576),
    ("googlenet", "root-2"): (1_542_916_136, 18_754_280),
    ("googlenet", "root-4"): (1_291_032_616, 18_515_944),
    ("googlenet", "root-8"): (964_383_656, 17_504_744),
    ("googlenet", "root-16"): (756_887_912, 16_308_968),
    ("alexnet", ""): (1_135_266_664, 62_378_344),
    ("alexnet", "column-2{embed=none,groups=conv3:1}"): (724_417_384, 60_965_224),
    ("alexnet", "column-4{embed=none,groups=conv3:1}"): (518_992_744, 60_258_664),
    ("resnet200", ""): (15_007_482_856, 64_497_832),
    ("resnet200", "root-2"): (14_834_074_600, 64_442_536),
    ("resnet200", "root-4"): (13_360_104_424, 62_645_416),
    ("resnet200", "root-8"): (10_542_220_264, 51_130_024),
    ("resnet200", "root-16"): (8_959_869_928, 41_833_384),
    ("resnet200", "root-32"): (8_168_694_760, 37_185_064),
    ("resnet200", "root-64"): (7_773_107_176, 34_860_904),
}


@cache
def original(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    make, side = ORIGINALS[name]
    with torch.device("meta"):
        return make(), (torch.empty(1, 3, side, side),)


@cache
def traced(name: str) -> Graph:
    return nestify.trace(*original(name))


@pytest.mark.parametrize(("name", "recipe"), ROWS)
def test_a_row_of_the_tables(name: str, recipe: str) -> None:
    if not recipe:
        model, inputs = original(name)
        cost = nestify.estimate(model, inputs, convention="caffe")
    else:
        nested = applied(traced(name), recipe)
        cost = nested.estimate([nested.space.largest()], convention="caffe").row(0)
    assert (cost.macs, cost.params) == ROWS[name, recipe]


@pytest.mark.parametrize("example", [alexnet, googlenet, nin, resnet50_caffe, resnet200])
def test_a_model_of_the_paper_is_a_lesson_in_plain_torch(example: ModuleType) -> None:
    path = Path(example.__file__ or "")
    assert f"nestify inspect examples/models/{path.name}" in (example.__doc__ or "")
    assert not re.search(r"^\s*(import|from) nestify", path.read_text(), re.MULTILINE)
    (x,) = example.example_inputs()
    with torch.device("meta"):
        model = example.model().eval()
    assert model(x.to("meta")).shape == (2, 10 if example is nin else 1000)


def test_auxiliary_classifiers_are_there_when_asked_for() -> None:
    with torch.device("meta"):
        model, x = googlenet.GoogLeNet(auxiliary=True).eval(), torch.empty(2, 3, 224, 224)
    assert [tuple(logits.shape) for logits in model(x)] == [(2, 1000)] * 3


def test_stages_of_the_paper_s_models() -> None:
    """NiN conv2a, conv3a; ResNet res2 to res5; GoogLeNet conv2, inception 3, 4, 5 (1.2)."""
    found: dict[str, dict[int, set[str]]] = {}
    for name in ("nin", "resnet50", "resnet200", "googlenet", "alexnet"):
        for conv in find_spatial(traced(name)):
            part = conv.name.split(".")[0].rstrip("abcde")
            found.setdefault(name, {}).setdefault(conv.stage, set()).add(part)
    assert found == {
        "nin": {0: {"conv2"}, 1: {"conv3"}},
        "resnet50": {0: {"res2"}, 1: {"res3"}, 2: {"res4"}, 3: {"res5"}},
        "resnet200": {0: {"stage1"}, 1: {"stage2"}, 2: {"stage3"}, 3: {"stage4"}},
        "googlenet": {0: {"conv2"}, 1: {"inception3"}, 2: {"inception4"}, 3: {"inception5"}},
        "alexnet": {0: {"conv2"}, 1: {"conv3", "conv4", "conv5"}},
    }


def test_the_page_on_deep_roots_shows_what_its_first_snippet_prints(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deep-roots.md").read_text()
    snippet, printed = re.findall(r"```(?:python|text)\n(.*?)```", page, re.DOTALL)[:2]
    done = run_code(tmp_path, snippet)
    assert done.stdout == printed, done.stderr


# --- a small model with everything ----------------------------------------------------------------


class Branches(nn.Module):
    """A stem, root modules behind a gate and behind ``cat``, a 3 x 3 shortcut, no 1 x 1 last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.gated = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.gate = nn.Conv2d(16, 16, 1)
        self.mix = nn.Conv2d(16, 12, 1)
        self.left = nn.Conv2d(12, 8, 3, 2, padding=1)
        self.right = nn.Conv2d(12, 20, 5, 2, padding=2)
        self.join = nn.Conv2d(28, 12, 1)
        self.short = nn.Conv2d(12, 24, 3, 2, padding=1)
        self.down = nn.Conv2d(12, 12, 3, 2, padding=1)
        self.up = nn.Conv2d(12, 24, 1)
        self.last = nn.Conv2d(24, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.gated(x)))
        x = F.relu(self.mix(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))))
        x = F.relu(self.join(torch.cat([self.left(x), F.relu(self.right(x))], 1)))
        x = F.relu(self.short(x) + self.up(F.relu(self.down(x))))
        return self.last(x)


def branches() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return Branches().eval(), (torch.randn(2, 3, 16, 16),)


RECIPES = [
    "root-8",
    "column-4",
    "tree-2{init=extract}",
    "root-8{embed=none,groups=1:2;gated:16}",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_grouped_and_why_not(recipe: str, golden: Golden) -> None:
    model, inputs = branches()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        nested = nestify.transform(model, recipe, inputs)
    told = "\n".join(str(warning.message) for warning in said)
    changes = "\n".join(f"{c.where}: {c.what}" for c in nested.graph.changes)
    slim = nested.extract(nested.space.largest())
    layers = "\n".join(
        f"{path}: {module}"
        for path, module in slim.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    name = recipe.translate(str.maketrans("{=,;:", "-----", "}"))
    golden(f"deep_roots/{name}.txt", f"{told}\n\n{changes}\n\n{layers}\n\n{slim.code.strip()}\n")


def test_an_embedding_is_inserted_where_none_follows(golden: Golden) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3),
        nn.Conv2d(12, 4, 1),
    )
    nested = nestify.transform(net, "column-4{embed=insert}", (torch.randn(1, 3, 9, 9),)).eval()
    changes = "\n".join(f"{c.where}: {c.what}" for c in nested.graph.changes)
    slim = nested.extract({})
    golden("deep_roots/column-4-insert.txt", f"{changes}\n\n{slim}\n")
    assert "1_embedding.weight" in nested.state_dict()
    with pytest.raises(nestify.VerificationError, match="cannot hold"):
        nested.extract({}, as_original_class=True)


@pytest.mark.parametrize(
    "recipe", ["root-4+fn3-channel+fn3-path", "column-2{embed=insert}+fn3-channel"]
)
def test_groups_and_their_channels_are_nested(recipe: str) -> None:
    model, inputs = branches()
    model, inputs = model.double(), (inputs[0].double(),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nestify.NestifyWarning)
        nested = nestify.transform(model, recipe, inputs).eval()
    if "path" in recipe:
        assert {unit.kind for unit in nested.space.units} == {"channel", "path"}
    check_subnets(nested, inputs, subnets=6, other=(torch.randn(3, 3, 16, 16).double(),))
    nested.train()
    nested(*inputs).sum().backward()
    assert nested.get_parameter("gated.weight").grad is not None


def test_a_root_network_in_the_user_s_own_class() -> None:
    torch.manual_seed(0)
    nested = nestify.transform(
        nin.NiN(width=1 / 6), "root-8+fn3-channel", nin.example_inputs()
    ).eval()
    own = nested.extract(nested.space.at(0.5), as_original_class=True)
    assert isinstance(own, nin.NiN)
    assert own.conv2a.conv.groups == 8


def test_the_original_is_left_as_it_was() -> None:
    model = nin.NiN(width=1 / 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nested = nestify.transform(model, "root-8", nin.example_inputs())
    nested.eval()(*nin.example_inputs())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert nested.graph.original is not None
    assert nested.graph.original.tensor_dims["conv2a.conv.weight"][1].size == 16
    assert nested.space.num_subnets == 1


def test_new_weights_keep_the_variance_of_the_signal() -> None:
    """The deviation is sqrt(2 / (k k c_in / g)): inputs of mean square 1/2 give variance 1."""
    torch.manual_seed(0)
    nested = nestify.transform(nin.NiN(), "root-8", nin.example_inputs())
    weight = nested.get_parameter("conv2a.conv.weight")
    assert weight.shape == (192, 12, 5, 5)
    assert weight.std().item() == pytest.approx((2 / (25 * 12)) ** 0.5, rel=0.02)
    x = F.relu(torch.randn(4, 96, 16, 16))
    out = F.conv2d(x, weight, groups=8)
    assert out.var().item() == pytest.approx(1.0, rel=0.1)


def test_the_largest_valid_divisor_is_taken_and_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 20, 3), nn.Conv2d(20, 4, 1))
    with pytest.warns(nestify.NestifyWarning, match="1 4 instead of 16"):
        nested = nestify.transform(net, "root-16", (torch.randn(1, 3, 9, 9),))
    assert nested.graph.changes[0].what.startswith("4 filter groups (16 asked) of 3 to 5 channels")


def test_shared_kernels_are_grouped_together() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.spatial = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for _ in range(2):
                x = F.relu(self.mix(F.relu(self.spatial(x))))
            return x

    nested = nestify.transform(Twice(), "root-4", (torch.randn(1, 3, 5, 5),)).eval()
    assert [(c.where, c.done) for c in nested.graph.changes] == [("spatial", True)]
    assert nested.extract({}).spatial.groups == 4


def test_a_kernel_that_is_computed_stays_and_is_named_by_its_module() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  as torch calls it
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(input, weight, self.bias)

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 8, 3), nn.Conv2d(8, 8, 1))
    with pytest.raises(nestify.UsageError, match="1: its kernel is computed"):
        nestify.transform(net, "root-4", (torch.randn(1, 3, 6, 6),))


# --- what a filter group is -----------------------------------------------------------------------


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.integers()
)
def test_a_grouped_convolution_is_a_dense_one_with_a_block_diagonal_kernel(
    groups: int, per_in: int, per_out: int, window: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed % 2**31)
    kernel = torch.randn(
        groups * per_out, groups * per_in, window, window, generator=draw, dtype=torch.float64
    )
    x = torch.randn(2, groups * per_in, 5, 5, generator=draw, dtype=torch.float64)
    blocks = diagonal_blocks(kernel, groups)
    mask = torch.block_diag(*[torch.ones(per_out, per_in, dtype=torch.float64)] * groups)
    dense = F.conv2d(x, kernel * mask[:, :, None, None])
    assert relative_error(dense, F.conv2d(x, blocks, groups=groups)) < 1e-12


# --- the mechanism --------------------------------------------------------------------------------


def test_permuting_a_dim_everywhere_keeps_the_function() -> None:
    model, inputs = branches()
    graph = nestify.trace(model, inputs)
    order = {group.dim: torch.randperm(group.size) for group in graph.groups}
    edit = Rewriter(graph)
    for name, tensor in permuted(graph, order).items():
        edit.replace_tensor(name, tensor)
    moved = nestify.NestedModel(edit.finish(()), (), "permuted").eval()
    assert not torch.equal(moved.get_parameter("gated.weight"), model.get_parameter("gated.weight"))
    assert relative_error(moved(*inputs), model(*inputs)) < 1e-6


def test_wrong_edits_are_refused() -> None:
    graph = nestify.trace(*branches())
    edit = Rewriter(graph)
    with pytest.raises(KeyError, match="no tensor"):
        edit.replace_tensor("nowhere", torch.zeros(1))
    with pytest.raises(KeyError, match="taken"):
        edit.add_tensor(graph.nodes[0], "stem.weight", torch.zeros(1))
    assert edit.free_name("stem") == "stem2"


def test_kinds_of_models_are_staged_as_their_resolution_goes() -> None:
    """A decoder's stages come after its encoder's; a gate's 1 x 1 map is no stage."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.high = nn.Conv2d(8, 8, 3, padding=1)
            self.low = nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.again = nn.Conv2d(16, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.high(self.stem(x))
            x = x * x.mean((2, 3), keepdim=True)
            up = F.interpolate(self.low(x), scale_factor=2.0)
            return self.head(self.again(torch.cat([x, up], 1)))

    found: Any = find_spatial(nestify.trace(UNet(), (torch.randn(1, 3, 16, 16),)))
    assert [(c.name, c.stage) for c in found] == [("high", 0), ("low", 1), ("again", 2)]
