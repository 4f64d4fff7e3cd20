"""Channel norms that may take statistics of their own operand: of two values at least."""

from __future__ import annotations

from nestify.dims import dims_of
from nestify.rules.call import Call
from nestify.rules.one_liners import CHANNEL_NORM
from nestify.rules.op import Op, Rule

__all__ = ["STATISTICS"]


def _batch_norm(call: Call) -> None:
    _own(call, "training", first=0)


def _instance_norm(call: Call) -> None:
    _own(call, "use_input_stats", first=2)


def _own(call: Call, switch: str, *, first: int) -> None:
    """The line, and torch's own condition: a single value has no spread.

    A weight that is standardised (no batch among its dims) is an operand of the op itself, which
    takes a single value and gives the bias; a weight under a norm with running statistics is that
    of a module, which in training takes statistics over it.
    """
    CHANNEL_NORM(call)
    dims = call.need("input")
    counted = tuple(expr for i, expr in enumerate(dims) if i >= first and i != 1)
    weight = call.op == "batch_norm" and not any(
        dim.batch for expr in counted for dim in dims_of(expr)
    )
    if (call.args[switch] and not weight) or (weight and call.args["running_mean"] is not None):
        call.plural.append(
            (counted, call.why(f"{call.op} takes statistics over this dim, of two values at least"))
        )


STATISTICS: dict[str, Rule | Op] = {
    "batch_norm": Op(_batch_norm, zero_safe=True, scales=True, statistics=True),
    "instance_norm": Op(_instance_norm, scales=True, statistics=True),
}
