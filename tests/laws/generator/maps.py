"""Layer kinds on feature maps (N, C, *S) with one, two or three spatial dims."""

from __future__ import annotations

from math import prod

from tests.laws.generator.core import (
    MAX_NUMEL,
    Args,
    Code,
    Draw,
    Result,
    State,
    Value,
    divisors,
    kind,
    one,
    sizes,
    width,
)


def even(s: State) -> bool:
    return s.c % 2 == 0


def composite(s: State) -> bool:
    return bool(divisors(s.c, 2, s.c - 1))


def roomy(s: State) -> bool:
    return min(s.space) >= 4


def can_double(s: State) -> bool:
    return max(s.space) <= 6 and s.numel * 2**s.rank <= MAX_NUMEL


def plane(s: State) -> bool:
    return s.rank == 2


def ones(rank: int) -> str:
    return ", 1" * rank


def space_dims(x: Value) -> tuple[int, ...]:
    return tuple(range(2, 2 + x.rank))


@kind(
    "norm",
    "map",
    lambda d, s: {"eps": d.choice((1e-5, 1e-3)), "affine": d.choice((True, True, False))},
    fresh=True,
)
def batch_norm(c: Code, x: Value, eps: float, affine: bool) -> Result:
    return one(
        f"{c.attr('bn', f'nn.BatchNorm{x.rank}d({x.c}, eps={eps}, affine={affine})')}({x})", x.state
    )


