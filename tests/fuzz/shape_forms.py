"""Forms of the ops that rearrange, cut, join, repeat, make and index."""

from __future__ import annotations

from tests.fuzz.forms import Form, Part

__all__ = ["SHAPE_FORMS"]

SHAPE_FORMS: dict[str, Form] = {}


def form(name: str, text: str, weight: float = 1.0, /, **parts: Part) -> None:
    """Enter a form as ``op`` or ``op:mode``."""
    assert name not in SHAPE_FORMS, name
    SHAPE_FORMS[name] = Form(text, weight, **parts)


_D = "span(-len(s), len(s) - 1)"
_DIM = {"x": "t: *s", "when": "s", "d": _D}
_TWO = {"x": "t: *s", "when": "len(s) > 1", "d": _D, "e": _D}
_CUT = {**_DIM, "k": "span(1, s[d] - 1)"}
_B = "{x}.shape[0]"

# --- views ----------------------------------------------------------------------------------------

form("view", f"{{x}}.contiguous().view({_B}, -1)", x="t: n *s")
form(
    "view:split",
    "{x}.contiguous().view(*{x}.shape[:-1], {a}, {c} // {a})",
    2.0,
    x="t: *b c",
    a="factors(c)",
)
form("view:join", "{x}.contiguous().view(*{x}.shape[:-2], {a} * {c})", x="t: n *b a c")
form("view:ones", "{x}.contiguous().view({n}, 1, {c}, 1)", x="t: n c")
form("view:across", f"{{x}}.contiguous().view({_B}, {{k}}, -1)", x="t: n *s", k="factors(prod(s))")
form("view:flat", "{x}.contiguous().view(-1)", 0.5, x="t: *s")
form("view:batch", "{x}.contiguous().view(-1, {c})", 0.7, x="t: n *b c")
form("reshape", f"{{x}}.reshape({_B}, {{k}}, -1)", 2.0, x="t: n *s", k="factors(prod(s))")
form(
    "reshape:swap", f"{{x}}.transpose(1, 2).reshape({_B}, {{a}} * {{b}}, -1)", 2.0, x="t: n a b *s"
)
form(
    "reshape:window",
    f"{{x}}.reshape({_B}, {{h}} // {{k}}, {{k}}, {{c}}).transpose(1, 2)",
    x="t: n h c",
    k="factors(h)",
)
form("reshape:all", "{x}.reshape({k}, -1)", 0.7, x="t: *s", k="factors(prod(s))")
form(
    "_unsafe_view",
    "aten._unsafe_view({x}.contiguous(), [{n}, {a}, {c} // {a}])",
    x="t: n c",
    a="factors(c)",
)
form("view_as", "{x}.contiguous().view_as({y})", x="t: n c", a="factors(c)", y="p: n a c//a")
form("reshape_as", "{x}.reshape_as({y})", x="t: n a c", y="p: n a*c")
form("flatten", "{x}.flatten(1)", 2.0, x="t: n *s")
form(
    "flatten:middle",
    "{x}.flatten({d}, {e})",
    x="t: *s",
    d="span(0, len(s) - 2)",
    e="span(d + 1, len(s) - 1)",
)
form("flatten:nhwc", "{x}.permute(0, 2, 3, 1).flatten(1)", x="t: n c h w")
form("unflatten", "{x}.unflatten({d}, ({a}, -1))", 2.0, **_DIM, a="factors(s[d])")
form("unflatten:whole", "{x}.unflatten({d}, ({a}, {b}))", **_DIM, a="factors(s[d])", b="s[d] // a")
form(
    "permute",
    "{x}.permute({o})",
    x="t: a b c",
    o=("0, 2, 1", "1, 0, 2", "2, 1, 0", "1, 2, 0", "2, 0, 1"),
)
form(
    "permute:four",
    "{x}.permute({o})",
    x="t: a b c d",
    o=("0, 2, 3, 1", "0, 3, 1, 2", "0, 2, 1, 3", "1, 0, 3, 2"),
)
for _name in ("transpose", "swapaxes", "swapdims"):
    form(_name, f"aten.{_name}({{x}}, {{d}}, {{e}})", 2.0 if _name == "transpose" else 0.7, **_TWO)
