"""Holds a captured graph to the model that it was captured from, by running both.

The analysis says which batch sizes a graph serves; here it has to compute what the model computes
at another size and at 1, else the batch is fixed. What is served is never taken on trust.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from traceback import walk_tb
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nestify.capture.export_program import without_fast_path
from nestify.capture.source_lines import place_of
from nestify.dims.selection import Keep
from nestify.errors import CaptureError, NestifyWarning, first_line
from nestify.graph.analysis import analyse
from nestify.graph.graph import Graph
from nestify.runtime.program import Program
from nestify.support.closeness import LIMITS, relative_error
from nestify.support.module_state import in_eval, left_as_found

__all__ = ["check_example", "with_faithful_batch"]


def with_faithful_batch(graph: Graph) -> Graph:
    """``graph``, its batch fixed where the model computes something else at another size."""
    if graph.batch is None or _is_meta(graph):
        return graph
    reason = _other_batches(graph)
    if not reason:
        return graph
    captured = graph.capture
    return analyse(replace(captured, by_batch=captured.by_batch._replace(refused=reason)))


def check_example(graph: Graph) -> None:
    """See that the graph computes what the model does on the example inputs.

    Raises:
        CaptureError: it does not.
    """
    if _is_meta(graph):
        return
    both = _Both(graph)
    found = both.compared(both.program.examples)
    if found.refused or not found.difference:
        return
    raise CaptureError(
        f"{type(graph.capture.model).__name__} was captured as a graph that {found.difference} on "
        "the example inputs. Where eval() changes weights, as merged adapters do, call it before; "
        "where forward or a hook changes the module, take that out of it; else this is a defect of "
        "nestify: please report it with the model"
    )


def _other_batches(graph: Graph) -> str:
    """Why the batch is not free after all; empty where it is."""
    both = _Both(graph)
    flat = both.program.examples
    batched = [node.name in graph.capture.batched for node in both.program.inputs]
    size = next(len(leaf) for leaf, wide in zip(flat, batched, strict=True) if wide)
    for other in (max(size, 2) + 1, 1):
        sized = zip(flat, batched, strict=True)
        found = both.compared([_rows(leaf, other) if wide else leaf for leaf, wide in sized])
        if found.refused and other > 1:
            return f"the model itself fails with a batch of {other}{found.refused}"
        if found.difference:
            lost = (
                " (name the dims that a squeeze is to drop)" if "shape" in found.difference else ""
            )
            return f"with a batch of {other}, what was captured {found.difference}{lost}"
    return ""


def _rows(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """As many rows; those that come again are rolled along the last dim, as equal rows would hide
    that two were taken for each other.
    """
    size = len(tensor)
    turns = range(-(-count // size))
    return torch.cat([tensor.roll(turn, -1) if tensor.ndim > 1 else tensor for turn in turns])[
        :count
    ]


class _Found(NamedTuple):
    """How a model and its graph differ on one call; ``refused`` says why the model fails there."""

    difference: str = ""
    refused: str = ""


class _Both:
    """A model and the graph that was captured of it."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.program = graph, Program(graph)
        self.model = graph.capture.model

    def compared(self, flat: Sequence[Any]) -> _Found:
        """Run both on the same inputs, from the same random state."""
        try:
            expected = self._model(flat)
        except Exception as error:  # the user's forward may raise anything
            where = place_of(self.model, walk_tb(error.__traceback__))
            return _Found(refused=f"{where}: {type(error).__name__}: {first_line(error)}")
        try:
            found = self._graph(flat)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return _Found(f"fails: {first_line(error)}")
        difference = _difference(expected, found)
        if difference and _difference(expected, self._model(flat, seed=1)):
            warnings.warn(
                f"{type(self.model).__name__} gives other outputs whenever it runs, or draws "
                "random numbers in eval, so that what was captured could not be held to it",
                NestifyWarning,
                stacklevel=2,
            )
            return _Found()
        return _Found(difference)

    def _model(self, flat: Sequence[Any], seed: int | None = None) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(copy.deepcopy(list(flat)), self.graph.capture.in_spec)
        with left_as_found(self.model), torch.no_grad(), without_fast_path(), _unwarned():
            self.model.eval()
            if seed is not None:
                torch.manual_seed(seed)
            return _tensors(self.model(*args, **kwargs))

    def _graph(self, flat: Sequence[Any]) -> list[Any]:
        program, captured = self.program, self.graph.capture
        own = {
            name: tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
            for name, tensor in captured.tensors.items()
        }
        # In eval, but as it was found: that is where a nested model takes its tensors from.
        with left_as_found(self.model), in_eval(self.model), torch.no_grad(), _unwarned():
            bound = program.bind(Keep({}), program.batch_size(flat))
            return _tensors(program.run(self.model, bound, copy.deepcopy(list(flat)), own))


@contextlib.contextmanager
def _unwarned() -> Generator[None]:
    """Leave warnings of the user's own code to the user's own calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> str:
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (expected, found)]
    if len(expected) != len(found):
        return f"gives {len(found)} tensors in place of {len(expected)}"
    for wanted, given in zip(*shapes, strict=True):
        if wanted != given:
            return f"gives a shape of {given} in place of {wanted}"
    error = relative_error(expected, found)
    limit = max((LIMITS.get(tensor.dtype, 0.0) for tensor in expected), default=0.0)
    return "" if error <= limit else f"differs by {error:.1e} relative"


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _is_meta(graph: Graph) -> bool:
    captured = graph.capture
    given = _tensors((captured.example_inputs, captured.example_kwargs))
    tensors = [*captured.tensors.values(), *given]
    return any(tensor.is_meta for tensor in tensors)
