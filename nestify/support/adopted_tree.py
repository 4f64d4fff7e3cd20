"""A module that holds the whole tree of another model beside attributes of its own."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from nestify.errors import UsageError
from nestify.support.module_tree import registries

__all__ = ["AdoptedTree"]


class AdoptedTree(nn.Module):
    """Its own attributes are set before it takes over a tree, whose children may share their
    names: those are found by path, in a state dict and in the registries.

    >>> class Counter(AdoptedTree):
    ...     def __init__(self, tree: nn.Module) -> None:
    ...         super().__init__()
    ...         self.count = 0
    ...         self.adopt(tree)
    >>> counter = Counter(nn.ModuleDict({"count": nn.Linear(2, 2)}))
    >>> counter.count += 1
    >>> counter.count, list(counter.state_dict())
    (1, ['count.weight', 'count.bias'])
    """

    def adopt(self, tree: nn.Module) -> None:
        """Take over the children and tensors of ``tree``."""
        vars(self).update(registries(tree))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute: one of its own before a child of that name."""
        if name in vars(self) or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __copy__(self) -> Self:
        """Share all that it holds; without this method copies are made as pickles are."""
        twin = self.__class__.__new__(self.__class__)
        vars(twin).update(vars(self))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled, as an analysed graph holds what torch cannot pickle.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"a {type(self).__name__} cannot be pickled, nor be saved whole by torch.save; save "
            "its state_dict(), and load that into what nestify.transform makes of the same model "
            "with the same recipe; what extract returns can be saved whole"
        )
