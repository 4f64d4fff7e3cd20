"""Linear algebra beyond plain products: other products, matrix norms, distances, decompositions."""

from __future__ import annotations

from collections.abc import Sequence

from nestify.dims import Const, Expr
from nestify.rules.call import Call, Dims
from nestify.rules.op import Op, Rule, rows

__all__ = ["LINALG"]

# --- products -------------------------------------------------------------------------------------


def _addmv(call: Call) -> None:
    (rows, inner), (vector,) = call.need("mat"), call.need("vec")
    call.unify(inner, vector)
    call.contract("mat", 1)
    call.contract("vec", 0)
    call.out = tuple(call.broadcast([(rows,), call.need("self")]))
    call.macs.append((rows, inner))


def _addr(call: Call) -> None:
    pair = (*call.need("vec1"), *call.need("vec2"))
    call.out = tuple(call.broadcast([pair, call.need("self")]))


def _addbmm(call: Call) -> None:
    """A sum over the batch too."""
    a, b = call.need("batch1"), call.need("batch2")
    call.unify(a[0], b[0])
    call.unify(a[2], b[1])
    for name, inner in (("batch1", 2), ("batch2", 1)):
        call.contract(name, 0)
        call.contract(name, inner)
    call.out = tuple(call.broadcast([(a[1], b[2]), call.need("self")]))
    call.macs.append((*a, b[2]))


def _vecdot(call: Call) -> None:
    names = ("x", "y") if "x" in call.args else ("self", "other")
    shapes = [call.need(name) for name in names]
    dims = call.broadcast(shapes)
    back = call.args.get("dim", -1) % len(dims) - len(dims)
    _contract_aligned(call, names, shapes, dims[back], back)
    call.macs.append(tuple(dims))
    del dims[back]
    call.out = tuple(dims)


def _contract_aligned(
    call: Call, names: Sequence[str], shapes: Sequence[Dims], wide: Expr, back: int
) -> None:
    """Sum over dim ``back`` of both operands, unless one is stretched there."""
    if any(len(dims) < -back or dims[back].size != wide.size for dims in shapes):
        call.fix(wide, f"{call.op} counts the copies of a stretched operand")
        return
    for name in names:
        call.contract(name, back)


def _tensordot(call: Call) -> None:
    a, b = call.need("self"), call.need("other")
    left, right = (
        [d % len(x) for d in call.args[n]] for x, n in ((a, "dims_self"), (b, "dims_other"))
    )
    for i, j in zip(left, right, strict=True):
        if a[i].size != b[j].size:
            raise ValueError("tensordot is understood where no dim is stretched")
        call.unify(a[i], b[j])
        call.contract("self", i)
        call.contract("other", j)
    free = [expr for d, expr in enumerate(a) if d not in left]
    call.out = (*free, *(expr for d, expr in enumerate(b) if d not in right))
    call.macs.append((*call.out, *(a[i] for i in left)))


def _chain(call: Call) -> None:
    """A product of matrices; torch chooses the order, and with it the cost, of more than two."""
    nodes = call.tensors()
    if len(nodes) != 2:
        raise ValueError(f"{call.op} is understood for two matrices; write more of them out with @")
    left, right = map(call.dims_of, nodes)
    call.unify(left[-1], right[0])
    call.contracted += [(nodes[0], len(left) - 1), (nodes[1], 0)]
    call.out = (*left[:-1], *right[1:])
    call.macs.append((*call.out, left[-1]))


def _matrix_power(call: Call) -> None:
    """A matrix with silent rows and columns has powers that are silent there; inverses have not."""
    *_, rows, columns = dims = call.need("self")
    call.unify(rows, columns)
    if call.args["n"] < 0:
        call.fix(rows, "an inverse reads its matrix as a whole")
    call.contract("self", -1)
    call.contract("self", -2)
    call.out = dims


def _cross(call: Call) -> None:
    names = ("self", "other")
    dims = call.broadcast([call.need(name) for name in names])
    if call.args["dim"] is None:
        raise ValueError("cross is understood with a dim; name the dim of size 3")
    call.fix(dims[call.args["dim"]], "cross mixes the three positions of this dim", "named")
    call.out = tuple(dims)


# --- norms and distances --------------------------------------------------------------------------


def _norm(call: Call) -> None:
    """Vector and matrix norms: zeros add nothing, and silent rows singular values of zero only.

    The negative orders look for the smallest, which a zero would be.
    """
    dims = call.need("self")
    named = call.args.get("dim")
    listed = [] if named is None else named if isinstance(named, list | tuple) else [named]
    at = {d % len(dims) for d in listed} or set(range(len(dims)))
    order = call.args.get("ord", call.args.get("p"))
    for d in sorted(at):
        if isinstance(order, int | float) and order < 0:
            call.fix(dims[d], f"{call.op} of a negative order looks for the smallest position")
        else:
            call.contract("self", d)
    kept = [Const(1) if d in at else e for d, e in enumerate(dims)]
    call.out = tuple(e for d, e in enumerate(kept) if call.args.get("keepdim") or d not in at)