form("t", "{x}.t()", x="t: a b")
form("numpy_T", "aten.numpy_T({x})", x="t: a b")
for _name in ("mT", "adjoint", "matrix_H"):
    _two = "a b" if _name == "matrix_H" else "*s a b"
    form(_name, f"aten.{_name}({{x}})", 0.7, x=f"t: {_two}")
form("ravel", "{x}.ravel()", 0.5, x="t: *s")
form("moveaxis", "{x}.moveaxis({d}, {e})", **_TWO)
form("movedim", "aten.movedim({x}, {d}, {e})", **_TWO)
form("movedim:two", "aten.movedim({x}, [0, 1], [2, 0])", x="t: a b c *s")
form("squeeze", "{x}.squeeze({d})", 0.5, **_DIM)
form("squeeze:one", "{x}.squeeze(-1)", x="t: *s 1")
form("squeeze:all", "{x}.squeeze()", 0.3, x="t: *s")
form("unsqueeze", "{x}.unsqueeze({d})", x="t: *s", d="span(-len(s) - 1, len(s))")

# --- joins and cuts -------------------------------------------------------------------------------

for _name, _weight in (("cat", 3.0), ("concat", 0.7), ("concatenate", 0.7)):
    form(_name, f"torch.{_name}([{{x}}, {{y}}], -1)", _weight, x="t: *b c", y="t: *b d")
form("cat:channels", "torch.cat([{x}, {y}], 1)", 3.0, x="t: n c *s", y="t: n d *s")
form("cat:three", "torch.cat([{x}, {y}, {x}], 1)", x="t: n c *s", y="t: n d *s")
form("cat:front", "torch.cat([{y}, {x}])", 0.7, x="t: a *s", y="t: b *s")
form("cat:same", "torch.cat([{x}, {x} * 2], {d})", **_DIM)
form("hstack", "torch.hstack([{x}, {y}])", x="t: n c *s", y="t: n d *s")
form("vstack", "torch.vstack([{x}, {y}])", x="t: a c *s", y="t: b c *s")
form("vstack:vectors", "torch.vstack([{x}, {y}])", 0.5, x="t: c", y="t: c")
form("stack", "torch.stack([{x}, {y}], {d})", x="t: *s", y="t: *s", d="span(-len(s) - 1, len(s))")
form("stack:sum", "torch.stack([{x}, {y}], 1).sum(1)", x="t: n *s", y="t: n *s")
form("split_with_sizes", "{x}.split([{k}, {r}], {d})", 2.0, **_CUT, r="s[d] - k")
form("split_with_sizes:even", "{x}.split({k}, {d})", **_CUT)
form("split_with_sizes:chunk", "{x}.chunk({k}, {d})", 2.0, **_DIM, k="span(1, min(4, s[d]))")
form("split_with_sizes:tensor_split", "{x}.tensor_split(({k},), {d})", 0.7, **_CUT)
form(
    "split_with_sizes:swap",
    "torch.cat({x}.split([{k}, {c} - {k}], 1)[::-1], 1)",
    2.0,
    x="t: n c *s",
    k="span(1, c - 1)",
)
form("unbind", "{x}.unbind({d})", 0.6, **_DIM)
form("getitem", "{x}.unbind({d})[{i}]", **_DIM, i="span(0, s[d] - 1)")
form("slice", "{x}[:, {k}:]", 1.5, x="t: n c *s", k="span(1, c - 1)")
form("slice:end", "{x}[..., :{k}]", x="t: *b c", k="span(1, c)")
form("slice:inside", "{x}[:, {j}:{k}]", 1.5, x="t: n c *s", j="span(0, c - 1)", k="span(j + 1, c)")
form("slice:negative", "{x}[..., -{k}:-1]", x="t: *b c", k="span(2, c)")
form("slice:past", "{x}[:, {k}:99]", 0.5, x="t: n c *s", k="span(0, c - 1)")
form("slice:step", "{x}[:, {j}::{k}]", x="t: n c *s", k="span(1, c)", j="span(0, c - 1)")
form(
    "slice:gate",
    "{x}[:, :{k}] * torch.sigmoid({x}[:, {k}:])",
    2.0,
    x="t: n c *s",
    k="[c // 2] if c % 2 == 0 else []",
)
form(
    "slice:add",
    "{x} + torch.cat([{x}[:, {k}:], {x}[:, :{k}]], 1)",
    x="t: n c *s",
    k="span(1, c - 1)",
)
form("narrow", "{x}.narrow({d}, {j}, {k})", **_DIM, j="span(0, s[d] - 1)", k="span(1, s[d] - j)")
form("narrow:last", "{x}.narrow(-1, -{j}, {k})", 0.5, x="t: *b c", j="span(1, c)", k="span(1, j)")
form("diagonal", "{x}.diagonal({o}, {d}, {e})", **_TWO, o=(0, 1, -1))
form("select", "{x}.select({d}, {k})", **_DIM, k="span(-s[d], s[d] - 1)")
form("select:first", "{x}[:, 0]", x="t: n c *s")
form(
    "select:token",
    "torch.cat([{p}.expand({x}.shape[0], -1, -1), {x}], 1)[:, 0]",
    x="t: n t c",
    p="p: 1 1 c",
)
form(
    "glu",
    "F.glu({x}, {d})",
    2.0,
    **{**_DIM, "d": "[i for i in span(-len(s), len(s) - 1) if s[i] % 2 == 0]"},
)

