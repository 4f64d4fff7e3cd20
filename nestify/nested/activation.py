"""What ``activate`` returns: in a ``with`` block the subnet of before comes back at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

__all__ = ["Activation"]


class Activation(Generic[T]):
    """Gives ``model`` to the block, and calls ``restore`` when it is left.

    >>> left = []
    >>> with Activation("model", lambda: left.append(True)) as model:
    ...     print(model, left)
    model []
    >>> left
    [True]
    """

    def __init__(self, model: T, restore: Callable[[], object]) -> None:
        self._model, self._restore = model, restore

    def __enter__(self) -> T:
        return self._model

    def __exit__(self, *exc: object) -> None:
        self._restore()
