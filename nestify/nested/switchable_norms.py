"""BatchNorms of their own for chosen subnets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from nestify.errors import NestifyWarning, UsageError
from nestify.graph.graph import Graph
from nestify.space import Subnet, Unit
from nestify.support.module_tree import counter, made_like, put_tensor

__all__ = ["NORM_TENSORS", "SWITCH", "SwitchableNorms", "check_norms", "norm_tensor_names"]

SWITCH = "switchable_norms"  # the name of the submodule


NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def check_norms(norms: SwitchableNorms | None, state: Mapping[str, Any], prefix: str) -> None:
    """Refuse a state dict with norms of other subnets under ``prefix``, and warn of norms that the
    model has no place for: whether these are an error, torch decides by ``strict``.

    Raises:
        UsageError: they are of others.
    """
    saved = state.get(f"{prefix}sizes")
    if norms is not None:
        norms.check(state, prefix)
    elif isinstance(saved, torch.Tensor):
        warnings.warn(
            f"the state dict has norms of the subnets {saved.tolist()}, sizes of the units in the "
            "order of their names, and this model has none: call switch_norms with these subnets "
            "before loading",
            NestifyWarning,
            stacklevel=2,
        )


class SwitchableNorms(nn.Module):
    """Norms of their own, weights and statistics, for each of a few subnets."""

    sizes: torch.Tensor

    def __init__(
        self, graph: Graph, tensors: Mapping[str, torch.Tensor], subnets: Sequence[Subnet]
    ) -> None:
        super().__init__()
        self.subnets = tuple(dict.fromkeys(subnets))
        if len(self.subnets) < 2:
            raise UsageError(f"norms switch between two subnets at least; got {list(subnets)}")
        names = list(norm_tensor_names(graph, NORM_TENSORS))
        if not names:
            raise UsageError("the model has no BatchNorm whose tensors could switch")
        # A norm that averages over all batches weighs each by the number of its own ones.
        counts = [counter(mean) for mean in norm_tensor_names(graph, ["running_mean"])]
        names += [name for name in counts if name in tensors]
        self._keys = {name: name.replace(".", ":") for name in names}
        for i in range(len(self.subnets)):
            holder = nn.Module()
            for name, key in self._keys.items():
                put_tensor(holder, key, made_like(tensors[name], tensors[name].detach().clone()))
            self.add_module(str(i), holder)
        # Saved with the norms, which fit no other subnets than these.
        sizes = [list(subnet.values()) for subnet in self.subnets]
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.int64))

    def check(self, state: Mapping[str, Any], prefix: str) -> None:
        """Refuse a state dict with the norms of other subnets under ``prefix``.

        Raises:
            UsageError: they are of others.
        """
        saved = state.get(f"{prefix}sizes")
        if isinstance(saved, torch.Tensor) and not torch.equal(saved.cpu(), self.sizes.cpu()):
            units = ", ".join(self.subnets[0])
            raise UsageError(
                f"the state dict has norms of the subnets {saved.tolist()}, sizes of {units}; this "
                f"model switches among {self.sizes.tolist()}: call switch_norms with the subnets "
                "of then, before loading"
            )

    def of(self, subnet: Subnet) -> dict[str, torch.Tensor]:
        """The norms of ``subnet``; none, and a warning, where it is not among the chosen ones."""
        if subnet not in self.subnets:
            warnings.warn(
                f"norms switch among the subnets {[dict(s) for s in self.subnets]}, and one that "
                "is none of them runs on the shared norms, which training does not change since: "
                "name it in switch_norms, too",
                NestifyWarning,
                stacklevel=2,
            )
            return {}
        holder = self.get_submodule(str(self.subnets.index(subnet)))
        return {name: getattr(holder, key) for name, key in self._keys.items()}

    @property
    def unit(self) -> Unit:
        """The choice among the subnets as a unit, to be drawn like one."""
        return Unit("switch", "level", len(self.subnets), draw="uniform")


def norm_tensor_names(graph: Graph, arguments: Sequence[str]) -> Iterator[str]:
    """The tensors of batch norms, each once."""
    found = dict.fromkeys(
        str(source.target)
        for call in graph.calls.values()
        if call.op == "batch_norm"
        for argument in arguments
        if isinstance(source := call.args.get(argument), fx.Node) and source.op == "get_attr"
    )
    yield from found
