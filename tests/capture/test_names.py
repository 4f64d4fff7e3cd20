"""What capture keeps: names, sharing, modes, and the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import nestify
from nestify.capture.captured import capture
from nestify.capture.source_lines import source_line
from nestify.errors import NestifyWarning
from tests.capture.serving import assert_equal, assert_serves


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
