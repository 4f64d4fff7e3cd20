"""Models by name from timm, torchvision and transformers: random weights, never a download.

The libraries are not dependencies of nestify: each is imported when a reference asks for it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from nestify.errors import CaptureError, UsageError


def timm_model(name: str) -> nn.Module:
    """Build ``timm.create_model(name, pretrained=False)``.

    Example:
        >>> model = timm_model("resnet18")
    """
    timm = _library("timm", f"timm:{name}")
    bare = name.partition(".")[0]
    known: list[str] = timm.list_models()
    if not timm.is_model(bare):  # also refuses hf-hub: names, which would be fetched
        raise _unknown("timm", name, known)
    return _build("timm", name, lambda: timm.create_model(name, pretrained=False))


def torchvision_model(name: str) -> nn.Module:
    """Build torchvision's ``name`` without weights, its backbone's included.

    Example:
        >>> model = torchvision_model("resnet18")
    """
    models = _library("torchvision.models", f"torchvision:{name}")
    known: list[str] = models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known)
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    # weights_backbone has a default that downloads.
    weights = {key: None for key in inspect.signature(builder).parameters if "weights" in key}
    return _build("torchvision", name, lambda: builder(**weights))


def transformers_model(path: str) -> nn.Module:
    """Build what a local configuration describes: a folder with config.json, or a JSON file.

    Example:
        >>> model = transformers_model("configs/tiny-bert")
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise UsageError(
            f"transformers:{path}: no configuration at {str(file)!r}; pass a local folder with "
            "config.json, or a JSON file (nestify downloads nothing)"
        )
    try:
        fields: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise UsageError(f"{file} is no transformers configuration: it has no model_type")
    with _offline():
        transformers = _library("transformers", f"transformers:{path}")
        return _build("transformers", path, lambda: _from_config(transformers, fields))


def _from_config(transformers: Any, fields: dict[str, Any]) -> nn.Module:
    config = transformers.AutoConfig.for_model(**fields)
    names: list[str] = fields.get("architectures") or []
    built = getattr(transformers, names[0], None) if names else None
    return transformers.AutoModel.from_config(config) if built is None else built(config)


@contextmanager
def _offline() -> Generator[None]:
    """Keep the Hugging Face libraries from the network: some backbones would fetch weights."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _library(module: str, reference: str) -> Any:
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == library:
            raise UsageError(
                f"{reference} needs {library}, which is not installed: pip install {library}"
            ) from None
        raise CaptureError(f"{library} cannot be imported: {error}") from error
    except Exception as error:  # such as a torchvision built for another torch
        raise CaptureError(
            f"{reference}: {library} is installed but cannot be imported ({error}); "
            f"install the {library} that belongs to this torch"
        ) from error


def _unknown(library: str, name: str, known: Iterable[str]) -> UsageError:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return UsageError(f"{library} has no model {name!r}{hint}")


def _build(library: str, name: str, build: Callable[[], Any]) -> nn.Module:
    try:
        return build()
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        raise CaptureError(
            f"{library}:{name} cannot be built: {type(error).__name__}: {text[0]}"
        ) from error


LOADERS: dict[str, Callable[[str], nn.Module]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
    "transformers": transformers_model,
}
