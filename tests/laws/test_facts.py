"""Facts in the op table, held by running the ops: every row's samples, and ops by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils import _pytree as pytree

from nestify.graph.memory import shared_operands
from nestify.rules import OPS, UNKNOWN, Op, facts_of, op_name
from tests.laws.harness import Analysis, analyse_sample
from tests.laws.samples import SAMPLES

pytestmark = pytest.mark.usefixtures("double_precision")
aten = torch.ops.aten
FACTS = [field.name for field in fields(Op) if field.name != "rule"]


def named(fact: str) -> list[str]:
    return sorted(name for name, row in OPS.items() if getattr(row, fact))


def tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def memory(value: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors(value) if t.numel()}


def calls_of(name: str) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:
    """Every call of a sample's graph, and what each node gives."""
    analysis: Analysis = analyse_sample(SAMPLES[name])
    env: dict[fx.Node, Any] = analysis.run(None)
    for node in analysis.calls:
        yield node, env


@pytest.mark.parametrize("name", SAMPLES)
def test_memory_is_shared_with_those_operands_that_are_named(name: str) -> None:
    for node, env in calls_of(name):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, env=env: env[n])
        given = memory(node.target(*args, **kwargs)) if callable(node.target) else set[int]()
        named = {op for source in shared_operands(node) for op in memory(env[source])}
        others = {op for source in node.all_input_nodes for op in memory(env[source])} - named
        assert not given & others, f"{node.format_node()} shares memory that no fact tells"


def test_views_share_memory_and_what_hands_on_may_not() -> None:
    """A fact that a schema tells already, or that no sample shows, is not in the table."""
    shown: set[str] = set()
    for name in SAMPLES:
        if {"views", "hands_on"} & {f for f in FACTS if getattr(OPS.get(name.split(":")[0]), f, 0)}:
            for node, env in calls_of(name):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, env=env: env[n])
                if memory(node.target(*args, **kwargs)) & memory([*env.values()]):
                    shown.add(op_name(node.target))
    assert set(named("views")) <= shown


CHANNELS = torch.arange(2 * 3 * 4 * 4, dtype=torch.float64).reshape(2, 3, 4, 4).sin()


def bends(function: Any, x: torch.Tensor) -> bool:
    return not torch.allclose(function(-2 * x), -2 * function(x))


# How to call the ops that need more than a map.
CALLS: dict[str, Any] = {
    "clamp": lambda x: aten.clamp(x, -0.1, 0.2),
    "clamp_min": lambda x: aten.clamp_min(x, 0.1),
    "prelu": lambda x: aten.prelu(x, x.new_full((3,), 0.2)),
    "glu": lambda x: aten.glu(x, 2),
    "conv1d": lambda x: aten.conv1d(x[..., 0], _weight(x, 1)),
    "conv2d": lambda x: aten.conv2d(x, _weight(x, 2)),
    "conv3d": lambda x: aten.conv3d(x[..., None].expand(*x.shape, 3), _weight(x, 3)),
    "linear": lambda x: aten.linear(x.movedim(1, -1), _weight(x, 0)).movedim(-1, 1),
    "batch_norm": lambda x: aten.batch_norm(
        x, x.abs().amax((0, 2, 3)), None, None, None, True, 0.1, 1e-5, False
    ),
    "add": lambda x: aten.add(x, x),
    "sub": lambda x: aten.sub(x, 3 * x),
    "mul": lambda x: aten.mul(x, x),
    "mean": lambda x: aten.mean(x, [2, 3]),
    "amax": lambda x: aten.amax(x, [2, 3]),
    **{
        f"{k}_pool1d": lambda x, k=k: _pool(k, 1)(x[..., 0]) for k in ("max", "avg", "adaptive_avg")
    },
    **{f"{k}_pool2d": lambda x, k=k: _pool(k, 2)(x) for k in ("max", "avg", "adaptive_avg")},
    **{
        f"{k}_pool3d": lambda x, k=k: _pool(k, 3)(x[..., None].expand(*x.shape, 4))
        for k in ("max", "avg", "adaptive_avg")
    },
}


