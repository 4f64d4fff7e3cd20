"""Forms of the ops that compute: maps that need more than tensors, reductions, products, norms."""

from __future__ import annotations

from tests.fuzz.forms import FEW, WIDTH, Form, Part

__all__ = ["MATH_FORMS"]

MATH_FORMS: dict[str, Form] = {}


def form(name: str, text: str, weight: float = 1.0, /, **parts: Part) -> None:
    """Enter a form as ``op`` or ``op:mode``."""
    assert name not in MATH_FORMS, name
    MATH_FORMS[name] = Form(text, weight, **parts)


# --- pointwise ------------------------------------------------------------------------------------

_NUMBERS = (2, 0.5, 1.5, -1.25)
form("nestify::stochastic", "{m}({x})", x="t: n *s", m="m: DropPath(0.5)")
form("where", "torch.where({m}, {x}, {y})", x="t: *s", m="~b:", y="~:")
form("where:scalar", "torch.where({m}, {x}, 0.0)", x="t: *s", m="~b:")
form("where:live", "torch.where({x} > {y}, {x}, {y})", x="t: *s", y="~:")
form("masked_fill", "{x}.masked_fill({m}, -1.0)", x="t: *s", m="~b:")
form("bernoulli", "{x} + torch.bernoulli(torch.ones_like({x}))", x="t: *s")
# By a number: of a tensor of one element torch makes one too, but a trace leaves it a tensor.
form("randint_like", "{x} + 0 * torch.randint_like({x}, {k})", x="t: *s", k=(2, 5))
for _name in ("rand_like", "randn_like", "empty_like"):
    _zero = ".zero_()" if _name == "empty_like" else " * 0"
    form(_name, f"{{x}} + torch.{_name}({{x}}){_zero}", 0.3, x="t: *s")
form("full_like", "{x} * torch.full_like({x}, {v})", x="t: *s", v=_NUMBERS)
form("fill", "aten.fill({x}, {v}) - {x}", x="t: *s", v=_NUMBERS)
form("fill:tensor", "{x}.clone().fill_({y}.sum()) - {x}", x="t: *s", y="p: k")
form("add:alpha", "torch.add({x}, {y}, alpha={v})", x="t: *s", y="~:", v=_NUMBERS)
form("add:inplace", "{x}.clone().add_({y})", x="t: *s", y="~:")
form("add:scalar", "{x} + {v}", x="t: *s", v=_NUMBERS)
form("mul:scalar", "{v} * {x}", x="t: *s", v=_NUMBERS)
form("add:live", "{x} + {y}", 4.0, x="t: *s", y="t: *s")
form("mul:live", "{x} * {y}", 3.0, x="t: *s", y="t: *s")
form("relu:inplace", "{x}.clone().relu_()", x="t: *s")
form("addcmul", "torch.addcmul({x}, {y}, {z})", x="t: *s", y="~:", z="~:")
form("addcdiv", "torch.addcdiv({x}, {y}, {z}.exp())", x="t: *s", y="~:", z="~:")
form("lerp", "torch.lerp({x}, {y}, 0.3)", x="t: *s", y="~:")
form("lerp:tensor", "torch.lerp({x}, {y}, {z})", x="t: *s", y="~:", z="~:")
form("pow:scalar", "{x} ** {v}", x="t: *s", v=(2, 3))
form("pow:base", "2.0 ** {x}", x="t: *s")
form("div:mode", 'torch.div({x}, {y}.exp(), rounding_mode="floor")', x="t: *s", y="~:")
form("clamp:scalar", "{x}.clamp(-0.4, 0.5)", x="t: *s")
form("clamp_min:scalar", "{x}.clamp_min(-0.5)", x="t: *s")
form("threshold", "F.threshold({x}, 0.1, -0.5)", x="t: *s")
form("clamp", "torch.clamp({x}, {y})", x="t: *s", y="~:")
form("clip", "torch.clip({x}, {y})", x="t: *s", y="~:")
form("to", "({x} > 0.1).to(torch.float64)", x="t: *s")
form("to:int", "({x} * 4).to(torch.int64)", x="t: *s")
form("to:bool", "{x} > 0.1", x="t: *s")
form("to:float", "{x}.to(torch.float64)", x="i: *s")
form("to:float_bool", "{x}.to(torch.float64)", x="b: *s")
form("to:other", "aten.to.other({x}, {y})", x="t: *s", y="t: *r")
form("type_as", "{x}.type_as({y})", x="t: *s", y="t: *r")
form("_to_copy", "aten._to_copy({x}, dtype=torch.float64)", x="t: *s")
form("copy", "aten.copy({x}, {y})", x="t: *s", y="~:")
form("copy:inplace", "{x}.clone().copy_({y})", x="t: *s", y="~:")
form("zero:inplace", "{x}.clone().zero_() - {x}", x="t: *s")
form("prelu", "{m}({x})", x="t: n c *s", k="[1, c]", m="m: nn.PReLU({k})")
form("dropout:module", "{m}({x})", x="t: *s", m="m: nn.Dropout(0.3)")
form("feature_dropout:module", "{m}({x})", x="t: n c h w", m="m: nn.Dropout2d(0.3)")
for _name in ("__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor"):
    form(_name, f"aten.{_name}({{x}}, {{y}})", 0.5, x="i: *s", y="i: *s")
