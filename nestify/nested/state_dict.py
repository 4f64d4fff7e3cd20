"""What a nested model's state dict holds beside tensors: the state of its draws."""

from __future__ import annotations

from typing import Any, Protocol

from nestify.nested.draw_stream import Draws
from nestify.nested.switchable_norms import SWITCH, SwitchableNorms, check_norms

__all__ = ["note_beside_tensors"]


class _Saved(Protocol):
    """What is read and written of a nested model, which imports this module itself."""

    draws: Draws

    @property
    def switchable_norms(self) -> SwitchableNorms | None: ...
    def forget(self) -> None: ...
    def register_state_dict_post_hook(self, hook: Any) -> Any: ...
    def register_load_state_dict_pre_hook(self, hook: Any) -> Any: ...


def note_beside_tensors(nested: _Saved) -> None:
    """Let ``nested`` save the state of its draws, and check norms when it loads."""
    nested.register_state_dict_post_hook(_save)
    nested.register_load_state_dict_pre_hook(_load)


def _save(nested: _Saved, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    nested.draws.save_to(metadata)


def _load(nested: _Saved, state: Any, prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    check_norms(nested.switchable_norms, state, f"{prefix}{SWITCH}.")
    nested.draws.load_from(metadata)
    nested.forget()
