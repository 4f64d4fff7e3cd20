"""Ops on diagonals: in a square whose rows and columns are one dim, a diagonal is that dim too."""

from __future__ import annotations

from nestify.dims import Const, concat, product, resolve
from nestify.rules.call import Call, Dims
from nestify.rules.op import Op, Rule

__all__ = ["DIAGONALS"]


def _diagonal(call: Call) -> None:
    """The main diagonal of a square: rows and columns are one dim; any other counts positions."""
    dims = call.need("self")
    i, j = (call.axis(name, len(dims)) for name in ("dim1", "dim2"))
    kept = [expr for d, expr in enumerate(dims) if d not in (i, j)]
    if dims[i].size == dims[j].size and not call.args["offset"]:
        call.unify(dims[i], dims[j])
        call.out = (*kept, dims[i])
        return
    why = "takes a diagonal of this dim"
    for d in (i, j):
        call.fix(dims[d], why)
    call.out = (*kept, call.constant(call.out_shape[-1], why))


def _diag(call: Call) -> None:
    """The diagonal of a matrix, or a matrix with this diagonal."""
    dims = call.need("self")
    square = len(dims) == 1 or dims[0].size == dims[1].size
    if call.args["diagonal"] or not square:
        raise ValueError("diag is understood for the main diagonal of a square")
    if len(dims) == 2:
        call.unify(*dims)
    call.out = (dims[0], dims[0]) if len(dims) == 1 else dims[:1]


def _fill_diagonal(call: Call) -> None:
    rows, *others = call.out = call.need("self")
    for expr in others:
        if expr.size != rows.size:
            raise ValueError("fill_diagonal_ is understood for squares")
        call.unify(rows, expr)


def _diagonal_scatter(call: Call) -> None:
    dims, source = call.need("self"), call.need("src")
    i, j = (call.axis(name, len(dims)) for name in ("dim1", "dim2"))
    if call.args["offset"] or dims[i].size != dims[j].size:
        raise ValueError("diagonal_scatter is understood for the main diagonal of a square")
    call.unify(dims[i], dims[j])
    kept = [expr for d, expr in enumerate(dims) if d not in (i, j)]
    for mine, other in zip((*kept, dims[i]), source, strict=True):
        call.unify(mine, other)
    call.out = dims


def _trace(call: Call) -> None:
    """The sum of a diagonal: rows and columns stay and go together."""
    rows, columns = call.need("self")
    if rows.size != columns.size:
        raise ValueError("trace is understood for square matrices")
    call.unify(rows, columns)
    call.contract("self", 0)
    call.contract("self", 1)
    call.out = ()


def _diag_embed(call: Call) -> None:
    """A vector on a diagonal of a new matrix; the matrix is as large as the vector."""
    dims = call.need("self")
    if call.args["offset"]:
        raise ValueError("diag_embed is understood for the main diagonal")
    rank = len(dims) + 1
    at = sorted(call.args[name] % rank for name in ("dim1", "dim2"))
    lead = list(dims[:-1])
    for d in at:
        lead.insert(d, dims[-1])
    call.out = tuple(lead)


def _block_diag(call: Call) -> None:
    shapes: list[Dims] = [call.dims_of(node) for node in call.tensors()]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError("block_diag is understood for matrices; give vectors a dim of size 1")
    call.out = tuple(concat(resolve(shape[d]) for shape in shapes) for d in (0, 1))


def _kron(call: Call) -> None:
    """Kronecker's product: row by row, column by column."""
    left, right = call.need("self"), call.need("other")
    rank = max(len(left), len(right))
    a, b = ((*[Const(1)] * (rank - len(dims)), *dims) for dims in (left, right))
    call.out = tuple(product([resolve(x), resolve(y)]) for x, y in zip(a, b, strict=True))


DIAGONALS: dict[str, Rule | Op] = {
    "diagonal": _diagonal,
    "diag": _diag,
    "fill_diagonal": _fill_diagonal,
    "diagonal_scatter": _diagonal_scatter,
    "trace": _trace,
    "diag_embed": _diag_embed,
    "block_diag": _block_diag,
    "kron": _kron,
}
