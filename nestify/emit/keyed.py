"""Names for the parts of containers whose library registered them with torch, but without keys."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

from torch.utils import _pytree as pytree

__all__ = ["keys_for_all"]

_Keyed = tuple[list[tuple[Any, Any]], Any]


@contextlib.contextmanager
def keys_for_all() -> Generator[None]:
    """Let every container that torch can flatten be flattened with keys, as exporters ask for:
    those of a mapping, else numbers.
    """
    registry: dict[Any, Any] = pytree.SUPPORTED_NODES
    before = {kind: node for kind, node in registry.items() if node.flatten_with_keys_fn is None}
    for kind, node in before.items():
        registry[kind] = node._replace(flatten_with_keys_fn=_with_keys(node.flatten_fn))
    try:
        yield
    finally:
        registry.update(before)


def _with_keys(flatten: Callable[[Any], tuple[list[Any], Any]]) -> Callable[[Any], _Keyed]:
    def keyed(value: Any) -> _Keyed:
        children, context = flatten(value)
        named = isinstance(value, Mapping) and len(cast(Mapping[Any, Any], value)) == len(children)
        keys: list[Any] = [pytree.SequenceKey(i) for i in range(len(children))]
        if named:
            keys = [pytree.MappingKey(key) for key in value]
        return list(zip(keys, children, strict=True)), context

    return keyed