for _name in ("__iand__", "__ior__", "__ixor__"):
    form(_name, f"{{x}}.clone().{_name}({{y}})", 0.5, x="i: *s", y="i: *s")
form("bitwise_not", "torch.bitwise_not({x})", x="i: *s")
form("logical_not:bool", "torch.logical_not({x})", x="b: *s")
form("logical_and:bool", "torch.logical_and({x}, {y})", x="b: *s", y="b: *s")

# --- reductions -----------------------------------------------------------------------------------

_D = "span(-len(s), len(s) - 1)"
_DIM = {"x": "t: *s", "when": "s", "d": _D, "k": (True, False)}
for _name in ("sum", "mean", "var", "std", "amax", "amin", "prod"):
    form(_name, f"{{x}}.{_name}({{d}}, keepdim={{k}})", 0.6, **_DIM)
    form(f"{_name}:all", f"{{x}} * {{x}}.{_name}()", 0.4, x="t: *s", when="s")
for _name in ("sum", "mean", "amax", "amin"):
    form(
        f"{_name}:dims",
        f"{{x}}.{_name}((-2, -1), keepdim={{k}})",
        0.6,
        x="t: *b h w",
        k=(True, False),
    )
form("norm", "aten.norm({x}, 2, [{d}], {k})", **_DIM)
form(
    "linalg_vector_norm",
    "torch.linalg.vector_norm({x}, {p}, {d}, keepdim={k})",
    **_DIM,
    p=(2, 1, 3),
)
form("linalg_vector_norm:inf", 'torch.linalg.vector_norm({x}, float("inf"), {d})', **_DIM)
form("linalg_vector_norm:low", "torch.linalg.vector_norm({x}, -2, {d})", **_DIM)
form("normalize", "F.normalize({x}, dim={d}, eps=1e-3)", **_DIM)
form("var_mean", "torch.var_mean({x}, {d}, keepdim={k}, correction=0)", **_DIM)
form("std_mean", "torch.std_mean({x}, {d}, keepdim={k}, correction=0)", **_DIM)
for _name in ("any", "all"):
    form(_name, f"({{x}} > 0.2).{_name}({{d}}, keepdim={{k}})", 0.5, **_DIM)
    form(
        f"{_name}:whole", f"torch.where(({{x}} > 0.2).{_name}(), {{x}}, 2 * {{x}})", 0.3, x="t: *s"
    )
for _name in ("argmax", "argmin"):
    form(_name, f"{{x}}.{_name}({{d}}, keepdim={{k}})", 0.5, **_DIM)
    form(f"{_name}:all", f"{{x}} + {{x}}.{_name}()", 0.3, x="t: *s", when="s")
# torch 2.13 gives other values where the dim is an expanded one.
form("median", "torch.median({x}.contiguous(), dim={d}, keepdim={k})", 0.5, **_DIM)
for _name in ("max", "min"):
    form(_name, f"torch.{_name}({{x}}, dim={{d}}, keepdim={{k}})", 0.5, **_DIM)
for _name in ("median", "max", "min"):
    form(f"{_name}:all", f"{{x}} - torch.{_name}({{x}})", 0.3, x="t: *s", when="s")
for _name in ("max", "min"):
    form(f"{_name}:other", f"torch.{_name}({{x}}, {{y}})", 0.5, x="t: *s", y="~:")
form("logsumexp", "{x}.logsumexp({d}, keepdim={k})", **_DIM)
for _name in ("softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp"):
    form(_name, f"torch.{_name}({{x}}, dim={{d}})", **_DIM)
