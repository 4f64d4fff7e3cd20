"""The deployment targets, one a file; imported as ``nestify.targets``.

The registry imports a target when it is asked for, so that listing targets imports no torch. A new
target is one file and one line here.

Imports: errors, support. Start reading: ``target``, then ``cpu``.
"""

from __future__ import annotations

from nestify.errors import UsageError
from nestify.support.registry import Registry
from nestify.targets.target import Target

__all__ = ["Target", "list_targets", "load_target", "usable_target"]

TARGETS: Registry[Target] = Registry(
    "target",
    {
        "cpu": "nestify.targets.cpu:CPU",
        "cuda": "nestify.targets.cuda:CUDA",
    },
)


def list_targets() -> tuple[str, ...]:
    """Return the names of all targets, sorted.

    Example:
        >>> list_targets()
        ('cpu', 'cuda')
    """
    return tuple(sorted(TARGETS))


def load_target(name: str) -> Target:
    """Return the target called ``name``; imports its module on the first call.

    Example:
        >>> load_target("cpu").step
        1

    Args:
        name: one of `list_targets()`.

    Returns:
        The target.

    Raises:
        UsageError: no target has this name; the message lists the names and the closest one.
    """
    return TARGETS.load(name)


def usable_target(name: str) -> Target:
    """Return the target called ``name`` where this machine can measure it.

    Example:
        >>> usable_target("cpu").name
        'cpu'

    Args:
        name: one of `list_targets()`.

    Returns:
        The target.

    Raises:
        UsageError: no target has this name, or this machine lacks what it measures on.
    """
    target = load_target(name)
    lacking = target.lacks()
    if lacking:
        raise UsageError(f"target {name!r} cannot measure here: {lacking}")
    return target
