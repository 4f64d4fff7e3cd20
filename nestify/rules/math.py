"""Ops that compute: pointwise maps, reductions, matrix products, attention, trailing norms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from nestify.dims import Const, Expr, new_dim, product, resolve, tag
from nestify.rules.call import Call, Dims
from nestify.rules.op import STOCHASTIC, Layer, Op, Rule, rows

# One name a word; an in-place op (relu_) follows the rule of its plain form.
_POINTWISE = """
__and__ __iand__ __ior__ __ixor__ __lshift__ __or__ __rshift__ __xor__ _conj _neg_view _to_copy abs
absolute acos acosh addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin
asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
bitwise_xor ceil clamp_max clip complex conj_physical copy copysign cos cosh deg2rad digamma div
divide empty_like eq erf erfc erfinv exp exp2 expm1 fill fix float_power floor floor_divide fmax
fmin fmod frac full_like gcd ge greater greater_equal gt hardshrink heaviside hypot i0 igamma
igammac imag isclose isfinite isinf isnan isneginf isposinf isreal lcm ldexp le lerp less less_equal
lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or
logical_xor logit lt masked_fill maximum minimum multiply mvlgamma nan_to_num ne negative nextafter
not_equal ones_like polar polygamma positive pow rad2deg real reciprocal remainder resolve_conj
resolve_neg round rsqrt rsub sgn sign signbit sin sinc sinh softshrink special_digamma special_entr
special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
special_logit special_ndtr special_ndtri special_psi special_round special_sinc special_xlog1py
special_xlogy special_zeta sqrt square subtract tan threshold true_divide trunc where xlogy zero
zeros_like
"""

_ACTIVATIONS = """
celu clamp clamp_min elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu sigmoid
silu softplus tanh
"""
_DRAWS = """
bernoulli binomial cauchy exponential geometric log_normal normal poisson rand_like randn_like
random uniform
"""

_PICKS = """
all amin aminmax any argmax argmin kthvalue logsumexp max median min mode nanmedian nanquantile
prod quantile
"""
_ALONG = """
_log_softmax _safe_softmax _softmax argsort cummax cummin cumprod cumsum log_softmax logcumsumexp
msort softmax sort
"""


def _pointwise(call: Call) -> None:
    call.out = tuple(call.broadcast([call.dims_of(node) for node in call.tensors()]))


def _same(call: Call) -> None:
    """The dims of the first operand; a second one gives at most its dtype."""
    call.out = call.need("self")


# --- reductions -----------------------------------------------------------------------------------


def _axes(call: Call, rank: int) -> list[int]:
    named = call.args.get("dim")
    if named is None or named == []:
        return list(range(rank))
    return sorted(d % rank for d in (named if isinstance(named, list | tuple) else [named]))


def _kept(call: Call, dims: Dims, at: Sequence[int]) -> Dims:
    if call.args.get("keepdim"):
        return tuple(Const(1) if d in at else expr for d, expr in enumerate(dims))
    return tuple(expr for d, expr in enumerate(dims) if d not in at)


def _operand(call: Call) -> str:
    return "self" if "self" in call.args else next(iter(call.args))


def _sum(call: Call) -> None:
    name = _operand(call)
    dims = call.need(name)
    at = _axes(call, len(dims))
    for d in at:
        call.contract(name, d)
    call.out = _kept(call, dims, at)


def _mean(call: Call) -> None:
    """The mean of fewer positions is the mean of those: statistics of the net that runs."""
    dims = call.need(_operand(call))
    at = _axes(call, len(dims))
    call.normalised.extend(dims[d] for d in at)
    call.give(_kept(call, dims, at))


def _pick(call: Call) -> None:
    """Reductions that read positions: a removed position might have been the answer."""
    if "other" in call.args:  # max and min also name a pointwise op of two tensors
        _pointwise(call)
        return
    dims = call.need(_operand(call))
    at = _axes(call, len(dims))
    for d in at:
        call.fix(dims[d], f"{call.op} compares the positions of this dim")
    call.give(_kept(call, dims, at))


def _along(call: Call) -> None:
    """Same shape out, positions mixed along one dim."""
    dims = call.need(_operand(call))
    at = call.axis("dim", len(dims)) if "dim" in call.args else 0  # msort: the first
    call.fix(dims[at], f"{call.op} relates the positions of this dim")
    call.give(dims)


def _topk(call: Call) -> None:
    dims = call.need("self")
    at = call.axis("dim", len(dims))
    why = "topk compares the positions of this dim"
    call.fix(dims[at], why)
    call.give((*dims[:at], call.constant(call.args["k"], why), *dims[at + 1 :]))


def _triangle(call: Call) -> None:
    dims = call.need("self")
    for expr in dims[-2:]:
        call.fix(expr, f"{call.op} tells the positions of this dim apart")
    call.out = dims


# --- matrix products ------------------------------------------------------------------------------


def _matmul(call: Call) -> None:
    names = ("self", next(n for n in ("other", "mat2", "vec", "tensor") if n in call.args))
    a, b = (call.need(name) for name in names)
    if len(a) == 1 or len(b) == 1:
        _vector_product(call, names, a, b)
        return
    call.unify(a[-1], b[-2])
    call.contract(names[0], -1)
    call.contract(names[1], -2)
    batch = call.broadcast([a[:-2], b[:-2]])
    _tag_heads(batch)
    call.out = (*batch, a[-2], b[-1])
    call.macs.append((*call.out, a[-1]))


def _vector_product(call: Call, names: tuple[str, str], a: Dims, b: Dims) -> None:
    inner = b[0] if len(b) == 1 else b[-2]
    call.unify(a[-1], inner)
    call.contract(names[0], -1)
    call.contract(names[1], 0 if len(b) == 1 else -2)
    call.out = (*a[:-1], *b[:-2], *b[-1:]) if len(b) > 1 else a[:-1]
    call.macs.append((*call.out, a[-1]))


def _addmm(call: Call) -> None:
    a, b = call.need("mat1"), call.need("mat2")
    call.unify(a[1], b[0])
    call.contract("mat1", -1)
    call.contract("mat2", 0)
    call.out = tuple(call.broadcast([(a[0], b[1]), call.need("self")]))
    call.macs.append((*call.out, a[1]))


def _outer(call: Call) -> None:
    call.out = (*call.need("self"), *call.need("vec2"))


def _inner(call: Call) -> None:
    a, b = call.need("self"), call.need("other")
    call.unify(a[-1], b[-1])
    call.contract("self", -1)
    call.contract("other", -1)
    call.out = (*a[:-1], *b[:-1])
    call.macs.append((*call.out, a[-1]))


def _similarity(call: Call) -> None:
    """Products and squares summed along one dim, where zeros add nothing."""
    shapes = [call.need("x1"), call.need("x2")]
    dims = call.broadcast(shapes)
    at = call.axis("dim", len(dims))
    back = at - len(dims)
    if all(len(shape) >= -back and shape[back].size == dims[at].size for shape in shapes):
        call.contract("x1", back)
        call.contract("x2", back)
    else:
        call.fix(dims[at], "cosine_similarity counts the copies of a stretched operand")
    call.out = (*dims[:at], *dims[at + 1 :])


def _baddbmm(call: Call) -> None:
    a, b = call.need("batch1"), call.need("batch2")
    call.unify(a[0], b[0])
    call.unify(a[2], b[1])
    call.contract("batch1", -1)
    call.contract("batch2", -2)
    call.out = tuple(call.broadcast([(a[0], a[1], b[2]), call.need("self")]))
    call.macs.append((*call.out, a[2]))


def _tag_heads(batch: Sequence[Expr]) -> None:
    """A dim over which two activations are multiplied matrix by matrix is a dim of heads."""
    for expr in batch[1:]:
        tag(expr, "head")


def _einsum(call: Call) -> None:
    nodes: Sequence[fx.Node] = call.args["tensors"]
    shapes = [call.dims_of(node) for node in nodes]
    inputs, output = _equation(call.args["equation"], [len(shape) for shape in shapes])
    bound: dict[str, Expr] = {}
    for letters, dims in zip(inputs, shapes, strict=True):
        for letter, expr in zip(letters, dims, strict=True):
            known = bound.setdefault(letter, expr)
            if known.size == 1:  # a dim of size 1 is stretched
                bound[letter] = expr
            elif expr.size != 1:
                call.unify(known, expr)
    for letters, node in zip(inputs, nodes, strict=True):
        call.contracted += [(node, d) for d, x in enumerate(letters) if x not in output]
    call.out = tuple(bound[letter] for letter in output)
    if len(nodes) > 1:
        call.macs.append(tuple(bound.values()))


def _equation(text: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters of each operand and of the output; those of an ellipsis are digits from the right."""
    inputs, arrow, output = text.replace(" ", "").partition("->")
    operands = inputs.split(",")
    wide = [rank - len(x) + 3 if "..." in x else 0 for x, rank in zip(operands, ranks, strict=True)]
    digits = "".join(chr(ord("0") + i) for i in reversed(range(max(wide))))
    spelled = [
        x.replace("...", digits[len(digits) - n :]) for x, n in zip(operands, wide, strict=True)
    ]
    if not arrow:
        letters = inputs.replace(".", "").replace(",", "")
        output = "..." + "".join(sorted(x for x in letters if letters.count(x) == 1))
    return spelled, output.replace("...", digits)


