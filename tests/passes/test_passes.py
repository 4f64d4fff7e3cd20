"""Passes: recipes as text, the units each pass chooses, golden texts of what follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from examples import mlp, mobilenet_v2, vit
from nestify.passes import PASSES, parse_recipe

Golden = Callable[[str, str], None]


class Residual(nn.Module):
    """A stem, one residual bottleneck with grouped paths, a pooled classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Conv2d(8, 12, 1)
        self.paths = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(12)
        self.expand = nn.Conv2d(12, 8, 1)
        self.last = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.relu(self.reduce(x))
        y = F.relu(self.norm(self.paths(y)))
        x = F.relu(x + self.expand(y))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Attention(nn.Module):
    """One pre-norm transformer block with a fused qkv."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(x)))


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 3, 8, 8)),
    "attention": (Attention, (1, 5, 12)),
}


def nested(name: str, recipe: str) -> nestify.NestedModel:
    torch.manual_seed(0)
    cls, shape = MODELS[name]
    return nestify.transform(cls(), recipe, example_inputs=(torch.randn(shape),)).eval()


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("residual", "fn3-channel"),
        ("residual", "fn3-channel{where=all}"),
        ("residual", "fn3-path"),
        ("residual", "fn3-channel{core=0.35,step=4}+fn3-path"),
        ("attention", "fn3-head"),
        ("attention", "fn3-neuron"),
        ("attention", "fn3-neuron{where=all}+fn3-head"),
        ("attention", "fn3-layer"),
    ],
)
def test_units_and_halved_graph(model: str, recipe: str, golden: Golden) -> None:
    net = nested(model, recipe)
    units = "\n".join(str(unit) for unit in net.space.units)
    code = net.extract(net.space.at(0.5)).code.strip()
    name = recipe.replace("{", "-").replace("}", "").replace("=", "-").replace(",", "-")
    golden(f"{model}/{name}.txt", f"{units}\n\n{code}\n")


def test_mobilenet_v2_has_the_paper_s_17_units_and_7136_blocks() -> None:
    space = nestify.transform(
        mobilenet_v2.model(), "fn3-channel", mobilenet_v2.example_inputs()
    ).space
    assert len(space.units) == 17
    assert sum(unit.size for unit in space.units) == 7136


def test_mlp_with_the_paper_s_core_has_448_and_112_free_neurons() -> None:
    space = nestify.transform(mlp.model(), "fn3-neuron{core=0.125}", mlp.example_inputs).space
    assert [unit.size - unit.minimum for unit in space.units] == [448, 112]
    assert space.num_subnets == 449 * 113


def test_heads_of_a_vit_are_units() -> None:
    space = nestify.transform(vit.model(), "fn3-head", vit.example_inputs()).space
    assert [unit.size for unit in space.units] == [12] * 12


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("fn3-chanel", ["unknown recipe", "fn3-channel"]),
        ("fn3-channel{cores=1}", ["no option 'cores'", "core, step, where"]),
        ("fn3-channel{core=much}", ["must be float", "'much'"]),
        ("fn3-channel{core=2}", ["core of pass fn3-channel must be a number in [0, 1]; got 2.0"]),
        ("fn3-channel{core=nan}", ["core of pass fn3-channel must be a number in [0, 1]"]),
        (
            "fn3-channel{step=0}",
            ["step of pass fn3-channel must be a whole number from 1 on; got 0"],
        ),
        (
            "fn3-channel{where=some}",
            ["where of pass fn3-channel must be one of hidden, all; got 'some'"],
        ),
        ("fn3-channel{draw=lots}", ["draw of pass fn3-channel must be one of uniform, log-"]),
        ("fn3-layer{per=block}", ["per of pass fn3-layer must be one of net, stage; got 'block'"]),
        ("fn3-channel+fn3-channel", ["two passes", "drop one"]),
        ("fn3-head", ["finds nothing to choose", "channel"]),
        ("", ["unknown recipe"]),
        ("root-N", ["unknown recipe", "root-N"]),
        ("fn3-channel-8", ["unknown recipe"]),
        ("root-0", ["number of pass root-N must be a whole number from 1 on; got 0"]),
        (
            "root-8{init=xavier}",
            ["init of pass root-N must be one of he, extract, project", "'xavier'"],
        ),
        ("root-8{embed=maybe}", ["embed of pass root-N must be one of existing, insert, none"]),
        ("root-8{groups=conv}", ["'conv'", "NAME:NUMBER"]),
        ("root-8{groups=stem:2}", ["no stage or spatial convolution 'stem'", "stages: none"]),
        ("root-8", ["nothing to group among 0 spatial convolutions"]),
        ("fn3-channel+root-8{embed=none}", ["before those that choose units"]),
    ],
)
def test_wrong_recipes_say_what_is_valid(recipe: str, words: list[str]) -> None:
    with pytest.raises(nestify.UsageError) as error:
        nested("residual", recipe)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_every_pass_is_registered_under_its_name() -> None:
    texts = [name.replace("-N", "-2") for name in PASSES]
    assert [parse_recipe(text)[0].name for text in texts] == list(PASSES)
