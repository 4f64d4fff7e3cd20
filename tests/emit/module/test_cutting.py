"""What is cut out: a plain module tree of the kept positions, in any memory layout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import nestify
from nestify.errors import UsageError
from nestify.support.closeness import relative_error
from tests.emit.module.networks import RECIPE, assert_same_as_nested, attention, resnet


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


# --- memory layouts -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kept", [2.0, [0.5, 1.0], np.bool_(True), [True, False, True], "all"])
def test_what_is_no_size_and_no_position(kept: Any) -> None:
    """A mask, read as positions, would keep the first two."""
    nested = resnet()
    with pytest.raises(UsageError, match="must be a size or a list of positions, whole numbers"):
        nested.extract({nested.space.units[0].name: kept})


def test_a_share_in_place_of_a_subnet_is_refused_in_words() -> None:
    nested = resnet()
    uses: list[Callable[[Any], Any]] = [
        nested.extract,
        nested.activate,
        lambda given: nested.estimate([given]),
        lambda given: nested.calibrate(given, []),
    ]
    for use in uses:
        for given in (0.5, [4]):
            with pytest.raises(UsageError, match=r"sizes by unit, .* space\.at\(share\)"):
                use(given)


def test_sizes_may_be_numbers_of_numpy() -> None:
    nested = resnet()
    name = nested.space.units[0].name
    subnet = nested.space.complete({name: np.int64(2)})
    assert subnet == nested.space.complete({name: 2})
    assert nestify.Subnet.from_json(subnet.to_json()) == subnet
    assert_same_as_nested(nested, nested.extract({name: np.int32(2)}), subnet)


class Code(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.code(x)))


def test_a_name_that_a_graph_module_uses() -> None:
    nested = nestify.transform(Code(), RECIPE, (torch.randn(2, 6),))
    with pytest.raises(UsageError, match=r"'code' of its own, and a GraphModule.*rename it"):
        nested.extract(nested.space.at(0.5))


def test_attributes_that_the_user_set_on_parameters_are_kept() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval()
    for parameter in model.parameters():
        vars(parameter)["no_decay"] = parameter.ndim < 2
    x = torch.randn(2, 3, 8, 8)
    for recipe in ("fn3-channel", "rank+fn3-channel", "root-2+fn3-channel"):
        nested = nestify.transform(model, recipe, (x,))
        small = nested.space.smallest()
        forms = [nested, nested.extract(small), nested.masked(), copy.deepcopy(nested)]
        if "root" not in recipe:
            forms.append(nested.extract(small, as_original_class=True))
        if recipe == "fn3-channel":
            forms.append(nested.switch_norms([0.5, 1.0]))
        for form in forms:
            for name, parameter in form.named_parameters():
                if "embedding" not in name:  # of the rewrite's own making
                    assert vars(parameter) == {"no_decay": parameter.ndim < 2}, name


class Unread(nn.Module):
    """A layer that no forward reads, with options for an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.unread = nn.Linear(4, 4)
        vars(self.unread.weight)["options"] = {"lr": 0.1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_attributes_of_parameters_are_copied_with_them() -> None:
    nested = nestify.transform(Unread(), "fn3-neuron", (torch.randn(2, 6),))
    before = vars(nested.get_parameter("unread.weight"))["options"]
    original = nested.extract(nested.space.at(0.5), as_original_class=True)
    for copied in (copy.deepcopy(nested), original):
        options = vars(copied.get_parameter("unread.weight"))["options"]
        assert options == before
        assert options is not before
