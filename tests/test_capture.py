"""Capture: any module, any inputs and outputs, a free batch, and one clear error where it cannot
be.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import nestify
from nestify.capture import capture, source_line
from nestify.errors import CaptureError, NestifyWarning

RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}"


def nest(model: nn.Module, *inputs: Any, **kwargs: Any) -> nestify.NestedModel:
    return nestify.transform(model, RECIPE, inputs, kwargs)


def leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def assert_equal(a: Any, b: Any) -> None:
    assert len(leaves(a)) == len(leaves(b)) > 0
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def assert_serves(model: nn.Module, *inputs: Any, **kwargs: Any) -> nestify.NestedModel:
    """Nested and extracted equal the original at full size, and each other at half of it."""
    model.eval()
    nested = nest(model, *inputs, **kwargs).eval()
    slim = nested.extract(nested.space.largest())
    for batch in (None,) if nested.graph.batch is None else (None, 1, 2, 5):
        call = resized((inputs, kwargs), batch, nested)
        with torch.no_grad():
            out = model(*copy.deepcopy(call[0]), **call[1])
            assert_equal(out, nested(*copy.deepcopy(call[0]), **call[1]))
            assert_equal(out, slim(*copy.deepcopy(call[0]), **call[1]))
            assert type(out) is type(nested(*copy.deepcopy(call[0]), **call[1]))
    half = nested.space.at(0.5)
    small = nested.extract(half)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for batch in (1, 5) if nested.graph.batch is not None else (None,):
        args, kw = resized((inputs, kwargs), batch, nested)
        with nested.activate(half), torch.no_grad():
            got, expected = small(*copy.deepcopy(args), **kw), nested(*copy.deepcopy(args), **kw)
        for a, b in zip(leaves(got), leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return nested


def resized(call: Any, batch: int | None, nested: nestify.NestedModel) -> Any:
    """The call with another batch size, on the inputs that carry the batch."""
    if batch is None:
        return call
    flat, spec = pytree.tree_flatten(call)
    names = [n.name for n in nested.graph.nodes if n.op == "placeholder"]
    batched = nested.graph.capture.batched
    grown = [
        torch.cat([leaf] * batch)[:batch] if name in batched else leaf
        for name, leaf in zip(names, flat, strict=True)
    ]
    return pytree.tree_unflatten(grown, spec)


# --- names, sharing, modes ------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.head.weight = self.embed.weight
        self.unread = nn.Parameter(torch.ones(3))
        self.spare = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.ones(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(self.embed(x)) * self.scale))


def test_tied_and_unread_tensors_keep_their_names() -> None:
    model = Tied()
    nested = assert_serves(model, torch.randint(11, (2, 5)))
    assert list(nested.state_dict()) == list(model.state_dict())
    names = [name for name, _ in nested.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    assert nested.head.weight is nested.embed.weight
    assert nested.head.weight is not model.head.weight
    slim = nested.extract(nested.space.at(0.5))
    assert slim.head.weight is slim.embed.weight
    assert slim.head.weight.shape == (11, 4)
    model.load_state_dict(nested.state_dict())
    nested.load_state_dict(model.state_dict())


class Shared(nn.Module):
    """One module called twice, once under another name, and once with other options."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.twin = nn.Sequential(self.conv, nn.ReLU())
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.stem(x))
        x = self.twin(x) + F.relu(self.conv(x))
        return self.head(F.conv2d(x, self.conv.weight, stride=2, padding=2, dilation=2))


def test_a_module_called_twice_stays_one_module() -> None:
    model = Shared()
    nested = assert_serves(model, torch.randn(2, 3, 6, 6))
    assert list(nested.state_dict()) == list(model.state_dict())
    assert nested.get_submodule("twin.0") is nested.get_submodule("conv")
    slim = nested.extract(nested.space.largest())
    assert [type(m).__name__ for m in slim.modules()].count("Conv2d") == 3


class OneParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)))


def test_the_same_parameter_under_two_modules() -> None:
    nested = nestify.trace(OneParameter(), (torch.randn(2, 6),))
    assert nested.groups == ()  # the width of the hidden layer is that of the input


def test_parametrizations_are_computed_in_the_graph() -> None:
    hidden = parametrizations.weight_norm(nn.Linear(6, 8))
    model = nn.Sequential(hidden, nn.ReLU(), parametrizations.spectral_norm(nn.Linear(8, 4)))
    model.eval()
    with pytest.warns(NestifyWarning, match=r"'2.parametrizations.weight.0' .* does in training"):
        nested = nestify.NestedModel(nestify.trace(model, (torch.randn(2, 6),)), (), "none")
    assert list(nested.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 6)
    assert_equal(nested(x), model(x))
    assert_equal(nested.extract({})(x), model(x))


