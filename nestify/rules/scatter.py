"""Ops that write at positions an index names, and that read tables by index."""

from __future__ import annotations

from typing import Any

from nestify.dims import Const, Expr, concat
from nestify.rules.call import Call, Dims, bind_arguments, op_name
from nestify.rules.op import Op, Rule, rows
from nestify.rules.shapes import cut

__all__ = ["WRITES"]

_NAMED = "is written at positions that an index names"
_ORDER = "is written in an order that counts"


def _scatter(call: Call) -> None:
    """Writes ``src`` into ``self`` along one dim; a sum may leave out sources, others may not."""
    dims, index = call.need("self"), call.need("index")
    source = call.dims("src") or index
    at = call.axis("dim", len(dims)) if dims else 0
    for d, (mine, place, other) in enumerate(zip(dims, index, source, strict=True)):
        if d == at:
            call.fix(mine, _NAMED)
            _sources(call, "src", d, place, other)
        elif mine.size == place.size == other.size:
            call.unify(mine, place)
            call.unify(mine, other)
        else:
            for expr in (mine, place, other):
                call.fix(expr, f"{call.op} writes to a part of this dim")
    call.out = dims


def _sources(call: Call, name: str, d: int, place: Expr, other: Expr) -> None:
    """The positions written: as a sum of what they bring they may go, otherwise they stay."""
    if _adds(call) and place.size == other.size and call.dims(name):
        call.unify(place, other)
        call.contract(name, d)
    else:
        call.fix(place, _ORDER)
        call.fix(other, _ORDER)


def _adds(call: Call) -> bool:
    """Whether a source of zero leaves what it is written to as it was."""
    summed = call.args.get("reduce") in ("sum", "add") and call.args.get("include_self", True)
    return summed or call.op in ("scatter_add", "index_add")


def _index_write(call: Call) -> None:
    """``index_add`` and its kin: one vector of positions along one dim."""
    dims, source = call.need("self"), call.dims("source")
    index = call.need("index")
    at = call.axis("dim", len(dims)) if dims else 0
    place = index[0] if index else Const(1)
    for d, mine in enumerate(dims):
        if d == at:
            call.fix(mine, _NAMED)
            _sources(call, "source", d, place, source[d] if source else place)
        elif source:
            call.unify(mine, source[d])
    call.out = dims


def _take_along(call: Call) -> None:
    """``gather`` whose other dims stretch."""
    dims, index = call.need("self"), call.need("indices")
    if call.args["dim"] is None:
        raise ValueError("take_along_dim is understood for one dim; flatten both, then name dim=0")
    at = call.axis("dim", len(dims))
    call.fix(dims[at], "indexed by position")
    call.out = (
        *call.broadcast([dims[:at], index[:at]]),
        index[at],
        *call.broadcast([dims[at + 1 :], index[at + 1 :]]),
    )


def _take(call: Call) -> None:
    for expr in call.need("self"):
        call.fix(expr, "take counts the positions of the flat tensor")
    call.out = call.need("index")


def _masked_scatter(call: Call) -> None:
    for node in call.tensors():
        for expr in call.dims_of(node):
            call.fix(expr, "masked_scatter hands out its source in order; use torch.where instead")
    call.out = tuple(Const(n) for n in call.out_shape)


def _select_scatter(call: Call) -> None:
    dims, source = call.need("self"), call.need("src")
    at = call.axis("dim", len(dims))
    index = call.args["index"] % dims[at].size
    before, one, _ = cut(call, dims[at], index, index + 1)
    call.fix(one, "selects this position")
    call.literals["index"] = before
    for mine, other in zip((*dims[:at], *dims[at + 1 :]), source, strict=True):
        call.unify(mine, other)
    call.out = dims


def _slice_scatter(call: Call) -> None:
    dims, source = call.need("self"), call.need("src")
    at, step = call.axis("dim", len(dims)), call.args["step"]
    size = dims[at].size
    start, end, _ = slice(call.args["start"], call.args["end"]).indices(size)
    for d, (mine, other) in enumerate(zip(dims, source, strict=True)):
        if d != at:
            call.unify(mine, other)
    if step == 1:
        before, middle, _ = cut(call, dims[at], start, end)
        call.unify(middle, source[at])
        call.literals |= {"start": before, "end": concat([before, middle])}
    else:
        for expr in (dims[at], source[at]):
            call.fix(expr, f"writes every {step}th position")
    call.out = dims


def _one_hot(call: Call) -> None:
    call.out = (*call.need("self"), Const(call.out_shape[-1]))


def _embedding_bag(call: Call) -> None:
    """One row a bag: words by position, features as they are.

    Offsets that count in steps of ``k``, as torch makes them of ids in rows of ``k``, make each row
    a bag.
    """
    words, width = call.need("weight")
    call.fix(words, "embedding_bag reads this dim by position")
    (ids,), (bags,) = call.need("indices"), call.need("offsets")
    weights = call.dims("per_sample_weights")
    if weights is not None:
        call.unify(ids, weights[0])
    step = _steps_of(call.args["offsets"], ids.size)
    if step and not call.args["include_last_offset"]:
        rows, run = call.factor(ids, bags.size)
        call.unify(rows, bags)
        call.fix(run, "the offsets of embedding_bag count this dim")
    else:
        for expr in (ids, bags):
            call.fix(expr, "embedding_bag gathers runs of this dim")
        bags = Const(call.out_shape[0])
    known = (bags, ids, bags, bags)  # rows, the bag of each word, words in each bag, largest ones
    results: list[Dims] = []
    for expr, val in zip(known, call.node.meta["val"], strict=True):
        sizes = [int(n) for n in val.shape]
        lead = expr if sizes[0] == expr.size else Const(sizes[0])
        results.append((lead, width) if val.ndim == 2 else (lead,))
    call.out = tuple(results)


def _steps_of(offsets: Any, count: int) -> int:
    """The step in which ``offsets`` count from 0 to ``count``; 0 where they do not."""
    if op_name(offsets.target) != "arange":
        return 0
    bound = bind_arguments(offsets)
    step = bound.get("step", 1)
    whole = bound.get("start", 0) == 0 and bound["end"] == count
    return step if whole and isinstance(step, int) else 0


def _search(call: Call) -> None:
    """Positions of values in sorted rows: the values keep their dims, the rows are read whole."""
    names = ("self", "boundaries") if call.op == "bucketize" else ("self", "sorted_sequence")
    if call.dims("sorter"):
        raise ValueError("searchsorted is understood for sorted rows; sort them before")
    values = call.dims(names[0]) or ()
    *lead, sequence = call.need(names[1])
    call.fix(sequence, f"{call.op} compares the positions of this dim")
    for mine, other in zip(values, lead, strict=False):
        call.unify(mine, other)
    call.out = values


WRITES: dict[str, Rule | Op] = {
    **rows("scatter scatter_add scatter_reduce", _scatter),
    **rows("index_add index_copy index_fill index_reduce", _index_write),
    "take_along_dim": _take_along,
    "take": _take,
    "masked_scatter": _masked_scatter,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    "one_hot": _one_hot,
    "embedding_bag": _embedding_bag,
    **rows("bucketize searchsorted", _search),
}
