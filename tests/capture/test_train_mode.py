"""A model is left as it was found, with what its own code keeps; what a mode writes is its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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


class AlwaysByBatch(nn.Module):
    """Norms by the batch in both modes, and keeps running statistics all the same."""

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.paths = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("var", torch.ones(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(self.paths(self.stem(x)), self.mean, self.var, training=True)
        return self.head(x.relu())


def test_statistics_that_eval_writes_too_are_written_where_they_belong() -> None:
    x = torch.randn(4, 3, 6, 6)
    nested = nestify.transform(AlwaysByBatch(), "fn3-channel{where=all}+fn3-path", (x,)).eval()
    for seed in range(4):  # channels in groups are no first ones: they are read from a copy
        subnet = nested.space.sample(torch.Generator().manual_seed(seed))
        before, slim = nested.get_buffer("mean").clone(), nested.extract(subnet)
        with nested.activate(subnet), torch.no_grad():
            assert torch.equal(nested(x), slim(x))
        after = nested.get_buffer("mean")
        kept = nested.keep(subnet).slice(after, nested.graph.tensor_dims["mean"])
        assert torch.equal(kept, slim.get_buffer("mean"))
        assert (before != after).sum() == len(kept)