# --- repeats and new tensors ----------------------------------------------------------------------

form("expand", "{x}.expand({k}, {s}-1)", x="t: *s c", k=(2, 3, 1))
form("expand:stretch", "{x}.unsqueeze(1).expand(-1, {k}, {s})", x="t: n *s", k=(2, 3))
form("expand:batch", "torch.cat([{y}.expand({x}.shape[0], -1), {x}], 1)", x="t: n c", y="p: 1 d")
form(
    "expand:heads",
    "{x}[:, :, None].expand(-1, -1, {k}, {s}).flatten(1, 2)",
    x="t: n c *s",
    k=(2, 3),
)
form("expand_as", "{y}.expand_as({x}) * {x}", x="t: *s", y="~:")
form("broadcast_to", "aten.broadcast_to({x}, [{k}, {s}])", x="t: *s", k=(2, 3))
form("repeat", "{x}.repeat({k}, {j}, {i})", x="t: a b", k=(1, 2), j=(1, 2, 3), i=(1, 2))
form("repeat:channels", "{x}.repeat(1, {k}, 1, 1)", x="t: n c h w", k=(2, 3))
form("repeat:front", "{x}.repeat({k}, 1, {j})", x="t: a b", k=(2, 3), j=(1, 2))
form("repeat:batch", "{x} + {y}.repeat({x}.shape[0], 1)", x="t: n c", y="p: 1 c")
form("tile", "{x}.tile({k}, {j}, 1)", x="t: b c", k=(2, 3), j=(1, 2))
form(
    "repeat_interleave:sized",
    "{x}.repeat_interleave({k}, {d}, output_size={k} * {x}.shape[{d}])",
    **_DIM,
    k=(2, 3),
)
form("repeat_interleave", "{x}.repeat_interleave({k}, {d})", **_DIM, k=(2, 3))
_SIZES = {"x": "t: *b c"}
for _name in ("zeros", "ones"):
    form(_name, f"torch.{_name}({{k}}, {{c}}) + {{x}}", 0.5, x="t: c", k=(2, 3))
    form(
        f"{_name}:cat",
        f"torch.cat([{{x}}, torch.{_name}({_B}, {{k}})], 1)",
        0.7,
        x="t: n c",
        k=(1, 2, 3),
    )
    form(
        f"new_{_name}",
        f"torch.cat([{{x}}.new_{_name}({_B}, {{k}}, {{s}}), {{x}}], 1)",
        0.7,
        x="t: n c *s",
        k=(1, 2),
    )
for _name in ("rand", "randn"):
    form(_name, f"torch.{_name}({{k}}, {{c}}) * 0 + {{x}}", 0.3, x="t: c", k=(2, 3))
