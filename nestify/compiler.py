"""The pipeline: capture a model, analyse it, run the passes, make it nested, estimate its cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

from nestify.capture.captured import capture
from nestify.capture.example_inputs import infer_inputs
from nestify.errors import CaptureError, NestifyWarning, UsageError
from nestify.graph.analysis import analyse
from nestify.graph.cost import Cost, Pricing
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel
from nestify.passes import (
    NO_DATA,
    Data,
    Pass,
    apply_passes,
    data_for,
    parse_recipe,
    without_data,
)
from nestify.runtime.capture_check import check_example, with_faithful_batch

__all__ = ["estimate", "remade", "trace", "transform"]


def estimate(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    target: str | None = None,
    convention: str = "torch",
    *,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Cost:
    """Cost of one network for one sample; ``target`` adds the measured ``latency_ms``.

    >>> import torch, nestify
    >>> nestify.estimate(nn.Linear(4, 8), example_inputs=(torch.randn(1, 4),)).macs
    32

    Raises:
        UsageError: an unknown target or convention.
        CaptureError: the model cannot be captured.
    """
    graph = trace(model, example_inputs, example_kwargs)
    costs = Pricing(graph).costs({}, 1, convention)
    if target is None:
        return costs.row(0)
    import numpy as np

    from nestify.targets import usable_target

    latency = usable_target(target).measure(
        model, graph.capture.example_inputs, graph.capture.example_kwargs
    )
    return costs._replace(latency_ms=np.array([latency])).row(0)


def trace(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Graph:
    """Capture a model and analyse every dim of it; the model is not changed.

    >>> import torch, nestify
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> graph = nestify.trace(net, example_inputs=(torch.randn(1, 3, 8, 8),))
    >>> [(group.name, group.size) for group in graph.groups], graph.coverage.params
    ([('0', 8)], 0.9922480620155039)

    Raises:
        CaptureError: the model cannot be captured, or no example inputs could be inferred.
    """
    _check_model(model)
    inputs: Any = () if example_inputs is None else example_inputs
    if example_inputs is None and not example_kwargs:
        inputs, example_kwargs = infer_inputs(model)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    graph = with_faithful_batch(analyse(capture(model, inputs, example_kwargs)))
    if graph.capture.tiled and graph.batch is None:
        # Two samples were traced and that size is baked in: trace the one sample that was given.
        alone = capture(model, inputs, example_kwargs, tile=False)
        graph = analyse(replace(alone, untiled=graph.batch_reason))
    if graph.batch is None:
        check_example(graph)
    for note in graph.sizes_by_mode:
        warnings.warn(f"{type(model).__name__}: {note}", NestifyWarning, stacklevel=2)
    return graph


def _check_model(given: Any) -> None:
    """Refuse what is no module of Python.

    Raises:
        UsageError: it is no module.
        CaptureError: it, or a part of it, is of TorchScript.
    """
    if not isinstance(given, nn.Module):
        raise UsageError(f"model must be an nn.Module, not {type(given).__name__}")
    for path, module in given.named_modules():
        name = f"module {path!r}" if path else "the model"
        if isinstance(module, ScriptModule):
            raise CaptureError(
                f"{name} is of TorchScript, whose code cannot be captured; pass the nn.Module that "
                "torch.jit made it from"
            )


def transform(
    model: nn.Module,
    recipe: str,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> NestedModel:
    """Compile a model into a nested family of networks; the model itself is not changed.

    >>> import torch, nestify
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> nestify.transform(net, "fn3-neuron", example_inputs=(torch.randn(1, 4),)).space.num_subnets
    8

    A recipe that rewrites and chooses nothing (``root-8``) gives a family of one. ``calibration``
    holds batches of inputs, or (inputs, labels), for passes that read data:
    ``root-8{init=project}`` fits weights to it (to the example inputs without), ``rank`` orders by
    importance on it. ``loss(outputs, labels)``, a scalar, is what ``rank`` differentiates where
    cross-entropy or the squared error is not what the network was trained for.

    Raises:
        UsageError: an unknown recipe or option, or a recipe that finds nothing to do.
        CaptureError: the model cannot be captured.
    """
    passes = parse_recipe(recipe)
    data = data_for(passes, calibration, loss)
    return _nested(model, recipe, passes, data, example_inputs, example_kwargs)


def remade(
    model: nn.Module,
    recipe: str,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any],
) -> NestedModel:
    """What :func:`transform` made of ``model`` with any data, but for the values of its tensors."""
    passes = without_data(parse_recipe(recipe))
    return _nested(model, recipe, passes, NO_DATA, example_inputs, example_kwargs)


def _nested(
    model: nn.Module,
    recipe: str,
    passes: Sequence[Pass],
    data: Data,
    example_inputs: tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
) -> NestedModel:
    graph = apply_passes(trace(model, example_inputs, example_kwargs), passes, data)
    if not graph.units and not graph.changes:
        found = ", ".join(sorted({group.kind for group in graph.groups})) or "none"
        raise UsageError(
            f"recipe {recipe!r} finds nothing to choose in {type(model).__name__}; "
            f"kinds of elastic groups: {found}. Try where=all, or see with `nestify inspect` why "
            "dims are fixed"
        )
    return NestedModel(graph, graph.units, recipe)
