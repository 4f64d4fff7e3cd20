"""Layer kinds on any state: activations, gates, arithmetic, splits into pieces, merges."""

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
)
from tests.laws.generator.maps import composite, even

ANY = "map seq vec"
ACTS = {
    "relu": ("F.relu({x})", "torch.relu({x})", "nn.ReLU()"),
    "gelu": ("F.gelu({x})", 'F.gelu({x}, approximate="tanh")', "nn.GELU()"),
    "silu": ("F.silu({x})", "nn.SiLU()"),
    "hardswish": ("F.hardswish({x})", "nn.Hardswish()"),
    "sigmoid": ("torch.sigmoid({x})", "{x}.sigmoid()", "nn.Sigmoid()"),
    "tanh": ("torch.tanh({x})", "nn.Tanh()"),
    "leaky_relu": ("F.leaky_relu({x}, 0.1)", "nn.LeakyReLU(0.2)"),
    "elu": ("F.elu({x})", "nn.ELU()"),
    "relu6": ("F.relu6({x})", "nn.ReLU6()", "{x}.clamp(-1.0, 3.0)"),
    "hardsigmoid": ("F.hardsigmoid({x})", "nn.Hardsigmoid()"),
    "mish": ("F.mish({x})", "{x} * torch.tanh(F.softplus({x}))", "nn.Mish()"),
}


def enter_activation(name: str, forms: tuple[str, ...]) -> None:
    def emit(c: Code, x: Value, form: int) -> Result:
        text = forms[form]
        return one(
            f"{c.attr('act', text)}({x})" if text.startswith("nn.") else text.format(x=x), x.state
        )

    kind("act", ANY, lambda d, s: {"form": d.integer(0, len(forms) - 1)}, name=name)(emit)


for _name, _forms in ACTS.items():
    enter_activation(_name, _forms)


@kind("in place", ANY, lambda d, s: {"form": d.integer(0, 2)})
def relu_(c: Code, x: Value, form: int) -> Result:
    if form == 2:
        return one(f"F.relu({x}, inplace=True)", x.state)
    name = "Hardtanh(0.0, 4.0, " if form else "ReLU("
    return one(f"{c.attr('relu', f'nn.{name}inplace=True)')}({x})", x.state)


@kind("act", ANY, lambda d, s: {"each": flag(d) and s.kind != "seq"})
def prelu(c: Code, x: Value, each: bool) -> Result:
    return one(f"{c.attr('prelu', f'nn.PReLU({x.c if each else 1})')}({x})", x.state)


@kind("act", ANY, when=lambda s: s.c >= 3)
def softmax(c: Code, x: Value) -> Result:
    return one(f"{float(x.c)} * torch.softmax({x}, dim={x.dim})", x.state)


@kind("act", ANY, lambda d, s: {"p": d.choice((0.1, 0.5)), "spatial": s.kind == "map" and flag(d)})
def dropout(c: Code, x: Value, p: float, spatial: bool) -> Result:
    return one(
        f"{c.attr('drop', f'nn.Dropout{x.rank}d({p})' if spatial else f'nn.Dropout({p})')}({x})",
        x.state,
    )


@kind("norm", ANY, when=lambda s: 3 <= s.c <= 64)
def l2_normalize(c: Code, x: Value) -> Result:
    return one(f"{float(x.c) ** 0.5:.4f} * F.normalize({x}, dim={x.dim}, eps=1e-3)", x.state)


def halves(s: State) -> bool:
    return even(s) and s.c >= 4


