"""Filter groups: what ``root-N``, ``column-N`` and ``tree-N`` share (Deep Roots, section 3).

A spatial convolution gets filter groups, and the 1 x 1 convolution behind it, which mixes them,
makes the two a root module. The passes differ in how the number of groups goes with the stage.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from nestify.errors import NestifyWarning, UsageError
from nestify.graph.graph import Graph
from nestify.graph.groups import Change
from nestify.graph.rewriter import Rewriter
from nestify.passes.deep_roots.choose_blocks import Choice
from nestify.passes.deep_roots.group_map import GroupMap
from nestify.passes.deep_roots.grouped_weights import INITS, regroup
from nestify.passes.deep_roots.projection import project
from nestify.passes.deep_roots.spatial import Spatial, find_spatial
from nestify.passes.protocol import Data, Role
from nestify.support.arguments import check_fields, one_of, whole

__all__ = ["FilterGroups", "Grouping"]


@dataclass(frozen=True, slots=True)
class Grouping:
    """One decision: this convolution gets ``groups`` of them, of ``asked``; ``why`` where not.

    ``inserts`` says that a 1 x 1 convolution goes behind it.
    """

    conv: Spatial
    asked: int
    groups: int
    inserts: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class FilterGroups:
    """Groups the spatial convolutions of every stage; see the subclasses for how many.

    ``number`` is the N of the recipe. ``init`` is ``he`` (new weights, for the smaller fan-in),
    ``extract`` (the blocks of the dense kernel) or ``project`` (fitted to a trained network on
    ``calibration``, batches of inputs or (inputs, labels); the example inputs where there are
    none). ``embed`` says what to do where no 1 x 1 convolution follows: ``existing`` leaves the
    convolution as it is, ``insert`` adds one, ``none`` groups it all the same. ``groups`` sets
    single stages or modules: ``2:4;conv3:1``. ``sizes=free`` lets the groups of a layer differ in
    size, at no more MACs than equal ones (with ``project``).

    Raises:
        UsageError: an option out of range.
    """

    name: ClassVar[str]
    role: ClassVar[Role] = "rewrites"
    reads: ClassVar[frozenset[str]] = frozenset({"calibration"})
    number: int
    init: str = "he"
    embed: str = "existing"
    groups: str = ""
    sizes: str = "equal"

    def __post_init__(self) -> None:
        check_fields(
            self,
            f"pass {self.name}",
            number=whole(1),
            init=one_of(*INITS),
            embed=one_of("existing", "insert", "none"),
            sizes=one_of("equal", "free"),
        )
        if self.sizes == "free" and self.init != "project":
            raise UsageError("sizes=free needs init=project: data must say which sizes are good")
        GroupMap.parse(self.groups)

    def without_data(self) -> FilterGroups:
        """The pass that makes the same graph, its weights not fitted to data; sizes that are chosen
        from data are chosen from the example inputs.
        """
        fits = self.init == "project" and self.sizes == "equal"
        return replace(self, init="extract" if fits else self.init)

    def degree(self, stage: int) -> int:
        """How many filter groups the convolutions of a stage get; stages count from 0."""
        raise NotImplementedError

    def apply(self, graph: Graph, data: Data) -> Graph:
        """Group the convolutions of ``graph``.

        Raises:
            UsageError: there is nothing to group, or ``groups`` names nothing of the model.
        """
        edit = Rewriter(graph)
        plan = self.plan(graph)
        chosen = [step for step in plan if step.groups > 1]
        if not chosen:
            raise UsageError(self._nothing(plan))
        for text in _warnings(plan):
            warnings.warn(f"{self._recipe}: {text}", NestifyWarning, stacklevel=2)
        if self.init == "project":
            return self._projected(graph, plan, data)
        for step in chosen:
            regroup(edit, step.conv, step.groups, self.init, inserts=step.inserts)
        return edit.finish(tuple(self._change(step) for step in plan))

    def _projected(self, graph: Graph, plan: Sequence[Grouping], data: Data) -> Graph:
        chosen = {step.conv: step for step in plan if step.groups > 1}
        done = project(
            graph,
            {conv: step.groups for conv, step in chosen.items()},
            {conv.weight: step.inserts for conv, step in chosen.items()},
            data.calibration,
            free=self.sizes == "free",
        )
        few = [step.conv.name for step in plan if _starved(done.choices.get(step.conv.weight))]
        if few:
            text = f"{self._recipe}: fewer calibration positions than weights of a filter in "
            text += f"{', '.join(few)}: the fit follows them, but may not follow other inputs; "
            warnings.warn(f"{text}pass more in calibration=", NestifyWarning, stacklevel=3)
        changes = [self._change(step, done.choices.get(step.conv.weight)) for step in plan]
        read = "example inputs" if data.calibration is None else "calibration data"
        left = f"; too wide to fit: {', '.join(done.unfitted)}" if done.unfitted else ""
        whole = (
            f"relative error of the outputs on the {read}: {done.error:.2e} "
            f"(plain block extraction: {done.plain_error:.2e}){left}"
        )
        return done.graph.with_changes((*changes, Change(self._recipe, "", whole)))

    def plan(self, graph: Graph) -> tuple[Grouping, ...]:
        """What would be done to each spatial convolution of ``graph``, in graph order."""
        convs = find_spatial(graph)
        overrides = GroupMap.parse(self.groups).resolve(convs)
        return tuple(self._decide(conv, overrides.get(conv.weight)) for conv in convs)

    def _decide(self, conv: Spatial, override: int | None) -> Grouping:
        asked = self.degree(conv.stage) if override is None else override
        groups = _largest_divisor(math.gcd(conv.inputs, conv.outputs), asked)
        grouping = Grouping(conv, asked, groups, inserts=False)
        if asked == 1:
            return grouping
        if conv.obstacle:
            return replace(grouping, groups=1, why=conv.obstacle)
        if groups == 1:
            why = f"no number of groups up to {asked} divides {conv.inputs} and {conv.outputs}"
            return replace(grouping, why=why)
        if not conv.mixed and self.embed == "existing":
            why = "no 1x1 convolution mixes its channels (embed=insert adds one)"
            return replace(grouping, groups=1, why=why)
        return replace(grouping, inserts=not conv.mixed and self.embed == "insert")

    def _change(self, step: Grouping, choice: Choice | None = None) -> Change:
        conv = step.conv
        if step.groups == 1:
            why = step.why or f"one group is what stage {conv.stage} gets"
            return Change(self._recipe, conv.name, f"left as it is: {why}", done=False)
        short = f" ({step.asked} asked)" if step.groups != step.asked else ""
        added = ", and a new 1x1 convolution behind them" if step.inserts else ""
        sizes = choice.sizes if choice else ()
        if len(set(sizes)) > 1:
            runs = ", ".join(f"{inputs} to {outputs}" for outputs, inputs in sizes)
            groups = f"{len(sizes)} filter groups ({step.asked} asked) of {runs} channels"
        else:
            groups = (
                f"{step.groups} filter groups{short} of {conv.inputs // step.groups} to "
                f"{conv.outputs // step.groups} channels"
            )
        fit = ""
        if choice:
            fit = f", error {choice.error:.2e} (plain block extraction: {choice.plain_error:.2e})"
        what = f"{groups}{added}; stage {conv.stage}, init={self.init}{fit}"
        return Change(self._recipe, conv.name, what)

    @property
    def _recipe(self) -> str:
        return self.name.replace("N", str(self.number))

    def _nothing(self, plan: Sequence[Grouping]) -> str:
        reasons = "; ".join(f"{s.conv.name}: {s.why}" for s in plan[:4] if s.why)
        found = f"{len(plan)} spatial convolution{'s' * (len(plan) != 1)} after the first"
        return f"{self._recipe} finds nothing to group among {found}" + (
            f": {reasons}" if reasons else "; a spatial one has kernel > 1 and one group"
        )


def _largest_divisor(number: int, most: int) -> int:
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _starved(choice: Choice | None) -> bool:
    return choice is not None and choice.rows < choice.unknowns


def _warnings(plan: Sequence[Grouping]) -> Iterator[str]:
    """What a user should know who asked for more groups than were made."""
    less = [s for s in plan if not s.why and s.groups != s.asked]
    if less:
        listed = ", ".join(f"{s.conv.name} {s.groups} instead of {s.asked}" for s in less)
        yield f"the largest numbers of groups that divide the channels are taken: {listed}"
    by_reason: dict[str, list[str]] = {}
    for step in plan:
        if step.why:
            by_reason.setdefault(step.why, []).append(step.conv.name)
    for why, names in by_reason.items():
        yield f"left as they are, since {why}: {', '.join(names)}"
