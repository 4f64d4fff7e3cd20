"""Extraction: a plain, smaller network that needs nothing of ours."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import nestify
from nestify import nested as nested_module
from nestify.compare import relative_error
from nestify.errors import UsageError, VerificationError

RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head{where=all}"


class Block(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(8, 8, 1, stride) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layers = nn.Sequential(Block(12, 1), Block(16, 2))
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.stem(x)).mean((2, 3))
        return self.fc(self.drop(x))


class Attention(nn.Module):
    """Heads and their width are written into the code, as in most vision transformers."""

    def __init__(self, scale: bool = True) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return self.head(x.mean(1))


def resnet() -> nestify.NestedModel:
    torch.manual_seed(0)
    model = ResNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.uniform_(module.running_mean)
    return nestify.transform(model.eval(), RECIPE, (torch.randn(2, 3, 8, 8),))


def attention() -> nestify.NestedModel:
    torch.manual_seed(0)
    return nestify.transform(Attention().eval(), RECIPE, (torch.randn(2, 6, 12),))


def test_the_module_tree_is_readable() -> None:
    nested = resnet()
    slim = nested.extract(nested.space.at(0.5))
    assert isinstance(slim, fx.GraphModule)
    assert not slim.training
    assert type(slim).__name__ == "ResNet"
    block = slim.get_submodule("layers.0.conv1")
    assert repr(block) == (
        "Conv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
    )
    assert isinstance(slim.get_submodule("drop"), nn.Dropout)
    kinds = {type(module) for _, module in slim.named_modules()}
    assert kinds <= {type(slim), nn.Module, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Dropout}
    assert set(slim.state_dict()) == set(nested.state_dict())


class LonelyGroups(nn.Module):
    """Features in groups; where each keeps one feature, a batch of one has one value a group."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)
        self.places = places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        y = self.norm(y[..., None] if self.places else y)
        return self.down(y.flatten(1))


@pytest.mark.parametrize("places", [0, 1])
def test_a_group_of_one_value_is_served_at_any_batch(places: int) -> None:
    """GroupNorm the module refuses what its op computes: a single value becomes the bias."""
    torch.manual_seed(0)
    inputs = (torch.randn(2, 6),)
    nested = nestify.transform(LonelyGroups(places).eval(), "fn3-neuron{where=all}", inputs)
    with torch.no_grad():
        for size in (1, 2):
            subnet = dict.fromkeys((unit.name for unit in nested.space.units), size)
            slim = nested.extract(subnet)
            assert isinstance(slim.get_submodule("norm"), nn.GroupNorm) == (size > 1)
            for x in (inputs[0], inputs[0][:1]):
                with nested.activate(subnet):
                    assert relative_error(nested(x), slim(x)) <= 1e-6


class Wasteful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.a(x))
        self.c(h).exp()
        return self.b(h)


def test_dead_code_is_gone() -> None:
    nested = nestify.transform(Wasteful(), RECIPE, (torch.randn(2, 6),))
    slim = nested.extract(nested.space.largest())
    assert [n.op for n in slim.graph.nodes].count("call_module") == 2
    assert "c.weight" in nested.state_dict()
    assert not any(name.startswith("c.") for name in slim.state_dict())


def test_a_subnet_may_name_some_units() -> None:
    nested = resnet()
    unit = nested.space.units[1]
    slim = nested.extract({unit.name: unit.minimum})
    assert_same_as_nested(nested, slim, nestify.Subnet({unit.name: unit.minimum}))


def assert_same_as_nested(
    nested: nestify.NestedModel, slim: nn.Module, subnet: nestify.Subnet
) -> None:
    x = torch.randn(3, *nested.example_inputs[0].shape[1:])
    with nested.activate(subnet), torch.no_grad():
        torch.testing.assert_close(slim(x), nested.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [resnet, attention])
def test_any_kept_index_set(make: Any) -> None:
    """Keeping positions is keeping a prefix of the permuted network."""
    nested = make()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        picks = {
            group.name: torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2]
            for group in nested.graph.groups
        }
        slim = nested.extract(picks)
        for group in nested.graph.groups:
            name, dim = group.sites[0]
            full, cut = nested.state_dict()[name], slim.state_dict()[name]
            assert cut.shape[dim] * group.size <= full.shape[dim] * len(picks[group.name])
    group = nested.graph.groups[0]
    everything = nested.extract({group.name: list(range(group.size))[::-1]})
    x = torch.randn(3, *nested.example_inputs[0].shape[1:])
    torch.testing.assert_close(everything(x), nested.eval()(x), rtol=1e-4, atol=1e-5)


def test_prefixes_are_nested() -> None:
    nested = resnet()
    small = nested.extract(nested.space.at(0.3)).state_dict()
    large = nested.extract(nested.space.at(0.7)).state_dict()
    for name, tensor in small.items():
        corner = large[name][tuple(slice(0, n) for n in tensor.shape)]
        assert torch.equal(tensor, corner), name
    assert any(tensor.shape != large[name].shape for name, tensor in small.items())


