"""Networks of `transformers`, made small by their configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.corpora.network import (
    Inputs,
    Network,
    audio,
    images,
    pairs,
    series,
    spectrogram,
    tokens,
    transcription,
    translation,
)


@dataclass(frozen=True)
class TransformersNetwork(Network):
    """A network by the name of its class, with the settings of its configuration."""

    name: str
    architecture: str
    make: Inputs
    settings: Mapping[str, Any]
    selected: bool = False
    library = "transformers"

    def construct(self) -> nn.Module:
        import transformers

        architecture = getattr(transformers, self.architecture)
        model: nn.Module = architecture(architecture.config_class(**self.settings))
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return self.make(count, seed)


STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
HEADS = {"num_attention_heads": [1, 2, 2, 4]}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**LAYERS, "intermediate_size": 48}
RESNET = {**STAGES, "embedding_size": 16}
HGNET = {
    "stem_channels": [3, 8, 12],
    "stage_in_channels": [12, 16, 24, 32],
    "stage_mid_channels": [8, 8, 12, 16],
    "stage_out_channels": [16, 24, 32, 48],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 2, 1],
}
DETECTION = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [24, 32, 48],
    "decoder_in_channels": [32, 32, 32],
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_layers": 2,
    "num_queries": 20,
    "num_denoising": 0,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
QUERIES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 10,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "backbone_config": {
        "model_type": "resnet",
        **RESNET,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}
SPEECH = {
    **ENCODER,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
WORDS = {**ENCODER, "vocab_size": 100, "use_cache": False}
VISION = {**ENCODER, "image_size": 64, "patch_size": 16}

TRANSFORMERS_NETWORKS = [
    TransformersNetwork("ResNet", "ResNetForImageClassification", images(64), RESNET, True),
    TransformersNetwork(
        "ResNet, basic blocks", "ResNetModel", images(64), {**RESNET, "layer_type": "basic"}
    ),
    TransformersNetwork(
        "RegNet", "RegNetForImageClassification", images(64), {**RESNET, "groups_width": 8}, True
    ),
    TransformersNetwork(
        "RegNet X", "RegNetModel", images(64), {**RESNET, "groups_width": 8, "layer_type": "x"}
    ),
    TransformersNetwork(
        "MobileNetV1",
        "MobileNetV1ForImageClassification",
        images(65),
        {"depth_multiplier": 0.25, "image_size": 65},
        True,
    ),
    TransformersNetwork(
        "MobileNetV2",
        "MobileNetV2ForImageClassification",
        images(65),
        {"depth_multiplier": 0.35, "image_size": 65},
        True,
    ),
    TransformersNetwork(
        "MobileNetV2, DeepLabV3+",
        "MobileNetV2ForSemanticSegmentation",
        images(65),
        {"depth_multiplier": 0.35, "image_size": 65},
    ),
    TransformersNetwork(
        "EfficientNet",
        "EfficientNetForImageClassification",
        images(64),
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        True,
    ),
    TransformersNetwork(
        "LeViT",
        "LevitForImageClassificationWithTeacher",
        images(128),
        {
            "image_size": 128,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]],
        },
        True,
    ),
    TransformersNetwork(
        "CvT",
        "CvtForImageClassification",
        images(64),
        {"depth": [1, 2, 3], "embed_dim": [16, 48, 96], "num_heads": [1, 3, 6]},
        True,
    ),
    TransformersNetwork(
        "MobileViT",
        "MobileViTForImageClassification",
        images(64),
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
        },
        True,
    ),
    TransformersNetwork(
        "MobileViT, DeepLabV3",
        "MobileViTForSemanticSegmentation",
        images(64),
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
            "aspp_out_channels": 32,
        },
    ),
    TransformersNetwork(
        "MobileViTV2",
        "MobileViTV2ForImageClassification",
        images(64),
        {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
        True,
    ),
    TransformersNetwork(
        "SegFormer",
        "SegformerForSemanticSegmentation",
        images(64),
        {**STAGES, **HEADS, "decoder_hidden_size": 32},
        True,
    ),
    TransformersNetwork("HGNet-V2", "HGNetV2ForImageClassification", images(64), HGNET, True),
    TransformersNetwork(
        "HGNet-V2, learnable affine",
        "HGNetV2Backbone",
        images(64),
        {**HGNET, "use_learnable_affine_block": True},
    ),
    TransformersNetwork(
        "RT-DETR",
        "RTDetrForObjectDetection",
        images(64),
        {
            **DETECTION,
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                **RESNET,
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
        True,
    ),
    TransformersNetwork("RT-DETR's backbone", "RTDetrResNetBackbone", images(64), RESNET, True),
    TransformersNetwork(
        "RT-DETRv2",
        "RTDetrV2ForObjectDetection",
        images(64),
        {
            **DETECTION,
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                **RESNET,
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
    ),
    TransformersNetwork(
        "D-FINE",
        "DFineForObjectDetection",
        images(64),
        {
            **DETECTION,
            "backbone_config": {
                "model_type": "hgnet_v2",
                **HGNET,
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
    ),
    TransformersNetwork("DETR", "DetrForObjectDetection", images(64), QUERIES),
    TransformersNetwork(
        "Conditional DETR", "ConditionalDetrForObjectDetection", images(64), QUERIES
    ),
    TransformersNetwork(
        "Wav2Vec2-Conformer",
        "Wav2Vec2ConformerForCTC",
        audio(2000),
        {**SPEECH, "vocab_size": 20},
        True,
    ),
    TransformersNetwork(
        "Wav2Vec2-Conformer, rotary",
        "Wav2Vec2ConformerModel",
        audio(2000),
        {**SPEECH, "position_embeddings_type": "rotary"},
    ),
    TransformersNetwork(
        "BiT", "BitForImageClassification", images(64), {**RESNET, "num_groups": 4}
    ),
    TransformersNetwork(
        "FocalNet",
        "FocalNetForImageClassification",
        images(64),
        {
            "image_size": 64,
            "embed_dim": 16,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 1, 2, 1],
            "use_layerscale": True,
        },
    ),
    TransformersNetwork(
        "PVT", "PvtForImageClassification", images(64), {**STAGES, **HEADS, "image_size": 64}
    ),
    TransformersNetwork(
        "PVTv2", "PvtV2ForImageClassification", images(64), {**STAGES, **HEADS, "image_size": 64}
    ),
    TransformersNetwork("PoolFormer", "PoolFormerForImageClassification", images(64), STAGES),
    TransformersNetwork("ConvNeXt", "ConvNextForImageClassification", images(64), STAGES, True),
    TransformersNetwork("ConvNeXtV2", "ConvNextV2ForImageClassification", images(64), STAGES),
    TransformersNetwork(
        "SwiftFormer",
        "SwiftFormerForImageClassification",
        images(64),
        {"image_size": 64, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
        True,
    ),
    TransformersNetwork(
        "TextNet",
        "TextNetForImageClassification",
        images(64),
        {"image_size": [64, 64], "stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 48]},
        True,
    ),
    TransformersNetwork(
        "SuperPoint",
        "SuperPointForKeypointDetection",
        images(64),
        {
            "encoder_hidden_sizes": [8, 8, 16, 16],
            "decoder_hidden_size": 16,
            "descriptor_decoder_dim": 16,
        },
    ),
    TransformersNetwork(
        "EfficientLoFTR",
        "EfficientLoFTRModel",
        pairs(64),
        {
            "stage_num_blocks": [1, 2, 2, 2],
            "out_features": [16, 16, 24, 32],
            "hidden_size": 32,
            "num_attention_layers": 1,
            "num_attention_heads": 8,
        },
    ),
    TransformersNetwork(
        "UPerNet",
        "UperNetForSemanticSegmentation",
        images(64),
        {
            "hidden_size": 16,
            "auxiliary_channels": 16,
            "backbone_config": {
                "model_type": "resnet",
                **RESNET,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        },
    ),
    TransformersNetwork(
        "DPT",
        "DPTForSemanticSegmentation",
        images(64),
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 24, 32],
            "fusion_hidden_size": 16,
            "use_batch_norm_in_fusion_residual": True,
        },
    ),
    TransformersNetwork(
        "GLPN", "GLPNForDepthEstimation", images(64), {**STAGES, **HEADS, "decoder_hidden_size": 16}
    ),
    TransformersNetwork(
        "BEiT, UPerNet",
        "BeitForSemanticSegmentation",
        images(64),
        {**VISION, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    ),
    TransformersNetwork(
        "VitMatte",
        "VitMatteForImageMatting",
        images(64, 4),
        {
            "hidden_size": 32,
            "convstream_hidden_sizes": [8, 12, 16],
            "fusion_hidden_sizes": [32, 16, 12, 8],
            "backbone_config": {
                "model_type": "vitdet",
                **LAYERS,
                "image_size": 64,
                "patch_size": 16,
                "num_channels": 4,
                "out_features": ["stage2"],
            },
        },
    ),
    TransformersNetwork(
        "ViTPose",
        "VitPoseForPoseEstimation",
        images(64),
        {
            "use_simple_decoder": False,
            "backbone_config": {
                "model_type": "vitpose_backbone",
                **LAYERS,
                "image_size": [64, 64],
                "out_features": ["stage2"],
            },
        },
    ),
    TransformersNetwork(
        "Depth Anything",
        "DepthAnythingForDepthEstimation",
        images(70),
        {
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 16, 24, 32],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
            "backbone_config": {
                "model_type": "dinov2",
                **LAYERS,
                "image_size": 70,
                "patch_size": 14,
                "num_hidden_layers": 4,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
                "reshape_hidden_states": False,
            },
        },
    ),
    TransformersNetwork(
        "ZoeDepth",
        "ZoeDepthForDepthEstimation",
        images(64),
        {
            "neck_hidden_sizes": [8, 16, 24, 32],
            "fusion_hidden_size": 16,
            "bottleneck_features": 16,
            "num_relative_features": 8,
            "bin_embedding_dim": 16,
            "num_attractors": [8, 4, 2, 1],
            "bin_configurations": [{"n_bins": 16, "min_depth": 0.001, "max_depth": 10.0}],
            "backbone_config": {
                "model_type": "beit",
                **VISION,
                "num_hidden_layers": 4,
                "use_relative_position_bias": True,
                "reshape_hidden_states": False,
                "out_indices": [1, 2, 3, 4],
            },
        },
    ),
    TransformersNetwork(
        "PP-LCNet", "PPLCNetForImageClassification", images(64), {"scale": 0.25}, True
    ),
    TransformersNetwork(
        "UVDoc",
        "UVDocModel",
        images(64),
        {
            "backbone_config": {
                "model_type": "uvdoc_backbone",
                "out_features": [f"stage{n}" for n in range(1, 7)],
            }
        },
    ),
    TransformersNetwork(
        "Parakeet",
        "ParakeetEncoder",
        spectrogram(64, 80),
        {**ENCODER, "num_key_value_heads": 4, "subsampling_conv_channels": 16},
    ),
    TransformersNetwork(
        "PatchTST",
        "PatchTSTForPrediction",
        series(32, 2),
        {
            "num_input_channels": 2,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
        },
    ),
    TransformersNetwork(
        "PatchTSMixer",
        "PatchTSMixerForPrediction",
        series(32, 2),
        {"num_input_channels": 2, "norm_mlp": "BatchNorm", "num_layers": 2},
    ),
    TransformersNetwork("ViT", "ViTForImageClassification", images(64), VISION),
    TransformersNetwork(
        "Swin",
        "SwinForImageClassification",
        images(64),
        {
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 4],
            "window_size": 4,
        },
    ),
    TransformersNetwork("BERT", "BertForSequenceClassification", tokens(), WORDS, True),
    TransformersNetwork(
        "GPT-2",
        "GPT2LMHeadModel",
        tokens(),
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 100,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    TransformersNetwork(
        "Llama", "LlamaForCausalLM", tokens(), {**WORDS, "num_key_value_heads": 2}, True
    ),
    TransformersNetwork(
        "T5",
        "T5ForConditionalGeneration",
        translation(),
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 100,
            "use_cache": False,
        },
    ),
    TransformersNetwork("Wav2Vec2", "Wav2Vec2Model", audio(2000), SPEECH),
    TransformersNetwork(
        "Whisper",
        "WhisperModel",
        transcription(),
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "use_cache": False,
            "num_mel_bins": 20,
            "max_source_positions": 30,
            "vocab_size": 100,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
]
"""With batch norm or convolutions; and some where nothing, or little, can be fused."""
