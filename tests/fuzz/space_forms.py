"""Forms of convolutions, pools, resampling and everything else that slides over positions."""

from __future__ import annotations

from tests.fuzz.forms import FEW, WIDTH, Form, Part

__all__ = ["SPACE_FORMS"]

SPACE_FORMS: dict[str, Form] = {}


def form(name: str, text: str, weight: float = 1.0, /, **parts: Part) -> None:
    """Enter a form as ``op`` or ``op:mode``."""
    assert name not in SPACE_FORMS, name
    SPACE_FORMS[name] = Form(text, weight, **parts)


_DIMS = {1: "w", 2: "h w", 3: "d h w"}
_BIAS = (True, False)

# --- convolutions ---------------------------------------------------------------------------------

for _rank, _d in _DIMS.items():
    _x = f"t: n c {_d}"
    _more = 4.0 if _rank == 2 else 1.5
    form(
        f"conv{_rank}d",
        "{m}({x})",
        _more,
        x=_x,
        o=WIDTH,
        k="[1, 3]",
        s=(1, 2),
        b=_BIAS,
        m=f"m: nn.Conv{_rank}d({{c}}, {{o}}, {{k}}, {{s}}, {{k}} // 2, bias={{b}})",
    )
    form(
        f"conv{_rank}d:groups",
        "{m}({x})",
        _more / 2,
        x=_x,
        g="divisors(c)",
        q=FEW,
        b=_BIAS,
        m=f"m: nn.Conv{_rank}d({{c}}, {{g}} * {{q}}, 3, 1, 1, groups={{g}}, bias={{b}})",
    )
    form(
        f"conv{_rank}d:depthwise",
        "{m}({x})",
        _more / 2,
        x=_x,
        q=FEW,
        m=f"m: nn.Conv{_rank}d({{c}}, {{c}} * {{q}}, 1, groups={{c}})",
    )
    form(
        f"conv{_rank}d:function",
        f"F.conv{_rank}d({{x}}, {{w_}}, {{z}}, padding=1)",
        x=_x,
        w_="t: o c " + " ".join("k" * _rank),
        z="p: o",
        when="k <= min(w, 3) + 2",
    )
    form(
        f"conv{_rank}d:unbatched",
        f"F.conv{_rank}d({{x}}, {{w_}})",
        0.5,
        x=f"t: c {_d}",
        w_="p: o c " + " ".join("1" * _rank),
    )
    form(
        f"conv_transpose{_rank}d",
        "{m}({x})",
        _more / 2,
        x=_x,
        o=WIDTH,
        k=(1, 2, 3),
        s=(1, 2),
        m=f"m: nn.ConvTranspose{_rank}d({{c}}, {{o}}, {{k}}, {{s}})",
        when="w < 8",
    )
    form(
        f"conv_transpose{_rank}d:groups",
        "{m}({x})",
        _more / 3,
        x=_x,
        g="divisors(c)",
        q=FEW,
        m=f"m: nn.ConvTranspose{_rank}d({{c}}, {{g}} * {{q}}, 2, groups={{g}})",
    )
form(
    "conv2d:same",
    "{m}({x})",
    x="t: n c h w",
    o=WIDTH,
    m='m: nn.Conv2d({c}, {o}, 3, padding="same")',
)
form(
    "conv2d:dilated",
    "{m}({x})",
    x="t: n c h w",
    o=WIDTH,
    m="m: nn.Conv2d({c}, {o}, 3, dilation=2, padding=2)",
)
form(
    "weight_standardised",
    "F.conv2d({x}, ({y} - {y}.mean((1, 2, 3), keepdim=True)) "
    "/ ({y}.std((1, 2, 3), keepdim=True, correction=0) + 0.1), padding=1)",
    x="t: n c h w",
    y="p: o c 3 3",
)
form(
    "squeeze_excite",
    "{x} * torch.sigmoid({b}(F.relu({a}({x}.mean((2, 3), keepdim=True)))))",
    x="t: n c h w",
    k=(2, 3),
    a="m: nn.Conv2d({c}, {k}, 1)",
    b="m: nn.Conv2d({k}, {c}, 1)",
)
form(
    "residual_block",
    "{x} + {b}(F.relu({a}({x})))",
    2.0,
    x="t: n c h w",
    k=WIDTH,
    a="m: nn.Conv2d({c}, {k}, 3, padding=1)",
    b="m: nn.Conv2d({k}, {c}, 1)",
)
form(
    "residual_mlp",
    "{x} + {b}(F.gelu({a}({x})))",
    2.0,
    x="t: *b c",
    k=WIDTH,
    a="m: nn.Linear({c}, {k})",
    b="m: nn.Linear({k}, {c})",
)
form("twice", "{a}(torch.tanh({a}({x})))", x="t: *b c", a="m: nn.Linear({c}, {c})")
form("tied", "F.linear(F.linear({x}, {y}), {y}.t())", x="t: *b c", y="p: o c")