def test_extraction_shares_no_memory() -> None:
    nested = resnet()
    slim = nested.extract(nested.space.largest())
    mine = {t.data_ptr() for t in nested.state_dict().values()}
    assert not mine & {t.data_ptr() for t in slim.state_dict().values() if t.numel()}


# --- without nestify ------------------------------------------------------------------------------


def test_runs_where_nestify_is_not_installed(tmp_path: Path) -> None:
    nested = nestify.transform(ResNet().eval(), RECIPE, (torch.randn(2, 3, 8, 8),))
    slim = nested.extract(nested.space.at(0.5))
    x = torch.randn(3, 3, 8, 8)
    (tmp_path / "slim.pickle").write_bytes(pickle.dumps(slim))
    torch.save(slim.state_dict(), tmp_path / "state.pt")
    torch.save((x, slim(x)), tmp_path / "pair.pt")
    code = """
        import pickle, sys, torch
        sys.modules["nestify"] = None
        folder = sys.argv[1]
        slim = pickle.load(open(folder + "/slim.pickle", "rb"))
        x, y = torch.load(folder + "/pair.pt")
        assert torch.equal(slim(x), y)
        slim.load_state_dict(torch.load(folder + "/state.pt"))
        slim.train()(x).sum().backward()
        assert not [name for name in sys.modules if name.startswith("nestify.")]
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_copies_and_state_dicts() -> None:
    nested = resnet()
    slim, x = nested.extract(nested.space.at(0.5)), torch.randn(3, 3, 8, 8)
    twin = copy.deepcopy(slim)
    with torch.no_grad():
        twin.get_parameter("fc.weight").zero_()
    assert slim.get_parameter("fc.weight").abs().sum() > 0
    twin.load_state_dict(slim.state_dict())
    assert torch.equal(twin(x), slim(x))


# --- verification and calibration -----------------------------------------------------------------


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = resnet()
    honest = nested_module.emit

    def broken(*args: Any) -> fx.GraphModule:
        slim = honest(*args)
        slim.get_parameter("fc.bias").data += 1
        return slim

    monkeypatch.setattr(nested_module, "emit", broken)
    with pytest.raises(VerificationError, match="differs from the nested model by") as caught:
        nested.extract(nested.space.at(0.5))
    assert 0.01 < caught.value.error < math.inf
    nested.extract(nested.space.at(0.5), verify=False)


def test_verification_leaves_the_model_alone() -> None:
    nested = resnet()
    nested.train()
    nested.get_submodule("stem.1").eval()
    state = copy.deepcopy(nested.state_dict())
    modes = [module.training for module in nested.modules()]
    nested.extract(nested.space.at(0.5))
    assert modes == [module.training for module in nested.modules()]
    for name, tensor in nested.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("labelled", [False, True])
def test_calibration(labelled: bool) -> None:
    nested = resnet()
    batches = [torch.randn(8, 3, 8, 8) + 3 for _ in range(3)]
    data = [(x, torch.zeros(8)) for x in batches] if labelled else batches
    slim = nested.extract(nested.space.at(0.5), calibrate=data)
    norm = slim.get_submodule("stem.1")
    conv = slim.get_submodule("stem.0")
    outs = [conv(x) for x in batches]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in slim.modules())
    assert norm.momentum == 0.1
    with pytest.raises(UsageError, match="at least one batch"):
        nested.extract(nested.space.at(0.5), calibrate=[])


def test_calibration_still_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = resnet()
    honest = nested_module.emit

    def broken(*args: Any) -> fx.GraphModule:
        slim = honest(*args)
        slim.get_parameter("fc.bias").data += 1
        return slim

    monkeypatch.setattr(nested_module, "emit", broken)
    with pytest.raises(VerificationError):
        nested.extract(nested.space.at(0.5), calibrate=[torch.randn(4, 3, 8, 8)])


# --- errors ---------------------------------------------------------------------------------------


def test_out_of_range() -> None:
    nested = resnet()
    name = nested.space.units[0].name
    with pytest.raises(UsageError, match=rf"size 99 of unit '{name}' is out of range 1\.\."):
        nested.extract({name: 99})
    with pytest.raises(UsageError, match="no unit 'nothing'"):
        nested.extract({"nothing": 3})
    with pytest.raises(UsageError, match=r"position 99 of group .* is out of range 0\.\."):
        nested.extract({name: [0, 99]})
    with pytest.raises(UsageError, match="distinct"):
        nested.extract({name: [0, 0]})


class Code(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.code(x)))


def test_a_name_that_a_graph_module_uses() -> None:
    nested = nestify.transform(Code(), RECIPE, (torch.randn(2, 6),))
    with pytest.raises(UsageError, match=r"'code' of its own.*rename it in Code"):
        nested.extract(nested.space.at(0.5))


# --- the original class ---------------------------------------------------------------------------


def test_original_class() -> None:
    nested = resnet()
    subnet = nested.space.at(0.5)
    slim = nested.extract(subnet, as_original_class=True)
    assert type(slim) is ResNet
    assert slim.layers[0].conv1.out_channels == 6
    assert_same_as_nested(nested, slim, subnet)
    assert slim.fc.weight.data_ptr() != nested.fc.weight.data_ptr()
    pickle.loads(pickle.dumps(slim))


def test_original_class_that_cannot_hold_it() -> None:
    nested = attention()
    with pytest.raises(VerificationError, match=r"Attention cannot hold this subnet: its forward"):
        nested.extract(nested.space.at(0.5), as_original_class=True)


# --- training -------------------------------------------------------------------------------------


def test_gradients_stay_in_the_active_prefix() -> None:
    nested = resnet()
    nested.train()
    subnet = nested.space.at(0.5)
    before = {name: p.detach().clone() for name, p in nested.named_parameters()}
    slim = nested.extract(subnet)
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
    with nested.activate(subnet):
        nested(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    for name, parameter in nested.named_parameters():
        inside = torch.zeros_like(parameter, dtype=torch.bool)
        inside[tuple(slice(0, n) for n in slim.get_parameter(name).shape)] = True
        assert parameter.grad is not None
        assert not parameter.grad[~inside].any(), name
        assert torch.equal(parameter[~inside], before[name][~inside])
        changed = not torch.equal(parameter[inside], before[name][inside])
        assert changed or name == "stem.0.bias"  # BatchNorm takes a bias before it away


def test_training_reaches_the_extracted_network() -> None:
    nested = resnet()
    nested.train()
    nested(torch.randn(4, 3, 8, 8)).sum().backward()
    torch.optim.SGD(nested.parameters(), lr=0.1).step()
    slim = nested.extract(nested.space.largest())
    for name, tensor in slim.state_dict().items():
        assert torch.equal(tensor, nested.state_dict()[name]), name
    assert int(slim.get_buffer("stem.1.num_batches_tracked")) == 1


def test_a_copy_trains_by_itself() -> None:
    nested = resnet()
    twin = copy.deepcopy(nested)
    state = copy.deepcopy(nested.state_dict())
    twin.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        twin(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    for name, tensor in nested.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert not torch.equal(twin.fc.weight, nested.fc.weight)
    twin.activate(twin.space.smallest())
    assert nested.active == nested.space.largest()
    assert twin.graph is nested.graph


def test_each_step_draws_a_subnet_from_the_random_state() -> None:
    nested = resnet()
    nested.train()
    x = torch.randn(4, 3, 8, 8)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(nested(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_activation_is_restored() -> None:
    nested = resnet()
    small, half = nested.space.smallest(), nested.space.at(0.5)
    nested.activate(half)
    with nested.activate(small) as inside:
        assert inside.active == small
    assert nested.active == half
    nested.activate(None)
    assert nested.active == nested.space.largest()


class Restless(nn.Module):
    """Random in eval, writes into its input, and returns infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.b(F.dropout(F.relu(self.a(x.add_(1.0))), 0.5))
        return y, y.clamp(max=0).log()


