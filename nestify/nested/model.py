"""The nested model: an ordinary ``nn.Module`` that runs any subnet on slices of its weights.

In ``train()`` each forward draws a subnet; in ``eval()`` it runs the active one, the largest by
default. Slices are views, so gradients reach the full parameters. Extraction cuts the same slices:
``nested(x)`` under a subnet equals ``extract(subnet)(x)``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.capture.batches import call_of
from nestify.capture.train_mode import modes_in_training
from nestify.dims.selection import Keep
from nestify.emit.module.extract import emit, module_tree
from nestify.emit.module.original_class import as_original_class as in_original_class
from nestify.graph.cost import Column, Costs, Pricing
from nestify.graph.graph import Graph
from nestify.graph.select import columns_of, keep_of, sizes_of
from nestify.nested.activation import Activation
from nestify.nested.batch_norm import norm_calls, reestimate_batch_norm
from nestify.nested.draw_stream import BUFFER, Draws
from nestify.nested.latency import measured_latencies
from nestify.nested.masked import MaskedModel
from nestify.nested.own_tensors import Overlays
from nestify.nested.refit import refitted
from nestify.nested.state_dict import note_beside_tensors
from nestify.nested.switchable_norms import SWITCH, SwitchableNorms
from nestify.nested.verify import verify_extracted
from nestify.runtime.batch_statistics import BatchStatistics, NormCall
from nestify.runtime.bound import Bound
from nestify.runtime.bound_cache import AHEAD, Bindings
from nestify.runtime.prefix_cache import Reuse
from nestify.runtime.prefix_cuts import Cuts
from nestify.runtime.program import Program
from nestify.runtime.run import Run
from nestify.space import SearchSpace, Subnet, Unit
from nestify.support.adopted_tree import AdoptedTree
from nestify.support.module_state import in_eval
from nestify.support.module_tree import (
    copy_weights,
    device_of,
    find,
    get_tensor,
    put_tensor,
    refuse_names,
    tensors_of,
)
from nestify.support.torch_compile import uncompiled

__all__ = ["NestedModel"]


class NestedModel(AdoptedTree):
    """A family of networks in one set of weights; made by :func:`nestify.transform`.

    >>> import nestify
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> nested = nestify.transform(net, "fn3-neuron", example_inputs=(torch.randn(1, 4),))
    >>> with nested.activate(nestify.Subnet({"0": 3})):
    ...     _ = nested.eval()(torch.randn(5, 4))
    >>> nested.extract(nestify.Subnet({"0": 3})).get_submodule("0")
    Linear(in_features=4, out_features=3, bias=True)
    """

    def __init__(self, graph: Graph, units: Sequence[Unit], recipe: str) -> None:
        super().__init__()
        self.graph = graph
        self.recipe = recipe
        self.space = SearchSpace(tuple(units))
        self._groups = {group.name: group for group in graph.groups}
        self.drawn: Subnet | None = None
        self._overlays = Overlays(graph, self.space)
        self._active: Subnet | None = None
        self._program = Program(graph)
        self._bindings = Bindings(self._program)
        self._reuse: Reuse | None = None
        self._in_training = modes_in_training(graph.capture.model)
        tree: nn.Module = module_tree(graph)
        refuse_names(tree, (BUFFER, SWITCH), "a nested model")
        put_tensor(tree, BUFFER, torch.zeros(3, dtype=torch.int64), persistent=False)
        self.draws = Draws(vars(tree)["_buffers"])
        self.adopt(tree)
        note_beside_tensors(self)
        self.training = graph.capture.model.training

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """The positional inputs that the model was captured with, as the model is now."""
        return self.graph.capture.example_for(self)[0]

    @property
    def example_kwargs(self) -> dict[str, Any]:
        """The keyword inputs that the model was captured with, as the model is now."""
        return self.graph.capture.example_for(self)[1]

    def train(self, mode: bool = True) -> NestedModel:
        """Set the mode; modules that the original's own ``train`` keeps in eval stay there."""
        super().train(mode)
        if mode:
            self.forget()
        for path, trains in self._in_training.items():
            find(self, path).training = mode and trains
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Change all tensors, as ``to`` and ``double`` do; statistics of subnets follow."""
        self._overlays.follow(self)
        super()._apply(fn, recurse)
        vars(self).pop("pricing", None)  # bytes follow the dtype
        self._overlays.apply(fn)
        self._overlays.follow(self, same=True)
        return self

    def forget(self) -> None:
        """Drop everything that was derived from the weights before they changed."""
        self._overlays.forget()
        if self._reuse is not None:
            self._reuse.forget()

    # --- running ----------------------------------------------------------------------------------

    # What a draw changes is no tensor: compile MaskedModel, whose graph is one for all draws.
    @uncompiled()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run a drawn subnet in training, the active one in eval, on inputs as the original's."""
        flat = self._program.flat(args, kwargs)
        subnet = self.subnet_of_call(flat)
        return pytree.tree_unflatten(self._pass(subnet, flat), self.graph.capture.out_spec)

    def _pass(
        self, subnet: Subnet, flat: list[Any], norms: BatchStatistics | None = None
    ) -> list[Any]:
        """The flat outputs of ``subnet``; with ``norms`` on the statistics of this batch."""
        bound = self._bind(subnet, self._program.batch_size(flat))
        own = self.own_tensors(subnet, training=self.training, statistics=norms is None)
        run = Run(self, bound, flat, own, {} if norms is None else norms.calls)
        if self._reuse is None:
            return run.finish()
        tokens = self._overlays.tokens(subnet, self.switchable_norms, norms is None)
        return self._reuse.run(run, flat, tokens, norms)

    def subnet_of_call(self, inputs: Iterable[Any]) -> Subnet:
        """The subnet that a forward on these inputs runs: in training a new draw."""
        fixed = self._active
        if fixed is None and not self.training:
            fixed = self.space.largest()
        return self.draws.for_call(inputs, fixed, self.draw)

    def draw(self) -> Subnet:
        """Draw the subnet of a training step; forwards in training do so by themselves."""
        self.drawn = self._meant(self.draws.next(self._drawable))
        return self.drawn

    @property
    def _drawable(self) -> tuple[Unit, ...]:
        switch = self.switchable_norms
        return self.space.units if switch is None else (switch.unit,)

    def _meant(self, drawn: Subnet) -> Subnet:
        switch = self.switchable_norms
        return drawn if switch is None else switch.subnets[drawn[switch.unit.name] - 1]

    def _bind(self, subnet: Subnet, batch: int) -> Bound:
        drawn = self.training and subnet == self.drawn
        return self._bindings.of(self, subnet, batch, self.keep, self._upcoming if drawn else tuple)

    def _upcoming(self) -> list[Subnet]:
        return [self._meant(drawn) for drawn in self.draws.upcoming(self._drawable, AHEAD)]

    def own_tensors(
        self, subnet: Subnet | None, *, training: bool = False, statistics: bool = True
    ) -> dict[str, torch.Tensor]:
        """The tensors that ``subnet`` has of its own, by name; None is one of other positions."""
        shared, switch = self.named_tensors, self.switchable_norms
        if statistics and not training:
            self._overlays.follow(self)
        return self._overlays.of(subnet, training, shared, switch, statistics)

    @property
    def switchable_norms(self) -> SwitchableNorms | None:
        """The norms that :meth:`switch_norms` made, or None."""
        found = self._modules.get(SWITCH)
        return found if isinstance(found, SwitchableNorms) else None

    def switch_norms(self, subnets: Sequence[Mapping[str, int] | float]) -> SwitchableNorms:
        """Give each of these subnets BatchNorms of its own, and draw in training among them only.

        Subnets are sizes by unit, or shares as for ``space.at``. The norms are new parameters:
        call this before making the optimizer.

        Raises:
            UsageError: fewer than two subnets, or a model without BatchNorm.
        """
        tensors = dict(self.named_tensors())
        made = SwitchableNorms(self.graph, tensors, [self._chosen(s) for s in subnets])
        self._modules[SWITCH] = made
        self.forget()
        return made.train(self.training)

    def _chosen(self, subnet: Mapping[str, int] | float) -> Subnet:
        by_share = isinstance(subnet, int | float)
        return self.space.at(subnet) if by_share else self.space.complete(subnet)

    @property
    def scaling(self) -> str:
        """The test rule: ``none``, ``expected`` or ``conditional``; training is never scaled."""
        return self._overlays.scaling

    @scaling.setter
    def scaling(self, rule: str) -> None:
        self._overlays.choose_scaling(rule)

    def masked(self, *, before_norm: bool = False) -> MaskedModel:
        """This model's network run by the paper's literal masks, on the same parameters.

        ``before_norm`` puts the masks at the layers' own outputs, ahead of norm and activation.

        Raises:
            UsageError: an op takes statistics over a unit, which masks would change.
        """
        return MaskedModel(self, before=before_norm)

    def calibrate(self, subnet: Mapping[str, int], batches: Iterable[Any]) -> None:
        """Re-estimate BatchNorm statistics for ``subnet``, which runs and is extracted with them.

        They are kept until training goes on; of many subnets, those of the latest 64. Inputs that
        the model was captured with by keyword lie in a dict behind the others.
        """
        whole = self.space.complete(subnet)
        keep = self.keep(whole)
        norms = BatchStatistics(self._norms, keep)
        device, keywords = device_of(self), self.graph.capture.example_kwargs
        with in_eval(self), torch.no_grad():
            for batch in batches:
                self._pass(whole, self._program.flat(*call_of(batch, device, keywords)), norms)
                norms.close_batch()
        own, averages = self.own_tensors(whole, statistics=False), norms.averages_of_batches()
        full = {name: own.get(name, get_tensor(self, name)) for name in averages}
        self._overlays.note(self, whole, self._program.plans(keep), full, averages)

    def is_calibrated(self, subnet: Mapping[str, int]) -> bool:
        """Whether :meth:`calibrate` has statistics of ``subnet``."""
        self._overlays.follow(self)
        return self._overlays.has_statistics(self.space.complete(subnet))

    def forget_statistics(self) -> None:
        """Drop what :meth:`calibrate` estimated: subnets run with the model's own statistics."""
        self._overlays.forget()

    @contextlib.contextmanager
    def reusing(self, *, limit_bytes: int = 1 << 30, turned: bool = False) -> Generator[Reuse]:
        """In a ``with`` block, evaluations on inputs that were seen start where they first differ.

        Works in eval without gradients, for all calls and :meth:`calibrate`; results are the same
        bit for bit, or where images are ``turned``, which run with channels last on a CPU, but for
        rounding. Tensors of the model that change are noticed, but not through ``.data`` or NumPy.

        >>> import nestify
        >>> net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))
        >>> nested = nestify.transform(net, "fn3-neuron", (torch.ones(1, 8),))
        >>> with torch.no_grad(), nested.eval().reusing() as reuse:
        ...     for size in (8, 6, 4):
        ...         with nested.activate({"2.0": size}):
        ...             _ = nested(torch.ones(5, 8))
        >>> reuse.hits, reuse.misses
        (2, 1)
        """
        before, self._reuse = self._reuse, Reuse(self.cuts, limit_bytes)
        try:
            with self._bindings.turning(turned):
                yield self._reuse
        finally:
            self._reuse.forget()
            self._reuse = before

    @cached_property
    def cuts(self) -> Cuts:
        """Where evaluations of this model may start in the middle."""
        return Cuts(self._program)

    def activate(self, subnet: Mapping[str, int] | None) -> Activation[NestedModel]:
        """Run ``subnet`` from now on, or inside a ``with`` block; None goes back to the default.

        Raises:
            UsageError: the subnet names an unknown unit or a size out of the unit's range.
        """
        before = self._active
        self._active = None if subnet is None else self.space.complete(subnet)
        return Activation(self, partial(self.activate, before))

    @property
    def active(self) -> Subnet:
        """The subnet that ``eval()`` runs."""
        return self._active or self.space.largest()

    # --- subnets ----------------------------------------------------------------------------------

    def keep(self, subnet: Mapping[str, Any]) -> Keep:
        """What ``subnet`` keeps of every Dim: its first positions, or an explicit index set."""
        return keep_of(self.graph, self._groups, self.space, subnet)

    def extract(
        self,
        subnet: Mapping[str, Any],
        calibrate: Iterable[Any] | None = None,
        *,
        refit: bool = False,
        as_original_class: bool = False,
        verify: bool = True,
    ) -> Any:
        """Build one subnet as a plain, physically smaller GraphModule.

        ``subnet`` maps units to sizes, or groups to positions to keep (lists or tensors), for which
        there are no scaling, no norms that switch and no calibrated ones, as these are of sizes.
        ``calibrate`` gives batches of inputs, or (inputs, labels), to re-estimate BatchNorms from;
        with ``refit`` convolutions and linear layers, too, are corrected to follow the whole
        network on them. ``as_original_class`` gives the user's own class back where it can hold the
        slices. Dropout, stochastic depth and BatchNorm of the result follow its mode; what else the
        mode decides (the dropout of attention) stays as in eval.

        Raises:
            UsageError: an unknown unit, a size or position out of range; a refit without batches.
            VerificationError: the result differs from this model under the same subnet.
        """
        keep, whole = self.keep(subnet), sizes_of(self.space, subnet)
        own = self.own_tensors(whole, statistics=not refit)
        if refit:
            own |= refitted(self, self._program, self._norms, keep, calibrate, own)
        tensors = dict(self.named_tensors()) | own
        slim = emit(self.graph, tensors, keep)
        if verify:
            verify_extracted(self, self._program, keep, slim, own)
        if calibrate is not None and not refit:
            reestimate_batch_norm(slim, calibrate, self.graph.capture.example_kwargs)
            if whole is not None:
                found = dict(slim.named_buffers())
                self._overlays.note(self, whole, self._program.plans(keep), tensors, found)
        if as_original_class:
            captured = self.graph.capture
            return in_original_class(captured.model, slim, *captured.example_for(self))
        return slim

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter, buffer and constant, tied ones under each of their names."""
        return tensors_of(self)

    def estimate(
        self,
        subnets: Sequence[Mapping[str, int]] | Mapping[str, Column],
        target: str | None = None,
        convention: str = "torch",
    ) -> Costs:
        """Costs of many subnets (a list, or columns of sizes by unit) as NumPy columns.

        ``target`` adds the measured ``latency_ms``.
        """
        columns, count = columns_of(self.graph, self.space, subnets)
        costs = self.pricing.costs(columns, count, convention)
        if target is None:
            return costs
        extract, call = partial(self.extract, verify=False), self.graph.capture.example_for(self)
        return costs._replace(latency_ms=measured_latencies(extract, subnets, target, call))

    @cached_property
    def _norms(self) -> Mapping[fx.Node, NormCall]:
        return norm_calls(self.graph)

    @cached_property
    def pricing(self) -> Pricing:
        """The cost terms of the graph, set up once."""
        return Pricing(self.graph, self.graph.capture.dtypes_in(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> NestedModel:
        """Copy the weights and share the analysis, which never changes."""
        self._overlays.follow(self)
        memo[id(self.graph)] = self.graph
        lazy = (vars(self).get(name) for name in ("pricing", "cuts", "_norms"))
        for value in (self._groups, self._program, self._bindings, *lazy):
            memo[id(value)] = value
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        copy_weights(self, memo)
        own = self.__dict__ | {"_reuse": None}
        twin.__dict__ = {key: copy.deepcopy(value, memo) for key, value in own.items()}
        twin._overlays.follow(twin, same=True)
        return twin
