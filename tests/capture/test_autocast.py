"""Blocks under autocast, on or off, compute as in the model in all that is made of it."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestify
from nestify.nested.fingerprint import fingerprint

BF16 = torch.bfloat16


class Rotary(nn.Module):
    """Positions far enough that sixteen bits cannot tell them apart, and a layer beside them."""

    def __init__(self, *, exempt: bool = True) -> None:
        super().__init__()
        self.query, self.inner, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("positions", torch.arange(1000.0, 1005.0)[:, None])
        self.register_buffer("rates", torch.linspace(0.2, 1.0, 8)[None])
        self.exempt = exempt

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.query(x).relu()
        with torch.autocast(x.device.type, enabled=not self.exempt):
            angles = self.positions @ self.rates
            inner = self.inner(h.float())
        return self.out(torch.tanh(inner) * angles.cos())


class Twice(nn.Module):
    """A block in a block, one beside, and one under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", enabled=False):
            h = self.a(x).relu()
            with torch.autocast("cpu", enabled=False):
                h = self.b(h.float()).relu()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            scale = self.d(x.float())
        return self.c(h) * scale


def _nested(model: nn.Module, x: torch.Tensor) -> nestify.NestedModel:
    torch.manual_seed(0)
    return nestify.transform(model, "fn3-neuron", example_inputs=(x,))


