"""A batch that is not free is refused at any other size, with the reason: nested, extracted,
shipped.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestify
from nestify.emit import ExportWarning
from tests.capture.serving import nest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(x)))


class Centred(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scores(x)
        return y - y.sum(0) / x.shape[0]


class Rolled(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x).roll(x.shape[0] // 2, 0)


class OneByOne(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.scores(x[i]) for i in range(len(x))])


class Squeezed(Net):
    """Drops the batch dim where it is one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x.unsqueeze(1)).squeeze()


class Turned(Net):
    """Reverses the samples by a constant that hides their number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x)[torch.tensor(list(reversed(range(len(x)))))]


class Even(Net):
    """Refuses an odd number of samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) % 2:
            raise ValueError("pairs of samples, please")
        return self.scores(x)


class Hidden(Net):
    """Hides how it comes by a constant as long as the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x) * torch.tensor(float(len(x)))


REASONS: dict[type[Net], str] = {
    Centred: r"div computes with 4, which is 5 with one sample more \(.*test_fixed_batch.py:\d+\)",
    Rolled: "roll moves positions",
    OneByOne: "select cuts the batch dim",
    Squeezed: "with a batch of 1, what was captured gives a shape .*name the dims",
    Turned: "with a batch of 5, what was captured gives a shape",
    Even: "the model itself fails with a batch of 5 .*pairs of samples, please",
    Hidden: "with a batch of 5, what was captured differs by",
}
_every = pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)


@_every
def test_another_batch_is_refused_with_the_reason(kind: type[Net]) -> None:
    model, x = kind().eval(), torch.randn(4, 8)
    nested = nest(model, x).eval()
    slim = nested.extract(nested.space.largest())
    assert nested.graph.batch is None
    for network in (nested, slim):
        assert torch.equal(network(x), model(x))
    with pytest.raises(nestify.UsageError, match=f"x has shape \\[8, 8\\].*{REASONS[kind]}"):
        nested(torch.randn(8, 8))
    with pytest.raises(nestify.UsageError, match="batch of 4"):
        nested.train()(torch.randn(8, 8))
    with pytest.raises(AssertionError, match=REASONS[kind]):
        slim(torch.randn(8, 8))
    with pytest.raises(nestify.UsageError, match="batch of 4"):
        nested.calibrate(nested.space.smallest(), [torch.randn(8, 8)])
    with pytest.raises(AssertionError, match="batch of 4"):
        nested.masked().eval()(torch.randn(8, 8))


@_every
def test_so_do_files(kind: type[Net], tmp_path: Path) -> None:
    model, x = kind().eval(), torch.randn(4, 8)
    nested = nest(model, x)
    slim = nested.extract(nested.space.at(0.5))
    for name in ("net.onnx", "net.pt2", "net/"):
        with pytest.warns(ExportWarning, match="batch is fixed at 4"):
            report = nestify.export(slim, f"{tmp_path}/{name}", example_inputs=(x,))
        assert not report.free_batch
        run = _loaded(Path(f"{tmp_path}/{name}"))
        torch.testing.assert_close(run(x), slim(x).detach(), rtol=1e-4, atol=1e-5)
        with pytest.raises(Exception, match=r"batch|[dD]imension|[sS]hape|size"):
            run(torch.randn(8, 8))


def _loaded(path: Path) -> Any:
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    spec = importlib.util.spec_from_file_location("written", path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def test_the_written_source_says_so_too(tmp_path: Path) -> None:
    slim = nest(Centred(), torch.randn(4, 8)).extract({})
    with pytest.warns(ExportWarning):
        nestify.export(slim, tmp_path / "net", example_inputs=(torch.randn(4, 8),))
    text = (tmp_path / "net" / "model.py").read_text()
    assert 'torch._assert(x.shape[0] == 4, "Centred was captured with a batch of 4' in text
    assert "size = " not in text.partition("def load")[0]


@pytest.mark.parametrize("kind", [Centred, OneByOne, Squeezed])
def test_a_single_sample_stays_alone(kind: type[Net]) -> None:
    model, x = kind().eval(), torch.randn(1, 8)
    nested = nest(model, x).eval()
    assert torch.equal(nested(x), model(x))
    assert nested.graph.batch_reason
    with pytest.raises(nestify.UsageError, match="captured with a batch of 1"):
        nested(torch.randn(2, 8))


def test_a_free_batch_has_no_reason() -> None:
    graph = nestify.trace(nn.Linear(3, 2), (torch.randn(1, 3),))
    assert graph.batch is not None
    assert not graph.batch_reason


def test_inspect_says_why(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.graph.test_fixed_batch import Centred\n"
        "model = Centred()\nexample_inputs = (torch.randn(4, 8),)\n"
    )
    command = [sys.executable, "-m", "nestify.cli", "inspect", str(tmp_path / "net.py")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "batch: fixed, as div computes with 4" in shown


class Bags(nn.Module):
    def __init__(self, mode: str = "sum") -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 16, mode=mode), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(ids))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows_leave_the_batch_free(mode: str, tmp_path: Path) -> None:
    """Torch makes their offsets: 0, k, 2 k ..."""
    model, ids = Bags(mode).eval(), torch.randint(20, (4, 3))
    nested = nest(model, ids).eval()
    assert nested.graph.batch is not None
    assert nested.graph.coverage.params > 0.9
    for batch in (1, 3, 8):
        more = torch.randint(20, (batch, 3))
        assert torch.equal(nested(more), model(more))
    slim = nested.extract(nested.space.at(0.5))
    report = nestify.export(slim, tmp_path / "bags.onnx", example_inputs=(ids,))
    assert report.free_batch


class Random(nn.Module):
    """Gives other outputs each time, whatever the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.count = nn.Linear(4, 6), iter(range(10**9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).sum(1) + next(self.count)


class Drawing(nn.Module):
    """Draws in eval too, and once for nothing: under one seed the graph draws other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        torch.rand_like(y)
        return self.head(y * torch.rand_like(y))


@pytest.mark.parametrize("kind", [Random, Drawing])
def test_what_cannot_be_held_to_the_model_is_said(kind: type[nn.Module]) -> None:
    with pytest.warns(nestify.NestifyWarning, match="other outputs whenever it runs, or draws"):
        nest(kind(), torch.randn(3, 4))
