"""What evaluations keep for each other, up to a limit of bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from nestify.runtime.batch_statistics import CallStatistics
from nestify.runtime.tensor_identity import Look, twin

__all__ = ["Inputs", "State", "States", "storages_of"]


_REMEMBERED = 1 << 16


@dataclass(eq=False)
class Inputs:
    """Inputs that were seen: copies of their own, and how many states belong to them."""

    key: Hashable
    tensors: Sequence[torch.Tensor]
    states: int = field(default=0, init=False)

    @classmethod
    def copy(cls, look: Look) -> Inputs:
        """Keep the inputs that were looked at."""
        return cls(look.key, [twin(tensor) for tensor in look.tensors])


@dataclass(eq=False)
class State:
    """What crosses a cut behind the slot ``place``: values by slot, and the statistics of the norms
    before it. ``storages`` gives the bytes at each address that it holds.
    """

    key: Hashable
    place: int
    inputs: Inputs
    values: Mapping[int, Any]
    moments: Sequence[CallStatistics]
    storages: Mapping[int, int]
    used: int = field(default=0, init=False)
    position: int = field(default=0, init=False)


class States:
    """States by their keys.

    Where they take more than ``limit_bytes``, the one of two drawn at random that was used longer
    ago goes. Dropping the oldest of all would leave nothing that is used again where one pass over
    the data is larger than the limit. Once that was so, a state is kept only when it is wanted for
    the second time: most of what a candidate has behind its own choice no other one will share.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.bytes_held = limit_bytes, 0
        self._random = random.Random(0)
        self._clock = 0
        self._inputs: dict[Hashable, list[Inputs]] = {}
        self._states: dict[Hashable, State] = {}
        self._order: list[State] = []
        self._held: dict[int, tuple[int, int]] = {}  # address -> bytes, states that hold it
        self._refused: dict[int, None] | None = None

    def __len__(self) -> int:
        return len(self._order)

    def inputs(self, look: Look) -> Inputs | None:
        """The inputs that were kept and hold the same bits."""
        known = self._inputs.get(look.key, ())
        return next((inputs for inputs in known if look.holds(inputs.tensors)), None)

    def get(self, key: Hashable) -> State | None:
        """The state under ``key``, which was used just now."""
        found = self._states.get(key)
        if found is not None:
            self._touch(found)
        return found

    def wants(self, name: Hashable) -> bool:
        """Whether a state of that name should be kept; once there was no room, only one that was
        refused before.
        """
        if self._refused is None:
            return True
        name = hash(name)
        if name in self._refused:
            del self._refused[name]
            return True
        self._refused[name] = None
        if len(self._refused) > _REMEMBERED:
            del self._refused[next(iter(self._refused))]
        return False

    def holds(self, address: int) -> bool:
        """Whether some state keeps what lies there."""
        return address in self._held

    def add(self, state: State) -> None:
        """Keep a state, if there is room for it at all."""
        new = {a: size for a, size in state.storages.items() if a not in self._held}
        if state.key in self._states or sum(new.values()) > self.limit_bytes:
            return
        state.position = len(self._order)
        self._order.append(state)
        self._states[state.key] = state
        self._touch(state)
        if not state.inputs.states:
            self._inputs.setdefault(state.inputs.key, []).append(state.inputs)
        state.inputs.states += 1
        for address, size in state.storages.items():
            _, holders = self._held.get(address, (size, 0))
            self._held[address] = size, holders + 1
        self.bytes_held += sum(new.values())
        while self.bytes_held > self.limit_bytes:
            self._refused = {} if self._refused is None else self._refused
            drawn = self._random.choices(self._order, k=2)
            self.drop(min(drawn, key=lambda state: state.used))

    def drop(self, state: State) -> None:
        """Forget a state, and its inputs if it was the last one that belongs to them."""
        last = self._order.pop()
        if last is not state:
            self._order[state.position], last.position = last, state.position
        del self._states[state.key]
        for address in state.storages:
            size, holders = self._held.pop(address)
            if holders > 1:
                self._held[address] = size, holders - 1
            else:
                self.bytes_held -= size
        state.inputs.states -= 1
        if not state.inputs.states:
            known = self._inputs[state.inputs.key]
            known.remove(state.inputs)
            if not known:
                del self._inputs[state.inputs.key]

    def drop_where(self, condition: Callable[[State], bool]) -> None:
        """Forget the states that meet a condition."""
        for state in [state for state in self._order if condition(state)]:
            self.drop(state)

    def _touch(self, state: State) -> None:
        self._clock += 1
        state.used = self._clock


def storages_of(values: Any) -> dict[int, int]:
    """Bytes by address of the memory that tensors lie in."""
    # Most values are one tensor, and pytree takes longer to say so than a small call to run.
    leaves = [values] if isinstance(values, torch.Tensor) else pytree.tree_leaves(values)
    found = (leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor))
    return {storage.data_ptr(): size for storage in found if (size := storage.nbytes())}
