"""Convolutions of every sort on feature maps, plain and shared."""

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
    sizes,
    width,
)
from tests.laws.generator.maps import can_double, composite, even, roomy


def conv_text(x: Value, out: int, k: int, groups: int = 1, more: str = "") -> str:
    return f"nn.Conv{x.rank}d({x.c}, {out}, {k}, padding={k // 2}, groups={groups}{more})"


def draw_conv(d: Draw, s: State) -> Args:
    return {"out": width(d), "k": d.choice((1, 3)), "bias": flag(d)}


@kind("conv", "map", draw_conv, fresh=True)
def conv(c: Code, x: Value, out: int, k: int, bias: bool) -> Result:
    module = c.attr("conv", conv_text(x, out, k, 1, f", bias={bias}"))
    return one(f"{module}({x})", x.state.wide(out))


@kind(
    "conv",
    "map",
    lambda d, s: {"out": width(d), "mode": d.choice(("zeros", "reflect", "circular"))},
    roomy,
    fresh=True,
)
def dilated_conv(c: Code, x: Value, out: int, mode: str) -> Result:
    more = (
        f', padding=2, dilation=2, padding_mode="{mode}"'
        if mode != "zeros"
        else ', padding="same", dilation=2'
    )
    module = c.attr("conv", f"nn.Conv{x.rank}d({x.c}, {out}, 3{more})")
    return one(f"{module}({x})", x.state.wide(out))


def draw_strided(d: Draw, s: State) -> Args:
    groups = d.choice((1, *divisors(s.c)))
    return {
        "out": groups * d.integer(1, max(1, 24 // groups)),
        "k": d.choice((3, 2)),
        "groups": groups,
    }


@kind("conv", "map", draw_strided, roomy, stay=False, fresh=True)
def strided_conv(c: Code, x: Value, out: int, k: int, groups: int) -> Result:
    text = f"nn.Conv{x.rank}d({x.c}, {out}, {k}, stride=2, padding={k % 2}, groups={groups})"
    space = [(n - 1) // 2 + 1 if k == 3 else n // 2 for n in x.space]
    return one(f"{c.attr('down', text)}({x})", x.state.wide(out).sized(*space))


def draw_grouped(d: Draw, s: State) -> Args:
    groups = d.choice(divisors(s.c, 2, s.c - 1))
    return {
        "out": groups * d.integer(1, max(1, 32 // groups)),
        "k": d.choice((1, 3)),
        "groups": groups,
    }


@kind("conv", "map", draw_grouped, composite, fresh=True)
def grouped_conv(c: Code, x: Value, out: int, k: int, groups: int) -> Result:
    return one(f"{c.attr('gconv', conv_text(x, out, k, groups))}({x})", x.state.wide(out))


@kind("conv", "map", lambda d, s: {"bias": flag(d)}, fresh=True)
def depthwise_conv(c: Code, x: Value, bias: bool) -> Result:
    return one(f"{c.attr('dw', conv_text(x, x.c, 3, x.c, f', bias={bias}'))}({x})", x.state)


@kind("conv", "map", lambda d, s: {"times": d.choice((2, 3))}, lambda s: s.c <= 12, fresh=True)
def multiplier_conv(c: Code, x: Value, times: int) -> Result:
    return one(
        f"{c.attr('dwm', conv_text(x, x.c * times, 3, x.c))}({x})", x.state.wide(x.c * times)
    )


@kind("conv", "map", lambda d, s: {"out": width(d)}, fresh=True)
def transposed_conv(c: Code, x: Value, out: int) -> Result:
    module = c.attr("tconv", f"nn.ConvTranspose{x.rank}d({x.c}, {out}, 3, padding=1)")
    return one(f"{module}({x})", x.state.wide(out))


@kind("conv", "map", draw_grouped, composite, fresh=True)
def grouped_transposed_conv(c: Code, x: Value, out: int, k: int, groups: int) -> Result:
    module = c.attr(
        "gtconv", f"nn.ConvTranspose{x.rank}d({x.c}, {out}, {k}, padding={k // 2}, groups={groups})"
    )
    return one(f"{module}({x})", x.state.wide(out))


@kind("conv", "map", draw_strided, can_double, stay=False, fresh=True)
def up_conv(c: Code, x: Value, out: int, k: int, groups: int) -> Result:
    pad = "padding=1, output_padding=1" if k == 3 else "padding=0"
    module = c.attr(
        "up", f"nn.ConvTranspose{x.rank}d({x.c}, {out}, {k}, stride=2, {pad}, groups={groups})"
    )
    space = [2 * n for n in x.space]
    return one(f"{module}({x})", x.state.wide(out).sized(*space))


@kind("conv", "map", lambda d, s: {"out": width(d), "groups": d.choice((1, *divisors(s.c)))})
def conv_bn_act(c: Code, x: Value, out: int, groups: int) -> Result:
    first = conv_text(x, x.c, 3, groups, ", bias=False")
    last = f"nn.Conv{x.rank}d({x.c}, {out}, 1)"
    block = c.attr(
        "block",
        f"nn.Sequential({first}, nn.BatchNorm{x.rank}d({x.c}), nn.ReLU(inplace=True), {last})",
    )
    return one(f"{block}({x})", x.state.wide(out))


@kind("shared", "map", lambda d, s: {"k": d.choice((1, 3))})
def shared_conv(c: Code, x: Value, k: int) -> Result:
    module = c.attr("shared", conv_text(x, x.c, k))
    return one(f"{module}(F.relu({module}({x})))", x.state)


@kind("shared", "map", lambda d, s: {"out": width(d)}, even)
def siamese_conv(c: Code, x: Value, out: int) -> Result:
    half = x.c // 2
    module = c.attr("siamese", f"nn.Conv{x.rank}d({half}, {out}, 1)")
    return one(f"{module}({x}[:, :{half}]) + {module}({x}[:, {half}:])", x.state.wide(out))


@kind("shared", "map", lambda d, s: {"parts": d.choice(divisors(s.c, 2, s.c - 1))}, composite)
def batch_fold_conv(c: Code, x: Value, parts: int) -> Result:
    each = x.c // parts
    module = c.attr("folded", f"nn.Conv{x.rank}d({each}, {each}, 3, padding=1)")
    folded = f"{x}.reshape({x}.size(0) * {parts}, {each}, {sizes(x.space)})"
    return one(f"{module}({folded}).reshape({x}.size(0), {x.c}, {sizes(x.space)})", x.state)
