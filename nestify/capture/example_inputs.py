"""Example inputs for the usual cases: a timm config, a transformers dummy, a first convolution,
linear or embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from nestify.errors import CaptureError
from nestify.support.module_state import left_as_found

__all__ = ["call_in_words", "in_words", "infer_inputs"]

_SIDES = (224, 32, 64, 28, 299, 384)
_TOKENS = 16


def infer_inputs(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Find inputs that the model's forward accepts, by trying the plausible ones; returns (args,
    kwargs).

    >>> infer_inputs(nn.Sequential(nn.Linear(3, 2)))[0][0].shape
    torch.Size([1, 3])

    Raises:
        CaptureError: none of them ran; the message says what was tried.
    """
    tried: list[str] = []
    with left_as_found(model), torch.no_grad():
        model.eval()
        for label, args, kwargs in _candidates(model):
            try:
                model(*args, **kwargs)
            except Exception as error:  # the user's forward may raise anything on a wrong guess
                first = (str(error).strip().splitlines() or [""])[0]
                tried.append(f"{label} ({type(error).__name__}: {first[:80]})")
                continue
            return args, kwargs
    listed = "; ".join(tried) or "nothing (the model has no convolution, linear or embedding layer)"
    raise CaptureError(
        f"no example inputs fit {type(model).__name__}. Tried: {listed}. "
        "Pass example_inputs=(x, ...), or define example_inputs in model.py"
    )


def _candidates(model: nn.Module) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    like = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(1))
    config: Any = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    if size:
        yield _tensor((1, *size), like, "timm input_size")
    dummy: Any = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, dict):
        yield "transformers dummy_inputs", (), dict(dummy)
    for module in model.modules():
        shapes = list(_shapes(module))
        for shape in shapes:
            yield _tensor(shape, like, type(module).__name__)
        if isinstance(module, nn.Embedding):
            tokens = torch.arange(_TOKENS, device=like.device)[None] % module.num_embeddings
            yield f"int64 [1, {_TOKENS}] (Embedding)", (tokens,), {}
        if shapes or isinstance(module, nn.Embedding):
            return


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        rank = len(module.kernel_size)
        for side in _SIDES if rank == 2 else (16, 32, 64, 1024):
            yield (1, module.in_channels, *(side,) * rank)
    elif isinstance(module, nn.Linear):
        yield (1, module.in_features)
        yield (1, _TOKENS, module.in_features)


def _tensor(
    shape: tuple[int, ...], like: torch.Tensor, source: str
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    dtype = like.dtype if like.is_floating_point() else torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device=like.device, dtype=dtype)
    return f"{dtype} {list(shape)} ({source})".replace("torch.", ""), (x,), {}


def call_in_words(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call by the structure of its arguments.

    >>> call_in_words((torch.ones(1), [torch.ones(2), 3]), {"mask": None})
    '(tensor, [tensor, 3], mask=None)'
    """
    given = [*map(in_words, args), *(f"{name}={in_words(v)}" for name, v in kwargs.items())]
    return f"({', '.join(given)})"


def in_words(value: Any) -> str:
    """A value by its structure.

    >>> in_words((torch.ones(1), {"loss": torch.ones(1)}))
    "(tensor, {'loss': tensor})"
    """
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return "tensor"
    if kind is list:
        return f"[{', '.join(map(in_words, cast(list[Any], value)))}]"
    if kind is tuple:
        items = [in_words(item) for item in cast(tuple[Any, ...], value)]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if kind is dict:
        pairs = cast(dict[Any, Any], value).items()
        return f"{{{', '.join(f'{key!r}: {in_words(item)}' for key, item in pairs)}}}"
    return repr(value) if value is None or kind in (bool, int, float, str) else kind.__name__
