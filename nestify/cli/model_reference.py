"""Turn what a person types for a model (``model.py``, ``timm:resnet50``) into a live model.

Loading a ``model.py`` or a module runs its code: that is the intent, as it is of ``python
model.py``. Nothing is ever downloaded: models of libraries come with random weights, made under a
fixed seed, so that a plan made today and an export made tomorrow speak of the same network.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import cloudpickle
import torch
from torch import nn

from nestify.cli import model_zoo as zoo
from nestify.errors import CaptureError, UsageError
from nestify.support.user_code import kind_of, user_code

FORMS = (
    "model.py, model.py:name, package.module:name, timm:NAME, torchvision:NAME, "
    "transformers:CONFIG_FOLDER_OR_JSON"
)


@dataclass(frozen=True)
class Source:
    """A loaded model and what its author said about running it.

    Attributes:
        model: the module.
        example_inputs: positional inputs of one forward pass; None: let the capture find some.
        example_kwargs: keyword inputs of one forward pass.
        evaluate: ``evaluate(model) -> float``, higher is better; of each sample, where it takes a
            batch as well.
        batches: gives the data of such an ``evaluate(model, batch)``, and None for others.
        calibration: batches of inputs to re-estimate BatchNorm statistics with.
        reference: what the model was loaded from.
        name: a short name for files and titles.
    """

    model: nn.Module
    example_inputs: tuple[Any, ...] | None
    example_kwargs: Mapping[str, Any] | None
    evaluate: Callable[..., Any] | None
    batches: Callable[[], Iterable[Any] | None]
    calibration: Iterable[Any] | None
    reference: str
    name: str


def load_source(reference: str) -> Source:
    """Load the model that ``reference`` names.

    Example:
        >>> load_source("examples/mlp.py").name
        'mlp'

    Args:
        reference: ``model.py``, ``model.py:name``, ``package.module:name``, ``timm:resnet50``,
            ``torchvision:resnet18`` or ``transformers:CONFIG_FOLDER_OR_JSON``.

    Returns:
        The model with the example inputs, the evaluation and the data of its file.

    Raises:
        UsageError: nothing is where the reference points, or there is no model in it.
        CaptureError: the code there fails, or what it calls a model is none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scheme, _, rest = reference.partition(":")
        if scheme in zoo.LOADERS and rest:
            return _bare(zoo.LOADERS[scheme](rest), reference, Path(rest).stem)
        path, attribute = _split(reference)
        if path is not None:
            return _from_file(path, attribute, reference)
        if scheme.replace(".", "").isidentifier() and rest:
            return _from_package(scheme, rest, reference)
    raise UsageError(f"{reference!r} is no model reference; the forms are: {FORMS}")


