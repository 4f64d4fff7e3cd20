"""Layer kinds on token sequences (N, T, C), vectors (N, C) and integer inputs (N, T)."""

from __future__ import annotations

from tests.laws.generator.core import (
    Code,
    Result,
    State,
    Value,
    divisors,
    flag,
    kind,
    one,
    width,
)
from tests.laws.generator.maps import composite, even

BOTH = "seq vec"
VOCABULARY = 19


def uniform_bound(fan: int) -> float:
    return round((3 / fan) ** 0.5, 4)


@kind("embed", "ids", lambda d, s: {"out": width(d)}, stay=False)
def embedding(c: Code, x: Value, out: int) -> Result:
    return one(
        f"{c.attr('embed', f'nn.Embedding({VOCABULARY}, {out})')}({x})",
        State("seq", (x.state.shape[0], out)),
    )


@kind("linear", BOTH, lambda d, s: {"out": width(d), "bias": flag(d)}, fresh=True)
def linear(c: Code, x: Value, out: int, bias: bool) -> Result:
    return one(f"{c.attr('fc', f'nn.Linear({x.c}, {out}, bias={bias})')}({x})", x.state.wide(out))


@kind("linear", BOTH, lambda d, s: {"mid": width(d), "out": width(d)}, fresh=True)
def mlp(c: Code, x: Value, mid: int, out: int) -> Result:
    layers = f"nn.Linear({x.c}, {mid}), nn.GELU(), nn.Dropout(0.1), nn.Linear({mid}, {out})"
    return one(f"{c.attr('mlp', f'nn.Sequential({layers})')}({x})", x.state.wide(out))


@kind("linear", "seq", lambda d, s: {"out": width(d)})
def folded_linear(c: Code, x: Value, out: int) -> Result:
    layer = c.attr("fc", f"nn.Linear({x.c}, {out})")
    return one(
        f"{layer}({x}.reshape(-1, {x.c})).view({x}.shape[0], {x.space[0]}, {out})",
        x.state.wide(out),
    )


@kind("linear", "vec", lambda d, s: {"out": width(d)}, fresh=True)
def addmm(c: Code, x: Value, out: int) -> Result:
    bound = uniform_bound(x.c)
    bias, weight = c.param("b", -0.3, 0.3, out), c.param("w", -bound, bound, x.c, out)
    return one(f"torch.addmm({bias}, {x}, {weight})", x.state.wide(out))


@kind("linear", BOTH, lambda d, s: {"out": width(d)}, fresh=True)
def matmul(c: Code, x: Value, out: int) -> Result:
    bound = uniform_bound(x.c)
    return one(f"{x} @ {c.param('w', -bound, bound, x.c, out)}", x.state.wide(out))


@kind("linear", BOTH, lambda d, s: {"out": width(d)}, fresh=True)
def einsum(c: Code, x: Value, out: int) -> Result:
    bound, t = uniform_bound(x.c), "t" * x.rank
    return one(
        f'torch.einsum("n{t}c,oc->n{t}o", {x}, {c.param("w", -bound, bound, out, x.c)})',
        x.state.wide(out),
    )


