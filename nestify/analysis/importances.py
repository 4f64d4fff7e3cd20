"""Importance of every channel, neuron, head and path, as data: what ``rank`` puts in order."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel
from nestify.passes.ranking.importance import measure
from nestify.support.user_code import kind_of

__all__ = ["importance"]


def importance(
    model: Graph | NestedModel,
    by: str = "auto",
    *,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Importance of each position of each elastic group, by group name, in float64.

    ``model`` is what ``nestify.trace`` gives, or a nested model, looked at with the weights it has
    now. ``by`` is ``magnitude`` and ``activation`` (relative to the mean of the group), ``taylor``
    and ``hessian`` (in units of the loss, a sample, so that groups compare too), or ``auto``:
    ``hessian`` with ``calibration``, ``magnitude`` without. ``hessian`` (LeCun et al., 1989, with
    an empirical Fisher matrix) is what a position costs when all less important ones are gone.
    ``calibration`` holds batches of inputs or (inputs, labels), ``loss(outputs, labels)`` is as in
    :func:`nestify.transform`.

    >>> import torch, nestify
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = net[2].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    >>> found = importance(nestify.trace(net, (torch.randn(1, 4),)), by="magnitude")
    >>> {name: (values > 0).tolist() for name, values in found.items()}
    {'0': [True, True, False]}

    Raises:
        UsageError: an unknown ``by``, data that it needs and lacks, or data or labels that do not
            fit the model.
    """
    given: Any = model  # the caller may have no type checker
    if isinstance(given, NestedModel):
        tensors = dict(given.named_tensors())
        graph = copy.copy(given.graph)
        named = {name: tensors[name] for name in graph.capture.tensors}
        graph.capture = dataclasses.replace(graph.capture, tensors=named)
    elif isinstance(given, Graph):
        graph = given
    else:
        raise UsageError(
            f"importance needs a nested model, or the graph that nestify.trace(model, "
            f"example_inputs) gives, not {kind_of(given)}"
        )
    found = measure(graph, by, calibration, loss)
    return {name: score.values for name, score in found.scores.items()}
