"""Recurrent nets: the weights spell the gates side by side, ``gates * hidden``, in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from nestify.dims import Const, Expr, concat, resolve
from nestify.rules.call import Call, Dims
from nestify.rules.op import Op, Rule, rows

__all__ = ["RECURRENT"]

_WIDER = "the cell of an LSTM with projections must stay wider than its output"


def _layers(gates: int) -> Callable[[Call], None]:
    """Make the rule of a whole net; an LSTM may project its hidden state to a smaller one."""

    def rule(call: Call) -> None:
        x = call.need("input")
        states = _states(call)
        if len(x) != 3:
            raise ValueError(f"{call.op} is understood for padded batches, not for packed ones")
        batch = 0 if call.args["batch_first"] else 1
        call.fix(x[1 - batch], f"{call.op} runs along this dim")
        widths = [call.dims_of(node)[2] for node in states]
        visible, hidden = widths[0], widths[-1]
        projects = visible.size != hidden.size
        if projects:  # torch tells by the sizes alone, so a subnet's must never meet
            call.fix(call.split(hidden, visible.size + 1)[0], _WIDER, "named")
        else:
            call.unify(visible, hidden)
        for node in states:
            layers, one, _ = call.dims_of(node)
            call.fix(layers, f"{call.op} has one state for each layer and direction", "named")
            call.unify(one, x[batch])
        call.contract("input", 2)
        directions = 2 if call.args["bidirectional"] else 1
        cells = _cells(call, projects)
        feed = x[2]
        for i in range(0, len(cells), directions):
            for cell in cells[i : i + directions]:
                _cell(
                    call,
                    cell[:4] if call.args["has_biases"] else cell[:2],
                    gates,
                    x[:2],
                    (feed, visible, hidden),
                )
                if projects:
                    _projection(call, cell[-1], x[:2], visible, hidden)
            feed = concat([resolve(visible)] * directions)
        results = [(Const(len(cells)), x[batch], width) for width in widths]
        call.out = ((*x[:2], feed), *results)

    return rule


def _one_cell(gates: int) -> Callable[[Call], None]:
    """Make the rule of one step of one layer."""

    def rule(call: Call) -> None:
        x = call.need("input")
        states = _states(call)
        hidden = call.dims_of(states[0])[-1]
        if len(x) != 2:
            raise ValueError(f"{call.op} is understood for batches; add a batch dim with x[None]")
        for node in states:
            one, width = call.dims_of(node)
            call.unify(one, x[0])
            call.unify(width, hidden)
        call.contract("input", 1)
        weights = [call.args[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        cell = [node for node in weights if isinstance(node, fx.Node)]
        _cell(call, cell, gates, x[:1], (x[1], hidden, hidden))
        call.give((x[0], hidden))

    return rule


def _states(call: Call) -> list[fx.Node]:
    hx = call.args["hx"]
    return list(hx) if isinstance(hx, list | tuple) else [hx]


def _cells(call: Call, projects: bool) -> list[Sequence[fx.Node]]:
    """The weights of each layer and direction: input, hidden, their biases, the projection."""
    width = (4 if call.args["has_biases"] else 2) + projects
    params: Sequence[fx.Node] = call.args["params"]
    return [params[i : i + width] for i in range(0, len(params), width)]


def _cell(
    call: Call,
    cell: Sequence[fx.Node],
    gates: int,
    positions: Dims,
    widths: tuple[Expr, Expr, Expr],
) -> None:
    """Gates from what comes in and from the state of the step before."""
    feed, visible, hidden = widths
    for node in cell:
        gate, rows = call.factor(call.dims_of(node)[0], gates)
        call.fix(gate, f"{call.op} has {gates} gates", "named")
        call.unify(rows, hidden)
    for node, source in zip(cell[:2], (feed, visible), strict=True):
        call.unify(call.dims_of(node)[1], source)
        call.contracted.append((node, 1))
        call.macs.append((*positions, Const(gates), hidden, source))


def _projection(call: Call, node: fx.Node, positions: Dims, visible: Expr, hidden: Expr) -> None:
    rows, columns = call.dims_of(node)
    call.unify(rows, visible)
    call.unify(columns, hidden)
    call.contracted.append((node, 1))
    call.macs.append((*positions, visible, hidden))


RECURRENT: dict[str, Rule | Op] = {
    "lstm": _layers(4),
    "gru": _layers(3),
    **rows("rnn_tanh rnn_relu", _layers(1)),
    "lstm_cell": _one_cell(4),
    "gru_cell": _one_cell(3),
    **rows("rnn_tanh_cell rnn_relu_cell", _one_cell(1)),
}
