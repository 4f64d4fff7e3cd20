"""torchvision: every classification family, segmentation, video, optical flow, detectors' cores."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.support.vision_ops import declare_vision_ops
from tests.zoo.model import Arguments, ZooModel, clip, image


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    declare_vision_ops()
    from torchvision.models import get_model

    return get_model(name, **options)


class DetectorCore(nn.Module):
    """The convolutional part of a detector: backbone, feature pyramid and the heads on it; what
    follows (anchors, matching, nms) has sizes that depend on the data.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        rpn = getattr(detector, "rpn", None)
        self.head = detector.head if rpn is None else rpn.head

    def forward(self, images: Tensor) -> Any:
        features = self.backbone(images)
        return self.head(list(features.values()))


def _core(name: str, options: dict[str, Any]) -> nn.Module:
    return DetectorCore(_build(name, options))


def _row(name: str, side: int, *, sample: bool = False, **options: Any) -> ZooModel:
    given = {key: options.pop(key) for key in ("not_captured", "low") if key in options}
    build = partial(_build, name, {"weights": None, **options})
    return ZooModel(f"torchvision/{name}", build, image(side), sample, **given)


def _video(name: str, frames: int, side: int, **options: Any) -> ZooModel:
    build = partial(_build, name, {"weights": None, **options})
    return ZooModel(f"torchvision/{name}", build, clip(frames, side))


def _build_mvit(name: str) -> nn.Module:
    """The published model, built for short clips of small images: its builders fix both sizes."""
    declare_vision_ops()
    from torchvision.models.video import mvit

    def small(spatial_size: Any, temporal_size: int, **options: Any) -> nn.Module:
        return build(spatial_size=(64, 64), temporal_size=4, **options)

    build = vars(mvit)["_mvit"]
    with mock.patch.object(mvit, "_mvit", small):
        return getattr(mvit, name)()


def _mvit(name: str) -> ZooModel:
    return ZooModel(f"torchvision/{name}", partial(_build_mvit, name), clip(4, 64))


def _segmentation(name: str, side: int, *, sample: bool = False) -> ZooModel:
    return _row(name, side, sample=sample, weights_backbone=None)


def _detector(name: str, side: int) -> ZooModel:
    build = partial(_core, name, {"weights": None, "weights_backbone": None})
    return ZooModel(f"torchvision/{name} core", build, image(side))


class FlowCore(nn.Module):
    """RAFT with all of its coordinates in the type of the model: the library makes them float32."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, one: Tensor, two: Tensor) -> Any:
        from torchvision.models.optical_flow import raft

        def grid(*args: Any, **kwargs: Any) -> Tensor:
            return coordinates(*args, **kwargs).to(one.dtype)

        coordinates = raft.make_coords_grid
        with mock.patch.object(raft, "make_coords_grid", grid):
            return self.flow(one, two, num_flow_updates=2)


def _flow(name: str) -> nn.Module:
    return FlowCore(_build(name, {"weights": None}))


def _two_images(batch: int) -> Arguments:
    return (torch.randn(batch, 3, 128, 128), torch.randn(batch, 3, 128, 128)), {}


TORCHVISION = (
    _row("alexnet", 64),
    _row("convnext_tiny", 64),
    _row("densenet121", 64),
    _row("efficientnet_b0", 64),
    _row("efficientnet_v2_s", 64),
    _row("googlenet", 64, init_weights=False),
    _row("inception_v3", 96, init_weights=False),
    _row("maxvit_t", 224),
    _row("mnasnet0_5", 64),
    _row("mobilenet_v2", 64, sample=True),
    _row("mobilenet_v3_small", 64, sample=True),
    _row("regnet_x_400mf", 64),
    _row("regnet_y_400mf", 64),
    _row("resnet18", 64, sample=True),
    _row("resnet50", 64),
    _row("resnext50_32x4d", 64),
    _row("wide_resnet50_2", 64),
    _row("shufflenet_v2_x0_5", 64, sample=True),
    _row("shufflenet_v2_x1_0", 64),
    _row("squeezenet1_1", 64, sample=True),
    _row("swin_t", 56),
    _row("swin_v2_t", 64),
    _row("vgg11_bn", 64),
    _row("vit_b_16", 32, image_size=32),
    _segmentation("deeplabv3_mobilenet_v3_large", 64),
    _segmentation("deeplabv3_resnet50", 64),
    _segmentation("fcn_resnet50", 64),
    _segmentation("lraspp_mobilenet_v3_large", 64),
    _video("r3d_18", 4, 32),
    _video("mc3_18", 4, 32),
    _video("r2plus1d_18", 4, 32),
    _video("s3d", 16, 224),
    _video("swin3d_t", 4, 64),
    _mvit("mvit_v1_b"),
    _mvit("mvit_v2_s"),
    ZooModel("torchvision/raft_small", partial(_flow, "raft_small"), _two_images),
    ZooModel("torchvision/raft_large", partial(_flow, "raft_large"), _two_images),
    _detector("fasterrcnn_resnet50_fpn", 64),
    _detector("fasterrcnn_resnet50_fpn_v2", 64),
    _detector("fcos_resnet50_fpn", 64),
    _detector("retinanet_resnet50_fpn", 64),
    _detector("ssd300_vgg16", 300),
    _detector("ssdlite320_mobilenet_v3_large", 320),
)
