"""Tensors that a subnet has of its own, in place of those it shares with all others.

BatchNorm statistics that were re-estimated for it, norms that switch with the subnet (Yu et al.,
2019, slimmable networks), and weights that carry the factors of a scaling rule (FN3, section 3.2).
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from nestify.dims.selection import Plan, put
from nestify.errors import UsageError
from nestify.graph.graph import Graph
from nestify.nested.mask_places import Place, stretched, weights_behind
from nestify.nested.switchable_norms import NORM_TENSORS, SwitchableNorms, norm_tensor_names
from nestify.runtime.tensor_identity import digest
from nestify.space import SearchSpace, Subnet
from nestify.space.draw_laws import keep_probabilities
from nestify.support.module_tree import made_like, weights_in

__all__ = ["SCALINGS", "Overlays"]


SCALINGS = ("none", "expected", "conditional")
_LIMIT = 64


class Overlays:
    """What each subnet of a nested model has of its own."""

    def __init__(self, graph: Graph, space: SearchSpace) -> None:
        self.graph, self.space = graph, space
        self.scaling = "none"
        self._statistics: OrderedDict[Subnet, Mapping[str, torch.Tensor]] = OrderedDict()
        self._tokens: dict[Subnet, Mapping[str, Hashable]] = {}
        self._written = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Overlays:
        """Copy the statistics and share the analysis, which never changes."""
        twin = copy.copy(self)
        twin._statistics = copy.deepcopy(self._statistics, memo)
        twin._tokens = dict(self._tokens)
        return twin

    def of(
        self,
        subnet: Subnet | None,
        training: bool,
        tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]],
        switch: SwitchableNorms | None,
        statistics: bool = True,
    ) -> dict[str, torch.Tensor]:
        """The tensors to use instead of those of the same name, in their full shapes.

        Without ``statistics`` none that were estimated for the subnet. None is a subnet of other
        positions than the first, which has no tensors of its own.

        Raises:
            UsageError: it would need some.
        """
        if subnet is None:
            self._refuse_positions(switch)
            return {}
        own = {} if switch is None else switch.of(subnet)
        if not training:
            own |= self._statistics.get(subnet, {}) if statistics else {}
            if self.scaling != "none":
                own |= self._scaled(subnet, dict(tensors()))
        return own

    def tokens(
        self, subnet: Subnet, switch: SwitchableNorms | None, statistics: bool = True
    ) -> dict[str, Hashable]:
        """What tells the tensors in eval apart from those of the same name that others have.

        Scaled weights are told apart by the rule alone: what else they depend on are shared tensors
        and the sizes of their own units.
        """
        tokens: dict[str, Hashable] = {}
        if self.scaling != "none":
            tokens |= dict.fromkeys(
                (str(p.node.target) for p in self._weights_behind), self.scaling
            )
        if switch is not None and subnet in switch.subnets:
            tokens |= dict.fromkeys(switch.of(subnet), switch.subnets.index(subnet))
        if statistics:
            tokens |= self._tokens.get(subnet, {})
        return tokens

    def choose_scaling(self, rule: str) -> None:
        """Set the rule that is used in eval."""
        if rule not in SCALINGS:
            raise UsageError(f"scaling must be one of {', '.join(SCALINGS)}; got {rule!r}")
        if rule != "none":
            _ = self._weights_behind  # or an error that names the unit
        self.scaling = rule

    @cached_property
    def _weights_behind(self) -> list[Place]:
        return weights_behind(self.graph, self.graph.width_names)

    def _scaled(
        self, subnet: Subnet, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Weights that multiply each activation by how often training kept it.

        ``expected`` takes beta_m = P(c >= m), ``conditional`` P(c >= m given c <= the size that is
        deployed): (M + 1 - m) / M and (c + 1 - m) / c under uniform draws.
        """
        found: dict[str, torch.Tensor] = {}
        for place in self._weights_behind:
            weight, dim = str(place.node.target), place.dim
            most = subnet[place.unit] if self.scaling == "conditional" else None
            often = keep_probabilities(self.space.by_name[place.unit], most)
            table = self.graph.moves[place.unit][dim]
            keep = torch.tensor([often[bisect_right(table, m) - 1] for m in range(dim.size)])
            factors = stretched(place.expr, {dim: keep})
            base = found.get(weight, tensors[weight])
            shape = [-1 if i == place.position else 1 for i in range(base.ndim)]
            scaled = base.detach() * factors.to(base).view(shape)
            found[weight] = made_like(base, scaled)
        return found

    def _refuse_positions(self, switch: SwitchableNorms | None) -> None:
        if self.scaling != "none":
            raise UsageError(
                f"scaling={self.scaling!r} scales by how often training kept the first positions, "
                "and says nothing of others; extract by sizes, or set scaling to 'none'"
            )
        if switch is not None:
            raise UsageError(
                "norms switch with the sizes of a subnet, and there are none for positions other "
                f"than the first; extract one of the subnets {[dict(s) for s in switch.subnets]}, "
                "or a nested model without switch_norms"
            )

    # --- statistics -------------------------------------------------------------------------------

    @cached_property
    def _averaged(self) -> list[str]:
        return list(norm_tensor_names(self.graph, NORM_TENSORS[2:]))

    def forget(self) -> None:
        """Drop all statistics: the weights change from now on."""
        self._statistics.clear()
        self._tokens.clear()

    def follow(self, root: nn.Module, *, same: bool = False) -> None:
        """Drop the statistics where the weights were written since: without train(), as an average
        of weights is. ``same``: they are a copy of those of before.
        """
        if self._statistics or same:
            self._see(root, same=same)

    def _see(self, root: nn.Module, *, same: bool = False) -> None:
        """Note how often the weights were written; where that is new, what was estimated before
        goes, unless they are the ``same``.
        """
        written = sum(
            0 if weight.is_inference() else weight._version for weight in weights_in(root)
        )
        if written != self._written and not same:
            self.forget()
        self._written = written

    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change the statistics as the model's own tensors are: to another dtype or device."""
        with torch.no_grad():
            for subnet, found in self._statistics.items():
                self._statistics[subnet] = {name: fn(value) for name, value in found.items()}

    def has_statistics(self, subnet: Subnet) -> bool:
        """Whether statistics of ``subnet`` are kept."""
        return subnet in self._statistics

    def note(
        self,
        root: nn.Module,
        subnet: Subnet,
        plans: Mapping[str, Plan],
        full: Mapping[str, torch.Tensor],
        own: Mapping[str, torch.Tensor],
    ) -> None:
        """Note the statistics in ``own`` that were just estimated for the weights that ``root`` has
        now, cut as ``plans`` say.
        """
        self._see(root)
        found: dict[str, torch.Tensor] = {}
        with torch.inference_mode(False):  # they may serve a call with gradients later
            for name in self._averaged:
                if name in own:
                    found[name] = full[name].detach().clone()
                    put(found[name], plans[name], own[name].detach())
        self._statistics[subnet] = found
        self._statistics.move_to_end(subnet)
        self._tokens[subnet] = {name: digest(own[name]) for name in found}
        if len(self._statistics) > _LIMIT:
            oldest, _ = self._statistics.popitem(last=False)
            del self._tokens[oldest]
