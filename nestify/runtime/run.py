"""One pass over the steps of a program: any subnet on slices of the full tensors of a module tree.

A pass may start in the middle, given the values that cross that place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from itertools import islice
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from nestify.capture.autocast import Block, inside
from nestify.dims.selection import Plan
from nestify.rules import STOCHASTIC, bind_arguments, op_name
from nestify.runtime.bound import Bound, Cut
from nestify.runtime.channels_last import (
    channels_last,
    contiguous,
    is_contiguous_map,
    merged_groups,
    run_in_order,
)
from nestify.runtime.steps import Read, Slot, Step, trains
from nestify.support.module_tree import counter, find, get_tensor, submodule

__all__ = ["Run", "Slices", "copied", "hand_on", "run_of"]


Special = Callable[[list[Any]], Any]
Copy = tuple[Read, Plan, torch.Tensor]
_MAP = 4  # dims of a map
_NONE: Mapping[Any, Any] = MappingProxyType({})


class Slices:
    """What passes of one subnet leave for the next: slices of what is shared by all subnets, by
    slot in ``of_tensors``, and weights of convolutions whose groups were ``merged``, with the
    slices that these were made of.
    """

    def __init__(self) -> None:
        self.of_tensors: dict[int, torch.Tensor] = {}
        self.merged: dict[int, tuple[torch.Tensor, tuple[torch.Tensor, int]]] = {}
        self._addresses: set[int] = set()
        self._located = 0

    def addresses(self) -> Set[int]:
        """Where the memory of ``of_tensors`` lies, of which none is replaced."""
        fresh = islice(self.of_tensors.values(), self._located, None)
        self._addresses.update(value.untyped_storage().data_ptr() for value in fresh)
        self._located = len(self.of_tensors)
        return self._addresses


class Run:
    """One pass on the tensors of ``root``, each module of it in the mode that it has now.

    ``own`` has tensors, by name and of the full size, to use instead; ``special`` runs the calls of
    some nodes, given their arguments, in place of the ops. ``slices`` holds what an earlier pass
    left. ``at`` is the index of the next step, ``env`` holds the values by slot, ``in_training``
    says whether any call runs as in training.
    """

    def __init__(
        self,
        root: nn.Module,
        bound: Bound,
        flat: Sequence[Any],
        own: Mapping[str, torch.Tensor] = _NONE,
        special: Mapping[fx.Node, Special] = _NONE,
    ) -> None:
        self.root, self.bound, self.frame = root, bound, bound.frame
        self.own, self.special = own, special
        self.slices = Slices()
        self.modes = self.frame.modes(root)
        self.in_training = any(self.modes)
        self.at = 0
        self.device = next((v.device for v in flat if isinstance(v, torch.Tensor)), None)
        self.env: list[Any] = [None] * len(self.frame.slots)
        self.env += [self.device, *bound.sizes]
        self.turned = bound.channels_last and any(map(is_contiguous_map, flat))
        for node, value in zip(self.frame.inputs, flat, strict=True):
            self.env[self.frame.slots[node]] = channels_last(value) if self.turned else value

    def resume(self, at: int, values: Mapping[int, Any]) -> None:
        """Start at step ``at``, given the values by slot that are made before it."""
        self.at = at
        for slot, value in values.items():
            self.env[slot] = value

    def walk(self) -> Generator[tuple[fx.Node, list[Any], dict[str, Any]], None, list[Any]]:
        """Run, and stop before each call with its node and its arguments; returns the flat outputs.

        What a caller writes into the tensors of ``root`` while it stops there, or puts in the place
        of an argument, is what runs.
        """
        root, bound, frame, env = self.root, self.bound, self.frame, self.env
        copies = self._read_tensors()
        in_training = self.in_training
        for step in bound.line.steps[self.at :]:
            args, kwargs = step.args, step.kwargs
            if in_training and step.in_training is not None and trains(root, step.path):
                args, kwargs = step.in_training
            args = [env[a.at] if a.__class__ is Slot else _fill(a, env) for a in args]
            kwargs = {name: _fill(arg, env) for name, arg in kwargs.items()} if kwargs else {}
            yield step.node, args, kwargs
            if step.node in frame.blocks:
                with inside(self.placed(frame.blocks[step.node])):
                    env[step.out] = self._value(step, args, kwargs)
            else:
                env[step.out] = self._value(step, args, kwargs)
            for slot in step.frees:
                env[slot] = None
            self.at += 1
        return self._outputs(copies, [_fill(value, env) for value in frame.outputs])

    def _outputs(self, copies: list[Copy], values: list[Any]) -> list[Any]:
        """The flat outputs; what calls wrote into copies of buffers goes back into these."""
        for read, plan, value in copies:
            self.bound.write_back(self._full(read.name), read, plan, value)
        return [contiguous(value) for value in values] if self.turned else values

    def _value(self, step: Step, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if step.node in self.special:
            return self.special[step.node](args)
        if self.turned and step.node in self.frame.ordered:
            orders = self.frame.ordered[step.node]
            return run_in_order(step.node, orders, step.run, args, kwargs)
        if step.run is step.node.target:
            return step.run(*args, **kwargs)
        return step.run(self, step, args)

    def placed(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks of autocast, those without a type of devices on that of the inputs."""
        home = "cpu" if self.device is None else self.device.type
        return [
            block if block.device_type else block._replace(device_type=home) for block in blocks
        ]

    def finish(self) -> list[Any]:
        """Run to the end; the flat outputs."""
        line = None if self.at or self.special else self.bound.line.function()
        if line is not None:
            copies = self._read_tensors()
            values = line.function(turned=self.turned)(self, self.env, self.modes)
            return self._outputs(copies, values)
        walk = self.walk()
        while True:
            try:
                next(walk)
            except StopIteration as done:
                return done.value

    def _full(self, name: str) -> torch.Tensor:
        return self.own[name] if name in self.own else get_tensor(self.root, name)

    def _read_tensors(self) -> list[Copy]:
        """Put slices of what is read from here on in its slots; returns copies that are written."""
        bound, env, own, ready = self.bound, self.env, self.own, self.slices.of_tensors
        line, writes = bound.line, self.frame.written
        first = line.steps[self.at].out if self.at else 0
        modules = line.modules(self.root)
        for read, owner, cut in zip(line.tensors, line.owners, bound.cuts, strict=True):
            if read.last < first:
                continue
            if (value := ready.get(read.out)) is None:
                full = own.get(read.name) if own else None
                shared = full is None and read.node not in writes
                if full is None:
                    full = modules[owner][read.registry].get(read.leaf)
                value = self._sliced(
                    get_tensor(self.root, read.name) if full is None else full, cut
                )
                if shared:
                    ready[read.out] = value
            env[read.out] = value
        return self._copies(first)

    def _sliced(self, full: torch.Tensor, cut: Cut) -> torch.Tensor:
        if cut.sizes:  # most are
            value = full.as_strided(cut.sizes, full.stride())
        else:
            value = cut.of(full) if cut.plan else full
        return channels_last(value) if self.turned else value

    def _copies(self, first: int) -> list[Copy]:
        """The slices from slot ``first`` on that calls write into and that are copies."""
        found: list[Copy] = []
        for i in self.bound.line.written(in_training=self.in_training):
            read, cut = self.bound.line.tensors[i], self.bound.cuts[i]
            is_copy = not cut.is_view or (self.turned and len(read.dims) == _MAP)
            if is_copy and read.last >= first:
                found.append((read, cut.plan, self.env[read.out]))
        return found


