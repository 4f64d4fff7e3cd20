"""Training a nested model: gradients are those of the extracted network, and usual loops work."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import nestify
from nestify import NestedModel, Subnet
from nestify.training import METHODS, Method, step
from tests.nested.test_model import MODELS, train_alike

NAMES = ["bn", "bn over concat", "bn 1d", "instance norm", "multi-head attention", "bn untracked"]


class Block(nn.Module):
    """A grouped bottleneck with a residual stream, and a classifier over flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce, self.norm = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.paths = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.expand = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.norm(self.reduce(x)))
        y = self.depthwise(F.relu(self.paths(y)))
        return self.head(F.relu(x + self.expand(y)).flatten(1))


class Encoder(nn.Module):
    """Patches, tokens, one transformer layer with fused qkv, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, 2)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


IMAGES = (6, 3, 4, 4)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "block": (Block, IMAGES),
    "encoder": (Encoder, IMAGES),
    **{name: MODELS[name] for name in NAMES},
}
RECIPE = "+".join(f"fn3-{kind}{{where=all}}" for kind in ("channel", "neuron", "head", "path"))


def build(name: str, recipe: str = RECIPE) -> tuple[NestedModel, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    x = torch.randn(shape)
    nested = nestify.transform(make(), recipe, (x,))
    for module in nested.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return nested.train(), x


def classes(name: str) -> tuple[NestedModel, torch.Tensor, torch.Tensor]:
    nested, x = build(name)
    return nested, x, torch.arange(len(x)) % 5


def put_back(nested: NestedModel, subnet: Subnet, slim: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of an extracted network in the shape of the full tensors, zeros elsewhere."""
    keep = nested.keep(subnet)
    full = {}
    for name, parameter in nested.named_parameters():
        dims = nested.graph.tensor_dims[name]
        grid = torch.meshgrid(*(keep.indices(e) for e in dims), indexing="ij")
        full[name] = torch.zeros_like(parameter)
        full[name][grid] = slim.get_parameter(name).grad
    return full


def gradients(nested: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in nested.named_parameters()}


# --- equality -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NETS if n != "multi-head attention"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sliced_step_is_a_step_of_the_extracted_network(name: str, seed: int) -> None:
    nested, x = build(name)
    nested, x = nested.double(), x.double()
    subnet = nested.space.sample(torch.Generator().manual_seed(seed))
    slim = nested.extract(subnet, verify=False)
    train_alike(slim, nested)
    with nested.activate(subnet):
        mine = nested(x)
    theirs = slim(x)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    weight = torch.randn(mine.shape, dtype=mine.dtype)
    for out in (mine, theirs):
        (out * weight).sum().backward()
    expected = put_back(nested, subnet, slim)
    for key, grad in gradients(nested).items():
        torch.testing.assert_close(grad, expected[key], rtol=1e-9, atol=1e-11, msg=key)


# --- usual loops ----------------------------------------------------------------------------------


def removed(nested: NestedModel, subnet: Subnet) -> dict[str, torch.Tensor]:
    """Masks of the positions that ``subnet`` lacks."""
    keep = nested.keep(subnet)
    masks = {}
    for name, parameter in nested.named_parameters():
        grid = torch.meshgrid(
            *(keep.indices(e) for e in nested.graph.tensor_dims[name]), indexing="ij"
        )
        masks[name] = torch.ones_like(parameter, dtype=torch.bool)
        masks[name][grid] = False
    return masks


def test_momentum_and_weight_decay_act_on_what_was_not_drawn() -> None:
    """To an optimizer a removed position has a gradient of zero, as under the paper's masks."""
    nested, x, y = classes("block")
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    step(nested, x, y, F.cross_entropy, Method(full=True, random=0))
    optimizer.step()
    before = {name: p.detach().clone() for name, p in nested.named_parameters()}
    momenta = {
        n: optimizer.state[p]["momentum_buffer"].clone() for n, p in nested.named_parameters()
    }
    optimizer.zero_grad()
    subnet = nested.space.smallest()
    with nested.activate(subnet):
        F.cross_entropy(nested(x), y).backward()
    optimizer.step()
    masks = removed(nested, subnet)
    assert any(mask.any() for mask in masks.values())
    for name, p in nested.named_parameters():
        expected = before[name] - 0.1 * (0.9 * momenta[name] + 0.01 * before[name])
        torch.testing.assert_close(p.detach()[masks[name]], expected[masks[name]])


def test_gradients_accumulate_over_steps() -> None:
    nested, x, y = classes("block")
    total = {name: torch.zeros_like(p) for name, p in nested.named_parameters()}
    subnets = [nested.space.sample(torch.Generator().manual_seed(i)) for i in range(3)]
    for subnet in subnets:
        nested.zero_grad()
        with nested.activate(subnet):
            F.cross_entropy(nested(x), y).backward()
        for name, p in nested.named_parameters():
            total[name] += p.grad
    nested.zero_grad()
    for subnet in subnets:
        with nested.activate(subnet):
            F.cross_entropy(nested(x), y).backward()
    for name, p in nested.named_parameters():
        torch.testing.assert_close(p.grad, total[name])


@pytest.mark.parametrize("name", ["block", "encoder"])
def test_bf16_autocast(name: str) -> None:
    nested, x, y = classes(name)
    subnet = nested.space.at(0.5)
    slim = nested.extract(subnet, verify=False)
    train_alike(slim, nested)
    outs = []
    with nested.activate(subnet), torch.autocast("cpu", torch.bfloat16):
        for net in (nested, slim):
            outs.append(net(x))
            F.cross_entropy(outs[-1], y).backward()
    assert outs[0].dtype == torch.bfloat16
    torch.testing.assert_close(*outs)
    expected = put_back(nested, subnet, slim)
    for key, grad in gradients(nested).items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected[key], rtol=2e-2, atol=2e-2, msg=key)


def test_a_grad_scaler_scales_every_loss_of_a_step() -> None:
    nested, x, y = classes("block")
    twin = copy.deepcopy(nested)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for net, given in ((nested, scaler), (twin, None)):
        net.draws.restart(3)
        step(net, x, y, F.cross_entropy, "sandwich", scaler=given)
    for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, 8 * b.grad)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointed_steps_have_the_same_gradients(method: str) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, module: NestedModel) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.module, x, use_reentrant=False)

    nested, x, y = classes("encoder")
    twin = copy.deepcopy(nested)
    for inner, net in ((nested, nested), (twin, Checkpointed(twin))):
        inner.draws.restart(5)
        step(net, x, y, F.cross_entropy, method)
    for a, b in zip(nested.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_an_averaged_model_serves_subnets() -> None:
    nested, x, y = classes("block")
    average = torch.optim.swa_utils.AveragedModel(
        nested, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
    expected = {name: p.detach().clone() for name, p in nested.named_parameters()}
    for i in range(3):
        optimizer.zero_grad()
        step(nested, x, y, F.cross_entropy)
        optimizer.step()
        average.update_parameters(nested)
        for name, p in nested.named_parameters():
            expected[name] = p.detach().clone() if i == 0 else (expected[name] + p.detach()) / 2
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    subnet = nested.space.at(0.5)
    slim = average.module.eval().extract(subnet, calibrate=[x])
    assert slim(x).shape == (len(x), 5)