def file_of(reference: str) -> Path | None:
    """Return the path inside a reference that points at a file or a folder, else None.

    Example:
        >>> file_of("nets/model.py:tiny"), file_of("timm:resnet50")
        (PosixPath('nets/model.py'), None)
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "transformers":
        return Path(rest)
    if scheme in zoo.LOADERS:
        return None
    return _split(reference)[0]


def with_file(reference: str, file: Path) -> str:
    """Return ``reference`` with another file in place of the one `file_of` finds.

    Example:
        >>> with_file("nets/model.py:tiny", Path("../model.py"))
        '../model.py:tiny'
    """
    if reference.startswith("transformers:"):
        return f"transformers:{file}"
    return str(file) if reference.endswith(".py") else f"{file}:{reference.rpartition(':')[2]}"


def _split(reference: str) -> tuple[Path | None, str]:
    """Split ``model.py[:name]`` into its path and the name; the path is None for other forms."""
    if reference.endswith(".py"):
        return Path(reference), "model"
    path, _, name = reference.rpartition(":")
    return (Path(path), name) if path.endswith(".py") and name else (None, "")


def _bare(model: nn.Module, reference: str, name: str) -> Source:
    return Source(model, None, None, None, lambda: None, None, reference, name)


def _from_file(path: Path, attribute: str, reference: str) -> Source:
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UsageError(f"model file {str(path)!r} {kind}")
    module = _run_file(path)
    return _from_module(module, attribute, reference, path.stem, str(path))


def _from_package(name: str, attribute: str, reference: str) -> Source:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        with user_code(name):
            module = importlib.import_module(name)
    except CaptureError as error:
        if _names_a_part_of(error.__cause__, name):
            raise UsageError(
                f"module {name!r} does not exist; the forms of a model reference are: {FORMS}"
            ) from None
        raise
    return _from_module(module, attribute, reference, attribute.rpartition(".")[2], name)


def _names_a_part_of(error: BaseException | None, name: str) -> bool:
    """Tell "there is no such module" from "that module imports something that is not there"."""
    return isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")


def _run_file(path: Path) -> ModuleType:
    """Execute ``path`` as a module, its folder importable as when Python runs a script."""
    folder = str(path.resolve().parent)
    name = f"nestify_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"model file {str(path)!r} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and typing look their module up by name
    linecache.checkcache(str(path))
    try:
        with user_code(str(path)):
            spec.loader.exec_module(module)
    except CaptureError:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)  # no worker can import it by that name
    return module


def _from_module(
    module: ModuleType, attribute: str, reference: str, name: str, where: str
) -> Source:
    model = _as_model(_find(module, attribute, where), attribute, where)
    return Source(
        model=model,
        example_inputs=_inputs(module, where),
        example_kwargs=_kwargs(module, where),
        evaluate=_evaluate(module, where),
        batches=partial(_scored_batches, module, where),
        calibration=_batches(module, "calibration", where),
        reference=reference,
        name=name,
    )


def _find(module: ModuleType, attribute: str, where: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, _MISSING)
        if found is _MISSING:
            break
    if found is not _MISSING:
        return found
    names = _candidates(module)
    close = difflib.get_close_matches(attribute, vars(module), n=1)
    if close:
        hint = f"; did you mean {close[0]!r}?"
    elif names:
        shown = ", ".join(names[:8])
        hint = f"; it has {shown}: call one of them `model`, or ask for it as {where}:{names[0]}"
    else:
        hint = "; define `model`, a torch.nn.Module or a function that returns one"
    raise UsageError(f"{where} defines no {attribute!r}{hint}")


_MISSING = object()


def _candidates(module: ModuleType) -> list[str]:
    """Return the names in ``module`` that could be meant: modules, own classes, functions."""

    def fits(value: Any) -> bool:
        if isinstance(value, nn.Module):
            return True
        own = getattr(value, "__module__", None) == module.__name__
        is_class = inspect.isclass(value) and issubclass(value, nn.Module)
        return own and (is_class or inspect.isfunction(value))

    said = {"evaluate", "batches", "example_inputs", "example_kwargs", "calibration"}
    return [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in said and fits(value)
    ]


def _as_model(found: Any, attribute: str, where: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise CaptureError(
            f"{where}: {attribute!r} is {kind_of(found)}, not a torch.nn.Module or a function that "
            "returns one"
        )
    needed = _required_parameters(found)
    if needed:
        raise CaptureError(
            f"{where}: {attribute}({', '.join(needed)}) needs arguments, and gets none: "
            "give them defaults, or set `model` to a built model"
        )
    with user_code(f"{where}: {attribute}()"):
        model = found()
    if not isinstance(model, nn.Module):
        line = _line_of(found)
        raise CaptureError(
            f"{where}: {attribute}() returned {kind_of(model)}, not a torch.nn.Module{line}; "
            "return the model"
        )
    return model


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable of C has no signature to read
        return []
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in free]


def _line_of(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return "" if code is None else f" ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _inputs(module: ModuleType, where: str) -> tuple[Any, ...] | None:
    value = _value(module, "example_inputs", where)
    if value is None or isinstance(value, tuple):
        return value
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, list):
        return tuple(value)
    raise UsageError(
        f"{where}: example_inputs must be a tuple of inputs or a function that returns one, "
        f"not {kind_of(value)}"
    )


def _kwargs(module: ModuleType, where: str) -> Mapping[str, Any] | None:
    value = _value(module, "example_kwargs", where)
    if value is None or isinstance(value, Mapping):
        return value
    raise UsageError(f"{where}: example_kwargs must be a dict of inputs, not {kind_of(value)}")


def _evaluate(module: ModuleType, where: str) -> Callable[..., Any] | None:
    found = getattr(module, "evaluate", None)
    if found is None or callable(found):
        return found
    raise UsageError(f"{where}: {_WANTED}, not {kind_of(found)}")


_WANTED = "evaluate must be a function of a model, or of a model and a batch"


def _takes_batch(evaluate: Callable[..., Any], where: str) -> bool:
    """Whether ``evaluate`` is a function of a model and a batch, not of a model alone."""
    try:
        signature = inspect.signature(evaluate)
    except (TypeError, ValueError):  # a callable of C has no signature to read
        return False
    if _fits(signature, "model"):
        return False
    if not _fits(signature, "model", "batch"):
        raise UsageError(f"{where}: {_WANTED}; it is evaluate{signature}")
    return True


def _fits(signature: inspect.Signature, *given: str) -> bool:
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True


def _scored_batches(module: ModuleType, where: str) -> Iterable[Any] | None:
    """What the file's ``evaluate`` is called with, one after the other, beside the model."""
    evaluate = _evaluate(module, where)
    if evaluate is None or not _takes_batch(evaluate, where):
        return None
    found = _batches(module, "batches", where)
    if found is None:
        raise UsageError(
            f"{where}: evaluate(model, batch) is called with each of `batches`, which is missing; "
            "define it, such as a list of (images, labels), or let evaluate take the model alone"
        )
    return found


def _batches(module: ModuleType, name: str, where: str) -> Iterable[Any] | None:
    value = _value(module, name, where)
    if isinstance(value, Iterator):  # a command goes through the batches more than once
        with user_code(f"{where}: {name}"):
            return list(cast("Iterator[Any]", value))
    if value is None or isinstance(value, Iterable):
        return value
    raise UsageError(f"{where}: {name} must be an iterable of batches, not {kind_of(value)}")


def _value(module: ModuleType, name: str, where: str) -> Any:
    value = getattr(module, name, None)
    if not callable(value) or isinstance(value, torch.Tensor):
        return value
    with user_code(f"{where}: {name}()"):
        return value()
