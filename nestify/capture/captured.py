"""Capture: any ``nn.Module`` as one torch.fx graph of ATen calls over named parameters.

``torch.export`` gives the graph. What it bakes in is undone here or noted for later: parameters
keep their names and every node its module path and source line; the batch size is traced at 2 or
more so that its dim can be told from a dim of size 1; stateless modules that act in training only
(stochastic depth) leave a marker, and arguments that depend on the mode are listed with their value
in training.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.capture.autograd import gradients_of_the_graph
from nestify.capture.batch_diff import BatchArguments, batch_arguments
from nestify.capture.export_program import export_program
from nestify.capture.first_forward import completed
from nestify.capture.lowering import lower
from nestify.capture.source_lines import source_line
from nestify.capture.train_diff import Traced, training_arguments
from nestify.capture.train_mode import mark_stochastic, mode_readers
from nestify.errors import CaptureError, NestifyWarning
from nestify.support.module_state import left_as_found
from nestify.support.module_tree import device_of, moved

Inputs = tuple[Any, ...]

__all__ = ["Capture", "capture", "source_line"]


@dataclass(frozen=True, slots=True)
class Capture:
    """One captured model: the graph and all that is needed to run or rebuild it.

    ``graph`` has placeholders (flattened inputs), ``get_attr`` nodes (parameters, buffers and
    constants, by original name) and calls of ATen ops. ``tensors`` maps those names to the model's
    own tensors; ``aliases`` maps every state-dict name to the name that the graph uses for the same
    tensor. ``batched`` names the placeholders whose dim 0 is the batch; ``tiled`` says that they
    were traced at twice the size of ``example_inputs``. ``mode_args`` lists arguments whose value
    depends on train/eval: (node, argument) -> value in training; ``notes`` what training does that
    no argument can say; ``by_batch`` lists arguments whose value differs at another batch size;
    ``untiled`` says why a batch of 1 was not traced at 2.
    """

    model: nn.Module
    graph: fx.Graph
    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]
    example_inputs: Inputs
    example_kwargs: Mapping[str, Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batched: frozenset[str]
    notes: tuple[str, ...] = ()
    mode_args: Mapping[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    tiled: bool = False
    by_batch: BatchArguments = field(default_factory=lambda: BatchArguments({}, {}))
    untiled: str = ""

    @property
    def leading(self) -> dict[str, int]:
        """The traced size of dim 0, where that is the batch, by the names of the placeholders."""
        inputs = self.graph.find_nodes(op="placeholder")
        sizes = {n.name: n.meta["val"].shape[0] for n in inputs if _has_rows(n.meta["val"])}
        batch = next(iter(sizes.values()), 0)
        return {name: size for name, size in sizes.items() if size == batch}

    @property
    def device(self) -> torch.device:
        """Where the example inputs lie."""
        leaves = pytree.tree_leaves((self.example_inputs, dict(self.example_kwargs)))
        return next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))

    def example_for(self, root: nn.Module) -> tuple[Inputs, dict[str, Any]]:
        """The example inputs, positional and by keyword, where ``root`` lies, a copy of the model
        that may have been moved to another device, or with ``double`` or ``to`` to another dtype.
        """
        given = self.example_inputs, dict(self.example_kwargs)
        dtypes = self.dtypes_in(root)

        def cast_like(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtypes.get(tensor.dtype, tensor.dtype))

        return pytree.tree_map_only(torch.Tensor, cast_like, moved(given, device_of(root)))

    def dtypes_in(self, root: nn.Module) -> dict[torch.dtype, torch.dtype]:
        """The dtype that the weights have in ``root``, a copy of the model, by the one that they
        had in the trace: empty where it is the same, or where there are several.
        """
        attrs = [n for n in self.graph.nodes if n.op == "get_attr"]
        weights = [n for n in attrs if isinstance(self.tensors[str(n.target)], nn.Parameter)]
        traced = _floating(n.meta["val"] for n in weights)
        now = _floating(root.parameters())
        if len(traced) != 1 or len(now) != 1 or traced == now:
            return {}
        return {traced.pop(): now.pop()}

    def is_home(self, value: Any) -> bool:
        """Whether an argument names the device of the example inputs: the call follows the inputs
        to any other.
        """
        if not isinstance(value, torch.device):
            return False
        return value.type == self.device.type and value.index in (None, self.device.index)


def _floating(tensors: Iterable[torch.Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def capture(
    model: nn.Module,
    example_inputs: Inputs,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    tile: bool = True,
) -> Capture:
    """Capture ``model`` in eval mode; it is left as it was found, parameters and modes alike.

    ``tile`` repeats inputs of batch 1, because a dim of size 1 cannot be told from one that
    broadcasts; where the model refuses that, or without ``tile``, the batch stays 1 for good.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> capture(net, (torch.randn(1, 3, 8, 8),)).graph.find_nodes(
    ...     op="get_attr", target="0.weight")[0].meta["val"].shape
    torch.Size([8, 3, 3, 3])

    Raises:
        CaptureError: ``torch.export`` cannot trace the model, or the model has no tensor input or
            output.
    """
    kwargs = dict(example_kwargs or {})
    flat, spec = pytree.tree_flatten((example_inputs, kwargs))
    if not any(isinstance(leaf, torch.Tensor) for leaf in flat):
        raise CaptureError(
            "the example inputs hold no tensor; pass example_inputs=(x, ...) with at least one"
        )
    tiled = _tile_batch(flat) if tile else flat
    captured = None
    untiled = ""
    if tiled is not flat:
        try:
            captured = _capture(model, tiled, spec, example_inputs, kwargs)
        except CaptureError as error:  # dim 0 is no batch, or the model takes one sample at a time
            untiled = str(error)
    captured = captured or _capture(model, flat, spec, example_inputs, kwargs)
    captured = replace(captured, untiled=untiled)
    for note in captured.notes:
        warnings.warn(f"{type(model).__name__}: {note}", NestifyWarning, stacklevel=2)
    return captured


def _to_eval(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        raise CaptureError(
            f"{type(model).__name__} cannot change between train and eval ({error}), as what "
            "torch.export gives; pass the nn.Module that was exported"
        ) from error


def _capture(
    model: nn.Module,
    flat: list[Any],
    spec: pytree.TreeSpec,
    example_inputs: Inputs,
    example_kwargs: Mapping[str, Any],
) -> Capture:
    args, kwargs = pytree.tree_unflatten(flat, spec)
    model = completed(model, args, kwargs)
    # torch.export takes blocks without gradients for no blocks where its caller has none.
    with torch.enable_grad(), left_as_found(model), gradients_of_the_graph(model) as lost:
        _to_eval(model)
        mark_stochastic(model)
        with mode_readers(model) as readers:
            program = export_program(model, args, kwargs)
        backwards = tuple(lost)
        lowered = lower(model, program)
        modes = training_arguments(model, args, kwargs, Traced.of(lowered, program), readers)
        size = _batch_size(flat)
        batched = [size > 1 and _is_batched(leaf, size) for leaf in flat]
        by_batch = batch_arguments(model, flat, spec, lowered.graph, batched)
    nodes = zip(lowered.inputs, batched, strict=True)
    return Capture(
        model=model,
        graph=lowered.graph,
        tensors=lowered.tensors,
        aliases=lowered.aliases,
        example_inputs=example_inputs,
        example_kwargs=example_kwargs,
        in_spec=cast(pytree.TreeSpec, program.call_spec.in_spec),
        out_spec=cast(pytree.TreeSpec, program.call_spec.out_spec),
        batched=frozenset(node.name for node, wide in nodes if wide),
        by_batch=by_batch,
        notes=(*backwards, *modes.notes),
        mode_args=modes.values,
        tiled=_batch_size(pytree.tree_leaves((example_inputs, example_kwargs))) != size,
    )


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0


def _is_batched(leaf: Any, size: int) -> bool:
    return _has_rows(leaf) and leaf.shape[0] == size


def _batch_size(flat: list[Any]) -> int:
    """Dim 0 of the first tensor that has one; 0 where none has."""
    return next((leaf.shape[0] for leaf in flat if _has_rows(leaf)), 0)


def _tile_batch(flat: list[Any]) -> list[Any]:
    """Repeat inputs of batch 1; the same list where the batch is not 1."""
    if _batch_size(flat) != 1:
        return flat
    return [torch.cat([leaf, leaf]) if _is_batched(leaf, 1) else leaf for leaf in flat]
