"""Ops that rearrange dims: views, permutations, joins and cuts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from torch import fx

from nestify.dims import Const, Expr, concat, product, resolve
from nestify.rules.call import Call, Dims
from nestify.rules.op import Op, Rule, rows

_OPEN_END = 2**62


# --- views ----------------------------------------------------------------------------------------


def regroup(call: Call, source: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    """Read row-major dims ``source`` as dims of sizes ``shape``: the one rule behind every view."""
    out: list[Expr] = []
    todo = list(reversed(source))
    rest: Expr = Const(1)
    for size in shape:
        if size == 1:
            out.append(Const(1))
            continue
        while (rest.size % size or rest.size < size) and todo:
            rest = product([resolve(rest), resolve(todo.pop())])
        head, rest = call.factor(rest, size)
        out.append(head)
    return out


def _view(call: Call) -> None:
    literal = "shape" if call.op == "reshape" else "size"
    out = regroup(call, call.need("self"), call.out_shape)
    call.out = tuple(out)
    given = call.args[literal]
    call.literals[literal] = tuple(
        None if size == -1 else expr for size, expr in zip(given, out, strict=True)
    )


def _view_as(call: Call) -> None:
    out = regroup(call, call.need("self"), call.out_shape)
    for mine, other in zip(out, call.need("other"), strict=True):
        call.unify(mine, other)
    call.out = tuple(out)


def _ravel(call: Call) -> None:
    call.out = (product(map(resolve, call.need("self"))),)


def _flatten(call: Call) -> None:
    dims = call.need("self")
    start, end = call.axis("start_dim", len(dims)), call.axis("end_dim", len(dims))
    call.out = (*dims[:start], product(map(resolve, dims[start : end + 1])), *dims[end + 1 :])


def _unflatten(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    sizes = call.args["sizes"]
    inner = regroup(call, [dims[at]], call.out_shape[at : at + len(sizes)])
    call.out = (*dims[:at], *inner, *dims[at + 1 :])
    call.literals["sizes"] = tuple(
        None if s == -1 else e for s, e in zip(sizes, inner, strict=True)
    )


# --- permutations ---------------------------------------------------------------------------------


def _permute(call: Call) -> None:
    dims = call.need("self")
    call.out = tuple(dims[d] for d in call.args["dims"])


def _transpose(call: Call) -> None:
    dims = list(call.need("self"))
    names = ("axis0", "axis1") if "axis0" in call.args else ("dim0", "dim1")
    i, j = (call.axis(name, len(dims)) for name in names)
    dims[i], dims[j] = dims[j], dims[i]
    call.out = tuple(dims)


def _reverse(call: Call) -> None:
    call.out = tuple(reversed(call.need("self")))


def _transpose_last(call: Call) -> None:
    *lead, a, b = call.need("self")
    call.out = (*lead, b, a)


def _movedim(call: Call) -> None:
    dims = call.need("self")
    rank = len(dims)
    source, target = (call.args[name] for name in ("source", "destination"))
    pairs = zip(*(x if isinstance(x, list | tuple) else [x] for x in (source, target)), strict=True)
    placed = {to % rank: frm % rank for frm, to in pairs}
    others = iter([d for d in range(rank) if d not in placed.values()])
    call.out = tuple(dims[placed[i] if i in placed else next(others)] for i in range(rank))


def _squeeze(call: Call) -> None:
    """Capture names the dims of size one, and leaves out calls that drop none."""
    dims = call.need("self")
    named = call.args["dim"]
    at = {d % len(dims) for d in (named if isinstance(named, list | tuple) else [named])}
    call.out = tuple(e for d, e in enumerate(dims) if d not in at)


def _unsqueeze(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims) + 1)
    call.out = (*dims[:at], Const(1), *dims[at:])


def _at_least(call: Call) -> None:
    """``atleast_2d`` puts dims of size 1 in front, ``atleast_3d`` a last one after them."""
    dims = call.need("self")
    missing = len(call.out_shape) - len(dims)
    after = 1 if call.op == "atleast_3d" and missing and dims else 0
    ones = [Const(1)] * (missing - after)
    call.out = (*ones, *dims, *[Const(1)] * after)


# --- joins and cuts -------------------------------------------------------------------------------


def _cat(call: Call) -> None:
    tensors = [
        t for t in call.args["tensors"] if call.dims_of(t)[0].size or len(call.dims_of(t)) > 1
    ]
    at = call.axis("dim", len(call.out_shape))
    _join(call, [call.dims_of(t) for t in tensors], at)


def _column_stack(call: Call) -> None:
    """Vectors as columns; matrices side by side."""
    shapes = [call.dims_of(t) for t in call.args["tensors"]]
    _join(call, [(*s, Const(1)) if len(s) == 1 else s for s in shapes], 1)


def _depth_stack(call: Call) -> None:
    """Maps one behind the other; a vector is a row of one."""
    shapes: list[Dims] = []
    for tensor in call.args["tensors"]:
        dims = call.dims_of(tensor)
        rows = (Const(1), *dims) if len(dims) == 1 else dims
        shapes.append((*rows, Const(1)) if len(rows) == 2 else rows)
    _join(call, shapes, 2)


def _stack_along(axis: int) -> Callable[[Call], None]:
    """Make the rule of ``hstack`` (1) or ``vstack`` (0), which give a vector a dim where needed."""

    def rule(call: Call) -> None:
        shapes = [call.dims_of(t) for t in call.args["tensors"]]
        rank = len(call.out_shape)
        _join(call, [(*[Const(1)] * (rank - len(s)), *s) for s in shapes], min(axis, rank - 1))

    return rule


def _join(call: Call, shapes: Sequence[Dims], at: int) -> None:
    out: list[Expr] = []
    rank = len(call.out_shape)
    for d in range(rank):
        if d == at:
            out.append(concat(resolve(shape[d]) for shape in shapes))
            continue
        for shape in shapes[1:]:
            call.unify(shapes[0][d], shape[d])
        out.append(shapes[0][d])
    call.out = tuple(out)


def _stack(call: Call) -> None:
    shapes = [call.dims_of(t) for t in call.args["tensors"]]
    for shape in shapes[1:]:
        for mine, other in zip(shapes[0], shape, strict=True):
            call.unify(mine, other)
    at = call.axis("dim", len(shapes[0]) + 1)
    call.out = (*shapes[0][:at], Const(len(shapes)), *shapes[0][at:])


def _split_with_sizes(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    rest, pieces = dims[at], list[Expr]()
    for size in call.args["split_sizes"]:
        piece, rest = call.split(rest, size)
        pieces.append(piece)
    call.out = tuple((*dims[:at], piece, *dims[at + 1 :]) for piece in pieces)
    call.literals["split_sizes"] = tuple(pieces)


def _unbind(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    call.fix(dims[at], "unbind gives one tensor for each position", "named")
    call.out = ((*dims[:at], *dims[at + 1 :]),) * dims[at].size


def _getitem(call: Call) -> None:
    source, index = call.node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    call.out = call.dims_of(source)[index]


def cut(call: Call, expr: Expr, start: int, end: int) -> tuple[Expr, Expr, Expr]:
    """Cut ``expr`` in three: before ``start``, between, after ``end``."""
    before, rest = call.split(expr, start)
    middle, after = call.split(rest, end - start)
    return before, middle, after


def _slice(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    expr, step = dims[at], call.args["step"]
    start, end, _ = slice(call.args["start"], call.args["end"]).indices(expr.size)
    if step != 1:
        middle = _stride(call, expr, start, end, step)
    else:
        before, middle, _ = cut(call, expr, start, end)
        if call.args["start"]:
            call.literals["start"] = before
        if (call.args["end"] or _OPEN_END) < _OPEN_END:
            call.literals["end"] = concat([before, middle])
    call.out = (*dims[:at], middle, *dims[at + 1 :])


def _stride(call: Call, expr: Expr, start: int, end: int, step: int) -> Expr:
    """Every ``step``-th position is one row of a product with ``step``, where the sizes divide."""
    if expr.size % step == 0 and start < step and end == expr.size:
        left, right = call.factor(expr, expr.size // step)
        call.fix(right, f"takes every {step}th position")
        return left
    why = f"takes every {step}th position"
    call.fix(expr, why)
    return call.constant(len(range(start, end, step)), why)


def _narrow(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    start = call.args["start"] % (dims[at].size + 1 if call.args["start"] >= 0 else dims[at].size)
    before, middle, _ = cut(call, dims[at], start, start + call.args["length"])
    call.out = (*dims[:at], middle, *dims[at + 1 :])
    call.literals |= {"start": before, "length": middle}


def _select(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    index = call.args["index"] % dims[at].size
    before, one, _ = cut(call, dims[at], index, index + 1)
    call.fix(one, "selects this position", "named")
    call.literals["index"] = before
    call.out = (*dims[:at], *dims[at + 1 :])


def _glu(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    left, right = call.split(dims[at], dims[at].size // 2)
    call.unify(left, right, "gates one half with the other")
    call.out = (*dims[:at], left, *dims[at + 1 :])


def _neighbours(call: Call) -> None:
    """Ops that join neighbouring positions of one dim; windows make one more dim, the last."""
    dims = call.need("self")
    at = call.axis("dim" if "dim" in call.args else "dimension", len(dims))
    why = f"{call.op} joins neighbouring positions of this dim"
    call.fix(dims[at], why)
    call.out = tuple(
        call.constant(n, why) if d in (at, len(dims)) else dims[d]
        for d, n in enumerate(call.out_shape)
    )


SHAPES: dict[str, Rule | Op] = {
    **rows("view reshape", _view, infers=True),
    **rows("_unsafe_view", _view, views=True, infers=True),
    "view_as": _view_as,
    "reshape_as": _view_as,
    "flatten": _flatten,
    "ravel": _ravel,
    "unflatten": Op(_unflatten, infers=True),
    **rows("permute", _permute, permutes=True),
    **rows("transpose swapaxes swapdims", _transpose, permutes=True),
    **rows("t numpy_T", _reverse, permutes=True),
    **rows("mT", _transpose_last, permutes=True),
    **rows("adjoint matrix_H", _transpose_last),
    **rows("movedim moveaxis", _movedim),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **rows("atleast_1d atleast_2d atleast_3d", _at_least, views=True),
    **rows("cat concat concatenate", _cat),
    "hstack": _stack_along(1),
    **rows("vstack row_stack", _stack_along(0)),
    "column_stack": _column_stack,
    "dstack": _depth_stack,
    "stack": _stack,
    "split_with_sizes": _split_with_sizes,
    "unbind": _unbind,
    operator.getitem.__name__: Op(_getitem, views=True),
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "glu": Op(_glu, nonlinear=True),
    "diff": _neighbours,
    "unfold": _neighbours,
}
