"""Depth: every residual block can be dropped, and what is left is the network without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestify
from nestify.support.closeness import relative_error
from tests.laws.equalities import check_laws


class Droppable(nn.Module):
    """A network that can skip blocks by hand: the reference for dropping them."""

    blocks: int
    inputs: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self.without: set[int] = set()

    def add(self, index: int, stays: Tensor, branch: Callable[[], Tensor]) -> Tensor:
        """The sum of block ``index``, or what stays without it."""
        return stays if index in self.without else stays + branch()


class Stage(Droppable):
    """Three residual blocks of convolutions, the second with a projection, in two stages."""

    blocks = 3
    inputs = (2, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        widths = [(6, 6), (6, 10), (10, 10)]
        self.first = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in widths)
        self.second = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for _, o in widths)
        self.project = nn.Conv2d(6, 10, 1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(3):
            stays = self.project(x) if i == 1 else x
            norm, first, second = self.norms[i], self.first[i], self.second[i]

            def branch(x: Tensor = x, n: nn.Module = norm, f: nn.Module = first) -> Tensor:
                return F.relu(n(f(x)))

            y = self.add(i, stays, lambda branch=branch, second=second: second(branch()))
            x = F.relu(y)
        return self.head(x.mean((2, 3)))


class Encoder(Droppable):
    """Two transformer blocks, pre-norm: four residual blocks."""

    blocks = 4
    inputs = (2, 5, 12)

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(12, 36) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(12, 24) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(24, 12) for _ in range(2))
        self.embed, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def attend(self, i: int, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv[i](self.norms[2 * i](x)).reshape(b, n, 3, 3, 4)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out[i](y.reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(2):
            x = self.add(2 * i, x, lambda i=i, x=x: self.attend(i, x))
            x = self.add(
                2 * i + 1,
                x,
                lambda i=i, x=x: self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x)))),
            )
        return self.head(x)


class Shared(Droppable):
    """One block three times, with a table that all of them read: ALBERT's way."""

    blocks = 3
    inputs = (2, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.table = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(3):
            x = self.add(i, x, lambda x=x: self.down(torch.tanh(self.up(x) * self.table.sigmoid())))
        return self.head(x)


class Inside(Droppable):
    """A residual block that holds a residual block (the inner sum comes first)."""

    blocks = 3
    inputs = (2, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))

        def outer() -> Tensor:
            y = torch.tanh(self.b(x))
            return self.c(self.add(0, y, lambda: self.d(y)))

        x = self.add(1, x, outer)
        return self.head(self.add(2, x, lambda: torch.tanh(self.a(x))))


