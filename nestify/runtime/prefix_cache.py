"""Evaluations that start in the middle: what a subnet shares with one that ran before on the same
inputs is not computed again.

A candidate of a search differs from its parent only from some layer on. What crosses a cut before
that layer is the same, bit for bit, if the inputs, the sizes of all that comes before the cut and
the tensors read there are: so it is kept, and another evaluation starts with it. Nothing is copied;
what is kept is forgotten as soon as it, or a tensor of the model, is written into.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from nestify.graph.memory import written_operands
from nestify.runtime.batch_statistics import BatchStatistics, CallStatistics
from nestify.runtime.prefix_cuts import Cuts, Mark
from nestify.runtime.prefix_store import Inputs, State, States, storages_of
from nestify.runtime.run import Run, Slices
from nestify.runtime.tensor_identity import UNCHANGED, Look, Weights, look_at, twin

__all__ = ["Reuse"]


class Reuse:
    """What evaluations keep for each other; made by :meth:`nestify.NestedModel.reusing`.

    Attributes:
        hits: passes that started at a cut.
        misses: passes that found nothing to start with.
        steps_run: the calls that these passes made.
        steps_skipped: the calls that they left out.
    """

    def __init__(self, cuts: Cuts, limit_bytes: int) -> None:
        self.cuts, self.states = cuts, States(limit_bytes)
        self.weights = Weights(cuts.first_reads)
        self.writers = {node for node in cuts.slots if any(written_operands(node))}
        self.hits = self.misses = self.steps_run = self.steps_skipped = 0
        self._slices: tuple[Hashable, Slices] = None, Slices()

    @property
    def bytes_held(self) -> int:
        """What is kept now, copies of inputs included; without the slices of the latest subnet."""
        return self.states.bytes_held

    def forget(self) -> None:
        """Drop all that is kept."""
        self.states.drop_where(lambda _: True)
        self.weights = Weights(self.cuts.first_reads)
        self._slices = None, Slices()

    def run(
        self,
        run: Run,
        flat: Sequence[Any],
        tokens: Mapping[str, Hashable],
        norms: BatchStatistics | None = None,
    ) -> list[Any]:
        """The flat outputs of a pass on the inputs ``flat``; ``tokens`` tell the tensors that its
        subnet has of its own apart from others.

        With ``norms`` BatchNorms run on the statistics of the batch, which are noted there.
        """
        if run.in_training:
            self.forget()  # norms write their statistics without a sign
            return run.finish()
        # Whoever counts or changes calls by a mode of torch means to see all of them.
        plain = torch.is_grad_enabled() or is_in_torch_dispatch_mode()
        look = None if plain else look_at(flat)
        changed = None if look is None else self.weights.first_change(run.root)
        if look is None or changed is None:
            return run.finish()
        if changed != UNCHANGED:
            self.states.drop_where(lambda state: state.place >= changed)
        kind = run.bound, run.turned, torch.is_inference_mode_enabled()
        if changed != UNCHANGED or self._slices[0] != kind:
            self._slices = kind, Slices()
        run.slices = self._slices[1]
        return _Pass(self, run, look, tokens, norms).outputs()


class _Pass:
    """One pass: starts at the last cut whose state is known, and keeps those of the cuts behind."""

    def __init__(
        self,
        reuse: Reuse,
        run: Run,
        look: Look,
        tokens: Mapping[str, Hashable],
        norms: BatchStatistics | None,
    ) -> None:
        self.reuse, self.states, self.run, self.norms = reuse, reuse.states, run, norms
        self.look, self.inputs = look, reuse.states.inputs(look)
        self.marks = reuse.cuts.of(run.bound)
        reads = reuse.cuts.first_reads
        self.tokens = sorted((reads[name], name, tokens[name]) for name in run.own if name in reads)
        self.given = storages_of(look.tensors).keys()
        self.moments: list[CallStatistics] = []
        self.storages: dict[int, int] = {}  # of these moments and of the inputs
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def outputs(self) -> list[Any]:
        """Run; what is handed out is no memory that is read again."""
        behind = self._start()
        skipped = self.run.at
        walk, writers = self.run.walk(), self.reuse.writers
        while True:
            try:
                node, args, _ = next(walk)
            except StopIteration as done:
                outputs = done.value
                break
            if self.run.at in behind:
                self._keep(behind[self.run.at])
            if node in writers and not self._may_write(args[0]):
                behind = {}
        self.reuse.steps_skipped += skipped
        self.reuse.steps_run += self.run.at - skipped
        return [self._handed_out(value) for value in outputs]

    def _start(self) -> dict[int, Mark]:
        """Go to the last cut whose state is known; returns the cuts behind by their steps."""
        for i in reversed(range(len(self.marks) if self.inputs is not None else 0)):
            state = self.states.get((self.inputs, self._key(self.marks[i])))
            if state is not None:
                self.reuse.hits += 1
                self.run.resume(self.marks[i].step, state.values)
                if self.norms is not None:
                    self.norms.batch.extend(state.moments)
                return {mark.step: mark for mark in self.marks[i + 1 :]}
        self.reuse.misses += 1
        return {mark.step: mark for mark in self.marks}

    def _key(self, mark: Mark) -> Hashable:
        """What beside the inputs decides the values that cross a cut."""
        read = bisect_right(self.tokens, mark.place, key=itemgetter(0))
        own = tuple(self.tokens[:read])
        return self.norms is not None, self.run.turned, mark.place, mark.slots, mark.sizes, own

    def _keep(self, mark: Mark) -> None:
        """Keep what crosses a cut as it is; only what lies in the caller's memory is copied."""
        key = self._key(mark)
        values = {slot: self.run.env[slot] for slot in mark.slots}
        if not self.states.wants((self.look.key, key)) or not all(map(_is_plain, values.values())):
            return
        if self.inputs is None:
            self.inputs = Inputs.copy(self.look)
        storages = dict(self._shared_storages(self.inputs))
        for slot, value in values.items():
            found = storages_of(value)
            if not self.given.isdisjoint(found):
                values[slot] = value = self._copied(value)
                found = storages_of(value)
            storages |= found
        for address in storages.keys() & self.reuse.weights.addresses:
            del storages[address]
        moments = tuple(self.moments)
        self.states.add(
            State((self.inputs, key), mark.place, self.inputs, values, moments, storages)
        )

    def _shared_storages(self, inputs: Inputs) -> Mapping[int, int]:
        """What every state of this pass holds from here on: the inputs and the moments so far."""
        if not self.storages:
            self.storages.update(storages_of(inputs.tensors))
        fresh = [] if self.norms is None else self.norms.batch[len(self.moments) :]
        for moments in fresh:
            self.moments.append(moments)
            self.storages |= storages_of(moments.rows)
        return self.storages

    def _copied(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return pytree.tree_map(self._copied, value)
        if not isinstance(value, torch.Tensor) or not storages_of(value).keys() & self.given:
            return value
        if id(value) not in self.copies:
            self.copies[id(value)] = value, twin(value)
        return self.copies[id(value)][1]

    def _may_write(self, target: Any) -> bool:
        """Forget what is about to be written over; False where it is the caller's or the model's:
        such a call must not be left out.
        """
        written = storages_of(target).keys()
        if any(map(self.states.holds, written)):
            self.states.drop_where(lambda state: bool(state.storages.keys() & written))
        return not written & (self.given | self.reuse.weights.addresses)

    def _handed_out(self, value: Any) -> Any:
        """The caller may write into what it gets, so it gets no memory of states or slices."""
        slices, weights = self.run.slices.addresses(), self.reuse.weights.addresses
        held = any(
            (address in slices and address not in weights) or self.states.holds(address)
            for address in storages_of(value)
        )
        return twin(value) if held and isinstance(value, torch.Tensor) else value


def _is_plain(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return all(map(_is_plain, value)) if isinstance(value, list | tuple) else True
    return type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided
