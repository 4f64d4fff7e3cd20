"""Ops that make, repeat, index, pad or window positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from nestify.dims import Const, Expr, concat, new_dim, product, resolve
from nestify.rules.call import Call, Dims, op_name
from nestify.rules.notation import WINDOW
from nestify.rules.op import Op, Rule, rows
from nestify.rules.shapes import cut

# --- repeats --------------------------------------------------------------------------------------


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


def _broadcast_tensors(call: Call) -> None:
    call.give(tuple(call.broadcast([call.dims_of(node) for node in call.tensors()])))


def _repeat(call: Call) -> None:
    dims, name = call.need("self"), "dims" if call.op == "tile" else "repeats"
    times = call.args[name]
    if len(times) < len(dims):
        raise ValueError("tile is understood where it names every dim")
    padded: Dims = (*(Const(1) for _ in range(len(times) - len(dims))), *dims)
    out: list[Expr] = []
    texts: list[Expr | None] = []
    for old, k in zip(padded, times, strict=True):
        copies = new_dim(k) if old.size == 1 else Const(k)
        out.append(product([copies, resolve(old)]))
        texts.append(copies)
    call.out = tuple(out)
    call.literals[name] = tuple(texts)


def _repeat_interleave(call: Call) -> None:
    dims, repeats, dim = call.need("self"), call.args["repeats"], call.args["dim"]
    if not isinstance(repeats, int) or dim is None:
        raise ValueError("repeat_interleave is understood for one int and one dim")
    at = dim % len(dims)
    call.out = (*dims[:at], product([resolve(dims[at]), Const(repeats)]), *dims[at + 1 :])
    if call.args.get("output_size") is not None:
        call.literals["output_size"] = call.out[at]


def _create(literal: str) -> Callable[[Call], None]:
    def rule(call: Call) -> None:
        call.out = tuple(new_dim(n) for n in call.out_shape)
        call.literals[literal] = tuple(call.out)

    return rule


def _arange(call: Call) -> None:
    """Counting from 0 to a multiple of the batch goes on where the batch is larger."""
    start, step, end = (call.args.get(n, k) for n, k in (("start", 0), ("step", 1), ("end", 0)))
    whole = isinstance(step, int) and isinstance(end, int) and step > 0 and end % step == 0
    if start != 0 or not whole:
        _constants(call)
        return
    call.out = tuple(new_dim(n) for n in call.out_shape)
    call.literals["end"] = call.out[0] if step == 1 else product([call.out[0], Const(step)])
    call.number(call.out[0], "arange counts this dim")


def _constants(call: Call) -> None:
    for node in call.tensors():
        for expr in call.dims_of(node):
            call.fix(expr, f"{call.op} counts this dim")
    why = call.why(f"{call.op} counts this dim")

    def constant(val: Any) -> Dims:
        return tuple(Const(int(n), why) for n in val.shape)

    call.out = pytree.tree_map(constant, call.node.meta["val"])


_FILLED = ("zeros", "ones", "full", "empty", "rand", "randn", "randint")
_COUNTED = """
bartlett_window blackman_window cartesian_prod eye fft_fftfreq fft_rfftfreq
hamming_window hann_window histc kaiser_window linspace logspace randperm scalar_tensor
tril_indices triu_indices
"""

# --- indexing and padding -------------------------------------------------------------------------


def _index(call: Call) -> None:
    call.out = _indexed(call, call.need("self"))


def _index_put(call: Call) -> None:
    dims = call.need("self")
    for node in call.args["indices"]:
        for expr in () if node is None else call.dims_of(node):
            call.fix(expr, "names positions that are written")
    call.broadcast([_indexed(call, dims), call.need("values")])
    call.out = dims


def _indexed(call: Call, dims: Dims) -> Dims:
    """Dims of ``self[indices]``: the indexed dims give way to the dims of the indices."""
    indices = call.args["indices"]
    at = [d for d, index in enumerate(indices) if index is not None]
    shapes: list[Dims] = []
    for d in at:
        val = indices[d].meta["val"]
        if val.dtype.is_floating_point or str(val.dtype) in ("torch.bool", "torch.uint8"):
            raise ValueError("a boolean index gives a shape that depends on the data")
        _number(call, dims[d], indices[d])
        shapes.append(call.dims_of(indices[d]))
    picked = call.broadcast(shapes)
    front = at[0] if at == list(range(at[0], at[0] + len(at))) else 0
    others = [expr for d, expr in enumerate(dims) if d not in at]
    return (*others[:front], *picked, *others[front:])


def _number(call: Call, dim: Expr, index: fx.Node) -> None:
    """A dim that is indexed by all numbers below its size is the dim that they count."""
    call.number(dim, "indexed by position")
    while op_name(index.target) in ("unsqueeze", "view", "expand", "to", "contiguous"):
        index = index.all_input_nodes[0]
    if op_name(index.target) == "arange" and index.meta["val"].numel() == dim.size:
        (counted,) = call.dims_of(index)
        call.unify(dim, counted)


def _index_select(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    _number(call, dims[at], call.args["index"])
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
            why = "pads with other positions of this dim"
            call.fix(dims[at], why)
            dims[at] = call.constant(dims[at].size + before + after, why)
            continue
        _, middle, _ = cut(call, dims[at], max(0, -before), dims[at].size - max(0, -after))
        if middle.size != dims[at].size:
            why = "crops this dim by a literal amount"
            call.fix(dims[at], why)
            middle = call.constant(middle.size, why)
        dims[at] = concat([Const(max(0, before)), resolve(middle), Const(max(0, after))])
    call.out = tuple(dims)


def _roll(call: Call) -> None:
    dims = call.need("self")
    named = call.args.get("dims", {"flipud": [0], "fliplr": [1]}.get(call.op))
    for d in named or range(len(dims)):
        call.fix(dims[d], f"{call.op} moves positions along this dim")
    call.out = dims


def _rot90(call: Call) -> None:
    dims, why = list(call.need("self")), "rot90 moves positions along this dim"
    for d in call.args["dims"]:
        call.fix(dims[d], why)
        dims[d] = call.constant(call.out_shape[d], why)
    call.out = tuple(dims)


def _as_strided(call: Call) -> None:
    for expr in call.need("self"):
        call.fix(expr, "as_strided reads memory by strides; use view, permute or slices", "form")
    call.out = tuple(Const(n) for n in call.out_shape)


def _im2col(call: Call) -> None:
    dims = call.need("self")
    kernel = call.args["kernel_size"]
    for expr in dims[-2:]:
        call.fix(expr, WINDOW, "window")
    window = Const(kernel[0] * kernel[1])
    channels = product([resolve(dims[-3]), window])
    call.out = (*dims[:-3], channels, Const(call.out_shape[-1]))


def _col2im(call: Call) -> None:
    dims = call.need("self")
    kernel = call.args["kernel_size"]
    call.fix(dims[-1], WINDOW, "window")
    channels, window = call.factor(dims[-2], dims[-2].size // (kernel[0] * kernel[1]))
    call.fix(window, WINDOW, "window")
    call.out = (*dims[:-2], channels, *(Const(n) for n in call.out_shape[-2:]))


def _pixel_unshuffle(call: Call) -> None:
    *lead, c, h, w = call.need("self")
    r = call.args["downscale_factor"]
    for expr in (h, w):
        call.fix(expr, "read in blocks")
    call.out = (*lead, product([resolve(c), Const(r * r)]), Const(h.size // r), Const(w.size // r))


def _affine_grid(call: Call) -> None:
    """A map of places for each matrix; of ``size`` it reads the batch and the places only."""
    n, rows, columns = call.need("theta")
    for expr in (rows, columns):
        call.fix(expr, "is the matrix of an affine map", "named")
    _, *places, axes = call.out_shape
    call.out = (n, *(Const(k) for k in places), Const(axes))
    call.literals["size"] = (n, None, *[None] * len(places))


def _multinomial(call: Call) -> None:
    dims = call.need("self")
    why = "multinomial draws from the positions of this dim"
    call.fix(dims[-1], why)
    call.out = (*dims[:-1], call.constant(call.out_shape[-1], why))


INDEXING: dict[str, Rule | Op] = {
    "expand": _expand,
    "expand_as": _expand_as,
    "broadcast_to": _expand,
    "broadcast_tensors": Op(_broadcast_tensors, views=True),
    **rows("repeat tile", _repeat),
    "repeat_interleave": _repeat_interleave,
    **{name: _create("size") for name in _FILLED},
    **{name: _create("size") for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    **rows(_COUNTED, _constants),
    **rows("meshgrid", _constants, views=True),
    "arange": _arange,
    "index": _index,
    "index_put": _index_put,
    "index_select": _index_select,
    "gather": _gather,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **rows("roll flip fliplr flipud", _roll),
    "rot90": _rot90,
    "as_strided": Op(_as_strided, strided=True),
    "im2col": _im2col,
    "col2im": _col2im,
    "pixel_unshuffle": _pixel_unshuffle,
    "affine_grid_generator": _affine_grid,
    "multinomial": _multinomial,
}