def _fill(arg: Any, env: list[Any]) -> Any:
    if arg.__class__ is Slot:
        return env[arg.at]
    if isinstance(arg, list | tuple) and not isinstance(arg, torch.Size):
        return [_fill(item, env) for item in cast(Sequence[Any], arg)]
    return arg


# --- calls that need their module -----------------------------------------------------------------


def _batch_norm(run: Run, step: Step, args: list[Any]) -> torch.Tensor:
    """In training a BatchNorm counts its batches, and may average over all of them."""
    x, weight, bias, mean, var, training, momentum, eps, _ = args
    owner: Any = submodule(run.root, step.path) if training and mean is not None else None
    if isinstance(owner, _BATCH_NORMS):
        momentum = owner.momentum
        own = counter(str(bind_arguments(step.node)["running_mean"].target)) if run.own else ""
        counted = run.own.get(own, owner.num_batches_tracked)
        if counted is not None:
            counted.add_(1)
            momentum = 1.0 / float(counted) if momentum is None else momentum
    if mean is None:  # a weight that is standardised may be one value wide: it becomes its bias
        return torch.batch_norm(x, weight, bias, mean, var, training, 0.0, eps, args[-1])
    return F.batch_norm(x, mean, var, weight, bias, training, momentum or 0.0, eps)


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _in_groups(run: Run, step: Step, args: list[Any]) -> torch.Tensor:
    x, weight, *others, groups = args
    if run.turned and not torch.is_grad_enabled():
        known = run.slices.merged.get(step.out)
        if known is None or known[0] is not weight:
            known = run.slices.merged[step.out] = weight, merged_groups(weight, groups)
        weight, groups = known[1]
    target: Any = step.node.target
    return target(x, weight, *others, groups)


