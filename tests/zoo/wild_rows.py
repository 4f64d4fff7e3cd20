"""Models of libraries that people shrink, beside the zoo of the three large ones."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.support.vision_ops import declare_vision_ops
from tests.zoo.model import Arguments, ZooModel, image
from tests.zoo.transformers_rows import VOCABULARY, from_config


def yolo(name: str) -> nn.Module:
    """A detector of ultralytics from its own configuration file, offline.

    Its import sets how numbers print in the whole process, which doctests would see.
    """
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    declare_vision_ops()
    with np.printoptions():
        from ultralytics.nn.tasks import DetectionModel
    torch.set_printoptions(profile="default")

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


def ids(batch: int) -> Arguments:
    """Token ids without a cache, as many as two chunks."""
    return (torch.randint(VOCABULARY, (batch, 16)),), {"use_cache": False}


def hybrid(kind: str, **fields: Any) -> ZooModel:
    """A language model with state space layers of two groups, whose heads repeat these."""
    fields = {"vocab_size": VOCABULARY, "hidden_size": 64, **fields}
    build = partial(from_config, f"{kind}ForCausalLM", f"{kind}Config", fields)
    return ZooModel(f"transformers/{kind} groups", build, ids)


def detector(kind: str, backbone: str, stages: dict[str, Any], **fields: Any) -> ZooModel:
    """A detector whose library checks its shapes and lays out its anchors by constants."""

    def build() -> nn.Module:
        declare_vision_ops()
        import transformers

        made = getattr(transformers, backbone)(**stages, out_features=_STAGES)
        fields_of = {"backbone_config": made, **_SMALL, **fields}
        return from_config(f"{kind}ForObjectDetection", f"{kind}Config", fields_of)

    return ZooModel(f"transformers/{kind}", build, image(64))


_STAGES = ["stage2", "stage3", "stage4"]
_SMALL = {
    "encoder_hidden_dim": 32,
    "d_model": 32,
    "num_queries": 10,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
}
_RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_HGNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 16, 24, 32],
    "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [16, 24, 32, 48],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
}
_ATTENTION = {"num_attention_heads": 4, "intermediate_size": 96}

WILD = (
    hybrid(
        "Mamba2",
        num_hidden_layers=2,
        num_heads=8,
        head_dim=16,
        n_groups=2,
        state_size=16,
        chunk_size=8,
    ),
    hybrid(
        "Bamba",
        num_hidden_layers=2,
        num_key_value_heads=2,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_n_groups=2,
        mamba_d_state=16,
        mamba_chunk_size=8,
        **_ATTENTION,
    ),
    hybrid(
        "Zamba2",
        num_hidden_layers=2,
        layers_block_type=["mamba", "hybrid"],
        n_mamba_heads=8,
        mamba_ngroups=2,
        mamba_d_state=16,
        chunk_size=8,
        adapter_rank=8,
        num_mem_blocks=1,
        **_ATTENTION,
    ),
    hybrid(
        "NemotronH",
        num_hidden_layers=3,
        hybrid_override_pattern="M*-",
        num_key_value_heads=2,
        head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=16,
        chunk_size=8,
        **_ATTENTION,
    ),
    detector("RTDetrV2", "RTDetrResNetConfig", _RESNET, encoder_in_channels=[32, 48, 64]),
    detector(
        "DFine", "HGNetV2Config", _HGNET, encoder_in_channels=[24, 32, 48], feat_strides=[8, 16, 32]
    ),
    ZooModel("ultralytics/yolov8n", partial(yolo, "yolov8n"), image(64)),
    ZooModel("ultralytics/yolo11n", partial(yolo, "yolo11n"), image(64)),
    ZooModel("diffusers/UNet2DModel", partial(diffusion, "UNet2DModel", **_UNET), noisy(16)),
)
