"""The nested model: an ordinary ``nn.Module`` that runs any subnet on slices of its weights.

In ``train()`` each forward draws a subnet; in ``eval()`` it runs the active one, the largest by
default. Every layer computes with views of the full tensors, so a smaller subnet costs less and
gradients land in the full parameters. The same literals and slices as :func:`nestify.extract.emit`
are used, so that ``nested(x)`` under a subnet equals ``extract(subnet)(x)``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.calibration import reestimate_batch_norm
from nestify.compare import relative_error
from nestify.cost import Costs, Pricing
from nestify.dims import Dim
from nestify.draws import Draws
from nestify.errors import UsageError, VerificationError
from nestify.extract import emit, module_tree
from nestify.groups import Block, DimGroup, Graph
from nestify.masked import MaskedModel
from nestify.modes import left_as_found, modes_in_training
from nestify.original import as_original_class
from nestify.overlays import Overlays, SwitchableNorms
from nestify.program import Program
from nestify.running import Bound
from nestify.slicing import Keep, check_positions
from nestify.space import SearchSpace, Subnet, Unit
from nestify.trees import find, tensors_of

__all__ = ["NestedModel"]

_CACHE = 64
_SWITCH = "switchable_norms"
_DRAWS = "_draws"  # the buffer by which DDP hands around what decides the draws
# Two orders of adding up the same numbers differ by less than this, relative to the largest output.
_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class NestedModel(nn.Module):
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
        self.draws = Draws()
        self.drawn: Subnet | None = None
        dims = {name: group.dim for name, group in self.unit_groups.items()}
        self._overlays = Overlays(graph, self.space, dims)
        self._active: Subnet | None = None
        self._programs: OrderedDict[tuple[Subnet, int, bool], Bound] = OrderedDict()
        self._program = Program(graph)
        self._in_training = modes_in_training(graph.capture.model)
        tree = module_tree(graph)
        for registry in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[registry] = vars(tree)[registry]
        self.register_buffer(_DRAWS, torch.zeros(3, dtype=torch.int64), persistent=False)
        self.draws.write(self.get_buffer(_DRAWS))
        self.register_state_dict_post_hook(_save_draws)
        self.register_load_state_dict_pre_hook(_load_draws)
        self.training = graph.capture.model.training

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """The positional inputs that the model was captured with."""
        return self.graph.capture.example_inputs

    @property
    def example_kwargs(self) -> dict[str, Any]:
        """The keyword inputs that the model was captured with."""
        return dict(self.graph.capture.example_kwargs)

    def train(self, mode: bool = True) -> NestedModel:
        """Set the mode; modules that the original's own ``train`` keeps in eval stay there."""
        super().train(mode)
        if mode:
            self._overlays.forget()  # they hold for the weights as they were
        for path, trains in self._in_training.items():
            find(self, path).training = mode and trains
        return self

    # --- running ----------------------------------------------------------------------------------

    # What a draw changes is no tensor: compile MaskedModel, whose graph is one for all draws.
    @torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]  # torch's own
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run a drawn subnet in training, the active one in eval, on inputs as the original's."""
        captured = self.graph.capture
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != captured.in_spec:
            raise UsageError(
                "inputs must have the structure of the example inputs, "
                f"{captured.in_spec}; got {spec}"
            )
        subnet = self.subnet_of_call(flat)
        steps = self._bind(subnet, self._program.batch_size(flat))
        values = self._program.run(self, steps, flat, self._own(subnet, self.training))
        return pytree.tree_unflatten(values, captured.out_spec)

    def subnet_of_call(self, inputs: Iterable[Any]) -> Subnet:
        """The subnet that a forward on these inputs runs: in training a new draw."""
        if self._active is not None:
            return self._active
        if not self.training:
            return self.space.largest()
        return self._note(self.draws.for_call(self._drawable, inputs, self.get_buffer(_DRAWS)))

    def draw(self) -> Subnet:
        """Draw the subnet of a training step; forwards in training do so by themselves."""
        return self._note(self.draws.next(self._drawable, self.get_buffer(_DRAWS)))

    @property
    def _drawable(self) -> tuple[Unit, ...]:
        switch = self.switchable_norms
        return self.space.units if switch is None else (switch.unit,)

    def _note(self, drawn: Subnet) -> Subnet:
        switch = self.switchable_norms
        self.drawn = drawn if switch is None else switch.subnets[drawn[switch.unit.name] - 1]
        return self.drawn

    def _bind(self, subnet: Subnet, batch: int) -> Bound:
        key = (subnet, batch, self.training)
        if key not in self._programs:
            self._programs[key] = self._program.bind(self.keep(subnet), batch, pad=self.training)
            if len(self._programs) > _CACHE:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def _own(self, subnet: Subnet, training: bool) -> dict[str, torch.Tensor]:
        """The tensors that ``subnet`` has of its own."""
        return self._overlays.of(subnet, training, self.named_tensors, self.switchable_norms)

    @property
    def unit_groups(self) -> dict[str, DimGroup]:
        """The group of each unit that is one: all but stacks of layers."""
        return {u.name: self._groups[u.name] for u in self.space.units if u.name in self._groups}

    @property
    def switchable_norms(self) -> SwitchableNorms | None:
        """The norms that :meth:`switch_norms` made, or None."""
        found = self._modules.get(_SWITCH)
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
        self._modules[_SWITCH] = made
        return made.train(self.training)

    def _chosen(self, subnet: Mapping[str, int] | float) -> Subnet:
        share = isinstance(subnet, int | float)
        return self.space.at(subnet) if share else self.space.complete(subnet)

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

        They are kept until training goes on; of many subnets, those of the latest 64.
        """
        self.extract(subnet, calibrate=batches, verify=False)

    def activate(self, subnet: Mapping[str, int] | None) -> _Activation:
        """Run ``subnet`` from now on, or inside a ``with`` block; None goes back to the default.

        Raises:
            UsageError: the subnet names an unknown unit or a size out of the unit's range.
        """
        before = self._active
        self._active = None if subnet is None else self.space.complete(subnet)
        return _Activation(self, before)

    @property
    def active(self) -> Subnet:
        """The subnet that ``eval()`` runs."""
        return self._active or self.space.largest()

    # --- subnets ----------------------------------------------------------------------------------

    def keep(self, subnet: Mapping[str, Any]) -> Keep:
        """What ``subnet`` keeps of every Dim: its first positions, or an explicit index set."""
        if all(isinstance(kept, int) for kept in subnet.values()):
            subnet = self.space.complete(subnet)
        sizes: dict[Dim, int] = {}
        picks: dict[Dim, torch.Tensor] = {}
        for name, kept in subnet.items():
            stack, group = self.graph.stacks.get(name), self._groups.get(name)
            if stack is not None:
                sizes |= _kept_blocks(name, stack, kept)
            elif group is None:
                self.space.validate({name: 1})
            elif isinstance(kept, int):
                sizes[group.dim] = _in_range(name, group.size, kept)
            else:
                picks[group.dim] = check_positions(name, group.size, kept)
        return Keep(sizes, picks)

    def extract(
        self,
        subnet: Mapping[str, Any],
        calibrate: Iterable[Any] | None = None,
        *,
        as_original_class: bool = False,
        verify: bool = True,
    ) -> Any:
        """Build one subnet as a plain, physically smaller GraphModule.

        ``subnet`` maps units to sizes, or groups to explicit positions to keep (a list or tensor).
        ``calibrate`` gives batches of inputs, or (inputs, labels), from which BatchNorm statistics
        are re-estimated. ``as_original_class`` gives the user's own class back where it can hold
        the slices. Dropout, stochastic depth and BatchNorm of the result follow its mode; what
        else the mode decides (the dropout of attention) stays as in eval.

        Raises:
            UsageError: an unknown unit, a size or position out of range.
            VerificationError: the result differs from this model under the same subnet.
        """
        keep = self.keep(subnet)
        counted = all(isinstance(size, int) for size in subnet.values())
        whole = self.space.complete(subnet) if counted else None
        own = {} if whole is None else self._own(whole, training=False)
        tensors = dict(self.named_tensors()) | own
        slim = emit(self.graph, tensors, keep)
        if verify:
            self._verify(slim, keep, own)
        if calibrate is not None:
            reestimate_batch_norm(slim, calibrate)
            if whole is not None:
                self._overlays.note(whole, keep, tensors, slim)
        if as_original_class:
            return _original(self, slim)
        return slim

    def _verify(self, slim: fx.GraphModule, keep: Keep, own: Mapping[str, torch.Tensor]) -> None:
        call = (self.example_inputs, self.example_kwargs)
        tensors = [t for t in pytree.tree_leaves(call) if isinstance(t, torch.Tensor)]
        if any(t.is_meta for t in (*tensors, *self.parameters())):
            return
        with left_as_found(self), torch.no_grad():  # the same random state for both
            self.eval()
            flat = pytree.tree_leaves(copy.deepcopy(call))
            bound = self._program.bind(keep, self._program.batch_size(flat))
            mine = self._program.run(self, bound, flat, own)
        with left_as_found(slim), torch.no_grad():
            args, kwargs = copy.deepcopy(call)
            theirs = pytree.tree_leaves(slim(*args, **kwargs))
        error = relative_error(mine, theirs)
        limit = max(
            (_LIMITS.get(t.dtype, 0.0) for t in (*tensors, *self.parameters())), default=0.0
        )
        if not error <= limit:
            raise VerificationError(
                f"the extracted model differs from the nested model by {error:.1e} relative "
                f"(limit {limit:g}); this is a defect of nestify: please report it with the model",
                error,
            )

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter, buffer and constant, tied ones under each of their names."""
        return tensors_of(self)

    def estimate(
        self,
        subnets: Sequence[Mapping[str, int]],
        target: str | None = None,
        convention: str = "torch",
    ) -> Costs:
        """Costs of many subnets as NumPy columns; ``target`` adds the measured ``latency_ms``."""
        for subnet in subnets:
            self.space.validate(subnet)
        columns: dict[Dim, NDArray[np.int64]] = {}
        for unit in self.space.units:
            column = np.array([s.get(unit.name, unit.size) for s in subnets], dtype=np.int64)
            stack = self.graph.stacks.get(unit.name)
            if stack is None:
                columns[self._groups[unit.name].dim] = column
            else:
                columns |= {b.presence: (column > i).astype(np.int64) for i, b in enumerate(stack)}
        costs = self.pricing.costs(columns, len(subnets), convention)
        if target is None:
            return costs
        from nestify.targets import load_target

        device = load_target(target)
        latency = [
            device.measure(self.extract(s, verify=False), self.example_inputs, self.example_kwargs)
            for s in subnets
        ]
        return costs._replace(latency_ms=np.array(latency))

    @cached_property
    def pricing(self) -> Pricing:
        """The cost terms of the graph, set up once."""
        return Pricing(self.graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> NestedModel:
        """Copy the weights and share the analysis, which never changes."""
        memo[id(self.graph)] = self.graph
        for value in (self._groups, self._program, self._programs, self.__dict__.get("pricing")):
            memo[id(value)] = value
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__ = {key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()}
        return twin


class _Activation:
    """What ``activate`` returns: leaving a ``with`` block restores the subnet of before."""

    def __init__(self, nested: NestedModel, before: Subnet | None) -> None:
        self.nested, self.before = nested, before

    def __enter__(self) -> NestedModel:
        return self.nested

    def __exit__(self, *exc: object) -> None:
        self.nested.activate(self.before)


def _save_draws(nested: NestedModel, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    nested.draws.save_to(metadata)


def _load_draws(
    nested: NestedModel, state: Any, prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    nested.draws.load_from(metadata)
    nested._overlays.forget()  # pyright: ignore[reportPrivateUsage]  # a hook of this class


def _original(nested: NestedModel, slim: fx.GraphModule) -> nn.Module:
    original = nested.graph.capture.model
    return as_original_class(original, slim, nested.example_inputs, nested.example_kwargs)


def _kept_blocks(name: str, stack: Sequence[Block], kept: Any) -> dict[Dim, int]:
    """The first blocks, or an explicit set of them."""
    if isinstance(kept, int):
        there = set(range(_in_range(name, len(stack), kept)))
    else:
        there = set(check_positions(name, len(stack), kept).tolist())
    return {block.presence: int(i in there) for i, block in enumerate(stack)}


def _in_range(name: str, full: int, size: int) -> int:
    if not 1 <= size <= full:
        raise UsageError(f"size {size} of group {name!r} is out of range 1..{full}")
    return size
