"""Ops that rearrange dims: views, permutations, joins, cuts, repeats, indexing, padding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from nestify.dims import Const, Expr, concat, new_dim, product, resolve
from nestify.rules.calls import Call, Dims

_OPEN_END = 2**62


# --- views --------------------------------------------------------------------------------------------------


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
    call.literals["sizes"] = tuple(None if s == -1 else e for s, e in zip(sizes, inner, strict=True))


# --- permutations -------------------------------------------------------------------------------------------


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


def _movedim(call: Call) -> None:
    dims = call.need("self")
    rank = len(dims)
    source, target = (call.args[name] for name in ("source", "destination"))
    pairs = zip(*(x if isinstance(x, list | tuple) else [x] for x in (source, target)), strict=True)
    placed = {to % rank: dims[frm % rank] for frm, to in pairs}
    moved = {id(expr) for expr in placed.values()}
    others = iter([expr for expr in dims if id(expr) not in moved])
    call.out = tuple(placed[i] if i in placed else next(others) for i in range(rank))


def _squeeze(call: Call) -> None:
    dims = call.need("self")
    named = call.args.get("dim")
    if named is None:
        at = set(range(len(dims)))
    else:
        at = {d % len(dims) for d in (named if isinstance(named, list | tuple) else [named])}
    for d in at:
        # A dim that a smaller net narrows to one position would be squeezed there and not here.
        call.fix(dims[d], "squeeze must not meet a dim that may shrink to one")
    call.out = tuple(e for d, e in enumerate(dims) if not (d in at and e.size == 1))


def _unsqueeze(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims) + 1)
    call.out = (*dims[:at], Const(1), *dims[at:])


# --- joins and cuts -----------------------------------------------------------------------------------------


def _cat(call: Call) -> None:
    tensors = [t for t in call.args["tensors"] if call.dims_of(t)[0].size or len(call.dims_of(t)) > 1]
    rank = len(call.out_shape)
    at = call.axis("dim", rank)
    shapes = [call.dims_of(t) for t in tensors]
    out: list[Expr] = []
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
    call.fix(dims[at], "unbind gives one tensor for each position")
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
    call.fix(expr, f"takes every {step}th position")
    return Const(len(range(start, end, step)))


def _select(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    index = call.args["index"] % dims[at].size
    before, one, _ = cut(call, dims[at], index, index + 1)
    call.fix(one, "selects this position")
    call.literals["index"] = before
    call.out = (*dims[:at], *dims[at + 1 :])


def _glu(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    left, right = call.split(dims[at], dims[at].size // 2)
    call.unify(left, right, "gates one half with the other")
    call.out = (*dims[:at], left, *dims[at + 1 :])


def _diff_like(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    call.fix(dims[at], "subtracts neighbours")
    call.out = tuple(Const(n) if d == at else dims[d] for d, n in enumerate(call.out_shape))


# --- repeats ------------------------------------------------------------------------------------------------


def _stretch(call: Call, dims: Dims, literal: str) -> None:
    """Expand and repeat: new copies are free dims, until they meet a dim that knows better."""
    given, shape = call.args[literal], call.out_shape
    pad = len(shape) - len(dims)
    out: list[Expr] = []
    texts: list[Expr | None] = []
    for d, size in enumerate(shape):
        old = dims[d - pad] if d >= pad else Const(1)
        keep = old.size == size
        out.append(old if keep else new_dim(size))
        texts.append(None if given[d] == -1 or old.size == size == 1 else out[-1])
    call.out = tuple(out)
    call.literals[literal] = tuple(texts)


def _expand(call: Call) -> None:
    _stretch(call, call.need("self"), "size")


def _expand_as(call: Call) -> None:
    call.out = tuple(call.broadcast([call.need("self"), call.need("other")]))


def _repeat(call: Call) -> None:
    dims, times = call.need("self"), call.args["repeats"]
    padded: Dims = (*(Const(1) for _ in range(len(times) - len(dims))), *dims)
    out: list[Expr] = []
    texts: list[Expr | None] = []
    for old, k in zip(padded, times, strict=True):
        copies = new_dim(k) if old.size == 1 else Const(k)
        out.append(product([copies, resolve(old)]))
        texts.append(copies)
    call.out = tuple(out)
    call.literals["repeats"] = tuple(texts)


def _repeat_interleave(call: Call) -> None:
    dims, repeats, dim = call.need("self"), call.args["repeats"], call.args["dim"]
    if not isinstance(repeats, int) or dim is None:
        raise ValueError("repeat_interleave is understood for one int and one dim")
    at = dim % len(dims)
    call.out = (*dims[:at], product([resolve(dims[at]), Const(repeats)]), *dims[at + 1 :])


def _create(literal: str) -> Callable[[Call], None]:
    def rule(call: Call) -> None:
        call.out = tuple(new_dim(n) for n in call.out_shape)
        call.literals[literal] = tuple(call.out)

    return rule


def _constants(call: Call) -> None:
    for node in call.tensors():
        for expr in call.dims_of(node):
            call.fix(expr, f"{call.op} counts this dim")
    val = call.node.meta["val"]
    shapes = [v.shape for v in val] if isinstance(val, list | tuple) else None
    if shapes is None:
        call.out = tuple(Const(n) for n in call.out_shape)
    else:
        call.out = tuple(tuple(Const(int(n)) for n in shape) for shape in shapes)


# --- indexing and padding -----------------------------------------------------------------------------------


def _index(call: Call) -> None:
    dims, indices = call.need("self"), call.args["indices"]
    at = [d for d, index in enumerate(indices) if index is not None]
    shapes: list[Dims] = []
    for d in at:
        val = indices[d].meta["val"]
        if val.dtype.is_floating_point or str(val.dtype) in ("torch.bool", "torch.uint8"):
            raise ValueError("a boolean index gives a shape that depends on the data")
        call.fix(dims[d], "indexed by position")
        shapes.append(call.dims_of(indices[d]))
    picked = call.broadcast(shapes)
    front = at[0] if at == list(range(at[0], at[0] + len(at))) else 0
    others = [expr for d, expr in enumerate(dims) if d not in at]
    call.out = (*others[:front], *picked, *others[front:])


def _index_select(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    call.fix(dims[at], "indexed by position")
    index = call.need("index")
    call.out = (*dims[:at], *(index or (Const(1),)), *dims[at + 1 :])


def _gather(call: Call) -> None:
    dims, index = call.need("self"), call.need("index")
    at = call.axis("dim", len(dims))
    for d, (mine, other) in enumerate(zip(dims, index, strict=True)):
        if d != at and mine.size == other.size:
            call.unify(mine, other)
        else:
            call.fix(mine, "indexed by position")
            call.fix(other, "indexed by position")
    call.out = index


def _pad(call: Call) -> None:
    dims, amounts = list(call.need("self")), call.args["pad"]
    constant = call.args.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        at = len(dims) - 1 - i
        if not (before or after):
            continue
        if not constant:
            call.fix(dims[at], "pads with other positions of this dim")
            dims[at] = Const(dims[at].size + before + after)
            continue
        _, middle, _ = cut(call, dims[at], max(0, -before), dims[at].size - max(0, -after))
        if middle.size != dims[at].size:
            call.fix(dims[at], "crops this dim by a literal amount")
            middle = Const(middle.size)
        dims[at] = concat([Const(max(0, before)), resolve(middle), Const(max(0, after))])
    call.out = tuple(dims)


def _roll(call: Call) -> None:
    dims, named = call.need("self"), call.args["dims"]
    for d in named or range(len(dims)):
        call.fix(dims[d], f"{call.op} moves positions along this dim")
    call.out = dims


def _im2col(call: Call) -> None:
    dims = call.need("self")
    kernel = call.args["kernel_size"]
    for expr in dims[-2:]:
        call.fix(expr, "slides over this dim")
    window = Const(kernel[0] * kernel[1])
    channels = product([resolve(dims[-3]), window])
    call.out = (*dims[:-3], channels, Const(call.out_shape[-1]))


def _col2im(call: Call) -> None:
    dims = call.need("self")
    kernel = call.args["kernel_size"]
    call.fix(dims[-1], "slides over this dim")
    channels, window = call.factor(dims[-2], dims[-2].size // (kernel[0] * kernel[1]))
    call.fix(window, "slides over this dim")
    call.out = (*dims[:-2], channels, *(Const(n) for n in call.out_shape[-2:]))


def _pixel_unshuffle(call: Call) -> None:
    *lead, c, h, w = call.need("self")
    r = call.args["downscale_factor"]
    for expr in (h, w):
        call.fix(expr, "read in blocks")
    call.out = (*lead, product([resolve(c), Const(r * r)]), Const(h.size // r), Const(w.size // r))


SHAPES: dict[str, Callable[[Call], Any]] = {
    "view": _view,
    "reshape": _view,
    "_unsafe_view": _view,
    "view_as": _view_as,
    "reshape_as": _view_as,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "t": _reverse,
    "numpy_T": _reverse,
    "movedim": _movedim,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "cat": _cat,
    "stack": _stack,
    "split_with_sizes": _split_with_sizes,
    "unbind": _unbind,
    operator.getitem.__name__: _getitem,
    "slice": _slice,
    "select": _select,
    "glu": _glu,
    "diff": _diff_like,
    "expand": _expand,
    "expand_as": _expand_as,
    "broadcast_to": _expand,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    **{name: _create("size") for name in ("zeros", "ones", "full", "empty", "rand", "randn")},
    **{name: _create("size") for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    **{name: _constants for name in ("arange", "linspace", "eye", "tril_indices", "triu_indices")},
    **{name: _constants for name in ("scalar_tensor", "meshgrid", "histc", "bincount", "nonzero")},
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "roll": _roll,
    "flip": _roll,
    "im2col": _im2col,
    "col2im": _col2im,
    "pixel_unshuffle": _pixel_unshuffle,
}
