"""Training methods: which subnets one step trains, and towards what.

A nested model needs none of this: in a plain loop its forward draws a subnet a step (``odo``). The
other methods here train several subnets a step, which costs more and holds the small ones better.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from nestify.capture.batches import call_of
from nestify.errors import UsageError
from nestify.nested.model import NestedModel
from nestify.space import Subnet
from nestify.space.draw_laws import draw_subnet
from nestify.support.arguments import Valid, check, check_fields, instance, real, whole

__all__ = ["METHODS", "Method", "cost_multiplier", "step"]

_log = logging.getLogger(__name__)


def _is_temperature(value: Any) -> bool:
    return real(0, math.inf, above=True).holds(value) and math.isfinite(value)


_FLAG = instance("True or False", bool)
_TEMPERATURE = Valid("a finite number above 0", _is_temperature)


@dataclass(frozen=True, slots=True)
class Method:
    """What one step trains: the full net or not, the smallest or not, and ``random`` drawn ones.

    The full net learns from the labels. The others learn from the labels too, or, by the share
    ``distill``, from the full net's outputs of the same step, softened by ``temperature``. That
    needs one output of logits. ``classes`` is its dim of the classes; None: the one that the shape
    of the labels leaves, of (batch, classes, ...) and (batch, ..., classes).

    >>> METHODS["sandwich"].random
    2

    Raises:
        UsageError: an option out of range.
    """

    full: bool = False
    smallest: bool = False
    random: int = 1
    distill: float = 0.0
    temperature: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            "Method",
            full=_FLAG,
            smallest=_FLAG,
            random=whole(0),
            distill=real(0, 1),
            temperature=_TEMPERATURE,
        )
        if not (self.full or self.smallest or self.random):
            raise UsageError(f"a method trains at least one subnet a step; got {self}")
        if self.distill and not self.full:
            raise UsageError(f"distill needs full=True, a full net to learn from; got {self}")

    def subnets(self, nested: NestedModel, draw: Callable[[], Subnet]) -> list[Subnet]:
        """The subnets of one step, the full net first."""
        space = nested.space
        return [
            *([space.largest()] if self.full else []),
            *(draw() for _ in range(self.random)),
            *([space.smallest()] if self.smallest else []),
        ]


class _Teacher(NamedTuple):
    """Logits of the full net, and their dim of the classes."""

    logits: torch.Tensor
    dim: int


METHODS: Mapping[str, Method] = {
    # FN3, section 3: one draw a batch.
    "odo": Method(),
    # Yu and Huang, 2019 (US-Net): the sandwich rule with in-place distillation.
    "sandwich": Method(full=True, smallest=True, random=2, distill=1.0),
    # The same with one drawn subnet, which costs less.
    "distilled": Method(full=True, random=1, distill=1.0),
    # One loss of the full net and one drawn subnet, half of it from the full net.
    "joint": Method(full=True, random=1, distill=0.5),
}


def step(
    nested: nn.Module,
    x: Any,
    y: Any,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    method: str | Method = "odo",
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> torch.Tensor:
    """Forward and backward of one training step; returns its loss, detached.

    Gradients are added to those of the full parameters, so zeroing them and the optimizer's step
    stay yours. ``x`` is the input, or a tuple of the inputs; those that the model was captured with
    by keyword lie in a dict behind the others. ``nested`` may be wrapped in DDP. The loss is that
    of the largest subnet trained: the full net's but for ``odo``.

    >>> import nestify
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> nested = nestify.transform(net, "fn3-neuron", example_inputs=(torch.randn(1, 4),)).train()
    >>> x, y = torch.randn(16, 4), torch.zeros(16, dtype=torch.long)
    >>> step(nested, x, y, F.cross_entropy, method="sandwich").shape
    torch.Size([])

    Raises:
        UsageError: an unknown method, a model that is not nested or not in training mode, or
            outputs that cannot be distilled.
    """
    inner, chosen = _unwrap(nested), _method(method)
    if not inner.training:
        raise UsageError("the nested model is in eval mode; call nested.train() before a step")
    _announce(inner, method, chosen)
    inputs: tuple[Any, ...] = x if isinstance(x, tuple) else (x,)
    args, kwargs = call_of((inputs, y), keywords=inner.example_kwargs)
    subnets = chosen.subnets(inner, inner.draw)
    teacher: _Teacher | None = None
    first: torch.Tensor | None = None
    for i, subnet in enumerate(subnets):
        with inner.activate(subnet), _sync(nested, i == len(subnets) - 1):
            out = nested(*args, **kwargs)
            if i == 0 and chosen.full:
                loss = loss_fn(out, y)
                teacher = _teacher(chosen, out, y) if chosen.distill else None
            else:
                loss = _student_loss(chosen, out, y, teacher, loss_fn)
            (loss if scaler is None else scaler.scale(loss)).backward()
        first = loss.detach() if first is None else first
    assert first is not None
    return first


def cost_multiplier(
    nested: nn.Module, method: str | Method = "odo", *, samples: int = 1024
) -> float:
    """The expected MACs of a step, as a multiple of the MACs of training the full net alone.

    >>> import nestify
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> nested = nestify.transform(net, "fn3-neuron{draw=uniform}", (torch.randn(1, 4),))
    >>> 0.5 < cost_multiplier(nested) < 0.6
    True

    Raises:
        UsageError: an unknown method, a model that is not nested, or no sample.
    """
    check("cost_multiplier", {"samples": samples}, {"samples": whole(1)})
    inner, chosen = _unwrap(nested), _method(method)
    numbers = random.Random(0)
    subnets = [
        subnet
        for _ in range(samples)
        for subnet in chosen.subnets(inner, lambda: draw_subnet(inner.space.units, numbers))
    ]
    macs = inner.estimate([*subnets, inner.space.largest()]).macs
    return float(macs[:-1].sum() / samples / macs[-1])


def _unwrap(nested: nn.Module) -> NestedModel:
    inner: Any = nested
    while not isinstance(inner, NestedModel):
        children: dict[str, Any] = vars(inner).get("_modules", {})
        inner = children.get("module") or children.get("_orig_mod")
        if inner is None:
            raise UsageError(
                f"a step needs a NestedModel, bare or wrapped in DDP, not {type(nested).__name__}; "
                "make one with nestify.transform"
            )
    return inner


def _method(method: Any) -> Method:
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(
            f"unknown training method {method!r}; choose from {', '.join(METHODS)}, "
            "or pass a nestify.training.Method"
        )
    return METHODS[method]


def _announce(inner: NestedModel, method: str | Method, chosen: Method) -> None:
    """Say once a model and method what a step will cost."""
    if vars(inner).get("_announced") != chosen:
        vars(inner)["_announced"] = chosen
        times = cost_multiplier(inner, chosen)
        _log.info("method %s: about %.2f times the MACs of the full net a step", method, times)


def _sync(nested: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """DDP exchanges gradients with the last backward of a step only."""
    pause = getattr(nested, "no_sync", None)
    return contextlib.nullcontext() if last or pause is None else pause()


def _student_loss(
    method: Method,
    out: Any,
    y: Any,
    teacher: _Teacher | None,
    loss_fn: Callable[[Any, Any], torch.Tensor],
) -> torch.Tensor:
    if teacher is None:
        return loss_fn(out, y)
    t, dim = method.temperature, teacher.dim
    logs = F.log_softmax(_logits(out) / t, dim=dim)
    soft = F.softmax(teacher.logits / t, dim=dim)
    divergence = F.kl_div(logs, soft, reduction="none").sum(dim).mean() * t * t
    if method.distill == 1:
        return divergence
    return method.distill * divergence + (1 - method.distill) * loss_fn(out, y)


def _teacher(method: Method, out: Any, y: Any) -> _Teacher:
    """What the full net's outputs teach in this step."""
    logits = _logits(out).detach()
    shape = tuple(logits.shape)
    if method.classes is not None:
        if method.classes not in (*range(1, len(shape)), *range(1 - len(shape), 0)):
            raise UsageError(
                f"classes={method.classes} is no dim of the logits {shape} behind the batch; "
                f"choose from 1 to {len(shape) - 1}, or -1 for the last"
            )
        return _Teacher(logits, method.classes)
    labels = tuple(y.shape) if isinstance(y, torch.Tensor) else None
    places = (1, len(shape) - 1)
    found = {dim for dim in places if shape[:dim] + shape[dim + 1 :] == labels or len(shape) == 2}
    if len(found) != 1:
        told = "none" if labels is None else str(labels)
        raise UsageError(
            f"which dim of the logits {shape} holds the classes is not clear from the shape of "
            f"the labels, {told}; pass a Method with classes=1 or classes=-1, as "
            'dataclasses.replace(METHODS["sandwich"], classes=-1)'
        )
    return _Teacher(logits, found.pop())


def _logits(out: Any) -> torch.Tensor:
    """The one floating tensor among the outputs, of a batch."""
    leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    if len(leaves) == 1 and leaves[0].ndim > 1 and leaves[0].is_floating_point():
        return leaves[0]
    shapes = ", ".join(str(tuple(t.shape)) for t in leaves) or "no tensor"
    raise UsageError(
        "distillation needs one output of logits, of two dims or more; "
        f"this model gives {shapes}: pass Method(..., distill=0.0)"
    )
