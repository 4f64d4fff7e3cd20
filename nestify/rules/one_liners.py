"""The ops whose meaning is one line: convolutions, linear maps, channel norms, pools."""

from __future__ import annotations

from nestify.rules.notation import Line
from nestify.rules.op import Layer, Op

_CONV_ARGS = ("input", "weight", "bias")
_NORM_ARGS = ("input", "weight", "bias", "running_mean", "running_var")


def _conv(rank: int) -> Line:
    return Line(
        "*n (g i) *s, (g o) i *k, (g o) -> *n (g o) *t",
        _CONV_ARGS,
        sizes={"g": "groups"},
        literals={"groups": "g"},
        contracts="i",
        macs="*n g o *t i *k",
        paths="g i",
        rank=rank,
    )


def _conv_transpose(rank: int) -> Line:
    return Line(
        "*n (g i) *s, (g i) o *k, (g o) -> *n (g o) *t",
        _CONV_ARGS,
        sizes={"g": "groups"},
        literals={"groups": "g"},
        contracts="i",
        macs="*n g i *s o *k",
        paths="g i",
        rank=rank,
    )


# A norm with statistics of its own operand (weight standardisation) takes them over n and *s.
CHANNEL_NORM = Line("n c *s, c, c, c, c -> n c *s", _NORM_ARGS, normalises="n *s")
_pool_args = ("self",)
_upsample_args = ("input|self",)  # its vec overload says input


def _window(rank: int, args: tuple[str, ...]) -> Line:
    inside, outside = "hwd"[:rank], "xyz"[:rank]
    return Line(f"*b {' '.join(inside)} -> *b {' '.join(outside)}", args)


LINES: dict[str, Line | Op] = {
    **{
        f"conv{rank}d": Op(_conv(rank), slides=True, zero_safe=True, layer=Layer(*_CONV_ARGS))
        for rank in (1, 2, 3)
    },
    **{f"conv_transpose{rank}d": _conv_transpose(rank) for rank in (1, 2, 3)},
    # A weight may be a vector: then *o stands for no dim.
    "linear": Op(
        Line("*b i, *o i, *o -> *b *o", _CONV_ARGS, contracts="i", macs="*b *o i"),
        zero_safe=True,
        layer=Layer(*_CONV_ARGS),
    ),
    "bilinear": Line(
        "*b i, *b j, o i j, o -> *b o",
        ("input1", "input2", "weight", "bias"),
        contracts="i j",
        macs="*b o i j",
    ),
    "transformers::grouped_mm_fallback": Line(  # experts, each on its own run of positions
        "s i, e i o, e -> s o",
        ("input", "weight", "offs"),
        contracts="i",
        fixes="s",
        macs="s i o",
    ),
    "embedding": Line("v e, *b -> *b e", ("weight", "indices")),
    "pixel_shuffle": Line(
        "*b (c r q) h w -> *b c (h r) (w q)",
        ("self",),
        sizes={"r": "upscale_factor", "q": "upscale_factor"},
        fixes="r q h w",
    ),
    **dict.fromkeys(
        ("channel_shuffle", "native_channel_shuffle"),
        Line(
            "n (g c) *s -> n (c g) *s", ("self",), sizes={"g": "groups"}, literals={"groups": "g"}
        ),
    ),
    "grid_sampler": Line("n c *s, n *t two -> n c *t", ("input", "grid")),
    **{
        f"max_pool{rank}d": Op(_window(rank, _pool_args), zero_safe=True, memory_order=rank == 3)
        for rank in (1, 2, 3)
    },
    **{
        f"{kind}_pool{rank}d": Op(_window(rank, _pool_args), zero_safe=True, pools=True)
        for kind in ("avg", "adaptive_avg")
        for rank in (1, 2, 3)
    },
    **{f"adaptive_max_pool{rank}d": _window(rank, _pool_args) for rank in (1, 2, 3)},
    **{
        f"max_pool{rank}d_with_indices": Op(_window(rank, _pool_args), memory_order=rank == 3)
        for rank in (2, 3)
    },
    **{
        f"max_unpool{rank}d": Line(
            f"*b {places}, *b {places} -> *b {places.upper()}", ("self", "indices")
        )
        for rank, places in ((2, "h w"), (3, "h w d"))
    },
    **{f"_upsample_{kind}2d_aa": _window(2, _upsample_args) for kind in ("bilinear", "bicubic")},
    **{f"_upsample_nearest_exact{rank}d": _window(rank, _upsample_args) for rank in (1, 2, 3)},
    **{f"upsample_{kind}1d": _window(1, _upsample_args) for kind in ("nearest", "linear")},
    **{
        f"upsample_{kind}2d": _window(2, _upsample_args)
        for kind in ("nearest", "bilinear", "bicubic")
    },
    **{f"upsample_{kind}3d": _window(3, _upsample_args) for kind in ("nearest", "trilinear")},
}
