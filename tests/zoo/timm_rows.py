"""timm: at least one model of each of its families, small, on images as small as they take."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.support.vision_ops import declare_vision_ops
from tests.zoo.model import ZooModel, image


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    declare_vision_ops()
    import timm

    return timm.create_model(name, pretrained=False, **options)


def _row(name: str, side: int, *, sample: bool = False, **options: Any) -> ZooModel:
    """A model that takes images of any size."""
    given = {key: options.pop(key) for key in ("not_captured", "low") if key in options}
    return ZooModel(f"timm/{name}", partial(_build, name, options), image(side), sample, **given)


def _sized(name: str, side: int, *, sample: bool = False, **options: Any) -> ZooModel:
    """A model that is built for one size of image."""
    return _row(name, side, sample=sample, img_size=side, **options)


TIMM = (
    _sized("beit_base_patch16_224", 64, depth=3),
    _row("halonet_h1", 256),
    _row("eca_halonext26ts", 256),
    _row("lambda_resnet26t", 128),
    _row("botnet26t_256", 256),
    _row("test_byobnet", 64, sample=True),
    _row("mobileone_s0", 64),
    _row("repvgg_a0", 64),
    _row("gernet_s", 64),
    _row("resnet26t", 64),
    _sized("cait_xxs24_224", 64, depth=4),
    _sized("coat_tiny", 64),
    _sized("coat_lite_tiny", 64),
    _sized("convit_tiny", 64),
    _row("convmixer_768_32", 64),
    _row("test_convnext", 64, sample=True),
    _row("convnextv2_atto", 64),
    _row("cpubone_nano", 64),
    _row("crossvit_tiny_240", 240),
    _row("csatv2", 256),
    _row("cs3darknet_focus_s", 64),
    _row("cspresnet50", 64),
    _row("cspnext_tiny", 64),
    _row("davit_tiny", 64),
    _row("deepseek_vit_412m", 56, depth=2),
    _sized("deit_tiny_patch16_224", 64),
    _sized("deit_tiny_distilled_patch16_224", 64),
    _sized("deit3_small_patch16_224", 64, depth=3),
    _row("densenet121", 64),
    _row("dla46x_c", 64),
    _row("dpn48b", 64),
    _row("edgenext_xx_small", 64, sample=True),
    _row("efficientformer_l1", 224),
    _row("efficientformerv2_s0", 224),
    _row("mnasnet_small", 64),
    _row("tf_efficientnetv2_b0", 64),
    _row("tinynet_e", 64),
    _row("mixnet_s", 64, sample=True),
    _row("efficientvim_m1", 64),
    _row("efficientvit_b0", 64),
    _sized("efficientvit_m0", 64),
    _sized("eva02_tiny_patch14_224", 56, sample=True, depth=3),
    _sized("vit_small_patch16_dinov3", 64, depth=3),
    _row("fasternet_t0", 64),
    _row("fastvit_t8", 64),
    _row("focalnet_tiny_srf", 64),
    _row("gcvit_xxtiny", 224),
    _row("gemma4_vit_167m", 96, depth=2, low="it has no head: its residual stream is its output"),
    _row("ghostnet_050", 64, sample=True),
    _row("ghostnetv3_050", 64),
    _row("hardcorenas_a", 64),
    _row("hgnetv2_b0", 64),
    _sized("hiera_tiny_224", 64),
    _row("hieradet_small", 64),
    _row("hrnet_w18_small", 64),
    _row("iformer_t", 64),
    _row("inception_next_atto", 64, sample=True),
    _row("inception_resnet_v2", 96),
    _row("inception_v3", 96),
    _row("inception_v4", 96),
    _row("lcnetv2_small", 64),
    _sized("levit_128s", 64),
    _row("lowformer_b0", 64),
    _row("test_mambaout", 64),
    _sized("test_coatnet", 64),
    _sized("test_maxvit", 64, sample=True),
    _row("poolformer_s12", 64),
    _row("caformer_s18", 64),
    _row("convformer_s18", 64),
    _sized("gmlp_ti16_224", 64),
    _sized("gmixer_12_224", 64),
    _sized("mixer_s32_224", 64, sample=True),
    _sized("resmlp_12_224", 64),
    _row("mobilenetv3_small_050", 64),
    _row("lcnet_050", 64),
    _row("mobilenetv4_conv_small_035", 64),
    _row("mobilenetv4_hybrid_medium", 64),
    _row("mobilenetv5_base", 64),
    _row("mobilevit_xxs", 64),
    _row("mobilevitv2_050", 64, sample=True),
    _sized("mvitv2_tiny", 64),
    _row("naflexvit_base_patch16_gap", 64, depth=2),
    _row("nasnetalarge", 96),
    _sized("nest_tiny", 64),
    _row("nextvit_small", 64),
    _row("test_nfnet", 64, sample=True),
    _row("nf_regnet_b0", 64),
    _sized("pit_ti_224", 64),
    _row("pnasnet5large", 96),
    _row("pvt_v2_b0", 64),
    _row("qwen3_vit_88m", 64, depth=2),
    _row("rdnet_tiny", 64),
    _row("regnetx_002", 64, sample=True),
    _row("regnety_002", 64),
    _row("regnetz_005", 64),
    _row("repghostnet_050", 64),
    _row("repvit_m0_9", 64),
    _row("res2net50_26w_4s", 64),
    _row("resnest14d", 64),
    _row("test_resnet", 64, sample=True),
    _row("seresnet18", 64),
    _row("ecaresnet26t", 64, low="its attention convolves over the channels of every stage"),
    _row("resnetv2_18", 64),
    _row("resnetv2_50x1_bit", 64),
    _row("rexnet_100", 64),
    _row("selecsls42", 64),
    _row("legacy_seresnet18", 64),
    _sized("sequencer2d_s", 64),
    _row("shvit_s1", 64),
    _row("skresnet18", 64),
    _row("starnet_s050", 64),
    _row("swiftformer_xs", 224),
    _sized("swin_tiny_patch4_window7_224", 56, window_size=7),
    _sized("swinv2_tiny_window8_256", 64),
    _sized("swinv2_cr_tiny_224", 64, window_size=2),
    _row("tiny_vit_5m_224", 224),
    _sized("tnt_s_patch16_224", 64, depth=3),
    _row("tresnet_m", 64),
    _sized("twins_svt_small", 64),
    _sized("twins_pcpvt_small", 64),
    _row("vgg11", 64),
    _sized("visformer_tiny", 64),
    _sized("test_vit", 64, sample=True),
    _sized("vit_tiny_r_s16_p8_224", 64, depth=3),
    _sized("test_vit_relpos", 64),
    _sized("vit_srelpos_small_patch16_224", 64, depth=3),
    _sized("samvit_base_patch16_224", 64, depth=3),
    _sized("vitamin_small_224", 64),
    _sized("volo_d1_224", 64),
    _row("ese_vovnet19b_slim_dw", 64),
    _row("legacy_xception", 96),
    _row("xception41p", 64),
    _sized("xcit_nano_12_p16_224", 64),
)