class Collides(nn.Module):
    """Children and parameters with the names of a nested model's own attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.keep = nn.Linear(6, 8), nn.Linear(8, 8)
        self.active = nn.Linear(8, 8)
        self.recipe = nn.Parameter(torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.active(F.relu(self.keep(F.relu(self.space(x)))) * self.recipe)


def test_names_of_the_model_may_be_ours() -> None:
    model = Collides()
    nested = assert_serves(model, torch.randn(2, 6))
    assert list(nested.state_dict()) == list(model.state_dict())
    nested.train()
    nested(torch.randn(2, 6)).sum().backward()
    assert all(p.grad is not None for p in nested.parameters())
    assert copy.deepcopy(nested).state_dict().keys() == model.state_dict().keys()


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = [dict(vars(module)) for module in model.modules()]
    random = torch.get_rng_state()
    capture(model, (torch.randn(2, 4, generator=torch.Generator()),))
    assert torch.equal(random, torch.get_rng_state())
    assert before == [vars(module) for module in model.modules()]
    assert not hasattr(nn.Module, "training")
    assert_equal(state, model.state_dict())
    calls.clear()
    model(torch.randn(2, 4))
    assert calls == [1]


def test_nodes_know_their_module_and_line() -> None:
    graph = capture(Tied(), (torch.randint(11, (2, 5)),)).graph
    relu = next(node for node in graph.nodes if node.name == "relu")
    linear = next(node for node in graph.nodes if node.name == "linear")
    assert linear.meta["path"] == "body"
    file, _, line = source_line(relu).rpartition(":")
    assert Path(file) == Path(__file__)
    assert "F.relu" in Path(file).read_text().splitlines()[int(line) - 1]


# --- inputs and outputs ---------------------------------------------------------------------------


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None = None


pytree.register_dataclass(Output)


class Many(nn.Module):
    """Positional, keyword, nested, None, bool and int inputs; a dataclass of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(
        self,
        x: torch.Tensor,
        extra: dict[str, Any],
        mask: torch.Tensor | None = None,
        *,
        double: bool = False,
        power: int = 1,
    ) -> Output:
        h = F.relu(self.a(x + extra["bias"][0])) ** power
        if mask is not None:
            h = h.masked_fill(mask[:, None], 0.0)
        y = self.b(h)
        return Output(y * 2 if double else y, (y, extra["bias"][1]))


def test_any_pytree_in_and_out() -> None:
    extra = {"bias": [torch.randn(2, 6), torch.randn(2, 3)]}
    x = torch.randn(2, 6)
    assert_serves(Many(), x, extra)
    assert_serves(Many(), x, extra, None, double=True, power=2)
    nested = assert_serves(Many(), x, extra, mask=torch.tensor([True, False]), double=True)
    with pytest.raises(nestify.UsageError, match="structure of the example inputs"):
        nested(x)


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor, types: torch.Tensor | None = None) -> dict[str, Any]:
        h = self.embed(ids)
        return {"logits": self.head(F.relu(h)), "nothing": None, "both": [h.sum((1, 2)), h.mean()]}


def test_dict_output_and_integer_inputs() -> None:
    assert_serves(Dictionary(), torch.randint(9, (2, 5)))
    assert_serves(Dictionary(), ids=torch.randint(9, (2, 5)), types=None)


# --- the batch ------------------------------------------------------------------------------------


class Baked(nn.Module):
    """The batch size as a Python int in views, expands, zeros and repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        x = torch.cat([self.token.expand(n, -1, -1), x], 1)
        x = self.a(x.reshape(n * (t + 1), c)).relu().view(n, t + 1, 8)
        x = x + torch.zeros(n, t + 1, 1) + torch.ones(t + 1, 1).repeat(n, 1, 1)
        return self.b(x.flatten(0, 1)).view(n, -1)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_is_free_where_the_code_bakes_it(batch: int) -> None:
    nested = assert_serves(Baked(), torch.randn(batch, 3, 6))
    assert nested.graph.batch is not None
    assert nested.example_inputs[0].shape[0] == batch


class Positional(nn.Module):
    """A parameter as long as the batch: the batch cannot be free."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.offset = nn.Parameter(torch.randn(batch, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x))) + self.offset


def test_a_fixed_batch_says_why() -> None:
    nested = assert_serves(Positional(3), torch.randn(3, 6))
    assert nested.graph.batch is None
    reasons = [f.reason for f in nested.graph.fixed if ("offset", 0) in f.sites]
    assert reasons == ["offset is as long as the example's batch"]


