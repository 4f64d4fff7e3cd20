"""Draw one subnet a training step, the same on every rank and after a restart."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import distributed
from torch.utils import checkpoint

from nestify.errors import UsageError
from nestify.space import Subnet, Unit
from nestify.space.draw_laws import draw_subnet

__all__ = ["BUFFER", "Draws"]


_C: Any = vars(torch)["_C"]  # graph tasks and hooks of autograd have no public names
BUFFER = "_draws"
_KEY = "nestify.draws"
_MASK = (1 << 63) - 1  # what an int64 buffer holds
_CHECK = 0x5EED
_RECENT = 32


class _Forwards:
    """Subnets that ran on one input: the latest, and those that checkpoints will recompute."""

    def __init__(self) -> None:
        self._latest: Subnet | None = None
        self._waiting: list[Subnet] = []

    def note(self, subnet: Subnet) -> None:
        self._latest = subnet
        hooks = _C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is not None and hooks[0].__module__ == checkpoint.__name__:
            self._waiting.append(subnet)

    def recomputed(self) -> Subnet | None:
        if len(set(self._waiting)) > 1:
            raise UsageError(
                "two subnets ran on one input, each in a checkpoint, before either's backward, "
                "which cannot tell them apart: run backward between them, or give each an input of "
                "its own, such as x.clone()"
            )
        return self._waiting.pop() if self._waiting else self._latest


class Draws:
    """The stream of drawn subnets: ``seed`` and ``step`` say all about what comes next.

    The seed is torch's when the stream is made, and ``torch.manual_seed`` starts the stream anew.
    In a distributed run it does not, as ranks are often seeded differently for their data: there
    all ranks must have the same seed when the nested model is made, or be wrapped in DDP, which
    hands the state of rank 0 to all with the other buffers. ``buffers`` are those of the model.

    >>> draws = Draws()
    >>> draws.restart(seed=3)
    >>> draws.next([Unit("a", "channel", 8)]), draws.step
    (Subnet({'a': 3}), 1)
    """

    def __init__(self, buffers: Mapping[str, torch.Tensor | None] | None = None) -> None:
        self.seed = torch.initial_seed() & _MASK
        self.step = 0
        self._resumed = False
        self._agreed = False
        self._recent: OrderedDict[tuple[int, ...], _Forwards] = OrderedDict()
        self._drawn: dict[tuple[int, int], Subnet] = {}
        self._units: Sequence[Unit] = ()
        self._buffers = {} if buffers is None else buffers
        self._write()

    def next(self, units: Sequence[Unit]) -> Subnet:
        """Draw the subnet of the next step."""
        if not _several_ranks():
            self._follow_manual_seed()
        elif not self._agreed:
            self._read()
        (subnet,) = self.upcoming(units, 1)
        del self._drawn[self.seed, self.step]
        self.step += 1
        if not self._agreed:
            self._write()
        return subnet

    def upcoming(self, units: Sequence[Unit], count: int) -> list[Subnet]:
        """The subnets of the next ``count`` steps, which are not taken by that.

        >>> draws, units = Draws(), [Unit("a", "channel", 8)]
        >>> draws.upcoming(units, 3) == [draws.next(units) for _ in range(3)]
        True
        """
        if units is not self._units:
            self._units = units
            self._drawn.clear()
        steps = [(self.seed, self.step + i) for i in range(count)]
        for seed, step in steps:
            if (seed, step) not in self._drawn:
                numbers = random.Random(f"{seed}/{step}")
                self._drawn[seed, step] = draw_subnet(units, numbers)
        return [self._drawn[step] for step in steps]

    def for_call(
        self, inputs: Iterable[Any], fixed: Subnet | None, draw: Callable[[], Subnet]
    ) -> Subnet:
        """The subnet of one forward: ``fixed`` or a new one, or that of before where a checkpoint
        recomputes it.

        ``torch.utils.checkpoint`` runs a forward again inside of backward, on the same inputs.

        Raises:
            UsageError: a draw is wanted inside of backward, on inputs of no forward before, or of
                several that wait for theirs.
        """
        key = tuple(t.data_ptr() for t in inputs if isinstance(t, torch.Tensor))
        # The only sign of a recomputation that both kinds of checkpoint give.
        if _C._current_graph_task_id() != -1:
            known = self._recent.get(key)
            found = fixed if known is None else known.recomputed()
            if found is None:
                raise UsageError(
                    "a checkpoint recomputes the nested model on inputs that it cannot know again, "
                    "so it would run another subnet than before; checkpoint the nested model "
                    "itself, or call nested.draw() first and activate that subnet inside of what "
                    "is checkpointed"
                )
            return found
        subnet = draw() if fixed is None else fixed
        self._recent.setdefault(key, _Forwards()).note(subnet)
        self._recent.move_to_end(key)
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return subnet

    def _follow_manual_seed(self) -> None:
        """Start anew where torch was seeded and has drawn nothing since; one number is drawn from
        it, so that this is seen once.
        """
        seed = torch.initial_seed()
        if torch.equal(torch.default_generator.get_state(), _seeded(seed)):
            torch.rand(())
            if not self._resumed:
                self.seed, self.step = seed & _MASK, 0
                self._drawn.clear()
        self._resumed = False

    def restart(self, seed: int, step: int = 0) -> None:
        """Go on as a stream of this seed does at this step.

        Raises:
            UsageError: a seed or step that is no int, or is negative.
        """
        given: dict[str, Any] = {"seed": seed, "step": step}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} of the draws must be an int, 0 or more; got {value!r}")
        self.seed, self.step, self._resumed, self._agreed = seed & _MASK, step, True, False
        self._drawn.clear()
        self._write()

    def state_dict(self) -> dict[str, int]:
        """The seed and the step, for a checkpoint."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a stream with that :meth:`state_dict` stopped."""
        self.restart(state["seed"], state["step"])

    # --- among ranks ------------------------------------------------------------------------------

    def _write(self) -> None:
        """Put the state into the buffer that DDP hands around."""
        buffer = self._buffers.get(BUFFER)
        values = [self.seed, self.step, self.seed ^ self.step ^ _CHECK]
        if buffer is not None and not buffer.is_meta:
            buffer.copy_(torch.tensor(values), non_blocking=True)

    def _read(self) -> None:
        """Take the state that DDP copied from rank 0; memory that nobody wrote is left alone."""
        self._agreed = True
        buffer = self._buffers.get(BUFFER)
        if buffer is not None and not buffer.is_meta:
            seed, step, check = buffer.tolist()
            if check == seed ^ step ^ _CHECK:
                self.seed, self.step = seed, step
                self._drawn.clear()

    # --- a module's state dict --------------------------------------------------------------------

    def save_to(self, metadata: dict[str, Any]) -> None:
        """Write the state beside the version that torch notes of each module in a state dict.

        There, and not under a key, it changes no key set: the original's state dict loads into the
        nested model and the other way round.
        """
        metadata[_KEY] = self.state_dict()

    def load_from(self, metadata: Mapping[str, Any]) -> None:
        """Read what :meth:`save_to` wrote; a state dict of another model changes nothing."""
        if _KEY in metadata:
            self.load_state_dict(metadata[_KEY])


@lru_cache(maxsize=4)
def _seeded(seed: int) -> torch.Tensor:
    """The state of a generator that was just seeded."""
    return torch.Generator().manual_seed(seed).get_state()


def _several_ranks() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
