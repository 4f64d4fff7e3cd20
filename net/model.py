"""A network written out by nestify; it needs torch and nothing else.

    from model import load
    model = load()                # reads weights.safetensors beside this file
    output = model(input)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class Group(nn.Module):
    """Modules and tensors by name, so that state_dict() keeps the names of the original model."""

    def __init__(self, /, **children: nn.Module | torch.Tensor) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def __getitem__(self, name: str) -> nn.Module:
        return getattr(self, name)


class Model(nn.Module):
    """The network; module names are those of the original model."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", Group(
            weight=nn.Parameter(torch.empty((4, 3))),
            bias=nn.Parameter(torch.empty(4)),
        ))

    def forward(self, input):
        input = F.linear(input, self.get_submodule("0").weight, self.get_submodule("0").bias)
        input = torch.relu(input)
        return input


def load(weights: str | Path = "weights.safetensors") -> Model:
    """The network with its weights, in eval mode; a relative path is looked up beside this file."""
    state = _read_safetensors(Path(__file__).parent / weights)
    model = Model()
    model.load_state_dict(state)
    return model.eval()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    # The format: 8 bytes of header length, a JSON header with dtype, shape and place, then the raw
    # data.
    dtypes = {"F32": torch.float32}
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    start = 8 + int.from_bytes(bytes(data[:8].tolist()), "little")
    header = json.loads(bytes(data[8:start].tolist()))
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = data[start + begin : start + end].view(dtypes[entry["dtype"]])
            tensors[name] = raw.reshape(entry["shape"])
    return tensors