def _pool(kind: str, rank: int) -> Any:
    return lambda x: getattr(aten, f"{kind}_pool{rank}d")(x, [2] * rank)


def _weight(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Weights whose input channels of zeros are zeros too; outputs keep the channel's place."""
    eye = torch.eye(x.shape[1], dtype=x.dtype) * (x.abs().amax((0, 2, 3)) > 0)
    return eye.reshape(*eye.shape, *[1] * rank)


def run(name: str, x: torch.Tensor) -> torch.Tensor:
    return CALLS.get(name, getattr(aten, name, None))(x)


@pytest.mark.parametrize("name", named("zero_safe"))
def test_zero_safe_ops_keep_channels_apart_and_gradients_finite(name: str) -> None:
    silent = CHANNELS.clone()
    silent[:, 1] = 0
    x = silent.requires_grad_()
    full, part = run(name, CHANNELS), run(name, x)
    for channel in (0, 2):
        assert torch.allclose(full[:, channel], part[:, channel])
    assert part.isfinite().all()
    if part.requires_grad:
        (gradient,) = torch.autograd.grad(part.sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", named("nonlinear"))
def test_nonlinear_ops_bend(name: str) -> None:
    assert bends(lambda x: run(name, x), CHANNELS)


@pytest.mark.parametrize("name", named("copies"))
def test_copies_have_the_values_of_their_operand(name: str) -> None:
    assert torch.equal(run(name, CHANNELS), CHANNELS)


@pytest.mark.parametrize("name", named("pools"))
def test_pools_give_fewer_positions(name: str) -> None:
    assert run(name, CHANNELS).numel() < CHANNELS.numel()


@pytest.mark.parametrize("name", named("pairs"))
def test_pairs_must_be_adjacent_in_memory(name: str) -> None:
    odd = torch.zeros(9)[1:].reshape(4, 2)
    with pytest.raises(RuntimeError, match="divisible by 2"):
        run(name, odd)


def test_what_tells_channels_last_apart_says_so() -> None:
    """Every sample that reads a map, from one random state, also with channels last."""
    found, met = set[str](), set[str]()
    for name in SAMPLES:
        for node, env in calls_of(name):
            if node.kwargs.get("memory_format") is not None or op_name(node.target) == "getitem":
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, env=env: env[n])
            if any(t.ndim == 4 for t in tensors((args, kwargs))):
                met.add(op_name(node.target))
                if _differs(node, args, kwargs):
                    found.add(op_name(node.target))
    assert len(met) > 30
    told = {name for name in OPS if OPS[name].memory_order or OPS[name].strided}
    assert not found - told - VIEWS_THAT_REFUSE


# They raise where memory has no such view: what runs them gives them a copy (runtime.run).
VIEWS_THAT_REFUSE = {"view", "view_as"}


def _differs(node: fx.Node, args: Any, kwargs: Any) -> bool:
    results: list[list[torch.Tensor]] = []
    for turned in (False, True):
        laid = pytree.tree_map_only(
            torch.Tensor, lambda t, turned=turned: _laid(t, turned), (args, kwargs)
        )
        torch.manual_seed(0)
        try:
            results.append(tensors(node.target(*laid[0], **laid[1])))  # type: ignore[operator]
        except RuntimeError:
            return True
    return not all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) or torch.allclose(a, b, equal_nan=True)
        for a, b in zip(*results, strict=True)
    )


def _laid(t: torch.Tensor, turned: bool) -> torch.Tensor:
    return t.clone(
        memory_format=torch.channels_last if turned and t.ndim == 4 else torch.contiguous_format
    )


def test_ops_that_draw_positions_have_a_memory_order() -> None:
    """By a tag of torch's; those without ``memory_order`` draw no position of a map."""
    drawing = {
        name
        for name in OPS
        if (packet := getattr(aten, name, None)) is not None
        for overload in packet.overloads()
        if torch.Tag.nondeterministic_seeded in getattr(packet, overload).tags
    }
    assert "dropout" in drawing
    assert drawing - set(named("memory_order")) == DRAW_NO_MAP


