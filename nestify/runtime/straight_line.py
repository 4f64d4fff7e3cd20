"""The steps of a program as one Python function, a line a call.

An interpreter asks of every step where its arguments are and whether its module trains: where
kernels are small that costs as much as they do. All subnets with the same blocks share a function:
what differs between them, the slices and the sizes, it reads from the values by slot. Names in the
text are numbers of slots; ops and constants are handed in as globals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from nestify.capture.autocast import inside
from nestify.runtime.channels_last import run_in_order
from nestify.runtime.steps import Frame, Slot, Step

__all__ = ["StraightLine"]

_PLAIN = (bool, int, str, type(None))


class StraightLine:
    """Runs steps from the first to the last, with maps as they are or ``turned``.

    >>> import operator
    >>> from torch import fx
    >>> graph = fx.Graph()
    >>> node = graph.call_function(operator.add, (graph.placeholder("x"), 2))
    >>> step = Step(node, 1, "", operator.add, (Slot(0), 2), {}, None, ())
    >>> frame = Frame({}, [], [Slot(1)], {}, {}, {}, ())
    >>> line = StraightLine(frame, [step])
    >>> line.function(turned=False)(None, [40], [])
    [42]
    >>> print(line.text(turned=False))
    def run(run, env, trains):
        v1 = call0(env[0], 2)
        return [v1]
    """

    def __init__(self, frame: Frame, steps: Sequence[Step]) -> None:
        self._frame, self._steps = frame, steps
        self._made: dict[bool, Callable[..., list[Any]]] = {}

    def function(self, *, turned: bool) -> Callable[[Any, list[Any], Sequence[bool]], list[Any]]:
        """Takes a run, the values by slot, and whether each of the followed modules trains; gives
        the flat outputs.
        """
        if turned not in self._made:
            self._made[turned] = self._compiled(_Writer(self._frame, turned=turned))
        return self._made[turned]

    def text(self, *, turned: bool) -> str:
        """The source of the function."""
        return _Writer(self._frame, turned=turned).text(self._steps)

    def _compiled(self, writer: _Writer) -> Callable[..., list[Any]]:
        text = writer.text(self._steps)
        exec(compile(text, "<nestify: the steps of a subnet>", "exec"), writer.names)
        return writer.names["run"]


class _Writer:
    """Writes steps as source; ``names`` are the globals that it speaks of."""

    def __init__(self, frame: Frame, *, turned: bool) -> None:
        self.names: dict[str, Any] = {"inside": inside, "in_order": run_in_order}
        self._frame, self._turned = frame, turned
        self._modes = {path: i for i, path in enumerate(frame.followed)}
        self._known: dict[int, str] = {}
        self._local: set[int] = set()

    def text(self, steps: Sequence[Step]) -> str:
        lines = [line for step in steps for line in self._lines(step)]
        returned = f"return {self._listed(self._frame.outputs)}"
        return "\n    ".join(["def run(run, env, trains):", *lines, returned])

    def _lines(self, step: Step) -> Iterator[str]:
        call = f"v{step.out} = {self._call(step)}"
        blocks = self._frame.blocks.get(step.node)
        if blocks:
            yield f"with inside(run.placed({self._named('blocks', blocks)})):"
            yield f"    {call}"
        else:
            yield call
        self._local.add(step.out)
        gone = [f"v{slot}" for slot in step.frees if slot in self._local]
        if gone:
            yield f"{' = '.join(gone)} = None"

    def _call(self, step: Step) -> str:
        args, kwargs = self._arguments(step)
        given = ", ".join(args)
        if self._turned and step.node in self._frame.ordered:
            orders = self._named("orders", self._frame.ordered[step.node])
            node, run = self._named("node", step.node), self._named("call", step.run)
            return f"in_order({node}, {orders}, {run}, [{given}], {_dict(kwargs)})"
        if step.run is step.node.target:
            named = f", **{_dict(kwargs)}" if kwargs else ""  # one may be called `from`
            return f"{self._named('call', step.run)}({given}{named})"
        return f"{self._named('call', step.run)}(run, {self._named('step', step)}, [{given}])"

    def _arguments(self, step: Step) -> tuple[list[str], dict[str, str]]:
        args, kwargs = step.args, step.kwargs
        if step.in_training is None:
            return [self._value(arg) for arg in args], self._values(kwargs)
        trains = f"trains[{self._modes[step.path]}]"
        args_then, kwargs_then = step.in_training
        pairs = zip(args_then, args, strict=True)
        named = {name: (kwargs_then[name], kwargs[name]) for name in kwargs}
        return (
            [self._either(trains, *pair) for pair in pairs],
            {name: self._either(trains, *pair) for name, pair in named.items()},
        )

    def _either(self, condition: str, then: Any, otherwise: Any) -> str:
        a, b = self._value(then), self._value(otherwise)
        return a if a == b else f"{a} if {condition} else {b}"

    def _values(self, kwargs: Mapping[str, Any]) -> dict[str, str]:
        return {name: self._value(value) for name, value in kwargs.items()}

    def _value(self, value: Any) -> str:
        if isinstance(value, Slot):
            return f"v{value.at}" if value.at in self._local else f"env[{value.at}]"
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return self._listed(cast(Sequence[Any], value))  # fx has types of its own for lists
        return self._named("value", value)

    def _listed(self, values: Sequence[Any]) -> str:
        return f"[{', '.join(map(self._value, values))}]"

    def _named(self, kind: str, value: Any) -> str:
        if id(value) not in self._known:
            name = self._known[id(value)] = f"{kind}{len(self._known)}"
            self.names[name] = value
        return self._known[id(value)]


def _dict(sources: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{name!r}: {source}' for name, source in sources.items())}}}"
