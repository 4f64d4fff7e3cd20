"""Samples of the ops that compute: pointwise maps, reductions, products, norms, windows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.laws.harness import Samples

MATH = Samples()
add = MATH.add
aten = torch.ops.aten

# --- pointwise ------------------------------------------------------------------------------------

_UNARY = """
_to_copy abs absolute acos acosh alias arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan
atanh bernoulli ceil celu clone contiguous cos cosh deg2rad detach digamma elu empty_like erf erfc
erfinv exp exp2 expm1 fix floor frac gelu hardshrink hardsigmoid hardswish hardtanh i0 isfinite
isinf isnan isneginf isposinf isreal leaky_relu lgamma log log10 log1p log2 log_sigmoid logical_not
logit mish nan_to_num neg negative ones_like positive rad2deg rand_like randn_like reciprocal relu
relu6 round rrelu rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink
special_erf special_expit sqrt square tan tanh trunc zero zeros_like
"""
_BINARY = """
add arctan2 atan2 clamp clamp_max clamp_min clip copy copysign div divide eq float_power
floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot igamma igammac isclose ldexp
le less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor lt max maximum min
minimum mul multiply ne nextafter not_equal pow remainder rsub sub subtract true_divide xlogy
"""
_SPECIAL = """
digamma entr erfc erfcx erfinv exp2 expm1 gammaln i0 i0e i1 i1e log1p log_ndtr logit ndtr ndtri psi
round sinc
"""
_INTS = "__and__ __or__ __xor__ bitwise_and bitwise_or bitwise_xor"
_RANDOM = ("empty_like", "rand_like", "randn_like", "bernoulli")


def packet(name: str) -> Any:
    """The op, called with its operands; the samples below need no lambda of their own."""

    def call(*operands: torch.Tensor) -> Any:
        return getattr(aten, name)(*operands)

    return call


for _name in _UNARY.split():
    add(_name, packet(_name), "3* 4*", values=_name not in _RANDOM)
for _name in _SPECIAL.split():
    add(f"special_{_name}", packet(f"special_{_name}"), "3* 4*")
for _name in _BINARY.split():
    add(_name, packet(_name), "2* 3* 4*, 3* 1" if _name == "copy" else "3* 1, 2* 3* 4*")
for _name in _INTS.split():
    add(_name, packet(_name), "i4: 3* 4*, i4: 4*")
for _name in ("__iand__", "__ior__", "__ixor__"):
    add(_name, lambda x, y, n=_name: getattr(x.clone(), n)(y), "i4: 3* 4*, i4: 4*")
for _name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
    add(_name, lambda x, n=_name: getattr(aten, n)(x, 0.5, False), "3* 4*")

for _name in (
    "gcd",
    "lcm",
    "bitwise_left_shift",
    "bitwise_right_shift",
    "__lshift__",
    "__rshift__",
):
    add(_name, packet(_name), "i4: 3* 4*, i4: 4*")
for _name in ("xlog1py", "xlogy", "zeta"):
    add(f"special_{_name}", packet(f"special_{_name}"), "3* 4*, 4*")
for _name in ("uniform", "exponential", "geometric", "cauchy", "log_normal", "random"):
    _args = (0.5,) if _name == "geometric" else ()
    add(
        _name,
        lambda x, n=_name, a=_args: getattr(x.clone(), f"{n}_")(*a),
        "3* 4*",
        values=False,
    )
add("binomial", lambda n, p: torch.binomial(n, p), "3* 4*, 4*", values=False)
add("normal", lambda m, s: aten.normal(m, s), "3* 4*, 3* 4*", values=False)
add("normal:inplace", lambda x: x.clone().normal_(), "3* 4*", values=False)
add("poisson", torch.poisson, "3* 4*", values=False)
add("polygamma", lambda x: torch.polygamma(1, x), "3* 4*")
add("mvlgamma", lambda x: torch.mvlgamma(x + 1, 2), "3* 4*")
add("randint_like", lambda x: torch.randint_like(x, 5), "3* 4*", values=False)
add("bitwise_not", torch.bitwise_not, "i4: 3* 4*")
add("add:alpha", lambda x, y: torch.add(x, y, alpha=2), "B 4, 4")
add("add:inplace", lambda x, y: x.clone().add_(y), "3* 4*, 4*")
add("relu:inplace", lambda x: x.clone().relu_(), "3* 4*")
add("addcmul", torch.addcmul, "3* 4*, 4*, 3* 1")
add("addcdiv", torch.addcdiv, "3* 4*, 4*, 3* 1")
add("lerp", lambda x, y: torch.lerp(x, y, 0.3), "3* 4*, 4*")
add("lerp:tensor", torch.lerp, "3* 4*, 4*, 3* 1")
add("fill", lambda x: aten.fill(x, 2.0), "3* 4*")
add("fill:tensor", lambda x, v: x.clone().fill_(v.sum()), "3* 4*, 2*")
add("full_like", lambda x: torch.full_like(x, 2.0), "3* 4*")
add("masked_fill", lambda x, m: x.masked_fill(m, -1.0), "3* 4*, b: 4*")
add("where", torch.where, "b: 3* 1, 4*, 3* 4*")
add("where:scalar", lambda m, x: torch.where(m, x, 0.0), "b: 4*, 3* 4*")
add("pow:scalar", lambda x: x**2, "3* 4*")
add("pow:base", lambda x: 2.0**x, "3* 4*")
add("div:mode", lambda x, y: torch.div(x, y, rounding_mode="floor"), "3* 4*, 4*")
add("clamp:scalar", lambda x: x.clamp(0.2, 0.5), "3* 4*")
add("clamp_min:scalar", lambda x: x.clamp_min(0.5), "3* 4*")
add("threshold", lambda x: F.threshold(x, 0.5, 0.0), "3* 4*")
add("lift_fresh_copy", lambda x: aten.lift_fresh_copy(x), "3* 4*")
add("to", lambda x: x.to(torch.float32), "3* 4*")
add("to:other", lambda x, y: aten.to.other(x, y), "3* 4*, 2* 2*")
add("type_as", lambda x, y: aten.type_as(x, y), "3* 4*, 2* 2*")
add("copy:inplace", lambda x, y: x.clone().copy_(y), "3* 4*, 4*")
add("zero:inplace", lambda x: x.clone().zero_(), "3* 4*")
add("nestify::stochastic", lambda x: torch.ops.nestify.stochastic(x, ""), "3* 4*")
add("prelu", F.prelu, "2* 3* 4*, 3*")
add("prelu:one", F.prelu, "2* 3* 4*, 1")

# --- reductions -----------------------------------------------------------------------------------

for _name in ("sum", "mean", "var", "std", "amax", "amin", "prod", "any", "all"):
    _fixed = _name in ("amax", "amin", "prod", "any", "all")
    add(_name, packet(_name), "3 4" if _fixed else "3* 4*")
for _name in ("argmax", "argmin", "median", "max", "min"):
    add(f"{_name}:all", packet(_name), "3 4")
    add(f"{_name}:dim", lambda x, n=_name: getattr(torch, n)(x, dim=-1), "3* 4")
add("argmax", lambda x: x.argmax(0, keepdim=True), "3 4*")
add("argmin", lambda x: x.argmin(0), "3 4*")
add("median", lambda x: x.median(dim=1, keepdim=True), "3* 4")
for _name in ("amax", "amin"):
    add(f"{_name}:dims", lambda x, n=_name: getattr(x, n)((0, -1), keepdim=True), "3 4* 2")
for _name in ("prod", "any", "all"):
    add(f"{_name}:dim", lambda x, n=_name: getattr(x, n)(1), "3* 4")
add("sum:dims", lambda x: x.sum((0, -1), keepdim=True), "3* 4* 2*")
add("sum:batch", lambda x: x.sum(-1), "B 4")
add("mean:dims", lambda x: x.mean((1, 2)), "3* 4* 2*")
add("mean:batch", lambda x: x.mean((-2, -1), keepdim=True), "B 4 2 2")
add("var:dim", lambda x: x.var(1, unbiased=False), "3* 4*")
add("std:dim", lambda x: x.std(1, keepdim=True), "3* 4*")
add("var_mean", lambda x: torch.var_mean(x, 1, keepdim=True), "3* 4*")
add("std_mean", lambda x: torch.std_mean(x, 0), "3* 4*")
for _name in ("nansum", "nanmean", "count_nonzero"):
    add(_name, packet(_name), "3* 4*")
add("count_nonzero:dim", lambda x: aten.count_nonzero(x, [1]), "3* 4*")
for _name in ("nanmedian", "aminmax"):
    add(_name, packet(_name), "3 4")
for _name in ("kthvalue", "quantile", "nanquantile"):
    add(_name, lambda x, n=_name: getattr(torch, n)(x, 1, dim=1, keepdim=True), "3* 4")
add("quantile:all", lambda x: x.quantile(0.5), "3 4")
add("mode", lambda x: x.mode(0), "3 4*")
add("aminmax:dim", lambda x: x.aminmax(dim=1), "3* 4")
add("multinomial", lambda x: x.multinomial(2), "3* 4", values=False)
add("logsumexp", lambda x: x.logsumexp(-1), "3* 4")
for _name in ("softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp", "argsort", "sort"):
    add(_name, lambda x, n=_name: getattr(torch, n)(x, dim=1), "3* 4 2*")
for _name in ("cummax", "cummin"):
    add(_name, lambda x, n=_name: getattr(torch, n)(x, 0), "3 4*")
for _name in ("_softmax", "_log_softmax"):
    add(_name, lambda x, n=_name: getattr(aten, n)(x, -1, False), "3* 4")
add("_safe_softmax", lambda x: aten._safe_softmax(x, -1), "3* 4")
add("msort", torch.msort, "3 4*")
add("topk", lambda x: x.topk(2, dim=0), "3 4*")
add("tril", lambda x: x.tril(1), "2* 3 4")
add("triu", torch.triu, "2* 3 4")

# --- matrix products ------------------------------------------------------------------------------

add("linear", F.linear, "2* 4*, 6* 4*, 6*")
add("linear:plain", F.linear, "2* 3* 4*, 6* 4*")
add("linear:vector", F.linear, "4*, 6* 4*, 6*")
add("linear:dot", lambda x, w: aten.linear(x, w), "2* 4*, 4*", macs=8)
add("linear:batch", F.linear, "B 4, 6* 4, 6*")
add("addmm", torch.addmm, "5*, 3* 4*, 4* 5*")
add("addmm:full", torch.addmm, "3* 5*, 3* 4*, 4* 5*")
add("baddbmm", torch.baddbmm, "2* 1 5*, 2* 3* 4*, 2* 4* 5*")
add("mm", torch.mm, "3* 4*, 4* 5*")
add("bmm", torch.bmm, "2* 3* 4*, 2* 4* 5*")
add("mv", torch.mv, "3* 4*, 4*", macs=12)
add("dot", torch.dot, "4*, 4*", macs=4)
add("outer", torch.outer, "3*, 4*")
add("ger", torch.ger, "3*, 4*")
add("matmul", torch.matmul, "3* 4*, 4* 5*")
add("matmul:stretch", torch.matmul, "6* 1 3* 4*, 2* 4* 5*")
add("matmul:rank", torch.matmul, "2* 3* 4*, 4* 5*")
add("matmul:dot", torch.matmul, "4*, 4*", macs=4)
add("matmul:left", torch.matmul, "4*, 2* 4* 5*", macs=40)
add("matmul:right", torch.matmul, "2* 3* 4*, 4*", macs=24)
add(
    "einsum",
    lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y),
    "2* 3* 4* 5*, 2* 3* 2* 5*",
    macs=240,
)
add("einsum:sum", lambda x: torch.einsum("abc -> ca", x), "2* 3* 4*")
add("einsum:implicit", lambda x, y: torch.einsum("ij,jk", x, y), "2* 3*, 3* 4*", macs=24)
add("einsum:diagonal", lambda x: torch.einsum("iij->ij", x), "3* 3* 4*")
add("einsum:trace", lambda x: torch.einsum("ii", x), "3* 3*")
add("einsum:dots", lambda x, y: torch.einsum("...i,ij->...j", x, y), "2* 3* 4*, 4* 5*", macs=120)
add("einsum:ranks", lambda x, y: torch.einsum("...i,...i", x, y), "2* 3* 4*, 3* 4*", macs=24)
add("einsum:reduced", lambda x: torch.einsum("...i->i", x), "2* 3* 4*")
add("einsum:stretched", lambda x, y: torch.einsum("bi,bi->b", x, y), "1 4*, 3* 1", macs=12)
add("inner", torch.inner, "2* 3* 4*, 5* 4*", macs=120)
add("cosine_similarity", lambda x, y: F.cosine_similarity(x, y, 1), "2* 3* 4*, 3* 4*")
add("cosine_similarity:part", lambda x, y: F.cosine_similarity(x, y, 0), "2 3* 4*, 3* 4*")
add("bilinear", F.bilinear, "2* 3*, 2* 4*, 5* 3* 4*, 5*", macs=120)
add("embedding", lambda w, i: F.embedding(i, w), "7 4*, i7: 3* 2*")

_EXPERTS = "transformers::grouped_mm_fallback"  # as the transformers package declares it


def _experts(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    runs = zip([0, *offs.tolist()], offs.tolist(), strict=False)
    return torch.cat([x[i:j] @ w for (i, j), w in zip(runs, weight, strict=True)])


if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
    _schema = "(Tensor input, Tensor weight, Tensor offs) -> Tensor"
    torch.library.custom_op(_EXPERTS, _experts, mutates_args=(), schema=_schema).register_fake(
        lambda x, weight, offs: x.new_empty(len(x), weight.shape[-1])
    )
add(
    _EXPERTS,
    lambda x, w, n: torch.ops.transformers.grouped_mm_fallback(x, w, n + torch.tensor([2, 5])),
    "5 4*, 2 4* 6*, i1: 2",
    macs=120,
)

# --- attention ------------------------------------------------------------------------------------

_sdpa = F.scaled_dot_product_attention
add("scaled_dot_product_attention", _sdpa, "2* 3* 4* 6*, 2* 3* 5 6*, 2* 3* 5 8*", macs=6 * 20 * 14)
add("scaled_dot_product_attention:flat", _sdpa, "2* 4* 6*, 2* 5 6*, 2* 5 8*", macs=2 * 20 * 14)
add(
    "scaled_dot_product_attention:mask",
    lambda q, k, v, m: _sdpa(q, k, v, attn_mask=m),
    "2* 3* 4* 6*, 2* 3* 5 6*, 2* 3* 5 6*, 3* 4* 5",
    macs=6 * 20 * 12,
)
add(
    "scaled_dot_product_attention:causal",
    lambda q, k, v: _sdpa(q, k, v, is_causal=True),
    "2* 3* 4 6*, 2* 3* 4 6*, 2* 3* 4 6*",
    macs=6 * 16 * 12,
)
add(
    "scaled_dot_product_attention:gqa",
    lambda q, k, v: _sdpa(q, k, v, enable_gqa=True),
    "2* 6* 4* 6*, 2* 2* 5 6*, 2* 2* 5 8*",
    macs=12 * 20 * 14,
)
add(
    "scaled_dot_product_attention:mqa",
    lambda q, k, v: _sdpa(q, k, v, enable_gqa=True, scale=0.3),
    "2* 6* 4* 6*, 2* 1 5 6*, 2* 1 5 8*",
    macs=12 * 20 * 14,
)

# --- convolutions ---------------------------------------------------------------------------------

for _rank, _x, _k in ((1, "5", "3"), (2, "5 6", "3 2"), (3, "4 5 3", "3 2 2")):
    _conv, _up = f"conv{_rank}d", f"conv_transpose{_rank}d"
    add(_conv, getattr(F, _conv), f"2* 4* {_x}, 6* 4* {_k}, 6*")
    add(f"{_conv}:unbatched", getattr(F, _conv), f"4* {_x}, 6* 4* {_k}, 6*")
    add(
        f"{_conv}:groups",
        lambda x, w, b, f=_conv: getattr(F, f)(x, w, b, groups=3, stride=2),
        f"2* 12* {_x}, 6* 4* {_k}, 6*",
    )
    add(_up, getattr(F, _up), f"2* 4* {_x}, 4* 6* {_k}, 6*")
    add(f"{_up}:unbatched", getattr(F, _up), f"4* {_x}, 4* 6* {_k}, 6*")
    add(
        f"{_up}:groups",
        lambda x, w, b, f=_up: getattr(F, f)(x, w, b, groups=3, stride=2),
        f"2* 12* {_x}, 12* 4* {_k}, 12*",
    )
add("conv2d:batch", F.conv2d, "B 4 5 5, 6* 4 3 3, 6*")
add("conv2d:same", lambda x, w: F.conv2d(x, w, padding="same"), "2* 4* 5 5, 6* 4* 3 3")
add("conv2d:square", F.conv2d, "4* 4 4, 4* 4* 1 1, 4*")
add("conv2d:dilated", lambda x, w: F.conv2d(x, w, dilation=2, padding=2), "2* 4* 5 5, 6* 4* 3 3")
add("conv2d:depthwise", lambda x, w: F.conv2d(x, w, groups=4), "2* 4* 5 5, 4* 1 3 3")
add("conv2d:multiplier", lambda x, w: F.conv2d(x, w, groups=4), "2* 4* 5 5, 8* 1 3 3")
add(
    "conv2d:chain",
    lambda x, v, w: F.conv2d(F.conv2d(x, v, groups=2), w, groups=4),
    "B 4 5 5, 8* 2 1 1, 4* 2* 3 3",
)
add(
    "conv_transpose2d:depthwise",
    lambda x, w: F.conv_transpose2d(x, w, groups=4),
    "2* 4* 3 3, 4* 1 2 2",
)

# --- norms ----------------------------------------------------------------------------------------

add(
    "batch_norm",
    lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b),
    "2 4* 3 3, s: 4*, s: 4*, 4*, 4*",
)
add("batch_norm:plain", lambda x, m, v: F.batch_norm(x, m, v), "B 4, s: 4, s: 4")
add("batch_norm:own", lambda x: F.batch_norm(x, None, None, training=True), "2* 4* 3*")
add("instance_norm", lambda x, w, b: F.instance_norm(x, weight=w, bias=b), "2* 4* 3 3, 4*, 4*")
add("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), "2* 3* 4*, 4*, 4*")
add("layer_norm:two", lambda x, w: F.layer_norm(x, (3, 4), w), "2* 3* 4*, 3* 4*")
add("layer_norm:plain", lambda x: F.layer_norm(x, (4,)), "B 3 4")
add("rms_norm", lambda x, w: F.rms_norm(x, (4,), w), "2* 3* 4*, 4*")
add("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), "2* 6* 3* 3*, 6*, 6*")
add("group_norm:plain", lambda x: F.group_norm(x, 3), "2* 6* 5*")
add("group_norm:one", lambda x, w, b: F.group_norm(x, 1, w, b), "2* 6* 3*, 6*, 6*")

# --- windows --------------------------------------------------------------------------------------

for _rank, _x in ((1, "4"), (2, "4 6"), (3, "4 6 2")):
    for _pool in ("max", "avg"):
        _name = f"{_pool}_pool{_rank}d"
        add(_name, lambda x, n=_name: getattr(F, n)(x, 2), f"2* 3* {_x}")
        add(f"{_name}:unbatched", lambda x, n=_name: getattr(F, n)(x, 2, padding=1), f"3* {_x}")
        _name = f"adaptive_{_pool}_pool{_rank}d"
        add(_name, lambda x, n=_name: getattr(aten, n)(x, [2] * (x.ndim - 2)), f"2* 3* {_x}")
    _name = f"upsample_nearest{_rank}d"
    add(_name, lambda x: F.interpolate(x, scale_factor=2), f"2* 3* {_x}")
    _name = f"_upsample_nearest_exact{_rank}d"
    add(_name, lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), f"2* 3* {_x}")
for _name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    add(
        _name,
        lambda x, m=_name[10:-5]: F.interpolate(x, scale_factor=0.5, mode=m, antialias=True),
        "2* 3* 4 4",
    )
add("adaptive_avg_pool2d:area", lambda x: F.interpolate(x, size=(2, 3), mode="area"), "2* 3* 4 6")
add("max_unpool2d", lambda x, i: F.max_unpool2d(x, i, 2), "2* 3* 2 2, i16: 2* 3* 2 2")
add("max_unpool3d", lambda x, i: F.max_unpool3d(x, i, 2), "2* 3* 2 2 1, i32: 2* 3* 2 2 1")
for _rank in (2, 3):
    _name = f"max_pool{_rank}d_with_indices"
    add(_name, lambda x, n=_name: getattr(F, n)(x, 2), "2* 3*" + " 4" * _rank)
for _mode, _rank in (("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)):
    add(
        f"upsample_{_mode}{_rank}d",
        lambda x, m=_mode: F.interpolate(x, scale_factor=2, mode=m, align_corners=False),
        "2* 3*" + " 3" * _rank,
    )
add("upsample_nearest2d:size", lambda x: aten.upsample_nearest2d(x, [6, 6]), "2* 3* 3 3")
add("upsample_bilinear2d:size", lambda x: F.interpolate(x, (5, 7), mode="bilinear"), "B 4 3 3")
add("grid_sampler", lambda x, g: F.grid_sample(x, g, align_corners=False), "2* 3* 4 4, 2* 5* 6* 2")
add(
    "grid_sampler:3d",
    lambda x, g: F.grid_sample(x, g, align_corners=False),
    "2* 3* 4 4 4, 2* 5* 6* 2* 3",
)
add(
    "affine_grid_generator",
    lambda t: F.affine_grid(t, [2, 3, 4, 5], align_corners=False),
    "2* 2 3",
)
add(
    "affine_grid_generator:batch",
    lambda t: F.affine_grid(t, [t.shape[0], 1, 4, 5, 2], align_corners=True),
    "B 3 4",
)
add("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), "2* 12* 3 3")
add("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), "2* 3* 4 6")
add("channel_shuffle", lambda x: F.channel_shuffle(x, 2), "2* 6* 3* 3*")
add("native_channel_shuffle", lambda x: aten.native_channel_shuffle(x, 3), "2* 6* 2* 2*")
add("im2col", lambda x: F.unfold(x, 2), "2* 3* 4 4")
add("col2im", lambda x: F.fold(x, (4, 4), 2, stride=2), "2* 12* 4")
add("unfold", lambda x: x.unfold(1, 2, 1), "2* 5 3*")
add("diff", lambda x: x.diff(dim=1), "2* 5 3*")
