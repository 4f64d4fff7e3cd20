"""Inter-layer filter covariance, with and without whitening (Deep Roots, appendix A.2).

Each pixel of a feature map is one sample of as many dims as the layer has filters. Of two maps of
different size the smaller is enlarged to the other's by nearest neighbours. Batches, and chunks
of their images, are added up and forgotten, so that memory does not grow with the pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestify.capture.batches import call_of
from nestify.errors import UsageError
from nestify.nested.model import NestedModel
from nestify.support.covariance import Moments, zca
from nestify.support.module_tree import device_of

__all__ = ["filter_correlation", "filter_covariance", "filter_covariances"]

_CHUNK = 1 << 22  # numbers of one chunk: 32 MiB in float64


def filter_covariance(
    model: nn.Module,
    layer_a: str,
    layer_b: str,
    loader: Iterable[Any],
    whiten: bool = True,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Covariance of the filters of two layers, (filters of a, filters of b) in float64.

    ``whiten`` removes the covariance inside either layer first (ZCA), so that what is left lies
    between the two: equations (1) to (9). ``loader`` gives batches of inputs, or (inputs, labels).
    A nested model is looked at as its active subnet.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Conv2d(4, 6, 1, groups=2))
    >>> filter_covariance(net, "0", "2", [torch.randn(8, 3, 6, 6)]).shape
    torch.Size([4, 6])

    Raises:
        UsageError: no such layer, a layer that gives no map or runs more than once, or a loader
            without samples.
    """
    return filter_covariances(model, (layer_a, layer_b), loader, whiten, eps=eps)[0]


def filter_covariances(
    model: nn.Module,
    layers: Sequence[str],
    loader: Iterable[Any],
    whiten: bool = True,
    *,
    eps: float = 1e-5,
) -> list[Tensor]:
    """:func:`filter_covariance` of each layer with the next one, in one pass over ``loader``."""
    pairs = list(pairwise(layers))
    if not pairs:
        raise UsageError(f"a covariance lies between two layers; got {list(layers)}")
    moments = _moments(model, pairs, loader)
    return [_between(*moment, eps if whiten else None) for moment in moments]


def filter_correlation(model: nn.Module, layer: str, loader: Iterable[Any]) -> Tensor:
    """Correlation of the filters of one layer with each other (Fig. 11 shows its magnitude).

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1))
    >>> filter_correlation(net, "0", [torch.randn(8, 3, 6, 6)]).diagonal().sum().round().item()
    4.0
    """
    ((moments, filters),) = _moments(model, [(layer, layer)], loader)
    covariance = moments.covariance[:filters, :filters]
    scale = covariance.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return covariance / torch.outer(scale, scale)


def _between(moments: Moments, filters: int, eps: float | None) -> Tensor:
    covariance = moments.covariance
    between = covariance[:filters, filters:]
    if eps is None:
        return between
    inside, outside = covariance[:filters, :filters], covariance[filters:, filters:]
    return zca(inside, eps) @ between @ zca(outside, eps).T


def _moments(
    model: nn.Module, pairs: Sequence[tuple[str, str]], loader: Iterable[Any]
) -> list[tuple[Moments, int]]:
    """For each pair of layers the joint moments of their filters, and how many the first has."""
    keywords: Iterable[str] = ()
    if isinstance(model, NestedModel):
        keywords = model.graph.capture.example_kwargs
        model = model.extract(model.active, verify=False)
    outputs: dict[str, Tensor] = {}
    found = [Moments() for _ in pairs]
    filters = [0] * len(pairs)
    names = dict.fromkeys(name for pair in pairs for name in pair)
    handles = [_layer(model, name).register_forward_hook(_keeper(outputs, name)) for name in names]
    mode = model.training
    try:
        model.eval()
        device = device_of(model)
        with torch.no_grad():
            for batch in loader:
                outputs.clear()
                args, kwargs = call_of(batch, device, keywords)
                model(*args, **kwargs)
                for i, (a, b) in enumerate(pairs):
                    filters[i] = _output(outputs, a).shape[1]
                    _add(found[i], _output(outputs, a), _output(outputs, b))
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return list(zip(found, filters, strict=True))


def _layer(model: nn.Module, name: str) -> nn.Module:
    layers = dict(model.named_modules())
    if not name or name not in layers:
        named = [layer for layer in layers if layer]  # the model itself has no name
        close = difflib.get_close_matches(name, named, 3)
        hint = f"did you mean {', '.join(close)}?" if close else f"layers: {', '.join(named)}"
        raise UsageError(f"{type(model).__name__} has no layer {name!r}; {hint}")
    return layers[name]


def _keeper(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise UsageError(f"layer {name!r} ({type(module).__name__}) gives no feature map")
        if name in outputs:
            raise UsageError(f"layer {name!r} runs more than once: which of its maps is meant?")
        outputs[name] = output

    return keep


def _output(outputs: dict[str, Tensor], name: str) -> Tensor:
    if name not in outputs:
        raise UsageError(f"layer {name!r} does not run when the model does")
    return outputs[name]


def _add(moments: Moments, a: Tensor, b: Tensor) -> None:
    """Add the pixels of two maps (batch, filters, *size), some images at a time."""
    rank = max(a.ndim, b.ndim)
    a, b = (x.reshape(*x.shape, *[1] * (rank - x.ndim)) for x in (a, b))
    size = torch.Size(max(pair) for pair in zip(a.shape[2:], b.shape[2:], strict=True))
    step = max(1, _CHUNK // ((a.shape[1] + b.shape[1]) * max(1, size.numel())))
    for images in zip(a.split(step), b.split(step), strict=True):
        rows = [_enlarged(x, size).flatten(2).movedim(1, 2).flatten(0, 1) for x in images]
        moments.add(torch.cat(rows, 1))


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    if not size:
        return x[..., None]
    return x if x.shape[2:] == size else F.interpolate(x, size=list(size), mode="nearest")
