"""A model is left as it was found: also what its own code keeps between calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestify


class Caching(nn.Module):
    """Keeps a table per device, as attention biases do; in eval only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8))
        self.linear = nn.Linear(8, 4)
        self.cache: dict[str, torch.Tensor] = {}
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.linear(x + self.table.flip(0))
        self.calls.append(1)
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.table.flip(0)
        return self.linear(x + self.cache["cpu"])


def test_caches_filled_while_tracing_are_emptied() -> None:
    model = Caching().eval()
    x = torch.randn(2, 8)
    cache = model.cache
    nestify.trace(model, example_inputs=(x,))
    assert model.cache is cache
    assert cache == {}
    assert model.calls == []
    assert torch.isfinite(model(x)).all()


class Hooking(nn.Module):
    """Hangs a hook on its layer in the first call, and notes that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 4)
        self.hooked = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        if not self.hooked:
            self.inner.register_forward_hook(lambda module, args, out: self.notes.append(out))
            self.hooked = True
        self.notes = seen
        self.inner(x)
        return self.outer(torch.stack(seen).sum(0))


def test_hooks_hung_while_tracing_are_taken_off() -> None:
    model, x = Hooking().eval(), torch.randn(2, 8)
    expected = model.outer(model.inner(x))
    nestify.trace(model, example_inputs=(x,))
    assert not model.hooked
    assert torch.equal(model(x), expected)


def test_classes_made_by_exec_are_traced() -> None:
    """A notebook or a generator may run source without a module name."""
    space = {"nn": nn}
    source = "class Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x)\n"
    exec(source, space)
    net = nn.Sequential(nn.Linear(4, 6), space["Net"](6, 2))
    assert len(nestify.trace(net, example_inputs=(torch.randn(2, 4),)).groups) == 1


@pytest.mark.parametrize(
    "kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout]
)
def test_what_is_read_beside_a_dropout_is_not_dropped(kind: type[nn.Module]) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.a, self.b = kind(0.5), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            dropped = self.drop(x)
            return self.b(self.a(dropped)), self.b(self.a(x))

    model, x = Beside().train(), torch.randn(2, 4, 5, 5)
    nested = nestify.transform(model, "fn3-channel{where=all}", (x,)).train()
    with nested.activate(nested.space.largest()):
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        found = nested(x)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
