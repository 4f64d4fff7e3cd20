"""transformers: tiny models from configurations, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.support.vision_ops import declare_vision_ops
from tests.zoo.model import Arguments, ZooModel

VOCABULARY, LENGTH = 64, 12
_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 80}
_HEADS = {"num_attention_heads": 4}
_ENCODER = {**_SMALL, **_HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 40}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "use_cache": False}
_VISION = {**_SMALL, **_HEADS, "image_size": 32, "patch_size": 8}


def from_config(architecture: str, config: str, fields: dict[str, Any]) -> nn.Module:
    """A model of transformers, with random weights."""
    declare_vision_ops()
    import transformers

    return getattr(transformers, architecture)(getattr(transformers, config)(**fields))


def tokens(batch: int) -> Arguments:
    """Token ids."""
    return (), {"input_ids": torch.randint(2, VOCABULARY, (batch, LENGTH))}


def masked_tokens(batch: int) -> Arguments:
    """Token ids and an attention mask that leaves the last two out."""
    mask = torch.ones(batch, LENGTH, dtype=torch.int64)
    mask[:, -2:] = 0
    return (), {**tokens(batch)[1], "attention_mask": mask}


def pairs(batch: int) -> Arguments:
    """Token ids of an encoder and of a decoder."""
    ids = torch.randint(2, VOCABULARY, (batch, LENGTH))
    return (), {"input_ids": ids, "decoder_input_ids": ids[:, :7].clone()}


def pixels(batch: int) -> Arguments:
    """Images."""
    return (), {"pixel_values": torch.randn(batch, 3, 32, 32)}


def speech(batch: int) -> Arguments:
    """Mel features and decoder ids."""
    ids = torch.randint(2, VOCABULARY, (batch, 7))
    return (), {"input_features": torch.randn(batch, 16, 32), "decoder_input_ids": ids}


def waves(batch: int) -> Arguments:
    """Raw sound."""
    return (), {"input_values": torch.randn(batch, 800)}


def captions(batch: int) -> Arguments:
    """Token ids and images."""
    return (), {**tokens(batch)[1], **pixels(batch)[1]}


def _row(
    architecture: str,
    config: str,
    inputs: Callable[[int], Arguments],
    fields: dict[str, Any],
    **known: Any,
) -> ZooModel:
    build = partial(from_config, architecture, config, fields)
    return ZooModel(f"transformers/{architecture}", build, inputs, **known)


def _decoder(architecture: str, config: str, known: Any = None, **fields: Any) -> ZooModel:
    return _row(architecture, config, masked_tokens, {**_DECODER, **fields}, **(known or {}))


_SINGLE = {"dtype": torch.float32}  # the grouped product of experts takes no float64

TRANSFORMERS = (
    _row(
        "BertForSequenceClassification",
        "BertConfig",
        masked_tokens,
        {**_ENCODER, "num_labels": 3},
        sample=True,
    ),
    _row("BertForMaskedLM", "BertConfig", masked_tokens, _ENCODER),
    _row("RobertaForSequenceClassification", "RobertaConfig", masked_tokens, _ENCODER),
    _row(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        masked_tokens,
        {"vocab_size": VOCABULARY, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80},
    ),
    _row("AlbertForSequenceClassification", "AlbertConfig", masked_tokens, _ENCODER),
    _row("ElectraForSequenceClassification", "ElectraConfig", masked_tokens, _ENCODER),
    _row("MPNetForSequenceClassification", "MPNetConfig", masked_tokens, _ENCODER),
    _row("DebertaV2ForSequenceClassification", "DebertaV2Config", masked_tokens, _ENCODER),
    _row(
        "LongformerForSequenceClassification",
        "LongformerConfig",
        masked_tokens,
        {**_ENCODER, "attention_window": 4},
        sample=True,
        not_captured="this line needs the value of a tensor, which a graph does not have",
    ),
    _row(
        "GPT2LMHeadModel",
        "GPT2Config",
        tokens,
        {
            "vocab_size": VOCABULARY,
            "n_positions": 40,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 4,
            "use_cache": False,
        },
        sample=True,
    ),
    _row(
        "T5ForConditionalGeneration",
        "T5Config",
        pairs,
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "d_kv": 12,
            "d_ff": 80,
            "num_layers": 2,
            "num_heads": 4,
            "use_cache": False,
        },
        sample=True,
    ),
    _row(
        "BartForConditionalGeneration",
        "BartConfig",
        pairs,
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 80,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 40,
            "use_cache": False,
        },
    ),
    _row(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        speech,
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 80,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_source_positions": 16,
            "max_target_positions": 24,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "decoder_start_token_id": 1,
            "use_cache": False,
        },
    ),
    _row(
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        waves,
        {
            **_ENCODER,
            "conv_dim": (16, 16),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "classifier_proj_size": 24,
        },
    ),
    _row("ViTForImageClassification", "ViTConfig", pixels, _VISION, sample=True),
    _row("DeiTForImageClassification", "DeiTConfig", pixels, _VISION),
    _row("Dinov2ForImageClassification", "Dinov2Config", pixels, _VISION),
    _row("SiglipForImageClassification", "SiglipConfig", pixels, {"vision_config": _VISION}),
    _row(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pixels,
        {
            "depths": [1, 1, 1, 1],
            "sr_ratios": [4, 2, 1, 1],
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 2, 2, 4],
            "mlp_ratios": [2, 2, 2, 2],
            "decoder_hidden_size": 24,
        },
        sample=True,
    ),
    _row(
        "SwinForImageClassification",
        "SwinConfig",
        pixels,
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _row(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        pixels,
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    ),
    _row(
        "CLIPModel",
        "CLIPConfig",
        captions,
        {
            "text_config": {**_ENCODER, "eos_token_id": 1, "projection_dim": 32},
            "vision_config": {**_VISION, "projection_dim": 32},
            "projection_dim": 32,
        },
        low="it returns the hidden states of both encoders, so their residual streams are outputs",
    ),
    _decoder("LlamaForCausalLM", "LlamaConfig", {"sample": True}),
    _decoder("MistralForCausalLM", "MistralConfig"),
    _decoder("Qwen2ForCausalLM", "Qwen2Config"),
    _decoder("Qwen3ForCausalLM", "Qwen3Config", head_dim=12),
    _decoder("GemmaForCausalLM", "GemmaConfig", head_dim=12),
    _decoder("Gemma2ForCausalLM", "Gemma2Config", head_dim=12),
    _decoder("Phi3ForCausalLM", "Phi3Config", pad_token_id=0),
    _decoder("OlmoForCausalLM", "OlmoConfig"),
    _decoder(
        "MixtralForCausalLM",
        "MixtralConfig",
        _SINGLE,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    _decoder(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _SINGLE,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=40,
        shared_expert_intermediate_size=40,
    ),
    _row(
        "OPTForCausalLM",
        "OPTConfig",
        masked_tokens,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "ffn_dim": 80,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "word_embed_proj_dim": 48,
            "use_cache": False,
        },
    ),
    _row("GPTNeoXForCausalLM", "GPTNeoXConfig", masked_tokens, {**_ENCODER, "use_cache": False}),
    _row(
        "BloomForCausalLM",
        "BloomConfig",
        masked_tokens,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "n_layer": 2,
            "n_head": 4,
            "use_cache": False,
        },
    ),
    _row(
        "FalconForCausalLM",
        "FalconConfig",
        masked_tokens,
        {**_ENCODER, "use_cache": False},
    ),
    _row(
        "MambaForCausalLM",
        "MambaConfig",
        tokens,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 2,
            "time_step_rank": 4,
            "use_cache": False,
        },
    ),
)
