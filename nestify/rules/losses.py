"""Losses, for models that return one: means and sums over the net that runs."""

from __future__ import annotations

from torch import fx

from nestify.dims import Expr
from nestify.rules.call import Call
from nestify.rules.op import Op, Rule, rows

__all__ = ["LOSSES"]


def _reduce(call: Call, dims: list[Expr]) -> None:
    """``reduction`` 0 keeps every position; 1, a mean, and 2, a sum, take them all together."""
    if call.args["reduction"]:
        call.normalised.extend(dims)
        call.out = ()
    else:
        call.out = tuple(dims)


def _pointwise(call: Call) -> None:
    _reduce(call, call.broadcast([call.dims_of(node) for node in call.tensors()]))


def _classes(call: Call) -> None:
    """One class of several for each position: the classes are told apart by number."""
    scores, target = call.need("self"), call.need("target")
    at = 0 if len(scores) == 1 else 1
    for node in (call.args["self"], call.args.get("weight")):
        if isinstance(node, fx.Node):
            dims = call.dims_of(node)
            call.fix(
                dims[at if len(dims) > 1 else 0],
                f"{call.op} tells classes apart by number",
                "named",
            )
    others = [expr for d, expr in enumerate(scores) if d != at]
    if len(target) == len(scores):  # a share of each class
        call.fix(target[at], f"{call.op} tells classes apart by number", "named")
        target = tuple(expr for d, expr in enumerate(target) if d != at)
    _reduce(call, call.broadcast([tuple(others), target]))


def _distances(call: Call) -> None:
    """Distances of feature vectors, one a sample, and a label for each where it is asked for."""
    nodes = [node for node in call.tensors() if node is not call.args.get("target")]
    *samples, features = call.broadcast([call.dims_of(node) for node in nodes])
    call.normalised.append(features)
    _reduce(call, call.broadcast([tuple(samples), call.dims("target") or ()]))


LOSSES: dict[str, Rule | Op] = {
    **dict.fromkeys(
        """
        binary_cross_entropy binary_cross_entropy_with_logits huber_loss kl_div l1_loss mse_loss
        poisson_nll_loss smooth_l1_loss soft_margin_loss hinge_embedding_loss margin_ranking_loss
        """.split(),
        _pointwise,
    ),
    **rows("triplet_margin_loss cosine_embedding_loss", _distances),
    **dict.fromkeys("cross_entropy_loss nll_loss nll_loss2d nll_loss_nd".split(), _classes),
}
