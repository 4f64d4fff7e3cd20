"""LSTM and GRU: the weights spell the gates side by side, ``gates * hidden``, in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from nestify.dims import Const, Expr, concat, resolve
from nestify.rules.calls import Call

__all__ = ["RECURRENT"]


def _recurrent(gates: int) -> Callable[[Call], None]:
    def rule(call: Call) -> None:
        x = call.need("input")
        hx = call.args["hx"]
        states: list[fx.Node] = list(hx) if isinstance(hx, list | tuple) else [hx]
        cells = _cells(call)
        if len(x) != 3 or len({call.dims_of(node)[-1].size for node in states}) > 1:
            raise ValueError(f"{call.op} is understood for batches and without projections")
        batch = 0 if call.args["batch_first"] else 1
        call.fix(x[1 - batch], f"{call.op} runs along this dim")
        hidden = call.dims_of(states[0])[2]
        for node in states:
            layers, one, width = call.dims_of(node)
            call.fix(layers, f"{call.op} has one state for each layer and direction")
            call.unify(one, x[batch])
            call.unify(width, hidden)
        call.contract("input", 2)
        directions = 2 if call.args["bidirectional"] else 1
        feed = x[2]
        for i in range(0, len(cells), directions):
            for cell in cells[i : i + directions]:
                _cell(call, cell, gates, feed, hidden)
            feed = concat([resolve(hidden)] * directions)
        state = (Const(len(cells)), x[batch], hidden)
        call.out = ((*x[:2], feed), *[state] * len(states))

    return rule


def _cells(call: Call) -> list[Sequence[fx.Node]]:
    """The weights of each layer and direction: input, hidden, and their biases."""
    width = 4 if call.args["has_biases"] else 2
    params: Sequence[fx.Node] = call.args["params"]
    return [params[i : i + width] for i in range(0, len(params), width)]


def _cell(call: Call, cell: Sequence[fx.Node], gates: int, feed: Expr, hidden: Expr) -> None:
    for node in cell:
        gate, rows = call.factor(call.dims_of(node)[0], gates)
        call.fix(gate, f"{call.op} has {gates} gates")
        call.unify(rows, hidden)
    positions = call.need("input")[:2]
    for node, source in zip(cell[:2], (feed, hidden), strict=True):
        call.unify(call.dims_of(node)[1], source)
        call.contracted.append((node, 1))
        call.macs.append((*positions, Const(gates), hidden, source))


RECURRENT: dict[str, Callable[[Call], Any]] = {"lstm": _recurrent(4), "gru": _recurrent(3)}