DRAW_NO_MAP = {
    "feature_dropout",  # draws for whole channels
    "feature_alpha_dropout",
    "multinomial",  # draws positions of a row
    *("rand", "randint", "randn", "randperm"),  # read no tensor
    *("lstm", "gru", "rnn_tanh", "rnn_relu"),  # draw for sequences
    "scaled_dot_product_attention",  # its weights are no operand
}


def test_layers_name_arguments_of_their_op() -> None:
    assert named("layer")
    for name in named("layer"):
        layer = OPS[name].layer
        assert layer is not None
        arguments = {a.name for a in getattr(aten, name).default._schema.arguments}
        assert {word for word in layer[:3] if word} <= arguments


def test_permuting_ops_flip_a_matrix() -> None:
    options = {"permute": ([1, 0],), "transpose": (0, 1), "swapaxes": (0, 1), "swapdims": (0, 1)}
    matrix = torch.arange(6.0).reshape(2, 3)
    for name in named("permutes"):
        assert torch.equal(getattr(aten, name)(matrix, *options.get(name, ())), matrix.mT), name


def test_inferring_ops_take_minus_one() -> None:
    x = torch.zeros(2, 3, 4)
    for name in named("infers"):
        sizes = (1, [-1, 2]) if name == "unflatten" else ([-1, 12],)
        with pytest.raises(RuntimeError) if name == "unflatten" else _nothing():
            assert getattr(aten, name)(x, *sizes).numel() == 24


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("name", named("statistics"))
def test_norms_with_statistics_write_them_in_training(name: str) -> None:
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    getattr(aten, name)(CHANNELS, None, None, mean, var, True, 0.5, 1e-5, False)
    assert mean.any()


@pytest.mark.parametrize("name", named("scales"))
def test_norms_scale_and_shift(name: str) -> None:
    source = str(getattr(aten, name).default._schema)
    assert "weight" in source
    assert "eps" in source


def test_ops_whose_functions_cut_gradients_are_told() -> None:
    """Where autograd knows no derivative of an op, its function may not even ask for one."""
    cut: set[str] = set()
    for name in SAMPLES:
        for node, env in calls_of(name):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, env=env: env[n])
            args = (*pytree.tree_map_only(torch.Tensor, _asking, args[:1]), *args[1:])
            made = tensors(node.target(*args, **kwargs))
            function = getattr(torch, op_name(node.target), None)
            if function and any(type(t.grad_fn).__name__ == "NotImplemented" for t in made):
                if not any(t.requires_grad for t in tensors(function(*args, **kwargs))):
                    cut.add(op_name(node.target))
    assert cut == set(named("cuts_gradients"))


def _asking(t: torch.Tensor) -> torch.Tensor:
    """A tensor that no leaf is: ops that work in place may write into it."""
    real = t.is_floating_point() or t.is_complex()
    return t.detach().clone().requires_grad_().clone() if real else t


@pytest.mark.parametrize("name", named("slides"))
def test_sliding_ops_have_groups_and_a_map(name: str) -> None:
    arguments = {a.name for a in getattr(aten, name).default._schema.arguments}
    assert {"input", "weight", "groups", "stride"} <= arguments
    assert run(name, CHANNELS).ndim == int(name[-2]) + 2


def test_an_unknown_op_has_the_safe_answers() -> None:
    def nobody(x: torch.Tensor) -> torch.Tensor:
        return x

    assert facts_of(nobody) is UNKNOWN
    assert {f for f in FACTS if getattr(UNKNOWN, f) != getattr(Op(None), f)} == {
        "hands_on",
        "strided",
        "memory_order",
    }


def test_every_fact_has_a_law_here() -> None:
    text = inspect.getsource(inspect.getmodule(test_every_fact_has_a_law_here))  # type: ignore[arg-type]
    untested = [f for f in FACTS if f'"{f}"' not in text and f".{f}" not in text]
    assert not untested
