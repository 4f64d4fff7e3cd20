"""The reproduction runs end to end, and reads data from folders."""

from __future__ import annotations

import csv
import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import nestify
from examples import reproduce_fn3
from examples.data import images


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    full = reproduce_fn3.digits()
    parts = [(x[:192], y[:192]) for x, y in full]
    monkeypatch.setattr(reproduce_fn3, "digits", lambda: reproduce_fn3.Data(*parts))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_quick_mode_draws_the_figure_and_the_ablations(tmp_path: Path) -> None:
    reproduce_fn3.main(["--quick", "--out", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "figure4.csv").read_text().splitlines()))
    curves = {(row["network"], row["curve"]) for row in rows}
    assert len(curves) == 3 * 3
    assert all(0 <= float(row["mean"]) <= float(row["max"]) <= 100 for row in rows)
    for curve in curves:
        removed = [float(r["removed"]) for r in rows if (r["network"], r["curve"]) == curve]
        assert removed == sorted(removed)
        assert removed[-1] == 1.0
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
    table = csv.DictReader((tmp_path / "ablations.csv").read_text().splitlines())
    choices = [row["choice"] for row in table]
    assert len(choices) == len(set(choices)) == 11


def test_random_removal_removes_exactly_what_it_is_told() -> None:
    net = reproduce_fn3.perceptron(torch.zeros(1, 8, 8))
    nested = nestify.transform(net, "fn3-neuron{core=0.125}", (torch.zeros(2, 1, 8, 8),))
    assert reproduce_fn3.removable(nested) == 448 + 112
    draw = reproduce_fn3.random.Random(0)
    for removed in (0, 1, 279, 560):
        subnet = reproduce_fn3.random_subnet(nested, removed, draw)
        nested.space.validate(subnet)
        assert sum(nested.space.largest().values()) - sum(subnet.values()) == removed


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_a_folder(tmp_path: Path, zipped: bool) -> None:
    for kind, count in (("train", 100), ("t10k", 20)):
        pixels, labels = bytes(range(98)) * 8 * count, bytes(i % 10 for i in range(count))
        for name, raw in (
            (f"{kind}-images-idx3-ubyte", bytes(16) + pixels),
            (f"{kind}-labels-idx1-ubyte", bytes(8) + labels),
        ):
            path = tmp_path / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(raw) if zipped else raw)
    data = images.mnist(tmp_path)
    assert [tuple(x.shape) for x, _ in data] == [(80, 1, 28, 28), (20, 1, 28, 28), (20, 1, 28, 28)]
    assert data.test[0].max() == pytest.approx(97 / 255)
    assert data.test[1].tolist() == [i % 10 for i in range(20)]


def write_cifar10(folder: Path, row: object, protocol: int) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(row, protocol))


@pytest.mark.parametrize("protocol", [2, 5])  # the published files are of protocol 2
def test_cifar10_is_read_from_a_folder(tmp_path: Path, protocol: int) -> None:
    row = {b"data": np.full((20, 3072), 51, np.uint8), b"labels": [i % 10 for i in range(20)]}
    write_cifar10(tmp_path, row, protocol)
    data = images.cifar10(tmp_path)
    assert tuple(data.train[0].shape) == (80, 3, 32, 32)
    assert data.train[0].unique().tolist() == pytest.approx([0.2])
    assert len(data.test[1]) == 20


def test_a_pickle_that_names_more_than_arrays_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path, {b"data": Path("x")}, 2)
    with pytest.raises(pickle.UnpicklingError, match="Path: it is not read"):
        images.cifar10(tmp_path)
