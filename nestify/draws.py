"""Which subnet a training step runs: laws of the draw, and the stream that they read.

A step's random numbers depend on a seed and the number of the step, on nothing else. So every rank
of a distributed run draws the same subnet without a word, and a run that is resumed goes on where
it stopped. FN3 draws every size uniformly and independently (section 3: p(c) = 1/M); then narrow
networks are hardly ever seen whole, so the default here is a mixture: an eighth of the steps train
the full network, half of them one share of all widths, most others shares up to twice or half of
one, and a few draw every width by itself, so that all sizes are met.
"""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.utils import checkpoint

from nestify.errors import UsageError
from nestify.space import Subnet, Unit

__all__ = ["BUFFER", "DRAWS", "Draws", "draw_subnet", "keep_probabilities"]

_C: Any = vars(torch)["_C"]  # graph tasks and hooks of autograd have no public names

BUFFER = "_draws"
_KEY = "nestify.draws"
_MASK = (1 << 63) - 1  # what an int64 buffer holds
_CHECK = 0x5EED
_RECENT = 32
_COINS = 32  # what a law reads of the coin are so many parts
_GRID = 16  # numbers a choice, from which probabilities are counted
_GOLDEN = (math.sqrt(5) - 1) / 2


class _Numbers(NamedTuple):
    """Numbers in [0, 1) of one step: two that all units share, and the unit's own."""

    coin: float
    shared: float
    own: float


def _uniform(unit: Unit, number: float) -> int:
    choices = unit.choices
    return choices[int(number * len(choices))]


def _log_uniform(unit: Unit, number: float) -> int:
    """Every doubling of the size is as likely as the next; the size is rounded down to a choice."""
    shift = 0 if unit.minimum else 1  # blocks may all be dropped: their sizes start at 0
    least, most = unit.minimum + shift, unit.size + unit.step + shift
    size = least * (most / least) ** number - shift
    return unit.choices.at_most(size)


def _mixture(unit: Unit, numbers: _Numbers) -> int:
    """The full size, one share of all units over four octaves, shares within an octave of one, or
    sizes of their own.
    """
    if numbers.coin < 4 / 32:
        return unit.size
    if numbers.coin >= 31 / 32:
        return _log_uniform(unit, numbers.own)
    near = (numbers.own - 1 / 2) / 2 if numbers.coin >= 20 / 32 else 0.0
    number = min(max(numbers.shared + near, 0.0), math.nextafter(1.0, 0.0))
    return (_uniform if unit.kind == "layer" else _four_octaves)(unit, number)


def _four_octaves(unit: Unit, number: float) -> int:
    """From a sixteenth of the full size on, where every doubling is as likely as the next."""
    return unit.choices.at_most(math.ceil(unit.size * 2.0 ** (-4 * (1 - number))))


DRAWS: Mapping[str, Callable[[Unit, _Numbers], int]] = {
    "uniform": lambda unit, n: _uniform(unit, n.own),
    "log-uniform": lambda unit, n: _log_uniform(unit, n.own),
    "shared-uniform": lambda unit, n: _uniform(unit, n.shared),
    "shared-log-uniform": lambda unit, n: _log_uniform(unit, n.shared),
    "mixture": _mixture,
}


def draw_subnet(units: Sequence[Unit], numbers: random.Random) -> Subnet:
    """Draw one size a unit, each by the law of its ``draw``.

    >>> draw_subnet([Unit("a", "channel", 8, draw="uniform")], random.Random(0))
    Subnet({'a': 4})
    """
    coin, shared = numbers.random(), numbers.random()
    return Subnet(
        {
            unit.name: DRAWS[unit.draw](unit, _Numbers(coin, shared, numbers.random()))
            for unit in units
        }
    )


def keep_probabilities(unit: Unit, most: int | None = None) -> list[float]:
    """How often a draw keeps each position of ``unit``, of the draws of at most ``most``.

    >>> keep_probabilities(Unit("a", "channel", 4, draw="uniform"))
    [1.0, 0.75, 0.5, 0.25]
    """
    # A lattice: each of the two numbers takes every value once, and neither tells of the other.
    count = len(unit.choices) * _GRID
    stride = next(n for n in range(round(count * _GOLDEN), 0, -1) if math.gcd(n, count) == 1)
    pairs = [((i + 0.5) / count, (i * stride % count + 0.5) / count) for i in range(count)]
    coins = [(i + 0.5) / _COINS for i in range(_COINS)]
    law = DRAWS[unit.draw]
    sizes = [law(unit, _Numbers(coin, *pair)) for pair in pairs for coin in coins]
    drawn = Counter(size for size in sizes if most is None or size <= most)
    below = accumulate(drawn[m] for m in range(unit.size))
    return [1 - less / drawn.total() if drawn else 0.0 for less in below]


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