# --- windows --------------------------------------------------------------------------------------

for _rank, _d in _DIMS.items():
    _x, _u = f"t: n c {_d}", f"t: c {_d}"
    for _pool in ("max", "avg"):
        _name = f"{_pool}_pool{_rank}d"
        form(_name, f"F.{_name}({{x}}, {{k}})", x=_x, k="span(1, min(w, 3))")
        form(f"{_name}:padded", f"F.{_name}({{x}}, 3, 1, 1)", 0.5, x=_x)
        form(f"{_name}:unbatched", f"F.{_name}({{x}}, 2, padding=1)", 0.3, x=_u)
        _name = f"adaptive_{_pool}_pool{_rank}d"
        form(_name, f"aten.{_name}({{x}}, [{{k}}] * {_rank})", x=_x, k=(1, 2, 3))
    for _kind in ("nearest", "nearest-exact"):
        _name = (
            f"upsample_nearest{_rank}d"
            if _kind == "nearest"
            else f"_upsample_nearest_exact{_rank}d"
        )
        form(
            _name,
            f'F.interpolate({{x}}, scale_factor={{k}}, mode="{_kind}")',
            x=_x,
            k=(2, 1),
            when="w < 7",
        )
for _rank in (2, 3):
    _name = f"max_pool{_rank}d_with_indices"
    form(_name, f"F.{_name}({{x}}, 2)[0]", x=f"t: n c {_DIMS[_rank]}", when="w > 1")
for _mode, _rank in (("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)):
    form(
        f"upsample_{_mode}{_rank}d",
        f'F.interpolate({{x}}, scale_factor=2, mode="{_mode}", align_corners={{k}})',
        x=f"t: n c {_DIMS[_rank]}",
        k=(False, True),
        when="w < 7",
    )
form("upsample_nearest2d:size", "aten.upsample_nearest2d({x}, [5, 6])", 0.5, x="t: n c h w")
form("upsample_bilinear2d:size", 'F.interpolate({x}, (5, 3), mode="bilinear")', 0.5, x="t: n c h w")
form(
    "grid_sampler",
    "F.grid_sample({x}, {y}.tanh(), align_corners=False)",
    x="t: n c h w",
    y="t: n j k 2",
)
form(
    "grid_sampler:3d",
    "F.grid_sample({x}, {y}.tanh(), align_corners=False)",
    0.5,
    x="t: n c d h w",
    y="p: n 2 3 2 3",
)
form("pixel_shuffle", "F.pixel_shuffle({x}, 2)", x="t: *b c h w", when="c % 4 == 0")
form(
    "pixel_shuffle:conv",
    "F.pixel_shuffle({m}({x}), {r})",
    x="t: n c h w",
    r=(2, 3),
    o=FEW,
    m="m: nn.Conv2d({c}, {o} * {r} * {r}, 1)",
)
form("pixel_unshuffle", "F.pixel_unshuffle({x}, 2)", x="t: *b c h w", when="h % 2 == w % 2 == 0")
form("channel_shuffle", "F.channel_shuffle({x}, {g})", x="t: n c h w", g="factors(c)")
form(
    "channel_shuffle:view",
    "{x}.view({x}.shape[0], {g}, {c} // {g}, {h}, {w}).transpose(1, 2)"
    ".reshape({x}.shape[0], {c}, {h}, {w})",
    x="t: n c h w",
    g="divisors(c)",
)
form(
    "im2col", "F.unfold({x}, {k}, padding={p})", x="t: n c h w", p=(0, 1), k="span(1, min(h, w, 3))"
)
form(
    "col2im",
    "F.fold({x}, ({h}, {h}), 2, stride=2)",
    x="t: n c l",
    h="[2 * i for i in range(1, 4) if i * i == l]",
    when="c % 4 == 0",
)
form(
    "col2im:conv",
    "F.fold(F.unfold({m}({x}), 2, padding=1), ({h}, {w}), 2, padding=1)",
    x="t: n c h w",
    o=FEW,
    m="m: nn.Conv2d({c}, {o}, 1)",
)
form(
    "unfold",
    "{x}.unfold({d}, {k}, 1)",
    x="t: *s",
    when="s",
    d="span(-len(s), len(s) - 1)",
    k="span(1, s[d])",
)
form("diff", "{x}.diff(dim={d})", x="t: *s", when="s", d="span(-len(s), len(s) - 1)")