_GROUPS = 6  # the place of the groups among the arguments of a convolution, the last one


def _stochastic(run: Run, step: Step, args: list[Any]) -> torch.Tensor:
    return find(run.root, args[1])(args[0])


def hand_on(run: Run, step: Step, args: list[Any]) -> Any:
    """Give the first argument itself."""
    return args[0]


def copied(run: Run, step: Step, args: list[Any]) -> torch.Tensor:
    """Give the first argument in memory of its own."""
    return args[0].clone()


def _view(run: Run, step: Step, args: list[Any]) -> torch.Tensor:
    """A slice of a parameter is not contiguous: what is viewed whole may need a copy here."""
    source, shape = args
    if isinstance(shape, torch.Tensor):
        return source.reshape(shape.shape)
    return source.reshape(shape) if isinstance(shape, list | tuple) else source.view(shape)


def _paired(run: Run, step: Step, args: list[Any]) -> torch.Tensor:
    """A slice may start between the two values of a pair: then they need a place of their own."""
    (source,) = args
    odd = source.storage_offset() % 2 or any(stride % 2 for stride in source.stride()[:-1])
    return torch.view_as_complex(
        source.clone(memory_format=torch.contiguous_format) if odd else source
    )


def _recurrent(run: Run, step: Step, args: list[Any]) -> Any:
    """On a GPU cuDNN packs the weights as views of one row each, which a slice has not."""
    packed = [[t.contiguous() for t in cast(Any, a)] if isinstance(a, list) else a for a in args]
    target: Any = step.node.target
    return target(*packed)


_RUNS: dict[str, Callable[..., Any]] = {
    STOCHASTIC: _stochastic,
    "batch_norm": _batch_norm,
    "view": _view,
    "view_as": _view,
    "view_as_complex": _paired,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}


def run_of(node: fx.Node) -> Callable[..., Any]:
    """What runs a call: its op, or one of these in its place, which take the positional arguments.

    >>> run_of(fx.Graph().call_function(torch.ops.aten.relu.default))
    <OpOverload(op='aten.relu', overload='default')>
    """
    name, target = op_name(node.target), cast(Callable[..., Any], node.target)
    if name == "conv2d" and len(node.args) > _GROUPS:
        return _in_groups
    return _RUNS.get(name, target)
