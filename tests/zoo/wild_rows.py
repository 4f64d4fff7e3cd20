"""Models of libraries that people shrink, beside the zoo of the three large ones."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.support.vision_ops import declare_vision_ops
from tests.zoo.model import Arguments, ZooModel, image


def yolo(name: str) -> nn.Module:
    """A detector of ultralytics from its own configuration file, offline."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    declare_vision_ops()
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(f"{name}.yaml", verbose=False)


def diffusion(kind: str, **options: Any) -> nn.Module:
    """A small network of diffusers."""
    declare_vision_ops()
    import diffusers

    return getattr(diffusers, kind)(**options)


def noisy(side: int) -> Any:
    """Images, and a time step for each."""

    def inputs(batch: int) -> Arguments:
        return (torch.randn(batch, 3, side, side), torch.arange(batch) + 3), {}

    return inputs


_UNET = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}

WILD = (
    ZooModel("ultralytics/yolov8n", partial(yolo, "yolov8n"), image(64)),
    ZooModel("ultralytics/yolo11n", partial(yolo, "yolo11n"), image(64)),
    ZooModel("diffusers/UNet2DModel", partial(diffusion, "UNet2DModel", **_UNET), noisy(16)),
)