class OneSample(nn.Module):
    """Reads the batch away: tracing two samples is refused or means another thing."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__()
        self.a, self.b, self.refuses = nn.Linear(6, 8), nn.Linear(8, 4), refuses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.refuses and x.shape[0] != 1:
            raise ValueError("one sample at a time")
        return self.b(F.relu(self.a(x.squeeze(0)))).softmax(0)


@pytest.mark.parametrize("refuses", [True, False])
def test_one_sample_at_a_time(refuses: bool) -> None:
    assert_serves(OneSample(refuses=refuses), torch.randn(1, 6))


def test_unbatched_inputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert assert_serves(net, torch.randn(3, 8, 8)).graph.batch is None
    grey = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert assert_serves(grey, torch.randn(1, 8, 8)).graph.batch is None
    assert_serves(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(6))


# --- what forward may do --------------------------------------------------------------------------


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h = F.relu(self.a(x))
            scale = h.norm(dim=0)
        with torch.autocast("cpu", enabled=False):
            y = self.b(F.relu(self.a(x)) / (1 + scale.detach().mean()))
        return y + h.sum(-1, keepdim=True)


def test_no_grad_and_disabled_autocast_blocks() -> None:
    model = Blocks()
    nested = assert_serves(model, torch.randn(2, 6))
    x = torch.randn(2, 6)
    for net in (model, nested):
        net(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, nested.get_parameter(name).grad)


class Counter(nn.Module):
    """Buffers that forward writes, by assignment and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = F.relu(self.a(x))
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        self.last.copy_(h.detach().amax(0))
        return self.b(h - self.average) * self.calls


def test_buffers_that_forward_writes() -> None:
    model = Counter().eval()
    nested = nest(model, torch.randn(2, 6)).eval()
    slim = nested.extract(nested.space.largest())
    assert int(model.calls) == 0
    for net in (nested, slim):
        net.load_state_dict(model.state_dict())
    for seed in range(3):
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
        out = model(x)
        for net in (nested, slim):
            assert_equal(out, net(x))
            assert_equal(model.state_dict(), net.state_dict())
    with nested.activate(nested.space.at(0.5)):
        nested(torch.zeros(2, 6))
    assert int(nested.calls) == 4
    assert torch.equal(nested.last[4:], model.last[4:])
    assert not torch.equal(nested.last[:4], model.last[:4])