@kind(
    "linear",
    BOTH,
    lambda d, s: {"heads": d.choice(divisors(s.c, 2, s.c - 1)), "out": d.choice((4, 2, 3, 6))},
    lambda s: composite(s) and s.c <= 64,
)
def einsum_heads(c: Code, x: Value, heads: int, out: int) -> Result:
    bound, t, each = uniform_bound(x.c // heads), "t" * x.rank, x.c // heads
    weight = c.param("w", -bound, bound, heads, each, out)
    mixed = f'torch.einsum("n{t}hd,hde->n{t}he", {x}.unflatten(-1, ({heads}, {each})), {weight})'
    return one(f"{mixed}.flatten(-2)", x.state.wide(heads * out))


@kind("shared", BOTH, when=lambda s: s.c <= 64)
def shared_linear(c: Code, x: Value) -> Result:
    layer = c.attr("shared", f"nn.Linear({x.c}, {x.c})")
    return one(f"{layer}(F.gelu({layer}({x})))", x.state)


@kind("shared", BOTH, lambda d, s: {"out": width(d)}, even)
def siamese_linear(c: Code, x: Value, out: int) -> Result:
    a, b = c.lets("side", 2, f"torch.chunk({x}, 2, dim=-1)")
    layer = c.attr("siamese", f"nn.Linear({x.c // 2}, {out})")
    return one(f"torch.tanh({layer}({a})) + {layer}({b})", x.state.wide(out))


@kind("shared", BOTH, lambda d, s: {"mid": width(d)}, lambda s: s.c <= 64)
def tied_linear(c: Code, x: Value, mid: int) -> Result:
    layer = c.attr("tied", f"nn.Linear({x.c}, {mid}, bias=False)")
    return one(f"F.linear(F.silu({layer}({x})), {layer}.weight.t())", x.state)


@kind(
    "norm",
    BOTH,
    lambda d, s: {"affine": d.choice((True, True, False))},
    lambda s: s.c >= 6,
    fresh=True,
)
def layer_norm(c: Code, x: Value, affine: bool) -> Result:
    return one(
        f"{c.attr('ln', f'nn.LayerNorm({x.c}, eps=1e-3, elementwise_affine={affine})')}({x})",
        x.state,
    )


@kind("norm", BOTH, fresh=True)
def rms_norm(c: Code, x: Value) -> Result:
    return one(f"{c.attr('rms', f'nn.RMSNorm({x.c}, eps=1e-3)')}({x})", x.state)


@kind("norm", BOTH)
def rms_norm_manual(c: Code, x: Value) -> Result:
    weight = c.param("rms", 0.7, 1.3, x.c)
    return one(f"{weight} * ({x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-3))", x.state)


@kind("norm", BOTH, lambda d, s: {"eps": d.choice((1e-5, 1e-3))})
def batch_norm1d(c: Code, x: Value, eps: float) -> Result:
    norm = c.attr("bn", f"nn.BatchNorm1d({x.c}, eps={eps})")
    if x.state.kind == "vec":
        return one(f"{norm}({x})", x.state)
    return one(f"{norm}({x}.transpose(1, 2)).transpose(1, 2)", x.state)


@kind(
    "norm",
    BOTH,
    lambda d, s: {
        "groups": d.choice([1, *(g for g in divisors(s.c, 2, s.c // 2) if s.numel // g >= 8)])
    },
    lambda s: s.numel >= 8,
)
def group_norm_tokens(c: Code, x: Value, groups: int) -> Result:
    norm = c.attr("gn", f"nn.GroupNorm({groups}, {x.c}, eps=1e-3)")
    if x.state.kind == "vec":
        return one(f"{norm}({x})", x.state)
    return one(f"{norm}({x}.transpose(1, 2)).transpose(1, 2)", x.state)


@kind("gate", BOTH, lambda d, s: {"mid": width(d), "act": d.choice(("silu", "gelu"))})
def gated_mlp(c: Code, x: Value, mid: int, act: str) -> Result:
    """SwiGLU or GEGLU behind its usual norm, which keeps the product from growing."""
    norm, out = c.attr("norm", f"nn.RMSNorm({x.c}, eps=1e-3)"), min(x.c, 32)
    gate = c.attr("gate_proj", f"nn.Linear({x.c}, {mid}, bias=False)")
    up = c.attr("up_proj", f"nn.Linear({x.c}, {mid})")
    down = c.attr("down_proj", f"nn.Linear({mid}, {out}, bias=False)")
    h = c.let("h", f"{norm}({x})")
    return one(f"{down}(F.{act}({gate}({h})) * {up}({h}))", x.state.wide(out))


@kind("tokens", "seq", when=lambda s: s.space[0] <= 64, stay=False)
def class_token(c: Code, x: Value) -> Result:
    token = c.param("cls", -1.0, 1.0, 1, 1, x.c)
    return one(
        f"torch.cat([{token}.expand({x}.shape[0], -1, -1), {x}], dim=1)",
        x.state.sized(x.space[0] + 1),
    )


@kind("tokens", "seq", when=lambda s: s.space[0] >= 3, stay=False)
def drop_token(c: Code, x: Value) -> Result:
    return one(f"{x}[:, 1:]", x.state.sized(x.space[0] - 1))


@kind("tokens", "seq", stay=True)
def position_lookup(c: Code, x: Value) -> Result:
    table = c.attr("positions", f"nn.Embedding({x.space[0]}, {x.c})")
    return one(f"{x} + 0.5 * {table}(torch.arange({x}.size(1), device={x}.device))", x.state)


@kind("tokens", "seq", when=lambda s: s.space[0] <= 32, stay=False)
def repeat_tokens(c: Code, x: Value) -> Result:
    return one(f"torch.cat(({x}, {x}.flip(1)), dim=1)", x.state.sized(2 * x.space[0]))


@kind("tokens", "seq")
def token_mixing(c: Code, x: Value) -> Result:
    layer = c.attr("mixing", f"nn.Linear({x.space[0]}, {x.space[0]})")
    return one(f"{layer}({x}.transpose(1, 2)).transpose(1, 2)", x.state)


@kind("tokens", "seq")
def token_conv(c: Code, x: Value) -> Result:
    module = c.attr(
        "conv1d", f"nn.Conv1d({x.c}, {x.c}, 3, padding=1, groups={x.c if x.c % 2 else 1})"
    )
    return one(f"{module}({x}.permute(0, 2, 1)).permute(0, 2, 1)", x.state)


@kind(
    "tokens",
    "seq",
    when=lambda s: s.space[0] % 2 == 0 and s.space[0] >= 4 and s.c <= 16,
    stay=False,
)
def token_merging(c: Code, x: Value) -> Result:
    t = x.space[0] // 2
    return one(f"{x}.reshape({x}.size(0), {t}, {2 * x.c})", State("seq", (t, 2 * x.c)))


@kind("tokens", "seq", when=lambda s: s.space[0] <= 32 and s.c % 2 == 0 and s.c >= 8, stay=False)
def token_splitting(c: Code, x: Value) -> Result:
    t = x.space[0] * 2
    return one(f"{x}.reshape({x}.size(0), {t}, -1)", State("seq", (t, x.c // 2)))


@kind(
    "cast", "seq", lambda d, s: {"how": d.choice(("mean", "first", "amax", "flatten"))}, stay=False
)
def tokens_to_vector(c: Code, x: Value, how: str) -> Result:
    if how == "flatten" and x.state.numel <= 768:
        return one(f"{x}.flatten(1)", State("vec", (x.state.numel,)))
    expr = f"{x}[:, 0]" if how == "first" else f"{x}.{'amax' if how == 'amax' else 'mean'}(dim=1)"
    return one(expr, State("vec", (x.c,)))


def folding(s: State) -> list[int]:
    return [h for h in divisors(s.space[0], 2, s.space[0] - 1) if s.space[0] // h >= 2]


@kind(
    "cast",
    "seq",
    lambda d, s: {"height": d.choice(folding(s))},
    lambda s: bool(folding(s)),
    stay=False,
)
def tokens_to_map(c: Code, x: Value, height: int) -> Result:
    w = x.space[0] // height
    expr = f"{x}.transpose(1, 2).reshape({x}.shape[0], {x.c}, {height}, {w})"
    return one(expr, State("map", (x.c, height, w)))


@kind(
    "cast",
    "seq",
    lambda d, s: {"height": d.choice(folding(s))},
    lambda s: bool(folding(s)),
    stay=False,
)
def tokens_to_map_unflatten(c: Code, x: Value, height: int) -> Result:
    expr = f"{x}.unflatten(1, ({height}, -1)).permute(0, 3, 1, 2).contiguous()"
    return one(expr, State("map", (x.c, height, x.space[0] // height)))


@kind("cast", "seq", when=lambda s: s.space[0] >= 4, stay=False)
def tokens_to_map1d(c: Code, x: Value) -> Result:
    return one(f"{x}.transpose(1, 2)", State("map", (x.c, x.space[0])))


@kind(
    "cast",
    "vec",
    lambda d, s: {
        "parts": d.choice([k for k in divisors(s.c, 2, 8) if s.c // k >= 2 and s.c // k <= 64])
    },
    lambda s: any(2 <= s.c // k <= 64 for k in divisors(s.c, 2, 8)),
    stay=False,
)
def vector_to_tokens(c: Code, x: Value, parts: int) -> Result:
    return one(f"{x}.unflatten(1, ({parts}, -1))", State("seq", (parts, x.c // parts)))


@kind(
    "cast",
    "vec",
    lambda d, s: {"out": d.choice((4, 6, 8)), "rank": d.choice((2, 1, 3))},
    stay=False,
)
def vector_to_map(c: Code, x: Value, out: int, rank: int) -> Result:
    space = (4, 3, 2)[:rank]
    size = [4, 12, 24][rank - 1]
    layer = c.attr("seed", f"nn.Linear({x.c}, {out * size})")
    return one(
        f"{layer}({x}).view(-1, {out}, {', '.join(map(str, space))})", State("map", (out, *space))
    )


@kind("shape", "vec", when=lambda s: s.c <= 64)
def vector_conv(c: Code, x: Value) -> Result:
    module = c.attr("conv1d", "nn.Conv1d(1, 1, 3, padding=1)")
    return one(f"{module}({x}.unsqueeze(1)).squeeze(1)", x.state)


@kind("shape", "vec", lambda d, s: {"out": d.choice((4, 2, 3))}, lambda s: s.c <= 16)
def outer_product(c: Code, x: Value, out: int) -> Result:
    side = c.attr("side", f"nn.Linear({x.c}, {out})")
    product = f"torch.bmm({x}.unsqueeze(2), torch.tanh({side}({x})).unsqueeze(1))"
    return one(f"{product}.flatten(1)", x.state.wide(x.c * out))


@kind("shape", "seq", lambda d, s: {"groups": d.choice(divisors(s.c, 2, s.c - 1))}, composite)
def token_shuffle(c: Code, x: Value, groups: int) -> Result:
    split = f"{x}.reshape({x}.size(0), {x.space[0]}, {groups}, {x.c // groups})"
    return one(f"{split}.transpose(2, 3).reshape({x}.size(0), {x.space[0]}, {x.c})", x.state)


@kind("shape", BOTH, lambda d, s: {"groups": d.choice(divisors(s.c, 2, s.c - 1))}, composite)
def head_norm(c: Code, x: Value, groups: int) -> Result:
    """An RMSNorm on every head, as in q-norm."""
    norm = c.attr("head_norm", f"nn.RMSNorm({x.c // groups}, eps=1e-3)")
    return one(f"{norm}({x}.unflatten(-1, ({groups}, -1))).flatten(-2)", x.state)


@kind("head", "")
def tied_head(c: Code, x: Value) -> Result:
    """Scores of the vocabulary by the embedding's own weight; the embedding makes value 1."""
    return one(f"F.linear({x}, self.embed1.weight)", x.state.wide(VOCABULARY))