@pytest.fixture(params=[(Rotary, (2, 5, 6)), (Twice, (3, 8))], ids=["rotary", "twice"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    made, shape = request.param
    torch.manual_seed(1)
    return made().eval(), torch.randn(*shape)


def test_the_block_matters() -> None:
    torch.manual_seed(1)
    exact, low = Rotary(), Rotary(exempt=False)
    low.load_state_dict(exact.state_dict())
    x = torch.randn(2, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        assert (exact(x) - low(x)).abs().max() > 0.05


def test_all_forms_agree_with_the_model_under_autocast(
    case: tuple[nn.Module, torch.Tensor],
) -> None:
    model, x = case
    nested = _nested(model, x).eval()
    slim = nested.extract(nested.space.largest())
    with torch.no_grad(), torch.autocast("cpu", BF16):
        wanted = model(x)
        for net in (nested, slim, nested.masked(), nested.extract(nested.space.largest())):
            assert torch.equal(net(x), wanted)
        for subnet in (nested.space.smallest(), *_halves(nested)):
            with nested.activate(subnet):
                assert torch.equal(nested(x), nested.extract(subnet)(x))
                torch.testing.assert_close(nested.masked()(x), nested(x), rtol=2e-2, atol=2e-3)


def _halves(nested: nestify.NestedModel) -> list[dict[str, int]]:
    return [{unit.name: (unit.size + 1) // 2 for unit in nested.space.units}]


def test_gradients_are_those_of_the_model(case: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = case
    nested = _nested(model, x).eval()
    for net in (model, nested):
        with torch.autocast("cpu", BF16):
            loss = net(x).float().square().sum()
        loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, nested.get_parameter(name).grad), name


def test_the_file_has_the_block(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Rotary().eval(), torch.randn(2, 5, 6)
    slim = _nested(model, x).extract({})
    nestify.export(slim, tmp_path / "net", example_inputs=(x,))
    source = (tmp_path / "net/model.py").read_text()
    head, _, rest = source.partition("enabled=False):\n")
    assert head.splitlines()[-1].strip().startswith("with torch.autocast(")
    inside = itertools.takewhile(lambda line: line.startswith(" " * 12), rest.splitlines())
    assert len(list(inside)) == 3  # the product, the cast and the layer
    namespace: dict[str, Any] = {"__name__": "model", "__file__": str(tmp_path / "net/model.py")}
    exec(source, namespace)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        assert torch.equal(namespace["load"]()(x), model(x))


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_other_files_are_written(name: str, tmp_path: Path) -> None:
    model, x = Rotary().eval(), torch.randn(2, 5, 6)
    report = nestify.export(_nested(model, x).extract({}), tmp_path / name, example_inputs=(x,))
    assert report.error <= 1e-5


def test_what_is_extracted_is_captured_again(case: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = case
    slim = _nested(model, x).extract({})
    again = _nested(slim, x).eval()
    with torch.no_grad(), torch.autocast("cpu", BF16):
        assert torch.equal(again(x), model(x))


def test_the_block_follows_the_inputs() -> None:
    code = _nested(Rotary(), torch.randn(2, 5, 6)).extract({}).code
    assert "x.device" in code and ".type" in code and "'cpu'" not in code
    assert "'cuda'" in _nested(Twice(), torch.randn(3, 8)).extract({}).code


def test_a_dropped_block_of_calls_leaves_no_head(tmp_path: Path) -> None:
    """Where nothing is left between the two ends, neither is written."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for branch in self.branches:
                with torch.autocast("cpu", enabled=False):
                    y = branch(x).relu()
                x = x + y
            return x

    model, x = Residual().eval(), torch.randn(2, 4)
    nested = nestify.transform(model, "fn3-layer", example_inputs=(x,)).eval()
    subnet = nested.space.smallest()
    slim = nested.extract(subnet)
    nestify.export(slim, tmp_path / "net", example_inputs=(x,))
    source = (tmp_path / "net/model.py").read_text()
    kept = next(iter(subnet.values()))
    assert 1 <= kept < 3 and source.count("with torch.autocast") == kept
    with torch.no_grad(), torch.autocast("cpu", BF16), nested.activate(subnet):
        assert torch.equal(nested(x), slim(x))


def test_it_is_a_part_of_the_fingerprint() -> None:
    x = torch.randn(2, 5, 6)
    torch.manual_seed(1)
    exact = Rotary()
    with_block = fingerprint(_nested(exact, x))

    class Plain(Rotary):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.query(x).relu()
            angles = self.positions @ self.rates
            return self.out(torch.tanh(self.inner(h.float())) * angles.cos())

    plain = Plain()
    plain.load_state_dict(exact.state_dict())
    without = fingerprint(_nested(plain, x))
    assert with_block.weights == without.weights
    assert with_block.structure != without.structure


class Cast(nn.Module):
    """A part that computes in 16 bits wherever the rest does."""

    def __init__(self, device_type: str = "cpu", dtype: torch.dtype | None = BF16) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(n, 8) for n in (6, 8, 8, 8))
        self.device_type, self.dtype = device_type, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        with torch.autocast(self.device_type, dtype=self.dtype):
            h = self.b(h).relu()
            with torch.autocast(self.device_type, enabled=False):
                h = self.d(h.float()).relu()
            return self.c(h)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("recipe", ["fn3-neuron", "rank+fn3-neuron"])
def test_blocks_that_cast_are_served(recipe: str, outside: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Cast().eval(), torch.randn(5, 6)
    nested = nestify.transform(model, recipe, (x,), calibration=[x]).eval()
    plain = recipe == "fn3-neuron"
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=outside):
        assert model(x).dtype is BF16
        for subnet in (nested.space.largest(), *_halves(nested)):
            slim = nested.extract(subnet)
            with nested.activate(subnet):
                assert torch.equal(nested(x), slim(x))
                torch.testing.assert_close(nested.masked()(x), nested(x), rtol=2e-2, atol=2e-3)
        with nested.activate(nested.space.largest()):
            torch.testing.assert_close(nested(x), model(x), rtol=0 if plain else 2e-2, atol=1e-2)
            assert not plain or torch.equal(nested(x), model(x))
    nestify.export(nested.extract({}), tmp_path / "net", example_inputs=(x,))
    source = (tmp_path / "net/model.py").read_text()
    assert source.count("dtype=torch.bfloat16, enabled=True):") == 2


def test_gradients_through_blocks_that_cast_are_those_of_the_model() -> None:
    torch.manual_seed(1)
    model, x = Cast().eval(), torch.randn(5, 6)
    nested = _nested(model, x).eval()
    for net in (model, nested):
        net(x).float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, nested.get_parameter(name).grad), name


@pytest.mark.parametrize("dtype", [None, torch.float16, BF16])
def test_blocks_for_a_gpu_are_kept_where_there_is_none(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    model, x = Cast("cuda", dtype), torch.randn(5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that there is no GPU
        wanted = model(x)
    nested = _nested(model, x)
    assert torch.equal(nested.eval()(x), wanted)
    code = nested.extract({}, verify=False).code
    assert f"'cuda', {dtype or torch.float16}, True" in code
    assert "'cuda', None, False" in code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # again
        nestify.export(nested.extract({}), tmp_path / "net.pt2", example_inputs=(x,))
        program = str(torch.export.load(tmp_path / "net.pt2").graph)
    assert f"(cuda, {dtype or torch.float16}, True" in program


def test_what_is_asked_of_autocast_is_as_before_after_a_capture() -> None:
    before = torch.autocast.__init__
    _nested(Cast(), torch.randn(5, 6))
    assert torch.autocast.__init__ is before
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_pickles_that_would_lose_a_block_are_refused(device_type: str) -> None:
    model, x = Cast(device_type), torch.randn(5, 6)
    slim = _nested(model, x).extract({}, verify=False)
    twin = copy.deepcopy(slim)
    assert twin.code == slim.code
    for net in (slim, twin):
        with pytest.raises(nestify.UsageError, match="a block under autocast cannot be pickled"):
            pickle.dumps(net)
    plain = _nested(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), x).extract({})
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))
