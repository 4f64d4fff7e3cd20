"""The paper's literal masks: the full network, with zeros where a subnet has nothing.

The same function as running sliced, at the price of the full network. It is what FN3 describes, so
it serves for comparison; and it is one graph of one shape, so ``torch.compile`` compiles it once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import fx, nn

from nestify.dims import Dim
from nestify.dims.selection import Keep
from nestify.emit.module.extract import emit
from nestify.graph.graph import Graph
from nestify.graph.liveness import sums_of_blocks
from nestify.nested.mask_places import Place, after_activation, before_norm, stretched
from nestify.nested.masked_buffers import Absent, Held
from nestify.space import Subnet
from nestify.support.module_tree import put_tensor, refuse_names, tensors_of
from nestify.support.torch_compile import uncompiled

__all__ = ["MaskedModel", "OrderedDropout"]


class OrderedDropout(nn.Module):
    """One ODO unit in the graph: zeros in place of what is removed; ``mask`` has a 1 per kept one.

    >>> odo = OrderedDropout(torch.ones(4), 1)
    >>> odo.mask.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    tensor([1., 1., 0., 0.])
    >>> odo(torch.ones(1, 4, 1))[0, :, 0]
    tensor([1., 1., 0., 0.])
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor, position: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.position = position

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mask dim ``position``, sample by sample where it holds the batch too; a mask of one
        element masks all of ``x``.
        """
        shape = [1] * x.ndim
        # A copy: the next forward writes its own mask, which may be before this one's backward.
        mask = self.mask.to(x.dtype, copy=True)
        if self.position < x.ndim:
            shape[self.position] = -1
            if 1 < len(mask) < x.shape[self.position]:
                mask = mask.repeat(x.shape[self.position] // len(mask))
        return x * mask.view(shape)


class _Nested(Protocol):
    """What is read of a nested model, which knows this class itself."""

    training: bool

    @property
    def graph(self) -> Graph: ...
    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def train(self, mode: bool) -> Any: ...
    def keep(self, subnet: Mapping[str, Any]) -> Keep: ...
    def subnet_of_call(self, inputs: Iterable[Any]) -> Subnet: ...
    def own_tensors(self, subnet: Subnet, *, training: bool) -> dict[str, torch.Tensor]: ...


class MaskedModel(nn.Module):
    """A nested model's network with a mask per unit, on the nested model's own parameters.

    ``train()`` draws a subnet a forward from the same stream, ``eval()`` runs the active subnet;
    ``network`` is a GraphModule in whose code every unit is a visible call ``odo.<unit>``. Made by
    :meth:`nestify.NestedModel.masked`. As in an extracted network, what only the mode decides
    besides dropout and norms (the dropout of attention) stays as in eval.
    """

    def __init__(self, nested: _Nested, *, before: bool = False) -> None:
        super().__init__()
        self._nested = (nested,)  # no child: its parameters are this network's own
        graph = nested.graph
        self._places: list[tuple[OrderedDropout, Place]] = []
        self._blocks: list[tuple[OrderedDropout, Dim]] = []
        # Ahead of the norms masks make another network, whose norms are to see their zeros.
        self._absent = Absent(graph, positions=not before)
        self._held: list[Held] = []
        places = (before_norm if before else after_activation)(graph, graph.width_names)
        tensors = dict(nested.named_tensors())
        device = next(iter(tensors.values())).device

        def edit(emitted: fx.Graph, root: nn.Module, new: Mapping[fx.Node, fx.Node]) -> None:
            registry = nn.Module()
            for node, (block, stays) in sums_of_blocks(graph).items():
                odo = OrderedDropout(torch.ones(1, device=device), 0)
                self._blocks.append((odo, block.presence))
                branch = next(a for a in new[node].all_input_nodes if a is not new[stays])
                _insert(
                    emitted,
                    registry,
                    branch,
                    f"{block.name}.block{len(self._blocks)}",
                    odo,
                    only=new[node],
                )
            for place in places:
                operand = _operand(place, new)
                if operand is None:
                    continue  # the weight of a module, whose input has a mask
                odo = OrderedDropout(torch.ones(place.expr.size, device=device), place.position)
                self._places.append((odo, place))
                only = None if place.reader is None else new[place.reader]
                name = f"{place.unit}.{len(self._places)}"
                _insert(emitted, registry, operand, name, odo, only=only)
            refuse_names(root, ("odo",), "a masked model")
            root.add_module("odo", registry)

        self.network = emit(graph, tensors, Keep({}), edit)
        for name, _ in list(tensors_of(self.network)):  # tied ones by each of their names
            if name in tensors and not name.startswith("odo."):
                put_tensor(self.network, name, tensors[name])
        self.train(nested.training)

    @property
    def nested(self) -> _Nested:
        """The nested model whose parameters these are."""
        return self._nested[0]

    def train(self, mode: bool = True) -> MaskedModel:
        """Set the mode of this network and of the nested model."""
        super().train(mode)
        self.nested.train(mode)
        for path, module in self.network.named_modules():
            like = dict(self.nested.named_modules()).get(path)
            if like is not None:
                module.training = like.training
        return self

    # The network is compiled, not what says which subnet runs and puts back what that lacks.
    @uncompiled(recursive=False)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the drawn or the active subnet by masks."""
        own = self._set_masks(args)
        if own:
            outputs = torch.func.functional_call(self.network, own, args, kwargs)
        else:
            outputs = self.network(*args, **kwargs)
        if self.training:
            self._put_back()
        return outputs

    @uncompiled()
    def _set_masks(self, inputs: tuple[Any, ...]) -> dict[str, torch.Tensor]:
        """Show the subnet of this call; what it has of its own."""
        subnet = self.nested.subnet_of_call(inputs)
        self.show(subnet)
        own = self.nested.own_tensors(subnet, training=self.training)
        if self.training:
            tensors = dict(self.nested.named_tensors()) | dict(tensors_of(self.network)) | own
            self._held = list(self._absent.hold(self.nested.keep(subnet), tensors))
        return own

    @uncompiled()
    def _put_back(self) -> None:
        """Let what the subnet of this call lacks be what it was."""
        while self._held:
            self._held.pop().put_back()

    def show(self, subnet: Subnet) -> None:
        """Set the masks to those of ``subnet``."""
        keep = self.nested.keep(subnet)
        with torch.no_grad():
            for odo, place in self._places:
                dim = place.dim
                places = torch.arange(dim.size, device=odo.mask.device)
                kept = (places < keep.size(dim)).float()
                odo.mask.copy_(stretched(place.expr, {dim: kept}))
            for odo, presence in self._blocks:
                odo.mask.fill_(float(keep.size(presence)))

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedModel:
        """Copy the nested model and this network on it; share the analysis, which never changes."""
        analysed = [place for _, place in self._places] + [dim for _, dim in self._blocks]
        for value in (self._absent, *analysed):
            memo[id(value)] = value
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


def _operand(place: Place, new: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """What is to be masked at a place: behind masks of other units, if it has any there already."""
    made = new.get(place.node)
    if place.reader is None:
        return made
    for operand in new[place.reader].all_input_nodes:
        bare = operand
        while bare.op == "call_module" and str(bare.target).startswith("odo."):
            bare = bare.all_input_nodes[0]
        if bare is made or (bare.op, bare.target) == ("get_attr", place.node.target):
            return operand
    return None


def _insert(
    graph: fx.Graph,
    registry: nn.Module,
    node: fx.Node,
    name: str,
    odo: OrderedDropout,
    only: fx.Node | None = None,
) -> None:
    """Put a call of ``odo`` behind ``node``, for all that read it or for one."""
    path = name.replace(".", "_")
    registry.add_module(path, odo)
    with graph.inserting_after(node) if only is None else graph.inserting_before(only):
        call = graph.create_node("call_module", f"odo.{path}", (node,), name=f"odo_{path}")
    for user in [only] if only is not None else [u for u in node.users if u is not call]:
        user.replace_input_with(node, call)
