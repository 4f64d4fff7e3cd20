"""Ordinary torch modules for op calls: ``aten.conv2d`` over ``layer1.conv1.weight`` is an
``nn.Conv2d`` again.

One entry a module class: how its constructor arguments follow from the op's arguments and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from nestify.rules import op_name

__all__ = ["MODULES", "build_module", "dropout_module"]

Args = Mapping[str, Any]
Tensors = Mapping[str, torch.Tensor | None]
Builder = Callable[[Args, Tensors, int], nn.Module | None]

_META = torch.device("meta")


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _conv(transposed: bool) -> Builder:
    classes: dict[int, type[nn.Module]] = (
        {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
        if transposed
        else {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    )

    def build(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
        shape, groups = _shape(tensors["weight"]), args["groups"]
        wide = {"in": shape[0], "out": shape[1] * groups}
        if not transposed:
            wide = {"in": shape[1] * groups, "out": shape[0]}
        names = ("stride", "padding", "dilation", *(("output_padding",) if transposed else ()))
        spatial = len(shape) - 2

        def spread(value: Any) -> Any:  # the exporter may spell one number for all dims
            return (
                tuple(value) * (spatial // len(value)) if isinstance(value, list | tuple) else value
            )

        return classes[spatial](
            wide["in"],
            wide["out"],
            shape[2:],
            groups=groups,
            bias=tensors["bias"] is not None,
            device=_META,
            **{name: spread(args[name]) for name in names},
        )

    return build


def _linear(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or weight.ndim != 2:
        return None
    return nn.Linear(
        weight.shape[1], weight.shape[0], bias=tensors["bias"] is not None, device=_META
    )


def _affine(tensors: Tensors) -> bool | None:
    """Whether a norm has weight and bias; None where it has only one of them."""
    found = {tensors["weight"] is not None, tensors["bias"] is not None}
    return found.pop() if len(found) == 1 else None


def _statistics_norm(flag: str, classes: Mapping[int, Callable[..., nn.Module]]) -> Builder:
    """A norm with running statistics, or with those of the batch where argument ``flag`` says."""

    def build(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
        affine, tracks = _affine(tensors), tensors["running_mean"] is not None
        source = tensors["weight"] if affine else tensors["running_mean"]
        if affine is None or source is None or bool(args[flag]) is tracks:
            return None
        return classes[rank](
            len(source),
            args["eps"],
            args["momentum"],
            affine=affine,
            track_running_stats=tracks,
            device=_META,
        )

    return build


_batch_norm = _statistics_norm(
    "training", {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
)
_instance_norm = _statistics_norm(
    "use_input_stats", {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
)


def _layer_norm(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    if tensors["weight"] is None:
        return None
    return nn.LayerNorm(
        list[int](args["normalized_shape"]),
        args["eps"],
        bias=tensors["bias"] is not None,
        device=_META,
    )


def _rms_norm(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    if tensors["weight"] is None:
        return None
    return nn.RMSNorm(list[int](args["normalized_shape"]), args["eps"], device=_META)


def _group_norm(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or tensors["bias"] is None:
        return None
    return nn.GroupNorm(args["num_groups"], len(weight), args["eps"], device=_META)


def _embedding(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    weight = tensors["weight"]
    assert weight is not None
    padding = None if args["padding_idx"] == -1 else args["padding_idx"]
    return nn.Embedding(
        *weight.shape,
        padding_idx=padding,
        scale_grad_by_freq=args["scale_grad_by_freq"],
        sparse=args["sparse"],
        device=_META,
    )


def _prelu(args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    weight = tensors["weight"]
    return None if weight is None else nn.PReLU(weight.numel(), device=_META)


# op -> (argument of the activation, arguments that are the module's own tensors, builder)
MODULES: dict[str, tuple[str, tuple[str, ...], Builder]] = {
    **{f"conv{n}d": ("input", ("weight", "bias"), _conv(False)) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("input", ("weight", "bias"), _conv(True)) for n in (1, 2, 3)},
    "linear": ("input", ("weight", "bias"), _linear),
    "batch_norm": ("input", ("weight", "bias", "running_mean", "running_var"), _batch_norm),
    "instance_norm": ("input", ("weight", "bias", "running_mean", "running_var"), _instance_norm),
    "layer_norm": ("input", ("weight", "bias"), _layer_norm),
    "rms_norm": ("input", ("weight",), _rms_norm),
    "group_norm": ("input", ("weight", "bias"), _group_norm),
    "embedding": ("indices", ("weight",), _embedding),
    "prelu": ("self", ("weight",), _prelu),
}


def build_module(target: Any, args: Args, tensors: Tensors, rank: int) -> nn.Module | None:
    """The plain torch module that computes this call, on the meta device, or None where torch has
    none.
    """
    entry = MODULES.get(op_name(target))
    return entry[2](args, tensors, rank) if entry else None


_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_FEATURE_DROPOUTS = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}


def dropout_module(node: fx.Node, args: Args, rank: int) -> nn.Module | None:
    """The torch module for a call that draws in training only, or None where torch has none."""
    name = op_name(node.target)
    inplace = str(node.target).split(".")[-2].endswith("_")
    if name == "rrelu":
        return nn.RReLU(args["lower"], args["upper"], inplace=inplace)
    kind = _FEATURE_DROPOUTS.get(rank) if name == "feature_dropout" else _DROPOUTS.get(name)
    return None if kind is None else kind(args["p"], inplace=inplace)