def draw_groups(d: Draw, s: State) -> Args:
    return {"groups": d.choice([1, *(g for g in divisors(s.c, 2, s.c // 2) if s.numel // g >= 8)])}


@kind("norm", "map", draw_groups, lambda s: s.numel >= 8, fresh=True)
def group_norm(c: Code, x: Value, groups: int) -> Result:
    return one(f"{c.attr('gn', f'nn.GroupNorm({groups}, {x.c}, eps=1e-3)')}({x})", x.state)


@kind(
    "norm",
    "map",
    lambda d, s: {"affine": d.choice((True, False))},
    lambda s: prod(s.space) >= 9,
    fresh=True,
)
def instance_norm(c: Code, x: Value, affine: bool) -> Result:
    return one(
        f"{c.attr('inorm', f'nn.InstanceNorm{x.rank}d({x.c}, eps=1e-2, affine={affine})')}({x})",
        x.state,
    )


@kind("norm", "map", when=lambda s: s.c >= 6)
def layer_norm_channels(c: Code, x: Value) -> Result:
    norm = c.attr("ln", f"nn.LayerNorm({x.c}, eps=1e-3)")
    return one(f"{norm}({x}.movedim(1, -1)).movedim(-1, 1)", x.state)


@kind("norm", "map", when=lambda s: s.numel <= 1024)
def layer_norm_full(c: Code, x: Value) -> Result:
    return one(
        f"{c.attr('lnfull', f'nn.LayerNorm([{sizes(x.state.shape)}], eps=1e-3)')}({x})", x.state
    )


@kind(
    "shape",
    "map",
    lambda d, s: {
        "groups": d.choice(divisors(s.c, 2, s.c - 1)),
        "via": d.choice(("reshape", "view", "unflatten")),
    },
    composite,
)
def channel_shuffle(c: Code, x: Value, groups: int, via: str) -> Result:
    split, whole = (
        f"{x}.size(0), {groups}, {x.c // groups}, {sizes(x.space)}",
        f"{x}.size(0), {x.c}, {sizes(x.space)}",
    )
    if via == "unflatten":
        return one(f"{x}.unflatten(1, ({groups}, -1)).transpose(1, 2).flatten(1, 2)", x.state)
    if via == "view":
        return one(
            f"{x}.contiguous().view({split}).transpose(1, 2).contiguous().view({whole})", x.state
        )
    return one(f"{x}.reshape({split}).transpose(1, 2).reshape({whole})", x.state)


@kind("shape", "map", lambda d, s: {"groups": d.choice(divisors(s.c, 2, s.c - 1))}, composite)
def view_scale(c: Code, x: Value, groups: int) -> Result:
    gain = c.param("gain", 0.5, 1.5, groups, 1, *[1] * x.rank)
    parts = f"{x}.reshape({x}.shape[0], {groups}, -1, {sizes(x.space)})"
    return one(f"({parts} * {gain}).reshape({x}.shape[0], -1, {sizes(x.space)})", x.state)


@kind("shape", "map", lambda d, s: {"out": width(d)})
def nhwc_linear(c: Code, x: Value, out: int) -> Result:
    layer = c.attr("fc", f"nn.Linear({x.c}, {out})")
    there = sizes((0, *space_dims(x), 1))
    back = sizes((0, x.rank + 1, *range(1, x.rank + 1)))
    return one(f"{layer}({x}.permute({there})).permute({back})", x.state.wide(out))


@kind("shape", "map", lambda d, s: {"shift": d.integer(1, 2)})
def roll(c: Code, x: Value, shift: int) -> Result:
    dims = space_dims(x)
    return one(
        f"torch.roll({x}, shifts=({sizes([-shift] * len(dims))},), dims=({sizes(dims)},))", x.state
    )


@kind("shape", "map", when=lambda s: s.rank >= 2, stay=False)
def swap_space(c: Code, x: Value) -> Result:
    return one(f"{x}.transpose(-1, -2)", x.state.sized(*x.space[:-2], x.space[-1], x.space[-2]))


@kind(
    "shape",
    "map",
    lambda d, s: {"window": 2},
    lambda s: s.rank == 2 and all(n % 2 == 0 for n in s.space),
)
def window_linear(c: Code, x: Value, window: int) -> Result:
    (h, w), k = x.space, window
    layer = c.attr("window", f"nn.Linear({x.c}, {x.c})")
    parts = c.let(
        "win",
        f"{x}.permute(0, 2, 3, 1).reshape(-1, {h // k}, {k}, {w // k}, {k}, {x.c})",
    )
    mixed = c.let("win", f"{layer}({parts}.transpose(2, 3).reshape(-1, {k * k}, {x.c}))")
    back = f"{mixed}.view(-1, {h // k}, {w // k}, {k}, {k}, {x.c}).permute(0, 5, 1, 3, 2, 4)"
    return one(f"{back}.reshape(-1, {x.c}, {h}, {w})", x.state)


@kind(
    "shape",
    "map",
    lambda d, s: {"out": width(d)},
    lambda s: plane(s) and roomy(s) and all(n % 2 == 0 for n in s.space),
    stay=False,
)
def patch_merging(c: Code, x: Value, out: int) -> Result:
    layer = c.attr("reduction", f"nn.Linear({4 * x.c}, {out}, bias=False)")
    last = c.let("nhwc", f"{x}.permute(0, 2, 3, 1)")
    corners = ", ".join(f"{last}[:, {i}::2, {j}::2, :]" for j in (0, 1) for i in (0, 1))
    space = [n // 2 for n in x.space]
    return one(
        f"{layer}(torch.cat([{corners}], dim=-1)).permute(0, 3, 1, 2)",
        x.state.wide(out).sized(*space),
    )


@kind("shape", "map", when=lambda s: plane(s) and s.c % 4 == 0 and max(s.space) <= 6, stay=False)
def pixel_shuffle(c: Code, x: Value) -> Result:
    return one(f"F.pixel_shuffle({x}, 2)", x.state.wide(x.c // 4).sized(*[2 * n for n in x.space]))


@kind(
    "shape",
    "map",
    when=lambda s: plane(s) and s.c <= 12 and roomy(s) and all(n % 2 == 0 for n in s.space),
    stay=False,
)
def pixel_unshuffle(c: Code, x: Value) -> Result:
    module = c.attr("unshuffle", "nn.PixelUnshuffle(2)")
    return one(f"{module}({x})", x.state.wide(4 * x.c).sized(*[n // 2 for n in x.space]))


@kind("shape", "map", when=lambda s: s.rank == 1, fresh=True)
def unsqueeze_conv(c: Code, x: Value) -> Result:
    module = c.attr("conv2d", f"nn.Conv2d({x.c}, {x.c}, (3, 1), padding=(1, 0))")
    return one(f"{module}({x}.unsqueeze(-1)).squeeze(-1)", x.state)


@kind(
    "shape",
    "map",
    lambda d, s: {"mode": d.choice(("constant", "reflect", "replicate"))},
    lambda s: min(s.space) >= 3 and max(s.space) <= 8,
    stay=False,
)
def pad(c: Code, x: Value, mode: str) -> Result:
    return one(
        f'F.pad({x}, ({sizes([1, 0] * x.rank)}), mode="{mode}")',
        x.state.sized(*[n + 1 for n in x.space]),
    )


def hidden(d: Draw, s: State) -> Args:
    return {"mid": d.choice((4, 2, 3, 6))}


@kind("gate", "map", hidden)
def se_conv(c: Code, x: Value, mid: int) -> Result:
    r = x.rank
    mlp = f"nn.Conv{r}d({x.c}, {mid}, 1), nn.ReLU(), nn.Conv{r}d({mid}, {x.c}, 1)"
    gate = c.attr("se", f"nn.Sequential(nn.AdaptiveAvgPool{r}d(1), {mlp}, nn.Sigmoid())")
    return one(f"{x} * {gate}({x})", x.state)


@kind("gate", "map", hidden)
def se_linear(c: Code, x: Value, mid: int) -> Result:
    down, up = (
        c.attr("squeeze", f"nn.Linear({x.c}, {mid})"),
        c.attr("excite", f"nn.Linear({mid}, {x.c})"),
    )
    pooled = c.let("pooled", f"{x}.mean(dim={space_dims(x)})")
    gate = c.let("gate", f"torch.sigmoid({up}(F.silu({down}({pooled}))))")
    return one(f"{x} * {gate}.view({x}.size(0), {x.c}{ones(x.rank)})", x.state)


@kind("gate", "map")
def eca(c: Code, x: Value) -> Result:
    mix = c.attr("eca", "nn.Conv1d(1, 1, 3, padding=1, bias=False)")
    gate = c.let("gate", f"{mix}({x}.mean(dim={space_dims(x)}).unsqueeze(1)).sigmoid().squeeze(1)")
    return one(f"{x} * {gate}.reshape({x}.size(0), {x.c}{ones(x.rank)}).expand_as({x})", x.state)


@kind("gate", "map")
def spatial_gate(c: Code, x: Value) -> Result:
    mix = c.attr("spatial", f"nn.Conv{x.rank}d(2, 1, 3, padding=1)")
    both = c.let(
        "both", f"torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], dim=1)"
    )
    return one(f"{x} * torch.sigmoid({mix}({both}))", x.state)


def draw_heads(d: Draw, s: State) -> Args:
    return {"heads": d.choice((2, 1, 3, 4)), "dim": d.choice((4, 2, 3, 6))}


@kind("map attention", "map", draw_heads, lambda s: prod(s.space) <= 144)
def attention_map(c: Code, x: Value, heads: int, dim: int) -> Result:
    r, inner = x.rank, heads * dim
    qkv, proj = (
        c.attr("qkv", f"nn.Conv{r}d({x.c}, {3 * inner}, 1)"),
        c.attr("proj", f"nn.Conv{r}d({inner}, {x.c}, 1)"),
    )
    q, k, v = c.lets("q", 3, f"{qkv}({x}).reshape({x}.size(0), 3, {heads}, {dim}, -1).unbind(1)")
    weights = c.let("w", f"(({q}.transpose(-2, -1) @ {k}) * {dim**-0.5}).softmax(dim=-1)")
    mixed = f"({v} @ {weights}.transpose(-2, -1)).reshape({x}.size(0), {inner}, {sizes(x.space)})"
    return one(f"{proj}({mixed})", x.state)


@kind("pool", "map", lambda d, s: {"mode": d.choice(("max", "avg"))}, roomy, stay=False)
def pool(c: Code, x: Value, mode: str) -> Result:
    text = f"nn.MaxPool{x.rank}d(2)" if mode == "max" else f"nn.AvgPool{x.rank}d(2)"
    return one(f"{c.attr('pool', text)}({x})", x.state.sized(*[n // 2 for n in x.space]))


@kind("pool", "map", lambda d, s: {"mode": d.choice(("max", "avg"))}, lambda s: min(s.space) >= 3)
def pool_same(c: Code, x: Value, mode: str) -> Result:
    return one(f"F.{mode}_pool{x.rank}d({x}, 3, stride=1, padding=1)", x.state)


@kind(
    "pool",
    "map",
    lambda d, s: {"size": d.integer(2, min(s.space)), "mode": d.choice(("avg", "max"))},
    lambda s: min(s.space) >= 2,
    stay=False,
)
def adaptive_pool(c: Code, x: Value, size: int, mode: str) -> Result:
    return one(f"F.adaptive_{mode}_pool{x.rank}d({x}, {size})", x.state.sized(*[size] * x.rank))


def draw_resize(d: Draw, s: State) -> Args:
    return {"mode": d.choice(("nearest", {1: "linear", 2: "bilinear", 3: "trilinear"}[s.rank]))}


def aligned(mode: str) -> str:
    return f'mode="{mode}"' + (", align_corners=False" if mode != "nearest" else "")


@kind("pool", "map", draw_resize, can_double, stay=False)
def upsample(c: Code, x: Value, mode: str) -> Result:
    module = c.attr("upsample", f"nn.Upsample(scale_factor=2, {aligned(mode)})")
    return one(f"{module}({x})", x.state.sized(*[2 * n for n in x.space]))


@kind(
    "pool",
    "map",
    lambda d, s: {"size": d.integer(3, 8 if s.rank < 3 else 5), **draw_resize(d, s)},
    stay=False,
)
def interpolate(c: Code, x: Value, size: int, mode: str) -> Result:
    return one(
        f"F.interpolate({x}, size=({sizes([size] * x.rank)},), {aligned(mode)})",
        x.state.sized(*[size] * x.rank),
    )


@kind("arith", "map", lambda d, s: {"out": width(d)}, fresh=True)
def einsum_map(c: Code, x: Value, out: int) -> Result:
    space = "hwd"[: x.rank]
    weight = c.param("mix", -((3 / x.c) ** 0.5), (3 / x.c) ** 0.5, x.c, out)
    return one(f'torch.einsum("nc{space},co->no{space}", {x}, {weight})', x.state.wide(out))


@kind("arith", "map")
def center_space(c: Code, x: Value) -> Result:
    return one(f"{x} - 0.5 * {x}.mean(dim={space_dims(x)}, keepdim=True)", x.state)


@kind("cast", "map", when=lambda s: s.numel <= 768, stay=False)
def flatten(c: Code, x: Value) -> Result:
    return one(f"torch.flatten({x}, 1)", State("vec", (x.state.numel,)))


@kind("cast", "map", when=lambda s: s.numel <= 768, stay=False)
def nhwc_flatten(c: Code, x: Value) -> Result:
    return one(
        f"{x}.permute({sizes((0, *space_dims(x), 1))}).flatten(1)", State("vec", (x.state.numel,))
    )


@kind("cast", "map", lambda d, s: {"how": d.choice(("mean", "pool", "amax"))}, stay=False)
def global_pool(c: Code, x: Value, how: str) -> Result:
    if how == "pool":
        expr = f"{c.attr('gap', f'nn.AdaptiveAvgPool{x.rank}d(1)')}({x}).flatten(1)"
    else:
        expr = f"{x}.{how}(dim={space_dims(x)})"
    return one(expr, State("vec", (x.c,)))


@kind("cast", "map", lambda d, s: {"out": width(d)}, lambda s: s.numel <= 1024, stay=False)
def flatten_linear(c: Code, x: Value, out: int) -> Result:
    layer = c.attr("fc", f"nn.Linear({x.state.numel}, {out})")
    return one(f"{layer}({x}.reshape({x}.size(0), -1))", State("vec", (out,)))


def tokens_fit(s: State) -> bool:
    return prod(s.space) <= 64


@kind("cast", "map", when=tokens_fit, stay=False)
def map_to_tokens(c: Code, x: Value) -> Result:
    return one(f"{x}.flatten(2).transpose(1, 2)", State("seq", (prod(x.space), x.c)))


@kind("cast", "map", when=tokens_fit, stay=False)
def map_to_tokens_nhwc(c: Code, x: Value) -> Result:
    expr = f"{x}.permute({sizes((0, *space_dims(x), 1))}).reshape({x}.shape[0], -1, {x.c})"
    return one(expr, State("seq", (prod(x.space), x.c)))


@kind("cast", "map", lambda d, s: {"out": width(d)}, roomy, stay=False)
def patchify(c: Code, x: Value, out: int) -> Result:
    module = c.attr("patch", f"nn.Conv{x.rank}d({x.c}, {out}, kernel_size=2, stride=2)")
    return one(
        f"{module}({x}).flatten(2).transpose(1, 2)",
        State("seq", (prod(n // 2 for n in x.space), out)),
    )


@kind(
    "cast", "map", lambda d, s: {"out": width(d)}, lambda s: plane(s) and tokens_fit(s), stay=False
)
def unfold(c: Code, x: Value, out: int) -> Result:
    layer = c.attr("unfolded", f"nn.Linear({9 * x.c}, {out})")
    return one(
        f"{layer}(F.unfold({x}, 3, padding=1).transpose(1, 2))", State("seq", (prod(x.space), out))
    )