class InPlace(nn.Module):
    """In-place ops whose result is unused, on residual streams and on slices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.shift = nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = self.b(F.gelu(x))
        x = F.relu_(x + 0) * 1
        x.add_(y)
        x[:, :4].mul_(2.0)
        x[:, 1:3] = 1.0
        w = self.shift * 1
        w[:4].add_(1.0)
        x += w
        return self.out(x)


def test_in_place_ops_are_kept_and_train() -> None:
    model = InPlace()
    nested = assert_serves(model, torch.randn(2, 6))
    model.train()
    nested.train()
    x = torch.randn(4, 6)
    nested.activate(nested.space.largest())
    for net in (model, nested):
        net(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, nested.get_parameter(name).grad)
    before = {name: p.clone() for name, p in nested.named_parameters()}
    nested.activate(None)
    for _ in range(5):
        nested(x).square().sum().backward()
    assert_equal(before, dict(nested.named_parameters()))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.plain = torch.arange(4.0)  # a tensor that is no buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x * torch.tensor([1.0, 2, 3, 4, 5, 6])))) + self.plain


def test_lifted_constants_are_no_state() -> None:
    model = Constants()
    nested = assert_serves(model, torch.randn(2, 6))
    assert list(nested.state_dict()) == list(model.state_dict())
    assert assert_serves(copy.deepcopy(model).double(), torch.randn(2, 6).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    nested = nest(net.to(dtype).eval(), torch.randn(2, 3, 8, 8, dtype=dtype))
    slim = nested.extract(nested.space.at(0.5))
    assert {t.dtype for t in slim.parameters()} == {dtype}
    x = torch.randn(3, 3, 8, 8, dtype=dtype)
    assert_equal(net(x), nested.eval()(x))


def test_channels_last_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net = net.to(memory_format=torch.channels_last)
    nested = nest(net, torch.randn(2, 3, 8, 8))
    slim = nested.extract(nested.space.at(0.5))
    for tree in (nested, slim):
        weight = tree.get_parameter("2.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert_equal(nested.eval()(torch.ones(2, 3, 8, 8)), net(torch.ones(2, 3, 8, 8)))


# --- training only --------------------------------------------------------------------------------


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        h = F.relu(self.a(x))
        if self.training:
            return self.b(h), self.aux(h)
        return self.b(h)


def test_training_only_branches_are_reported() -> None:
    with pytest.warns(NestifyWarning, match=r"'aux' \(.*test_capture.py:\d+\) does in training"):
        nested = nest(Auxiliary(), torch.randn(2, 6))
    assert len(nested.graph.capture.notes) == 1
    assert list(nested.state_dict()) == list(Auxiliary().state_dict())


class RandomBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.a(x))
        if self.training and torch.rand(()) < 0.5:
            return self.b(h) * 2
        return self.b(F.dropout(h, 0.5, self.training))


def test_a_training_branch_that_cannot_be_traced_is_reported() -> None:
    with pytest.warns(NestifyWarning, match="in training mode.*test_capture.py"):
        captured = capture(RandomBranch(), (torch.randn(2, 6),))
    assert captured.mode_args == {("dropout", "train"): True}


def test_no_second_trace_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[int] = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        traces.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4))
    captured = capture(net, (torch.randn(2, 6),))
    assert len(traces) == 1
    assert captured.mode_args == {("batch_norm", "training"): True, ("dropout", "train"): True}


# --- errors ---------------------------------------------------------------------------------------


class Inside(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), Act(act))

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


class Act(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> Any:
        return self.act(x)


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


def read(x: torch.Tensor) -> torch.Tensor:
    return x * float(x.max().item() > 1)


def to_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


@pytest.mark.parametrize("act", [branch, read])
def test_control_flow_on_data(act: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(CaptureError) as caught:
        nest(Inside(act), torch.randn(2, 6))
    message = str(caught.value)
    line = act.__code__.co_firstlineno + 1
    assert f"in module 'body.1' ({__file__}:{line})" in message
    assert "torch.where" in message
    assert "\n" not in message
    assert "u0" not in message


def test_code_that_leaves_torch() -> None:
    with pytest.raises(CaptureError, match=r"cannot be captured in module 'body\.1'"):
        nest(Inside(to_numpy), torch.randn(2, 6))


class Casts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.a(x)


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


@pytest.mark.parametrize(("model", "name"), [(Casts(), "autocast"), (Chooses(), "cond")])
def test_blocks_that_cannot_be_served(model: nn.Module, name: str) -> None:
    with pytest.raises(CaptureError, match=rf"uses torch\.{name} at .*\.py:\d+, which cannot"):
        nestify.trace(model, (torch.randn(2, 6),))


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(CaptureError) as caught:
        nest(Inside(F.relu), torch.randn(2, 7))
    message = str(caught.value)
    assert message.startswith(
        "Inside fails on the example inputs (float32 [2, 7]) in module 'body.0'"
    )
    assert f"({__file__}:" in message
    assert "example_inputs=" in message


@pytest.mark.parametrize(
    ("result", "match"),
    [(lambda x: None, "returns no tensor"), (lambda x: 5, "returns no tensor")],
)
def test_a_model_that_returns_nothing(result: Callable[[Any], Any], match: str) -> None:
    with pytest.raises(CaptureError, match=match):
        nest(Inside(result), torch.randn(2, 6))


def test_wrong_types() -> None:
    with pytest.raises(nestify.UsageError, match=r"must be an nn\.Module, not int"):
        nestify.trace(5, (torch.randn(2),))
    with pytest.raises(CaptureError, match="hold no tensor"):
        nestify.trace(nn.Linear(2, 2), (3,))
    with pytest.raises(CaptureError, match="fails on the example inputs"):
        nestify.trace(nn.Linear(2, 2), ("text", torch.ones(2)))


def test_a_failed_trace_is_quiet(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch, nestify
        class Net(torch.nn.Module):
            def forward(self, x):
                return x * 2 if x.sum() > 0 else x
        try:
            nestify.trace(Net(), (torch.ones(2),))
        except nestify.CaptureError as error:
            assert "script.py:5" in str(error), error
        else:
            raise SystemExit("captured")
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_warned_of_for_an_ordinary_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nest(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 4)), torch.randn(2, 6))


class Selecting(nn.Module):
    """Keeps the rows whose sum is positive: how many, only the data know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y[y.sum(1) > 0]


def test_a_size_that_depends_on_the_data_is_one_clear_error() -> None:
    with pytest.raises(CaptureError, match=r"test_capture\.py:\d+ gives a size that depends on"):
        nestify.trace(Selecting(), example_inputs=(torch.randn(2, 4),))
