"""The small parts: deviation, random inputs, names, literals, spellings, constructors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from nestify.emit.call import Call, output_names, random_like
from nestify.emit.check import deviation
from nestify.emit.source.constructors import constructor
from nestify.emit.source.literals import literal
from nestify.emit.source.model_py import model_source
from nestify.errors import UsageError

nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.0, 4.0], [0.0, 4.0], 0.0),
        ([0.0, 4.0], [0.004, 4.0], 1e-3),
        ([0.0, 0.0], [1e-9, 0.0], 1e-6),
        ([nan, 1.0], [nan, 1.0], 0.0),
        ([nan, nan], [nan, nan], 0.0),
        ([nan, 1.0], [1.0, 1.0], inf),
        ([1.0, 1.0], [nan, 1.0], inf),
        ([inf, 1.0], [inf, 1.0], 0.0),
        ([inf, 1.0], [-inf, 1.0], inf),
        ([1.0, 1.0], [inf, 1.0], inf),
    ],
)
def test_deviation(a: list[float], b: list[float], expected: float) -> None:
    assert deviation(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-4)


def test_deviation_of_other_forms() -> None:
    one = torch.ones(2)
    assert deviation(one, one[:1]) == inf
    assert deviation(one, one.double()) == inf
    assert deviation(one > 0, one > 2) == inf
    assert deviation(torch.ones(0), torch.ones(0)) == 0
    half = torch.tensor([1.0], dtype=torch.float16)
    assert deviation(half, half + torch.finfo(torch.float16).eps) == pytest.approx(1.2e-7, rel=0.1)


def test_random_inputs_keep_type_and_range() -> None:
    mask = torch.tensor([[0.0, -inf], [0.0, 0.0]])
    call = Call(
        (torch.tensor([2, 9]), torch.rand(50) + 3, torch.ones(3, dtype=torch.bool), mask), {}
    )
    ints, floats, bools, masks = random_like(call, seed=1).args
    assert ints.dtype is torch.int64
    assert set(ints.tolist()) <= set(range(2, 10))
    assert floats.min() >= 3
    assert floats.max() <= 4
    assert bools.all()
    assert set(masks.flatten().tolist()) <= {0.0, -inf}
    assert torch.equal(random_like(call, seed=1).args[1], floats)


def test_only_tensors_that_share_the_batch_are_resized() -> None:
    call = Call((torch.ones(2, 3), torch.ones(4, 2)), {"m": torch.ones(2)}).resized(5)
    assert [tuple(t.shape) for t in call.tensors] == [(5, 3), (4, 2), (5,)]


def test_outputs_never_take_the_name_of_an_input() -> None:
    one = torch.zeros(1)
    assert output_names({"x": one, "y": one}, taken=["x"]) == ["output_x", "y"]
    assert output_names([one, {"a": one}, 5, None]) == ["output_0", "output_1_a"]


@pytest.mark.parametrize(
    "value",
    [1, -2.5, inf, True, None, "a'b\"c\n", (1,), [], [1, (2, 3)], {"a": [1]}, ..., slice(1, None)],
)
def test_literals_come_back(value: Any) -> None:
    assert eval(literal(value)) == value


def test_literals_of_torch_come_back() -> None:
    for value in (torch.float16, torch.device("cpu"), torch.channels_last, torch.strided):
        assert eval(literal(value)) == value


@pytest.mark.parametrize("value", [object(), torch.ones(1), {(1, 2): 3}, print, 1j])
def test_other_values_have_no_literal(value: Any) -> None:
    with pytest.raises(UsageError, match="has no spelling"):
        literal(value)


@pytest.mark.parametrize(
    "source",
    [
        "nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4, bias=False)",
        'nn.Conv3d(1, 2, (1, 3, 3), padding="same", padding_mode="circular")',
        "nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2)",
        "nn.BatchNorm2d(4, affine=False)",
        "nn.LayerNorm((4, 5), bias=False)",
        "nn.Embedding(10, 3, padding_idx=0)",
        'nn.GELU(approximate="tanh")',
        "nn.MaxPool2d(2)",
        "nn.Linear(3, 4, dtype=torch.float64)",
        "nn.Identity()",
        "nn.ReLU6(inplace=True)",
        "nn.Upsample(scale_factor=2.0)",
        "nn.PReLU()",
        "nn.Softmax(dim=-1)",
    ],
)
def test_constructors_come_back(source: str) -> None:
    assert constructor(eval(source)) == source


def test_modules_without_a_constructor() -> None:
    class Own(nn.Linear):
        pass

    narrowed = nn.Linear(4, 4)
    narrowed.weight = nn.Parameter(torch.zeros(2, 4))
    for module in (Own(2, 2), nn.Sequential(nn.ReLU()), narrowed, nn.MultiheadAttention(4, 2)):
        assert constructor(module) is None


class Every(nn.Module):
    """Python, methods and functions of torch as plain fx records them."""

    def forward(self, image: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        n, c = image.shape[0], image.size(1)
        y = torch.cat([image[..., 1:], -image[:, :, :1]], dim=2) * scale
        y = F.interpolate(y.view(n, c // 2, 2, -1).flatten(1, 2), scale_factor=2.0)
        y = y.masked_fill(y > 1, 0.5) if scale is None else y.clamp(min=-1.0)
        return F.silu(y).split(2, dim=1)[0] ** 2 + 1 / (y[:, 0:1].abs() + 1)


def test_plain_fx_graphs_have_a_spelling() -> None:
    text, _ = model_source(fx.symbolic_trace(Every(), concrete_args={"scale": 2.0}))
    namespace: dict[str, Any] = {"__name__": "model"}
    exec(text, namespace)
    x = torch.randn(2, 4, 6)
    assert torch.equal(namespace["Model"]()(x, 2.0), Every()(x, 2.0))


def test_names_of_the_file_are_not_taken_by_inputs() -> None:
    graph = fx.Graph()
    torch_, self_ = graph.placeholder("torch"), graph.placeholder("F")
    graph.output(
        graph.call_function(
            torch.ops.aten.gelu.default, (graph.call_function(torch.cat, ([torch_, self_],)),)
        )
    )
    text, _ = model_source(fx.GraphModule(nn.Module(), graph))
    namespace: dict[str, Any] = {"__name__": "model"}
    exec(text, namespace)
    one = torch.ones(2)
    assert torch.equal(namespace["Model"]()(one, one), F.gelu(torch.ones(4)))


def test_hostile_names_do_not_reach_the_source() -> None:
    root = nn.Module()
    evil = '0"); raise SystemExit  #'
    root.add_module(evil, nn.ReLU())
    graph = fx.Graph()
    graph.output(graph.call_module(evil, (graph.placeholder("x"),)))
    text, _ = model_source(fx.GraphModule(root, graph, "Net"))
    namespace: dict[str, Any] = {"__name__": "model"}
    exec(text, namespace)
    assert torch.equal(namespace["Model"]()(-torch.ones(1)), torch.zeros(1))
