"""What importance is measured against: the loss of a batch as scalars to differentiate.

With labels it is cross-entropy (class labels, integers) or the squared error (targets, floats), or
the user's own ``loss(outputs, labels)``. Without labels it is the squared distance to the network's
own outputs. That is least at the network as it is, so its gradient tells nothing; its Gauss-Newton
matrix J^T J does, and the gradient of the outputs times random signs is a sample of J (Hutchinson).
Unlike cross-entropy against the network's own predictions it does not fade where the network is
sure, and it needs no knowledge of what the outputs mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from nestify.errors import UsageError
from nestify.support.user_code import kind_of, user_code

__all__ = ["Loss", "batch_loss", "labels_of", "loss_name"]

Loss = Callable[[Any, Any], Tensor]


def labels_of(batch: Any) -> Any:
    """The labels of a batch (inputs, labels); None where there are none."""
    return batch[1] if isinstance(batch, list | tuple) and len(cast(Any, batch)) > 1 else None


def batch_loss(
    outputs: Any, labels: Any, loss: Loss | None, draw: torch.Generator
) -> Tensor | None:
    """The loss of one batch, summed over its samples; None where no elastic dim has a part in it.

    Raises:
        UsageError: labels that do not fit the outputs, or a loss that is no scalar with a gradient.
    """
    if loss is not None:
        with user_code("loss(outputs, labels)"):
            found: Any = loss(outputs, labels)
        name = "loss(outputs, labels)"
    elif labels is None:
        found, name = _signed(outputs, draw), "the outputs"
    else:
        found, name = _supervised(_predictions(outputs), labels), "the outputs"
        found = found if found.requires_grad else None
    if loss is None and found is None and _floats(outputs):
        return None
    if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
        raise UsageError(
            f"importance by gradients needs a scalar that depends on the weights; {name} "
            f"gave {_told(found)}; pass loss=, or rank by activation or magnitude"
        )
    return found.reshape(())


def loss_name(labels: Any, loss: Loss | None) -> str:
    """The loss in words."""
    if loss is not None:
        return str(getattr(loss, "__name__", type(loss).__name__))
    if labels is None:
        return "distance to its own outputs"
    return "squared error" if _is_float(labels) else "cross-entropy"


def _signed(outputs: Any, draw: torch.Generator) -> Tensor | None:
    total: Tensor | None = None
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            signs = 2 * torch.randint(0, 2, real.shape, generator=draw) - 1
            part = (real * signs.to(real)).sum()
            total = part if total is None else total + part.to(total.device)
    return total


def _predictions(outputs: Any) -> Tensor:
    """The one output that labels speak of."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if len(leaves) == 1:
        return leaves[0]
    found = (
        cast(Mapping[str, Any], outputs).get("logits")
        if isinstance(outputs, Mapping)
        else getattr(outputs, "logits", None)
    )
    if not isinstance(found, Tensor):
        raise UsageError(
            f"the model gives {len(leaves)} tensors, none of which is called logits: which one do "
            "the labels of calibration= speak of? Pass loss=, called as loss(outputs, labels)"
        )
    return found


def _supervised(outputs: Tensor, labels: Any) -> Tensor:
    if not isinstance(labels, Tensor):
        raise UsageError(
            f"labels are {kind_of(labels)}: what is the loss? Pass loss=, called as "
            "loss(outputs, labels), or batches without labels"
        )
    labels = labels.to(outputs.device)
    if _is_float(labels) and labels.shape == outputs.shape:
        return F.mse_loss(outputs, labels.to(outputs.dtype), reduction="sum")
    whole = not _is_float(labels) and labels.dtype != torch.bool
    if whole and outputs.ndim == labels.ndim + 1:
        if outputs.shape[:1] + outputs.shape[2:] == labels.shape:
            return F.cross_entropy(outputs, labels.long(), reduction="sum")
        if outputs.shape[:-1] == labels.shape:
            return F.cross_entropy(outputs.movedim(-1, 1), labels.long(), reduction="sum")
    raise UsageError(
        f"labels of shape {tuple(labels.shape)} and {labels.dtype} fit neither as classes nor as "
        f"targets of outputs of shape {tuple(outputs.shape)}; pass loss=, called as "
        "loss(outputs, labels)"
    )


def _floats(outputs: Any) -> bool:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return any(leaf.is_floating_point() or leaf.is_complex() for leaf in leaves)


def _is_float(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.is_floating_point()


def _told(found: Any) -> str:
    if not isinstance(found, Tensor):
        return "nothing that has a gradient" if found is None else kind_of(found)
    return f"a tensor of shape {tuple(found.shape)}" + ("" if found.requires_grad else " without")
