"""torchvision where its C++ library does not load, as beside a CPU build of torch.

Importing torchvision needs the operators that it gives fakes to (``nms``, ``roi_align`` ...) to
exist. They are declared here without an implementation: models that call none of them run, and
``torch.export`` follows those that do.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch

# Names and arguments of the operators of torchvision's own C++ library.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    (
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    ),
    (
        "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width) -> (Tensor, Tensor)"
    ),
    (
        "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, int sampling_ratio) -> (Tensor, Tensor)"
    ),
    (
        "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width) -> (Tensor, Tensor)"
    ),
    (
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
        "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
        "SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor"
    ),
)


@cache
def declare_vision_ops() -> torch.library.Library | None:
    """Declare torchvision's operators; None where its own library brings them. Call it before the
    import of torchvision, or of timm, which imports it.
    """
    if _library_loads():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("_C.*"):
            try:
                torch.ops.load_library(path)
            except OSError:  # built for another torch, or for a GPU's
                return False
            return True
    return False