form("_softmax", "aten._softmax({x}, {d}, False)", **_DIM)
form("sort", "torch.sort({x}, dim={d})", **_DIM)
form("argsort", "torch.argsort({x}, dim={d})", **_DIM)
form("topk", "{x}.topk({j}, dim={d})", **_DIM, j="span(1, s[d])")
form("tril", "{x}.tril({k})", x="t: *b h w", k=(0, 1, -1))
form("triu", "{x}.triu({k})", x="t: *b h w", k=(0, 1, -1))

# --- matrix products ------------------------------------------------------------------------------

_BIAS = (True, False)
form("linear", "{m}({x})", 6.0, x="t: *b i", o=WIDTH, k=_BIAS, m="m: nn.Linear({i}, {o}, bias={k})")
form("linear:function", "F.linear({x}, {w}, {v})", 2.0, x="t: *b i", w="p: o i", v="p: o")
form("linear:live", "F.linear({x}, {w})", 2.0, x="t: *b i", w="t: o i")
form("addmm", "torch.addmm({y}, {x}, {w})", 2.0, x="t: n i", w="t: i o", y="p: o")
form("addmm:full", "torch.addmm({y}, {x}, {w})", x="t: n i", w="t: i o", y="t: n o")
form("baddbmm", "torch.baddbmm({y}, {x}, {w})", x="t: n i j", w="t: n j o", y="p: n 1 o")
form("mm", "torch.mm({x}, {w})", 2.0, x="t: n i", w="t: i o")
form("bmm", "torch.bmm({x}, {w})", 2.0, x="t: n i j", w="t: n j o")
form("bmm:self", "torch.bmm({x}, {x}.transpose(1, 2))", x="t: n i j")
form("mv", "torch.mv({x}, {w})", x="t: n i", w="t: i")
form("dot", "torch.dot({x}, {w})", x="t: i", w="t: i")
form("outer", "torch.outer({x}, {w})", x="t: i", w="t: o")
form("ger", "torch.ger({x}, {w})", x="t: i", w="t: o")
form("matmul", "{x} @ {w}", 2.0, x="t: *b i j", w="t: j o")
form("matmul:full", "{x} @ {w}", x="t: *b i j", w="t: *b j o")
form("matmul:stretch", "{x}.unsqueeze(1) @ {w}", x="t: n i j", w="t: k j o")
form("matmul:left", "{w} @ {x}", x="t: *b i j", w="t: i")
form("matmul:right", "{x} @ {w}", x="t: *b i", w="t: i")
form("einsum", 'torch.einsum("bij,bkj->bik", {x}, {y})', x="t: b i j", y="t: b k j")
form("einsum:heads", 'torch.einsum("bhqd,bhkd->bhqk", {x}, {y})', x="t: b h q d", y="t: b h k d")
form("einsum:sum", 'torch.einsum("abc->ca", {x})', x="t: a b c")
form("einsum:project", 'torch.einsum("btc,dc->btd", {x}, {w})', 2.0, x="t: b t c", w="p: d c")
form("einsum:mix", 'torch.einsum("bc,dc,c->bd", {x}, {w}, {v})', x="t: b c", w="p: d c", v="t: c")
form("einsum:implicit", 'torch.einsum("ij,jk", {x}, {w})', x="t: i j", w="t: j k")
form("inner", "torch.inner({x}, {w})", x="t: *b i", w="t: o i")
form("cosine_similarity", "F.cosine_similarity({x}, {y}, {d}, eps=1e-3)", **_DIM, y="~:")
form(
    "bilinear",
    "{m}({x}, {y})",
    x="t: *b i",
    y="t: *b j",
    o=WIDTH,
    m="m: nn.Bilinear({i}, {j}, {o})",
)
form("embedding", "{m}({x} % 64)", 2.0, x="i: *b", o=WIDTH, m="m: nn.Embedding(64, {o})")
form("embedding:live", "F.embedding({i}, {x})", x="t: v e", i="k:v: k j")

# --- attention ------------------------------------------------------------------------------------

