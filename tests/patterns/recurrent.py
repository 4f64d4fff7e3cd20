"""Recurrent layers: gates x hidden, both directions, and outputs narrower than the cell."""

from __future__ import annotations

import torch
from torch import nn

from tests.patterns.pattern import Patterns

RECURRENT = Patterns()
pattern = RECURRENT.add


@pattern(
    "5 6",
    """
    stem 7 neuron stem.weight:0 stem.bias:0 gru.weight_ih_l0:1
    gru.weight_ih_l0 5 neuron head.weight:1 gru.weight_ih_l0:0 gru.weight_hh_l0:0
        gru.weight_hh_l0:1 gru.bias_ih_l0:0 gru.bias_hh_l0:0
    """,
    fixed="""
    3 gru gru.weight_ih_l0:0 gru.weight_hh_l0:0 gru.bias_ih_l0:0 gru.bias_hh_l0:0
    """,
)
class Gru(nn.Module):
    """A GRU over tokens, its last state read out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 7), nn.Linear(5, 3)
        self.gru = nn.GRU(7, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.gru(self.stem(x))
        return self.head(state[0])


@pattern(
    "5 6",
    """
    stem 7 neuron stem.weight:0 stem.bias:0 lstm.weight_ih_l0:1 lstm.weight_ih_l0_reverse:1
    lstm.weight_ih_l0 4 neuron head.weight:1 lstm.weight_ih_l0:0 lstm.weight_hh_l0:0
        lstm.weight_hh_l0:1 lstm.bias_ih_l0:0 lstm.bias_hh_l0:0 lstm.weight_ih_l0_reverse:0
        lstm.weight_hh_l0_reverse:0 lstm.weight_hh_l0_reverse:1 lstm.bias_ih_l0_reverse:0
        lstm.bias_hh_l0_reverse:0 lstm.weight_ih_l1:0 lstm.weight_ih_l1:1 lstm.weight_hh_l1:0
        lstm.weight_hh_l1:1 lstm.bias_ih_l1:0 lstm.bias_hh_l1:0 lstm.weight_ih_l1_reverse:0
        lstm.weight_ih_l1_reverse:1 lstm.weight_hh_l1_reverse:0 lstm.weight_hh_l1_reverse:1
        lstm.bias_ih_l1_reverse:0 lstm.bias_hh_l1_reverse:0
    """,
    fixed="""
    4 lstm lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.bias_ih_l0:0 lstm.bias_hh_l0:0
        lstm.weight_ih_l0_reverse:0 lstm.weight_hh_l0_reverse:0 lstm.bias_ih_l0_reverse:0
        lstm.bias_hh_l0_reverse:0 lstm.weight_ih_l1:0 lstm.weight_hh_l1:0 lstm.bias_ih_l1:0
        lstm.bias_hh_l1:0 lstm.weight_ih_l1_reverse:0 lstm.weight_hh_l1_reverse:0
        lstm.bias_ih_l1_reverse:0 lstm.bias_hh_l1_reverse:0
    """,
)
class Lstm(nn.Module):
    """Two layers in both directions: gates x hidden, and two hidden widths side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 7), nn.Linear(8, 3)
        self.lstm = nn.LSTM(7, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.stem(x))
        return self.head(y[:, -1])


@pattern(
    "5 6",
    """
    stem 7 neuron stem.weight:0 stem.bias:0 lstm.weight_ih_l0:1
    lstm.weight_hr_l0 3 neuron head.weight:1 lstm.weight_hh_l0:1 lstm.weight_hr_l0:0
    lstm.weight_ih_l0 2 neuron lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.bias_ih_l0:0
        lstm.bias_hh_l0:0 lstm.weight_hr_l0:1
    """,
    fixed="""
    4 lstm lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.bias_ih_l0:0 lstm.bias_hh_l0:0
    4 lstm lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.bias_ih_l0:0 lstm.bias_hh_l0:0
        lstm.weight_hr_l0:1
    """,
    why="must stay wider than its output",
    exports=False,  # ONNX's LSTM has no projection
)
class ProjectedLstm(nn.Module):
    """An LSTM whose output is narrower than its cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 7), nn.Linear(3, 3)
        self.lstm = nn.LSTM(7, 6, proj_size=3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.stem(x))
        return self.head(y)
