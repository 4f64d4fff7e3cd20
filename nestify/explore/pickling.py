"""A nested model and its evaluator as bytes, for worker processes and other machines.

An analysed graph cannot be pickled (it holds torch's fake tensors), and need not be: the other side
captures the user's model again by the same recipe, checks that the same structure came of it, and
takes over every tensor's values. Functions and classes of a script travel by value (cloudpickle),
so a script needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from nestify.compiler import remade
from nestify.errors import NestifyError, UsageError
from nestify.explore.evaluator import Evaluator
from nestify.nested.fingerprint import fingerprint
from nestify.nested.model import NestedModel
from nestify.support.user_code import describe

__all__ = ["Worker", "pack"]


def pack(evaluator: Evaluator) -> bytes:
    """Return ``evaluator`` as bytes that `Worker` takes.

    Raises:
        UsageError: something in the model, the function or the data cannot be pickled.
    """
    made = io.BytesIO()
    try:
        _Pickler(made).dump(evaluator)
    except Exception as error:  # whatever the user's objects raise
        raise UsageError(
            f"the model or its evaluate cannot be sent to workers ({error}); use workers=1, or "
            "make what cannot be pickled inside the function"
        ) from error
    return made.getvalue()


class Worker:
    """Evaluates subnets on the far side; one a process.

    What fails at its start is raised by `run`: of a worker that never began, pools and clusters say
    no more than that it died.
    """

    def __init__(self, packed: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluator: Evaluator | NestifyError
        try:
            self._evaluator = _unpacked(packed)
            self._reuse = self._evaluator.reusing()
            self._reuse.__enter__()
        except NestifyError as error:
            self._evaluator = error
        except Exception as error:  # whatever the user's objects raise
            self._evaluator = UsageError(
                f"a worker could not take over the model or its evaluate ({describe(error)}); use "
                "workers=1, or make what fails there inside the function"
            )

    def run(self, subnet: Mapping[str, int], part: int) -> tuple[Any, float]:
        """The samples of one part of the data, and the seconds that they took.

        Raises:
            NestifyError: the evaluation failed, or already the start of this worker.
        """
        if isinstance(self._evaluator, NestifyError):
            raise self._evaluator
        return self._evaluator.timed(subnet, part)


def _unpacked(packed: bytes) -> Evaluator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the near side has shown them
        return pickle.loads(packed)


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, NestedModel):
            return _rebuilt, _parts(obj)
        if isinstance(obj, CodeType):  # cloudpickle forgets the file, which errors must name
            return _located, (*self.dispatch_table[CodeType](obj), obj.co_filename)
        return super().reducer_override(obj)


def _located(make: Callable[..., CodeType], parts: tuple[Any, ...], file: str) -> CodeType:
    return make(*parts).replace(co_filename=file)


def _parts(nested: NestedModel) -> tuple[Any, ...]:
    captured = (nested.graph.original or nested.graph).capture
    switch = nested.switchable_norms
    return (
        captured.model,
        nested.recipe,
        captured.example_inputs,
        dict(captured.example_kwargs),
        fingerprint(nested).structure,
        {name: tensor.detach().cpu() for name, tensor in nested.named_tensors()},
        nested.scaling,
        None if switch is None else [dict(subnet) for subnet in switch.subnets],
    )


def _rebuilt(
    model: nn.Module,
    recipe: str,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    structure: str,
    tensors: Mapping[str, Tensor],
    scaling: str,
    switched: Sequence[Mapping[str, int]] | None,
) -> NestedModel:
    nested = remade(model, recipe, inputs, kwargs)  # what passes found in data lies in the tensors
    if switched is not None:
        nested.switch_norms(switched)
    if fingerprint(nested).structure != structure:
        raise UsageError(
            f"a worker made another structure of the model by {recipe!r} (sizes that a pass fits "
            "to data, or a model that is built at random); search with workers=1"
        )
    with torch.no_grad():
        for name, tensor in nested.named_tensors():
            tensor.copy_(tensors[name])
    nested.scaling = scaling
    return nested