def _weight_norm(call: Call) -> None:
    """A direction, of a length given for each position of one dim."""
    dims, length = call.need("v"), call.need("g")
    kept = None if call.args["dim"] == -1 else call.axis("dim", len(dims))
    if kept is not None:
        call.unify(dims[kept], length[kept])
    _contract_others(call, "v", kept)
    call.out = dims


def _renorm(call: Call) -> None:
    """Each position of one dim scaled down to a norm of at most so much."""
    call.out = call.need("self")
    _contract_others(call, "self", call.axis("dim", len(call.out)))


def _contract_others(call: Call, name: str, kept: int | None) -> None:
    """A norm over all dims but one, where zeros add nothing."""
    for d in range(len(call.need(name))):
        if d != kept:
            call.contract(name, d)


def _pairwise_distance(call: Call) -> None:
    """Its ``eps`` is added to every position: the distance of fewer positions is of those."""
    dims = call.broadcast([call.need("x1"), call.need("x2")])
    call.normalised.append(dims[-1])
    call.out = (*dims[:-1], *([Const(1)] if call.args["keepdim"] else []))


def _cdist(call: Call) -> None:
    a, b = call.need("x1"), call.need("x2")
    call.unify(a[-1], b[-1])
    call.contract("x1", -1)
    call.contract("x2", -1)
    call.out = (*call.broadcast([a[:-2], b[:-2]]), a[-2], b[-2])


def _pdist(call: Call) -> None:
    rows, _ = call.need("self")
    call.fix(rows, "pdist counts pairs of positions of this dim")
    call.contract("self", 1)
    call.out = (Const(call.out_shape[0]),)


def _dist(call: Call) -> None:
    names = ("self", "other")
    shapes = [call.need(name) for name in names]
    dims = call.broadcast(shapes)
    for back in range(-len(dims), 0):
        _contract_aligned(call, names, shapes, dims[back], back)
    call.out = ()


# --- decompositions -------------------------------------------------------------------------------


def _matrix(call: Call) -> None:
    """Inverses, determinants, factors: functions of a whole matrix, one a batch position."""
    if len(call.tensors()) > 1:
        raise ValueError(f"{call.op} is understood for one tensor; give its tolerances as numbers")
    *batch, rows, columns = call.dims_of(call.tensors()[0])
    why = f"{call.op} reads its matrix as a whole"
    for expr in (rows, columns):
        call.fix(expr, why)
    val = call.node.meta["val"]
    results = [
        (*batch, *(call.constant(int(n), why) for n in tensor.shape[len(batch) :]))
        for tensor in (val if isinstance(val, list | tuple) else [val])
    ]
    call.out = tuple(results) if isinstance(val, list | tuple) else results[0]


def _solve(call: Call) -> None:
    """The columns of the right-hand side are solved for one by one; matrices are read whole."""
    names = {"linalg_solve": ("A", "B"), "linalg_solve_triangular": ("self", "B")}
    matrix, sides = (call.need(name) for name in names.get(call.op, ("input2", "self")))
    left = call.args.get("left", True)
    if len(matrix) != len(sides):
        raise ValueError(f"{call.op} is understood for matrices; give a vector a dim of size 1")
    side = sides[-2] if left else sides[-1]
    for expr in (*matrix[-2:], side):
        call.fix(expr, f"{call.op} reads its matrix as a whole")
    batch = call.broadcast([matrix[:-2], sides[:-2]])
    call.out = (*batch, *sides[-2:])


_NORMS = """
frobenius_norm linalg_matrix_norm linalg_norm linalg_vector_norm norm nuclear_norm
"""
_DECOMPOSITIONS = """
cholesky cholesky_inverse inverse linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det
linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lu
linalg_lu_factor linalg_matrix_exp linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet
linalg_svd linalg_svdvals logdet matrix_exp pinverse qr slogdet svd
"""

LINALG: dict[str, Rule | Op] = {
    "addmv": _addmv,
    "addr": _addr,
    "addbmm": _addbmm,
    **rows("linalg_vecdot vdot", _vecdot),
    "tensordot": _tensordot,
    **rows("linalg_multi_dot chain_matmul", _chain),
    **rows("linalg_matrix_power matrix_power", _matrix_power),
    **rows("cross linalg_cross", _cross),
    **rows(_NORMS, _norm),
    "_weight_norm": _weight_norm,
    "renorm": _renorm,
    "pairwise_distance": _pairwise_distance,
    "cdist": _cdist,
    "pdist": _pdist,
    "dist": _dist,
    **rows(_DECOMPOSITIONS, _matrix),
    **rows("linalg_solve linalg_solve_triangular cholesky_solve", _solve),
}
