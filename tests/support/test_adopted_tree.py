"""A model whose children are called like attributes of a nested model is nested all the same."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import nestify
from nestify.nested.draw_stream import BUFFER

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
OURS = ("draws", "drawn", "scaling", "space", "recipe", "keep", "_active", "_reuse", "_bindings")


class Named(nn.Module):
    """Two layers, and between them a layer, parameter or buffer of the given name."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        made: dict[str, Any] = {
            "module": nn.Linear(8, 8),
            "parameter": nn.Parameter(torch.rand(8)),
            "buffer": torch.rand(8),
        }
        registry = {"module": "_modules", "parameter": "_parameters", "buffer": "_buffers"}[kind]
        vars(self)[registry][name] = made[kind]
        self.name, self.registry = name, registry

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, own = self.first(x).relu(), vars(self)[self.registry][self.name]
        return self.last(own(x) if isinstance(own, nn.Module) else x * own)


def transformed(name: str, kind: str) -> tuple[Named, nestify.NestedModel]:
    model = Named(name, kind)
    return model, nestify.transform(model, "fn3-neuron", (X,))


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
@pytest.mark.parametrize("name", OURS)
def test_names_of_ours_are_free(name: str, kind: str) -> None:
    model, nested = transformed(name, kind)
    nested.train()(X).sum().backward()
    nested.eval()
    assert torch.equal(nested(X), model(X))
    assert nested.state_dict().keys() == model.state_dict().keys()
    small = nested.space.smallest()
    with torch.no_grad(), nested.activate(small), nested.reusing():
        torch.testing.assert_close(nested.extract(small)(X), nested(X))
    nested.scaling = "expected"
    assert torch.equal(copy.deepcopy(nested)(X), nested(X))


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
@pytest.mark.parametrize("name", [BUFFER, "switchable_norms"])
def test_names_of_what_a_nested_model_adds_are_refused(name: str, kind: str) -> None:
    with pytest.raises(
        nestify.UsageError, match=f"{name!r} of its own, and a nested model.*rename"
    ):
        transformed(name, kind)


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
def test_names_of_what_other_forms_add_are_refused_there(kind: str) -> None:
    with pytest.raises(nestify.UsageError, match=r"'odo' of its own, and a masked model.*rename"):
        transformed("odo", kind)[1].masked()
    for name in ("graph", "meta", "_code"):
        _, nested = transformed(name, kind)
        with pytest.raises(nestify.UsageError, match=f"{name!r} of its own, and a GraphModule"):
            nested.extract(nested.space.smallest())


@pytest.mark.parametrize("dump", [pickle.dumps, lambda o: torch.save(o, io.BytesIO())])
def test_a_pickle_is_refused_with_what_to_save_instead(dump: Callable[[Any], Any]) -> None:
    model, nested = transformed("middle", "module")
    for unsaved in (nested, nested.masked()):
        with pytest.raises(nestify.UsageError, match=r"NestedModel cannot .* save its state_dict"):
            dump(unsaved)
    dump(nested.extract(nested.space.smallest()))
    with torch.no_grad():
        nested.get_parameter("middle.weight").mul_(2)
    file = io.BytesIO()
    torch.save(nested.state_dict(), file)
    file.seek(0)
    again = nestify.transform(model, "fn3-neuron", (X,))
    again.load_state_dict(torch.load(file))
    for copied in (again, copy.copy(nested), copy.deepcopy(nested)):
        assert torch.equal(copied.eval()(X), nested.eval()(X))
    assert copy.copy(nested).get_parameter("last.bias") is nested.get_parameter("last.bias")