class InPlace(Droppable):
    """Blocks that save memory as torchvision's do: all in place, the first on the input itself."""

    blocks = 3
    inputs = (2, 6, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.second = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(6, 4)

    def add(self, index: int, stays: Tensor, branch: Callable[[], Tensor]) -> Tensor:
        if index in self.without:
            return stays.clone()
        y = branch()
        y *= 0.5
        y += stays
        return y

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            norm, first, second = self.norms[i], self.first[i], self.second[i]

            def branch(x: Tensor = x, n: nn.Module = norm, f: nn.Module = first) -> Tensor:
                return F.relu(n(f(x)), inplace=True)

            y = self.add(i, x, lambda branch=branch, second=second: second(branch()))
            x = F.leaky_relu(y, 0.5, inplace=True)
        return self.head(x.mean((2, 3)))


MODELS = [Stage, Encoder, Shared, Inside, InPlace]


def setting(cls: type[Droppable]) -> tuple[Droppable, tuple[Tensor]]:
    torch.manual_seed(0)
    model, x = cls().double().eval(), torch.randn(cls.inputs, dtype=torch.float64)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model, (x,)


@pytest.mark.parametrize("cls", MODELS)
def test_dropping_each_block_leaves_the_network_without_it(cls: type[Droppable]) -> None:
    model, inputs = setting(cls)
    nested = nestify.transform(model, "fn3-layer", inputs)
    (unit,) = nested.space.units
    assert (unit.kind, unit.size, unit.minimum) == ("layer", cls.blocks, 1)
    whole = model(*inputs)
    for block in range(cls.blocks):
        model.without = {block}
        expected = model(*inputs)
        assert relative_error(whole, expected) > 1e-3, "a block that does nothing proves nothing"
        slim = nested.extract({unit.name: [i for i in range(cls.blocks) if i != block]})
        assert relative_error(expected, slim(*inputs)) < 1e-12


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("per", ["net", "stage"])
def test_the_last_blocks_go_first_and_costs_are_those_of_the_smaller_net(
    cls: type[Droppable], per: str
) -> None:
    model, inputs = setting(cls)
    recipe = f"fn3-layer{{per={per}}}+fn3-channel{{where=all}}+fn3-neuron{{where=all}}+fn3-head"
    nested = nestify.transform(model, recipe, inputs).eval()
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        subnet = nested.space.sample(generator)
        slim = nested.extract(subnet)
        with nested.activate(subnet):
            assert relative_error(nested(*inputs), slim(*inputs)) < 1e-12
        predicted, traced = nested.estimate([subnet]).row(0), nestify.estimate(slim, inputs)
        assert (predicted.macs, predicted.params) == (traced.macs, traced.params)
        assert predicted.params == sum(p.numel() for p in slim.parameters())
        assert predicted.activation_bytes == traced.activation_bytes


def test_a_prefix_of_the_layers_stays() -> None:
    model, inputs = setting(Encoder)
    nested = nestify.transform(model, "fn3-layer", inputs).eval()
    model.without = {2, 3}
    with nested.activate({"layers": 2}):
        assert relative_error(model(*inputs), nested(*inputs)) < 1e-12


@pytest.mark.parametrize("cls", MODELS)
def test_laws(cls: type[Droppable]) -> None:
    model, inputs = setting(cls)
    check_laws(model, inputs, subnets=10, other=(torch.cat([inputs[0], inputs[0] + 1]),))


def test_stages_have_a_unit_each() -> None:
    model, inputs = setting(Stage)
    (unit,) = nestify.transform(model, "fn3-layer{per=stage}", inputs).space.units
    assert unit.size == 2, "the two blocks of ten channels; the one of six is alone"


def test_training_draws_depths_and_leaves_dropped_blocks_without_gradients() -> None:
    model, inputs = setting(Encoder)
    nested = nestify.transform(model, "fn3-layer", inputs).train()
    seen: set[int] = set()
    for _ in range(40):
        nested.zero_grad(set_to_none=True)
        nested(*inputs).sum().backward()
        ways = ("out.0", "down.0", "out.1", "down.1")
        trained = [nested.get_parameter(f"{way}.weight").grad is not None for way in ways]
        assert trained == sorted(trained, reverse=True), "a prefix of the blocks"
        seen.add(sum(trained))
    assert seen == {1, 2, 3, 4}


def test_what_stands_in_for_a_sum_is_not_written_over() -> None:
    model, (x,) = setting(InPlace)
    nested = nestify.transform(model, "fn3-layer", (x,))
    slim, before = nested.extract({"layers": [1, 2]}).train(), x.clone()
    slim(x).sum().backward()
    assert torch.equal(x, before)
    nested.eval()
    for depth in (1, 2, 3):
        with nested.activate({"layers": depth}):
            nested(x).sum().backward()
    assert torch.equal(x, before)


def test_nothing_of_a_dropped_block_runs_where_it_works_in_place() -> None:
    model, inputs = setting(InPlace)
    slim = nestify.transform(model, "fn3-layer", inputs).extract({"layers": [2]})
    assert [name for name, m in slim.named_modules() if isinstance(m, nn.Conv2d)] == [
        "first.2",
        "second.2",
    ]


def test_a_smaller_depth_exports(tmp_path: Path) -> None:
    model, (x,) = setting(Stage)
    slim = nestify.transform(model.float(), "fn3-layer", (x.float(),)).extract({"layers": 1})
    report = nestify.export(slim, tmp_path / "slim.onnx", example_inputs=(x.float(),))
    assert report.error < 1e-5


class Counts(nn.Module):
    """Blocks that must stay: they write into a buffer, scale what stays, or widen its type."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("wide", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.seen.add_(y.sum().detach())
        x = x + y
        x = torch.add(self.b(x), x, alpha=2)
        return x + self.c(x) * self.wide


def test_blocks_that_do_more_than_add_stay() -> None:
    graph = nestify.trace(Counts(), (torch.randn(2, 4),))
    assert [block.exit for block in graph.blocks] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("core=2", "core of pass fn3-layer must be a number in .0, 1.; got 2.0"),
        ("step=0", "step of pass fn3-layer must be a whole number from 1 on; got 0"),
        ("per=block", "per of pass fn3-layer must be one of net, stage; got 'block'"),
    ],
)
def test_wrong_options_say_what_is_valid(options: str, words: str) -> None:
    model, inputs = setting(Encoder)
    with pytest.raises(nestify.UsageError, match=words):
        nestify.transform(model, f"fn3-layer{{{options}}}", inputs)


def test_a_block_has_one_unit() -> None:
    model, inputs = setting(Stage)
    with pytest.raises(nestify.UsageError, match="drop the same block"):
        nestify.transform(model, "fn3-layer+fn3-layer{per=stage}", inputs)


def test_a_kept_set_of_blocks_is_checked() -> None:
    model, inputs = setting(Encoder)
    nested = nestify.transform(model, "fn3-layer", inputs)
    with pytest.raises(nestify.UsageError, match=r"position 4 of group 'layers' is out of range"):
        nested.extract({"layers": [0, 4]})
