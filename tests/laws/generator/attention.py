"""Attention on token sequences, in the ways that models write it."""

from __future__ import annotations

from tests.laws.generator.core import (
    Args,
    Code,
    Draw,
    Result,
    State,
    Value,
    divisors,
    flag,
    kind,
    one,
)
from tests.laws.generator.maps import draw_heads


def joined(mixed: str, inner: int) -> str:
    """Heads put side by side again: (n, h, t, d) -> (n, t, h * d)."""
    return f"{mixed}.transpose(1, 2).reshape({mixed}.size(0), -1, {inner})"


def draw_fused(d: Draw, s: State) -> Args:
    return {**draw_heads(d, s), "causal": flag(d)}


@kind("attention", "seq", draw_fused)
def attention_fused_sdpa(c: Code, x: Value, heads: int, dim: int, causal: bool) -> Result:
    inner = heads * dim
    qkv, proj = (
        c.attr("qkv", f"nn.Linear({x.c}, {3 * inner})"),
        c.attr("proj", f"nn.Linear({inner}, {x.c})"),
    )
    n, t, _ = c.lets("n", 3, f"{x}.shape")
    q, k, v = c.lets(
        "q", 3, f"{qkv}({x}).reshape({n}, {t}, 3, {heads}, {dim}).permute(2, 0, 3, 1, 4).unbind(0)"
    )
    mixed = c.let("mixed", f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={causal})")
    return one(f"{proj}({joined(mixed, inner)})", x.state)


@kind("attention", "seq", lambda d, s: {**draw_heads(d, s), "bias": flag(d)})
def attention_fused_matmul(c: Code, x: Value, heads: int, dim: int, bias: bool) -> Result:
    inner, t = heads * dim, x.space[0]
    qkv, proj = (
        c.attr("qkv", f"nn.Linear({x.c}, {3 * inner}, bias=False)"),
        c.attr("proj", f"nn.Linear({inner}, {x.c})"),
    )
    whole = c.let(
        "qkv", f"{qkv}({x}).reshape({x}.size(0), {t}, 3, {heads}, {dim}).permute(2, 0, 3, 1, 4)"
    )
    q, k, v = (f"{whole}[{i}]" for i in range(3))
    scores = c.let("scores", f"({q} * {dim**-0.5}) @ {k}.transpose(-2, -1)")
    more = f" + {c.param('bias', -0.5, 0.5, 1, heads, t, t)}" if bias else ""
    mixed = c.let("mixed", f"({scores}{more}).softmax(dim=-1) @ {v}")
    return one(f"{proj}({joined(mixed, inner)})", x.state)


@kind("attention", "seq", draw_heads)
def attention_fused_chunk(c: Code, x: Value, heads: int, dim: int) -> Result:
    inner = heads * dim
    qkv, proj = (
        c.attr("in_proj", f"nn.Linear({x.c}, {3 * inner})"),
        c.attr("out_proj", f"nn.Linear({inner}, {x.c})"),
    )
    parts = c.lets("q", 3, f"{qkv}({x}).chunk(3, dim=-1)")
    q, k, v = (f"{p}.view({x}.size(0), -1, {heads}, {dim}).transpose(1, 2)" for p in parts)
    mixed = c.let("mixed", f"F.scaled_dot_product_attention({q}, {k}, {v})")
    return one(f"{proj}({joined(mixed, inner)})", x.state)


def three(c: Code, x: Value, q: int, k: int, v: int) -> list[str]:
    return [
        c.attr(name, f"nn.Linear({x.c}, {out})")
        for name, out in zip(("q_proj", "k_proj", "v_proj"), (q, k, v), strict=True)
    ]


@kind(
    "attention",
    "seq",
    lambda d, s: {**draw_heads(d, s), "value_dim": d.choice((4, 2, 3, 6)), "sdpa": flag(d)},
)
def attention_separate(
    c: Code, x: Value, heads: int, dim: int, value_dim: int, sdpa: bool
) -> Result:
    layers = three(c, x, heads * dim, heads * dim, heads * value_dim)
    proj = c.attr("o_proj", f"nn.Linear({heads * value_dim}, {x.c})")
    dims = (dim, dim, value_dim)
    q, k, v = (
        c.let("h", f"{m}({x}).unflatten(-1, ({heads}, {e})).transpose(1, 2)")
        for m, e in zip(layers, dims, strict=True)
    )
    dense = f"torch.softmax({q} @ {k}.mT / {dim**0.5:.5f}, dim=-1) @ {v}"
    mixed = c.let("mixed", f"F.scaled_dot_product_attention({q}, {k}, {v})" if sdpa else dense)
    return one(f"{proj}({joined(mixed, heads * value_dim)})", x.state)


@kind(
    "attention",
    "seq",
    lambda d, s: {
        "groups": d.choice((2, 1)),
        "times": d.choice((2, 3)),
        "dim": d.choice((4, 2, 6)),
        "how": d.choice(("expand", "interleave", "native")),
    },
)
def attention_gqa(c: Code, x: Value, groups: int, times: int, dim: int, how: str) -> Result:
    heads, t = groups * times, x.space[0]
    layers = three(c, x, heads * dim, groups * dim, groups * dim)
    proj = c.attr("o_proj", f"nn.Linear({heads * dim}, {x.c}, bias=False)")
    q, k, v = (
        c.let("h", f"{m}({x}).view({x}.size(0), {t}, -1, {dim}).transpose(1, 2)") for m in layers
    )
    if how == "expand":
        grow = "{y}[:, :, None].expand(-1, -1, {m}, -1, -1).reshape({y}.size(0), {h}, {t}, {d})"
        k, v = (c.let("kv", grow.format(y=y, m=times, h=heads, t=t, d=dim)) for y in (k, v))
    elif how == "interleave":
        k, v = (c.let("kv", f"{y}.repeat_interleave({times}, dim=1)") for y in (k, v))
    native = ", enable_gqa=True" if how == "native" else ""
    mixed = c.let("mixed", f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal=True{native})")
    return one(f"{proj}({joined(mixed, heads * dim)})", x.state)


@kind("attention", "seq", lambda d, s: {"heads": d.choice(divisors(s.c, 1, 4))})
def multihead_attention(c: Code, x: Value, heads: int) -> Result:
    module = c.attr("mha", f"nn.MultiheadAttention({x.c}, {heads}, batch_first=True)")
    mixed, _ = c.lets("mha", 2, f"{module}({x}, {x}, {x}, need_weights=False)")
    return one(mixed, x.state)


@kind("attention", "seq")
def attention_bmm(c: Code, x: Value) -> Result:
    q, k = c.attr("theta", f"nn.Linear({x.c}, 8)"), c.attr("phi", f"nn.Linear({x.c}, 8)")
    weights = c.let(
        "weights", f"torch.bmm({q}({x}), {k}({x}).permute(0, 2, 1)).div({8**0.5:.5f}).softmax(-1)"
    )
    return one(f"torch.bmm({weights}, {x})", x.state)
