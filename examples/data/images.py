"""Small images to train on: scikit-learn's digits, and MNIST and CIFAR-10 from a local folder."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Data(NamedTuple):
    """Images (samples, channels, height, width) and labels: to train, to search with, to test."""

    train: tuple[Tensor, Tensor]
    search: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(images: Any, labels: Any, test: tuple[Any, Any] | None = None) -> Data:
    """30 % to test where no test set is given, and a fifth of the rest to search with."""
    from sklearn.model_selection import train_test_split

    def part(x: Any, y: Any, share: float) -> list[Any]:
        return train_test_split(x, y, test_size=share, stratify=y, random_state=0)

    if test is None:
        images, held_x, labels, held_y = part(images, labels, 0.3)
        test = held_x, held_y
    train_x, search_x, train_y, search_y = part(images, labels, 0.2)

    def tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
        return torch.tensor(np.asarray(x), dtype=torch.float32), torch.tensor(np.asarray(y)).long()

    return Data(tensors(train_x, train_y), tensors(search_x, search_y), tensors(*test))


def digits() -> Data:
    """scikit-learn's 1,797 digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return split(np.asarray(images).reshape(-1, 1, 8, 8) / 16, labels)


def mnist(folder: Path) -> Data:
    """The four files of MNIST, as they are published (``.gz`` or not)."""

    def read(name: str, header: int) -> Any:
        path = next(p for p in (folder / name, folder / f"{name}.gz") if p.exists())
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        return np.frombuffer(raw, np.uint8, offset=header)

    def pair(kind: str) -> tuple[Any, Any]:
        images = read(f"{kind}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28) / 255
        return images, read(f"{kind}-labels-idx1-ubyte", 8)

    return split(*pair("train"), pair("t10k"))


class Arrays(pickle.Unpickler):
    """Reads arrays, lists and dicts; a file that names anything else is refused, and not run."""

    def find_class(self, module: str, name: str) -> Any:
        """What an array is made of."""
        if (module.replace("numpy._core", "numpy.core"), name) in _ARRAY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a file of arrays names {module}.{name}: it is not read")


_ARRAY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


def cifar10(folder: Path) -> Data:
    """The batches of CIFAR-10's Python version, which are pickles."""

    def read(names: Iterable[str]) -> tuple[Any, Any]:
        rows = [
            Arrays(io.BytesIO((folder / n).read_bytes()), encoding="bytes").load() for n in names
        ]
        images = np.concatenate([row[b"data"] for row in rows]).reshape(-1, 3, 32, 32) / 255
        return images, np.concatenate([row[b"labels"] for row in rows])

    return split(*read(f"data_batch_{i}" for i in range(1, 6)), read(["test_batch"]))
