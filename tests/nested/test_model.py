"""A nested model at its largest subnet is the original, bit for bit, in eval and in train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import nestify


class Seq(nn.Sequential):
    """A body with elastic channels around the layer under test."""


def conv_net(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *middle, nn.ReLU(), nn.Conv2d(8, 4, 3))


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), *middle, nn.GELU(), nn.Linear(12, 4))


class BatchNormAct(nn.BatchNorm2d):
    """A BatchNorm with its activation inside and a functional forward, as timm spells it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        use_batch = self.training or self.running_mean is None
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, 0.1, self.eps
        )
        return F.relu(x)


class FunctionalNorm(nn.Module):
    def __init__(self, size: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.rand(size)), nn.Parameter(torch.rand(size))
        self.register_buffer("mean", torch.rand(size))
        self.register_buffer("var", torch.rand(size) + 0.5)
        self.frozen = frozen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = self.training and not self.frozen
        return F.batch_norm(x, self.mean, self.var, self.gain, self.shift, training=training)


class NamedLikeBatchNorm(nn.Module):
    """Frozen statistics under BatchNorm's own names: a module would update them."""

    def __init__(self, size: int, *, follows: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(size)), nn.Parameter(torch.rand(size))
        self.register_buffer("running_mean", torch.rand(size))
        self.register_buffer("running_var", torch.rand(size) + 0.5)
        self.follows = follows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = self.training and self.follows
        stats = (self.running_mean, self.running_var)
        return F.batch_norm(x, *stats, self.weight, self.bias, training=training, momentum=0.3)


class FunctionalDropout(nn.Module):
    def __init__(self, drop: Callable[..., torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.fc, self.drop, self.options = nn.Linear(12, 12), drop, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(F.gelu(self.fc(x)), 0.4, training=self.training, **self.options)


class AlwaysDropout(nn.Module):
    """Monte-Carlo dropout: on in both modes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


class ZeroedDropout(nn.Module):
    """The mode decides the probability, not the flag."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5 if self.training else 0.0)


class DropPath(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1)) > self.p
        return x * keep / (1 - self.p)


class Residual(nn.Module):
    def __init__(self, *, keyword: bool = False) -> None:
        super().__init__()
        self.body, self.drop, self.keyword = nn.Conv2d(8, 8, 3, padding=1), DropPath(0.5), keyword

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.body(x))
        return x + (self.drop(x=y) if self.keyword else self.drop(y))