form("empty", "torch.empty({k}, {c}).fill_(0.5) + {x}", 0.3, x="t: c", k=(2, 3))
form("new_empty", "{x}.new_empty({k}, {c}).fill_(0.5) + {x}", 0.3, x="t: c", k=(2, 3))
form("full", "torch.full(({k}, {c}), 0.7) * {x}", 0.5, x="t: c", k=(2, 3))
form("full:mask", "torch.where({m}, {x}, torch.full(({c},), -2.0))", 0.5, x="t: *b c", m="~b:")
form("new_full", "{x}.new_full(({k}, {c}), 0.7) * {x}", 0.5, x="t: c", k=(2, 3))
form("arange", "{x} + torch.arange({c})", 0.6, x="t: *b c")
form("arange:start", "{x} * torch.arange(1, {c} + 1)", 0.6, x="t: *b c")
form("linspace", "{x} + torch.linspace(0, 1, {c})", 0.6, x="t: *b c")
form("eye", "{x} + torch.eye({c})", 0.6, x="t: *b c c")
form("tril_indices", "{x}[:, torch.tril_indices({c}, {c})[1]]", 0.6, x="t: n c *s")
form("triu_indices", "{x}[:, torch.triu_indices({c}, {c})[0]]", 0.6, x="t: n c *s")
form("scalar_tensor", "{x} + aten.scalar_tensor(1.5)", 0.4, x="t: *s")
form("meshgrid", 'torch.meshgrid({x}, {y}, indexing="ij")', x="t: a", y="t: b")
form("histc", "{x} + torch.histc({x}, {c})", 0.4, x="t: *b c")

# --- indexing and padding -------------------------------------------------------------------------

form("index", "{x}[:, {i}]", x="t: n c *s", i="k:c: k")
form("index:two", "{x}[:, {i}, {j}]", x="t: n c d *s", i="k:c: k 1", j="k:d: l")
form("index:apart", "{x}[{i}, :, {j}]", 0.6, x="t: n c d *s", i="k:n: k", j="k:d: k")
form("index:flat", "{x}[{i}]", 0.6, x="t: n *s", i="k:n: k")
form("index_put", "aten.index_put({x}, [None, {i}], {v})", x="t: n c", i="k:c: k", v="t: k")
form(
    "index_put:inplace",
    "aten.index_put_({x}.clone(), [{i}], {v})",
    0.6,
    x="t: n *s",
    i="k:n: 1",
    v="t: *s",
)
form("index_select", "{x}.index_select({d}, {i})", **_DIM, i="k:s[d]: k")
form("gather", "{x}.gather(1, {i})", x="t: n c", i="k:c: n k")
form("gather:part", "{x}.gather(0, {i})", 0.5, x="t: n c", i="k:n: k c")
form("gather:sorted", "{x}.gather({d}, {x}.argsort({d}))", **_DIM)
form("pad", "F.pad({x}, ({j}, {k}))", x="t: *b c", j=(0, 1, 2), k=(1, 2))
form("pad:channels", "F.pad({x}, (0, 0, 0, 0, {j}, {k}))", x="t: n c h w", j=(0, 1, 2), k=(0, 1, 2))
form("pad:two", "F.pad({x}, (1, 0, 0, {k}), value=0.5)", x="t: *b c d", k=(1, 2))
form("pad:crop", "F.pad({x}, (-1, {k}))", x="t: *b c", k=(1, 2))
form("pad:reflect", 'F.pad({x}, (1, 1), mode="reflect")', x="t: n c l")
form("pad:replicate", 'F.pad({x}, (1, 1, 0, 2), mode="replicate")', x="t: n c h w")
form("pad:circular", 'F.pad({x}, (1, 1), mode="circular")', x="t: n c l")
form(
    "constant_pad_nd",
    "aten.constant_pad_nd({x}, [{j}, {k}], 0.5)",
    x="t: *b c",
    j=(0, 1, 2),
    k=(1, 2),
)
form("roll", "{x}.roll({k}, {d})", **_DIM, k=(1, 2, -1))
form("roll:flat", "{x}.roll(1)", 0.4, x="t: *s")
form("flip", "{x}.flip({d})", **_DIM)
form(
    "conv:rise",
    "{m}({x}).unflatten(1, ({a}, 4, 4))",
    0.5,
    x="t: n c",
    a=(3, 4),
    m="m: nn.Linear({c}, {a} * 16)",
)
