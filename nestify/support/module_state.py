"""Run a model and leave its tensors, modes and random state as they were."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nestify.support.module_tree import modules_in, tensors_of

__all__ = ["in_eval", "left_as_found", "with_own_train"]


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Generator[None]:
    """Undo on exit what a trial run changes: modes, attributes, buffers, the random state."""
    before: list[tuple[nn.Module, dict[str, Any], dict[str, dict[str, Any]]]] = []
    for module in model.modules():
        registries = {
            k: dict(v) for k, v in vars(module).items() if k in ("_parameters", "_buffers")
        }
        before.append((module, dict(vars(module)), registries))
    caches = [
        (cache, copy.copy(cache))
        for module in model.modules()
        for cache in vars(module).values()
        if type(cache) in (dict, list, set, OrderedDict)  # hooks lie in OrderedDicts
    ]
    # A module's own train() may write weights, as those do that merge an adapter for eval.
    written = any(True for _ in with_own_train(model))
    kept = [*model.buffers(), *(model.parameters() if written else ())]
    values = [(t, t.detach().clone()) for t in kept if not t.is_meta and not is_lazy(t)]
    devices = {t.device for _, t in tensors_of(model) if t.device.type == "cuda"}
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
    finally:
        random.setstate(state)
        for module, attributes, registries in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, saved in registries.items():
                vars(module)[name].clear()
                vars(module)[name].update(saved)
        for cache, contents in caches:  # a cache filled while tracing holds fake tensors
            cache.clear()
            cache.extend(contents) if isinstance(cache, list) else cache.update(contents)
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def with_own_train(model: nn.Module) -> Iterator[nn.Module]:
    """Modules whose class does more than set the mode in a ``train`` of its own."""
    for module in model.modules():
        own = type(module).train
        if own is not nn.Module.train and not (own.__module__ or "").startswith("torch."):
            yield module


@contextlib.contextmanager
def in_eval(model: nn.Module) -> Generator[None]:
    """Put every module in eval for a block of code, and back in its own mode after it."""
    modes = [(module, module.training) for module in modules_in(model)]
    try:
        for module, training in modes:
            if training:  # setting an attribute of a module takes long
                module.training = False
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