class Attention(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.qkv, self.out, self.drop = nn.Linear(6, 48), nn.Linear(16, 6), drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        p = self.drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.out(x.transpose(1, 2).flatten(2))


class KeepsNormFrozen(nn.Module):
    """A common habit: ``train`` is overridden so that BatchNorm stays in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)

    def train(self, mode: bool = True) -> KeepsNormFrozen:
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.bn(self.conv(x))))


def frozen_norm() -> nn.Module:
    net = conv_net(nn.BatchNorm2d(8))
    net[1].eval()
    return net


class NormedTable(nn.Module):
    """A norm of a learned table, which no batch runs through."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc(x).relu() @ self.norm(self.table))


class NormOverConcat(nn.Module):
    """The kept channels of the norm are no prefix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 6, 3)
        self.norm, self.head = nn.BatchNorm2d(11), nn.Conv2d(11, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


IMAGE, ROW, TOKENS = (4, 3, 9, 9), (4, 6), (4, 5, 6)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bn": (lambda: conv_net(nn.BatchNorm2d(8)), IMAGE),
    "bn momentum none": (lambda: conv_net(nn.BatchNorm2d(8, momentum=None)), IMAGE),
    "bn not affine": (lambda: conv_net(nn.BatchNorm2d(8, affine=False)), IMAGE),
    "bn untracked": (lambda: conv_net(nn.BatchNorm2d(8, track_running_stats=False)), IMAGE),
    "bn 1d": (lambda: mlp(nn.BatchNorm1d(12)), ROW),
    "bn of a table": (NormedTable, ROW),
    "bn with activation": (lambda: conv_net(BatchNormAct(8)), IMAGE),
    "bn functional": (lambda: conv_net(FunctionalNorm(8)), IMAGE),
    "bn functional, own names": (lambda: conv_net(NamedLikeBatchNorm(8, follows=True)), IMAGE),
    "bn frozen in code": (lambda: conv_net(NamedLikeBatchNorm(8, follows=False)), IMAGE),
    "bn functional, frozen": (lambda: conv_net(FunctionalNorm(8, frozen=True)), IMAGE),
    "bn over concat": (NormOverConcat, IMAGE),
    "bn overridden train": (KeepsNormFrozen, IMAGE),
    "instance norm": (lambda: conv_net(nn.InstanceNorm2d(8, track_running_stats=True)), IMAGE),
    "dropout": (lambda: mlp(nn.Dropout(0.5)), ROW),
    "dropout in place": (lambda: mlp(nn.Dropout(0.5, inplace=True)), ROW),
    "dropout 1d": (lambda: mlp(nn.Dropout1d(0.5)), TOKENS),
    "dropout 2d": (lambda: conv_net(nn.Dropout2d(0.5)), IMAGE),
    "alpha dropout": (lambda: mlp(nn.AlphaDropout(0.5)), ROW),
    "feature alpha dropout": (lambda: conv_net(nn.FeatureAlphaDropout(0.5)), IMAGE),
    "rrelu": (lambda: mlp(nn.RReLU()), ROW),
    "functional dropout": (lambda: mlp(FunctionalDropout(F.dropout)), ROW),
    "functional dropout in place": (lambda: mlp(FunctionalDropout(F.dropout, inplace=True)), ROW),
    "functional alpha dropout": (lambda: mlp(FunctionalDropout(F.alpha_dropout)), ROW),
    "always dropout": (lambda: mlp(AlwaysDropout()), ROW),
    "dropout by probability": (lambda: mlp(ZeroedDropout()), ROW),
    "drop path": (lambda: conv_net(Residual(), Residual(keyword=True)), IMAGE),
    "attention dropout": (lambda: nn.Sequential(Attention(0.5), nn.ReLU(), Attention(0.3)), TOKENS),
    "multi-head attention": (
        lambda: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.5, batch_first=True),
        TOKENS,
    ),
    "lstm": (lambda: FirstOf(nn.LSTM(6, 5, num_layers=2, dropout=0.5, batch_first=True)), TOKENS),
}


class FirstOf(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.embed, self.rnn = mlp_to(6), rnn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.embed(x))[0]


def mlp_to(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, size))


def build(name: str) -> tuple[nn.Module, nestify.NestedModel, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    return model, nest(model, x), x


def nest(model: nn.Module, *inputs: Any, **kwargs: Any) -> nestify.NestedModel:
    return nestify.transform(
        model, "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head{where=all}", inputs, kwargs
    )


def assert_same(a: Any, b: Any) -> None:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def assert_trains_alike(model: nn.Module, nested: nestify.NestedModel, *inputs: Any) -> None:
    """Two steps in training mode: outputs, gradients and every state tensor agree bit for bit."""
    nested.activate(nested.space.largest())
    for seed in (1, 2):
        results = []
        for net in (model, nested):
            torch.manual_seed(seed)
            out = net(*copy.deepcopy(inputs))
            leaves = [t for t in pytree.tree_leaves(out) if t.requires_grad]
            torch.stack([t.square().sum() for t in leaves]).sum().backward()
            results.append(out)
        assert_same(*results)
    mine, theirs = dict(nested.named_parameters()), dict(model.named_parameters())
    assert list(mine) == list(theirs)
    for name, parameter in theirs.items():
        assert (parameter.grad is None) == (mine[name].grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, mine[name].grad), name
    assert list(model.state_dict()) == list(nested.state_dict())
    assert_same(model.state_dict(), nested.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_largest_subnet_is_the_original_in_train_and_eval(name: str) -> None:
    model, nested, x = build(name)
    assert [m.training for m in model.modules()] == [
        nested.get_submodule(path).training for path, _ in model.named_modules()
    ]
    model.train()
    nested.train()
    assert_trains_alike(model, nested, x)
    model.eval()
    nested.eval()
    for net in (model, nested):
        torch.manual_seed(3)
        result = net(x.clone())
        if net is model:
            expected = result
    assert torch.equal(expected, result)


def test_norm_frozen_by_the_user_stays_frozen() -> None:
    torch.manual_seed(0)
    model = frozen_norm()
    nested = nest(model, torch.randn(IMAGE))
    assert nested.training
    assert not nested.get_submodule("1").training
    assert_trains_alike(model, nested, torch.randn(IMAGE))


@pytest.mark.parametrize("name", MODELS)
def test_extracted_equals_nested_at_random_subnets(name: str) -> None:
    _, nested, x = build(name)
    nested.eval()
    for seed in range(3):
        subnet = nested.space.sample(torch.Generator().manual_seed(seed))
        slim = nested.extract(subnet, verify=False)
        torch.manual_seed(1)
        mine = slim(x.clone())
        torch.manual_seed(1)
        with nested.activate(subnet):
            torch.testing.assert_close(nested(x.clone()), mine, rtol=1e-5, atol=1e-6)


EVAL_ONLY = {"attention dropout", "multi-head attention", "lstm", "bn functional"}
IN_BOTH_MODES = [name for name in MODELS if name not in EVAL_ONLY]


@pytest.mark.parametrize("name", IN_BOTH_MODES)
def test_extracted_network_trains_like_the_original(name: str) -> None:
    model, nested, x = build(name)
    slim = nested.extract(nested.space.largest(), verify=False)
    model.train()
    train_alike(slim, model)
    torch.manual_seed(1)
    expected = model(x.clone())
    torch.manual_seed(1)
    assert torch.equal(expected, slim(x.clone()))
    for key, value in slim.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("name", IN_BOTH_MODES)
def test_a_step_of_a_subnet_is_a_step_of_the_extracted_network(name: str) -> None:
    _, nested, x = build(name)
    subnet = nested.space.at(0.5)
    slim = nested.extract(subnet, verify=False)
    nested.train()
    train_alike(slim, nested)
    before = copy.deepcopy(nested.state_dict())
    with nested.activate(subnet):
        outs = []
        for net in (nested, slim):
            torch.manual_seed(1)
            outs.append(net(x.clone()))
            outs[-1].square().sum().backward()
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)
    for key, value in nested.extract(subnet, verify=False).state_dict().items():
        torch.testing.assert_close(value, slim.state_dict()[key], rtol=1e-5, atol=1e-6)
    for key, value in nested.state_dict().items():
        changed = int((value != before[key]).sum())
        assert changed <= slim.state_dict()[key].numel()


def train_alike(net: nn.Module, like: nn.Module) -> None:
    net.train()
    known = dict(like.named_modules())
    for path, module in net.named_modules():
        if path in known:
            module.training = known[path].training


class Standardised(nn.Module):
    """Convolves with weights of mean 0 and variance 1, as norm-free networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.gain = nn.Parameter(torch.rand(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.conv.weight.reshape(1, 5, -1)
        flat = F.batch_norm(rows, None, None, weight=self.gain, training=True, momentum=0.0)
        return F.conv2d(self.stem(x), flat.reshape_as(self.conv.weight), self.conv.bias)


def test_a_statistic_of_one_value() -> None:
    x, model = torch.randn(2, 3, 4, 4).double(), Standardised().double()
    net = nestify.transform(model, "fn3-channel{where=all}", example_inputs=(x,)).eval()
    for subnet in (net.space.smallest(), net.space.at(0.5)):
        slim = net.extract(subnet)
        with net.activate(subnet):
            assert torch.allclose(net(x), slim(x), rtol=1e-9)