def test_verification_of_a_restless_model() -> None:
    x = torch.zeros(2, 6)
    nested = nestify.transform(Restless(), RECIPE, (x,))
    nested.extract(nested.space.at(0.5))
    assert not x.any()


class Rows(nn.Module):
    """Reads what attention gave with a view, which the memory of one-wide heads does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        rows = mixed.transpose(1, 2).reshape(batch, length, width)
        return self.out(rows.view(-1, width))


class Written(nn.Module):
    """Writes through a view, so the view must stay one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(12, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.wide(x)
        y.view(-1, 6).mul_(2)
        return self.out(y)


def test_views_of_another_memory_layout() -> None:
    x = torch.randn(2, 7, 12)
    net = nestify.transform(Rows(), RECIPE, example_inputs=(x,)).eval()
    subnet = {unit.name: 3 if unit.kind == "head" else 1 for unit in net.space.units}
    slim = net.extract(subnet)
    with net.activate(subnet):
        assert relative_error(net(x), slim(x)) <= 1e-6


def test_a_view_that_is_written_stays_a_view() -> None:
    x = torch.randn(2, 7, 12)
    model = Written()
    net = nestify.transform(model, RECIPE, example_inputs=(x,)).eval()
    slim = net.extract(net.space.largest())
    assert torch.equal(slim(x), model(x))
    assert any(node.target is torch.ops.aten.view.default for node in slim.graph.nodes)


def test_pairs_read_as_complex_numbers_may_start_anywhere() -> None:
    """A smaller slice may begin at an odd place in memory, which torch does not take for a pair."""

    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 6)
            self.head = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.first(x)
            pairs = torch.view_as_complex(found[:, 4:])
            return self.head(pairs.abs().unsqueeze(-1)) + found[:, :4].sum(-1, keepdim=True)

    x = torch.randn(2, 4)
    nested = nestify.transform(Rotated(), "fn3-neuron{where=all}", (x,)).eval()
    for size in range(1, 4):
        subnet = {unit.name: size for unit in nested.space.units}
        slim = nested.extract(subnet)  # compared with the nested model
        assert slim(x).shape == (2, 2)