_SDPA = "F.scaled_dot_product_attention"
form(
    "scaled_dot_product_attention",
    f"{_SDPA}({{x}}, {{k}}, {{v}})",
    x="t: *b q e",
    k="t: *b t e",
    v="t: *b t f",
)
form("scaled_dot_product_attention:self", f"{_SDPA}({{x}}, {{x}}, {{x}})", x="t: *b q e")
form(
    "scaled_dot_product_attention:causal",
    f"{_SDPA}({{x}}, {{k}}, {{x}}, is_causal=True)",
    x="t: *b q e",
    k="t: *b q e",
)
form(
    "scaled_dot_product_attention:mask",
    f"{_SDPA}({{x}}, {{k}}, {{k}}, attn_mask={{m}}, scale=0.3)",
    x="t: *b h q e",
    k="t: *b h t e",
    m="p: h q t",
)
form(
    "scaled_dot_product_attention:gqa",
    f"{_SDPA}({{x}}, {{k}}, {{k}}, enable_gqa=True)",
    x="t: n h q e",
    g="factors(h)",
    k="t: n g t e",
)
form(
    "scaled_dot_product_attention:qkv",
    f"{_SDPA}(*{{m}}({{x}}).unflatten(-1, (3, {{h}}, {{e}})).permute(2, 0, 3, 1, 4))",
    3.0,
    x="t: n t c",
    h=FEW,
    e=(2, 4),
    m="m: nn.Linear({c}, 3 * {h} * {e})",
)
form(
    "multihead_attention",
    "{m}({x}, {x}, {x})[0]",
    2.0,
    x="t: n t c",
    h="factors(c)",
    m="m: nn.MultiheadAttention({c}, {h}, batch_first=True)",
)
form(
    "transformer_layer",
    "{m}({x})",
    x="t: n t c",
    h="factors(c)",
    f=WIDTH,
    k=(True, False),
    m="m: nn.TransformerEncoderLayer({c}, {h}, {f}, batch_first=True, norm_first={k})",
)

# --- norms ----------------------------------------------------------------------------------------

_SHAPES = ((1, "n c l"), (2, "n c h w"), (3, "n c d h w"))
for _rank, _dims in _SHAPES:
    form(
        f"batch_norm:{_rank}", "{m}({x})", 1.5, x=f"t: {_dims}", m=f"m: nn.BatchNorm{_rank}d({{c}})"
    )
    form(
        f"instance_norm:{_rank}",
        "{m}({x})",
        0.7,
        x=f"t: {_dims}",
        k=(True, False),
        m=f"m: nn.InstanceNorm{_rank}d({{c}}, affine={{k}})",
    )
form(
    "batch_norm",
    "{m}({x})",
    2.0,
    x="t: n c",
    k=(True, False),
    m="m: nn.BatchNorm1d({c}, affine={k})",
)
form(
    "batch_norm:function",
    "F.batch_norm({x}, {u}, {v}, {w}, {z})",
    x="t: n c *s",
    u="s: c",
    v="s: c",
    w="p: c",
    z="p: c",
)
form("batch_norm:own", "F.batch_norm({x}, None, None, training=True)", 0.6, x="t: n c h w")
form(
    "instance_norm",
    "F.instance_norm({x}, weight={w}, bias={z})",
    x="t: n c h w",
    w="p: c",
    z="p: c",
)
form("layer_norm", "{m}({x})", 2.0, x="t: *b c", m="m: nn.LayerNorm({c})")
form("layer_norm:two", "F.layer_norm({x}, ({c}, {d}), {w})", x="t: *b c d", w="p: c d")
form("layer_norm:plain", "F.layer_norm({x}, ({c},))", x="t: *b c")
form("rms_norm", "{m}({x})", 2.0, x="t: *b c", m="m: nn.RMSNorm({c})")
form("group_norm", "{m}({x})", 2.0, x="t: n c *s", g="factors(c)", m="m: nn.GroupNorm({g}, {c})")
form("group_norm:plain", "F.group_norm({x}, {g})", x="t: n c *s", g="factors(c)")
form(
    "rms_by_hand",
    "{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-3) * {w}",
    x="t: *b c",
    w="p: c",
)

# --- recurrent nets -------------------------------------------------------------------------------

_RNN = {"x": "t: n t c", "h": WIDTH, "k": (1, 2), "b": (True, False)}
_ARGS = "({c}, {h}, {k}, batch_first=True, bidirectional={b})"
form("lstm", "{m}({x})[0]", **_RNN, m=f"m: nn.LSTM{_ARGS}")
form("lstm:state", "{m}({x})[1][0]", 0.5, **_RNN, m=f"m: nn.LSTM{_ARGS}")
form("gru", "{m}({x})", **_RNN, m=f"m: nn.GRU{_ARGS}")