@kind("gate", ANY, lambda d, s: {"module": flag(d)}, halves)
def glu(c: Code, x: Value, module: bool) -> Result:
    text = f"{c.attr('glu', f'nn.GLU(dim={x.dim})')}({x})" if module else f"F.glu({x}, dim={x.dim})"
    return one(text, x.state.wide(x.c // 2))


@kind("gate", ANY, lambda d, s: {"act": d.choice(("sigmoid", "tanh"))}, halves)
def chunk_gate(c: Code, x: Value, act: str) -> Result:
    a, b = c.lets("half", 2, f"{x}.chunk(2, dim={x.dim})")
    return one(f"{a} * torch.{act}({b})", x.state.wide(x.c // 2))


@kind("gate", ANY, when=halves)
def maxout(c: Code, x: Value) -> Result:
    return one(f"{x}.unflatten({x.dim}, ({x.c // 2}, 2)).amax({x.dim + 1})", x.state.wide(x.c // 2))


def along(x: Value) -> list[int]:
    """The shape of a parameter with one entry a channel, to broadcast over x."""
    return [x.c] if x.state.kind != "map" else [x.c, *[1] * x.rank]


@kind("arith", ANY)
def layer_scale(c: Code, x: Value) -> Result:
    return one(f"{c.param('gamma', 0.5, 1.5, *along(x))} * {x}", x.state)


@kind("arith", ANY, fresh=True)
def add_bias(c: Code, x: Value) -> Result:
    return one(f"{x} + {c.param('shift', -0.5, 0.5, *along(x))}", x.state)


@kind("arith", ANY)
def buffer_scale(c: Code, x: Value) -> Result:
    shape = ", ".join(map(str, along(x)))
    mean = c.buffer("mean", f"torch.empty({shape}).uniform_(-0.5, 0.5)")
    std = c.buffer("std", f"torch.empty({shape}).uniform_(0.7, 1.4)")
    return one(f"({x} - {mean}) / {std}", x.state)


@kind("arith", ANY, lambda d, s: {"form": d.integer(0, 3)})
def scalar_arith(c: Code, x: Value, form: int) -> Result:
    forms = ("2 * {x} - 1.0", "1.3 - 0.7 * {x}", "{x} / 1.5", "-{x}.abs() + 0.5 * {x}")
    return one(forms[form].format(x=x), x.state)


@kind("arith", "map seq", when=lambda s: s.numel <= 2048)
def position_embedding(c: Code, x: Value) -> Result:
    return one(f"{x} + {c.param('pos', -0.5, 0.5, 1, *x.state.shape)}", x.state)


@kind("arith", ANY)
def center_channels(c: Code, x: Value) -> Result:
    return one(f"{x} - 0.5 * {x}.mean(dim={x.dim}, keepdim=True)", x.state)


@kind(
    "take",
    ANY,
    lambda d, s: {"start": d.integer(0, 1), "length": d.integer(2, s.c - 1)},
    lambda s: s.c >= 4,
)
def narrow(c: Code, x: Value, start: int, length: int) -> Result:
    return one(f"{x}.narrow({x.dim}, {start}, {length})", x.state.wide(length))


@kind("shape", ANY, lambda d, s: {"shift": d.integer(1, 3)})
def roll_channels(c: Code, x: Value, shift: int) -> Result:
    return one(f"torch.roll({x}, {shift}, dims={x.dim})", x.state)


@kind("shape", ANY, lambda d, s: {"extra": d.integer(1, 8)}, lambda s: s.c <= 24)
def pad_channels(c: Code, x: Value, extra: int) -> Result:
    before = [0, 0] * (x.rank if x.state.kind == "map" else 0)
    return one(f"F.pad({x}, ({sizes([*before, 0, extra])}))", x.state.wide(x.c + extra))


@kind("shape", ANY, lambda d, s: {"times": d.choice((2, 3))}, lambda s: s.c <= 12)
def repeat(c: Code, x: Value, times: int) -> Result:
    counts = [times if i == x.dim else 1 for i in range(x.rank + 2)]
    return one(f"{x}.repeat({sizes(counts)})", x.state.wide(times * x.c))


@kind("shape", ANY, lambda d, s: {"times": d.choice((2, 3))}, lambda s: s.c <= 12)
def expand_interleave(c: Code, x: Value, times: int) -> Result:
    grown = [times if i == x.dim + 1 else -1 for i in range(x.rank + 3)]
    expr = f"{x}.unsqueeze({x.dim + 1}).expand({sizes(grown)}).flatten({x.dim}, {x.dim + 1})"
    return one(expr, x.state.wide(times * x.c))


@kind("shape", ANY, when=lambda s: s.c <= 16)
def repeat_interleave(c: Code, x: Value) -> Result:
    return one(f"{x}.repeat_interleave(2, dim={x.dim})", x.state.wide(2 * x.c))


def colons(x: Value) -> str:
    """The index text before the channels: `:, ` or `..., `."""
    return "..., " if x.state.kind == "seq" else ":, "


@kind("take", ANY, lambda d, s: {"start": d.integer(0, 1)}, lambda s: s.c >= 8)
def strided_slice(c: Code, x: Value, start: int) -> Result:
    return one(f"{x}[{colons(x)}{start}::2]", x.state.wide((x.c - start + 1) // 2))


@kind(
    "take",
    ANY,
    lambda d, s: {"parts": d.choice(divisors(s.c, 2, 4)), "index": d.integer(0, 1)},
    lambda s: bool(divisors(s.c, 2, 4)) and s.c > 4,
)
def select(c: Code, x: Value, parts: int, index: int) -> Result:
    return one(
        f"{x}.unflatten({x.dim}, ({parts}, -1)).select({x.dim}, {index})",
        x.state.wide(x.c // parts),
    )


@kind("take", ANY, lambda d, s: {"seed": d.integer(0, 9)})
def index_select(c: Code, x: Value, seed: int) -> Result:
    order = sorted(range(x.c), key=lambda i: (i * 7 + seed * 3) % 11)
    return one(f"{x}.index_select({x.dim}, {c.buffer('order', f'torch.tensor({order})')})", x.state)


def pieces(x: Value, expr: str, counts: list[int]) -> Result:
    return expr, tuple(x.state.wide(n) for n in counts)


@kind("pieces", ANY, lambda d, s: {"parts": d.integer(2, 4)}, lambda s: 6 <= s.c <= 64)
def chunk(c: Code, x: Value, parts: int) -> Result:
    each = -(-x.c // parts)
    counts = [min(each, x.c - i) for i in range(0, x.c, each)]
    return pieces(x, f"{x}.chunk({parts}, dim={x.dim})", counts)


def draw_split(d: Draw, s: State) -> Args:
    first = d.integer(2, s.c - 4)
    second = d.integer(2, s.c - first - 2)
    return {"counts": (first, second, s.c - first - second)}


@kind("pieces", ANY, draw_split, lambda s: 6 <= s.c <= 64)
def split(c: Code, x: Value, counts: tuple[int, ...]) -> Result:
    return pieces(x, f"torch.split({x}, {list(counts)}, dim={x.dim})", list(counts))


@kind("pieces", ANY, lambda d, s: {"k": d.integer(1, s.c - 1)}, lambda s: 4 <= s.c <= 64)
def slice_rest(c: Code, x: Value, k: int) -> Result:
    return pieces(x, f"{x}[{colons(x)}:{k}], {x}[{colons(x)}{k}:]", [k, x.c - k])


@kind(
    "pieces",
    ANY,
    lambda d, s: {"parts": d.choice(divisors(s.c, 2, 4))},
    lambda s: composite(s) and bool(divisors(s.c, 2, 4)) and 6 <= s.c <= 64,
)
def unbind(c: Code, x: Value, parts: int) -> Result:
    return pieces(
        x,
        f"{x}.unflatten({x.dim}, ({parts}, {x.c // parts})).unbind({x.dim})",
        [x.c // parts] * parts,
    )


def enter_merge(name: str, text: str) -> None:
    """A merge of two values of one state; patterns use it, so it applies nowhere by itself."""

    def emit(c: Code, x: Value, y: Value) -> Result:
        return one(text.format(x=x, y=y, dim=x.dim), x.state)

    kind("merge", "", name=name, fresh=name == "add")(emit)


MERGES = {
    "add": "{x} + {y}",
    "mul": "{x} * {y}",
    "add_alpha": "torch.add({x}, {y}, alpha=0.5)",
    "stack_sum": "torch.stack([{x}, {y}], dim=0).sum(0)",
    "stack_mean": "torch.stack([{x}, {y}], dim=1).mean(dim=1)",
    "sub": "{x} - {y}",
    "maximum": "torch.maximum({x}, {y})",
}
for _name, _text in MERGES.items():
    enter_merge(_name, _text)


@kind("merge", "")
def iadd(c: Code, x: Value, y: Value) -> Result:
    c.body.append(f"{x} += {y}")
    return one(str(x), x.state)


@kind("merge", "")
def blend(c: Code, x: Value, y: Value) -> Result:
    gate = c.param("gate", -1.0, 1.0, *along(x))
    return one(f"torch.sigmoid({gate}) * {x} + (1 - torch.sigmoid({gate})) * {y}", x.state)


@kind("merge", "")
def stack_weighted(c: Code, x: Value, y: Value) -> Result:
    weight = c.param("branch", -1.0, 1.0, 2, *[1] * len(x.state.shape))
    stacked = f"torch.stack([{x}, {y}], dim=1) * {weight}"
    return one(f"({stacked}).sum(dim=1)", x.state)


@kind("merge", "")
def cat(c: Code, *xs: Value) -> Result:
    names = ", ".join(map(str, xs))
    return one(f"torch.cat([{names}], dim={xs[0].dim})", xs[0].state.wide(sum(x.c for x in xs)))


@kind("merge", "")
def stack_flatten(c: Code, *xs: Value) -> Result:
    """Channels of equal values interleaved."""
    names, dim = ", ".join(map(str, xs)), xs[0].dim
    return one(
        f"torch.stack(({names}), dim={dim + 1}).flatten({dim}, {dim + 1})",
        xs[0].state.wide(len(xs) * xs[0].c),
    )


@kind("merge", "", fresh=True)
def project(c: Code, x: Value, out: int, norm: bool) -> Result:
    """A 1x1 convolution or a linear layer that brings a branch to `out` channels."""
    if x.state.kind != "map":
        return one(
            f"{c.attr('shortcut', f'nn.Linear({x.c}, {out}, bias={norm})')}({x})", x.state.wide(out)
        )
    text = f"nn.Conv{x.rank}d({x.c}, {out}, 1, bias=False)"
    if norm:
        text = f"nn.Sequential({text}, nn.BatchNorm{x.rank}d({out}))"
    return one(f"{c.attr('shortcut', text)}({x})", x.state.wide(out))


SQUASH = ("sigmoid", "tanh", "hardsigmoid")