def _attention(call: Call) -> None:
    q, k, v = (call.need(name) for name in ("query", "key", "value"))
    call.unify(q[-1], k[-1])
    call.contract("query", -1)
    call.contract("key", -1)
    call.unify(k[-2], v[-2])
    call.fix(k[-2], "attention weighs the positions of this dim against each other")
    if call.args["is_causal"]:
        call.fix(q[-2], "a causal mask tells the positions of this dim apart")
    if call.args["enable_gqa"]:
        call.unify(k[-3], v[-3])
        copies = new_dim(q[-3].size // k[-3].size)
        call.unify(q[-3], product([resolve(k[-3]), copies]))
        batch = [*call.broadcast([q[:-3], k[:-3], v[:-3]]), q[-3]]
    else:
        batch = call.broadcast([q[:-2], k[:-2], v[:-2]])
    _tag_heads(batch)
    mask = call.dims("attn_mask")
    if mask is not None:
        call.broadcast([(*batch, q[-2], k[-2]), mask])
    call.out = (*batch, q[-2], v[-1])
    call.macs.append((*batch, q[-2], k[-2], q[-1]))
    call.macs.append((*batch, q[-2], k[-2], v[-1]))


# --- norms over trailing dims ---------------------------------------------------------------------


def _trailing_norm(call: Call) -> None:
    dims = call.need("input")
    width = len(call.args["normalized_shape"])
    trailing = dims[-width:]
    for name in ("weight", "bias"):
        for mine, other in zip(trailing, call.dims(name) or trailing, strict=True):
            call.unify(mine, other)
    call.normalised.extend(trailing)
    call.literals["normalized_shape"] = tuple(trailing)
    call.out = dims


def _group_norm(call: Call) -> None:
    dims = call.need("input")
    groups, inner = call.factor(dims[1], call.args["num_groups"])
    for name in ("weight", "bias"):
        for other in call.dims(name) or ():
            call.unify(dims[1], other)
    call.normalised.extend((inner, *dims[2:]))
    call.literals["num_groups"] = groups
    call.out = dims


def _prelu(call: Call) -> None:
    dims, weight = call.need("self"), call.need("weight")
    if weight and weight[0].size > 1:
        call.unify(dims[1], weight[0])
    call.out = dims


MATH: dict[str, Rule | Op] = {
    **rows(_POINTWISE, _pointwise),
    **rows("add sub mul neg", _pointwise, zero_safe=True),
    **rows(_ACTIVATIONS, _pointwise, zero_safe=True, nonlinear=True),
    **rows("rrelu", _pointwise, nonlinear=True, memory_order=True),
    **rows("alias detach clone", _pointwise, copies=True, zero_safe=True),
    **rows("contiguous", _pointwise, copies=True, hands_on=True, zero_safe=True),
    **rows("lift_fresh_copy", _pointwise, copies=True),
    **rows(_DRAWS, _pointwise, memory_order=True),
    **rows("randint_like", _pointwise, memory_order=True, cuts_gradients=True),
    **rows("dropout alpha_dropout", _pointwise, hands_on=True, memory_order=True),
    **rows(f"feature_dropout feature_alpha_dropout {STOCHASTIC}", _pointwise, hands_on=True),
    **rows("to type_as", _same, hands_on=True),
    **rows("sum nansum count_nonzero", _sum),
    **rows("mean", _mean, zero_safe=True, pools=True),
    **rows("nanmean var std var_mean std_mean", _mean),
    **rows(_PICKS, _pick),
    **rows("amax", _pick, pools=True),
    **rows(_ALONG, _along),
    "topk": _topk,
    **rows("tril triu", _triangle),
    **rows("matmul", _matmul, layer=Layer("self", "other", turned=True)),
    **rows("mm", _matmul, layer=Layer("self", "mat2", turned=True)),
    **rows("bmm mv dot", _matmul),
    "addmm": Op(_addmm, layer=Layer("mat1", "mat2", "self", turned=True)),
    "baddbmm": _baddbmm,
    "inner": _inner,
    "cosine_similarity": _similarity,
    **rows("outer ger", _outer),
    "einsum": Op(_einsum, hands_on=True),
    "scaled_dot_product_attention": _attention,
    **rows("layer_norm rms_norm", _trailing_norm, scales=True),
    **rows("group_norm", _group_norm, scales=True),
    **rows("prelu", _prelu, zero_safe=True, nonlinear=True),
}
