"""Networks of `transformers` that find objects, or say something of every pixel."""

from tests.corpora.network import images, pairs
from tests.corpora.transformers_network import (
    DETECTION,
    HEADS,
    HGNET,
    LAYERS,
    QUERIES,
    RESNET,
    STAGES,
    VISION,
    TransformersNetwork,
)

DENSE = [
    TransformersNetwork(
        "MobileNetV2, DeepLabV3+",
        "MobileNetV2ForSemanticSegmentation",
        images(65),
        {"depth_multiplier": 0.35, "image_size": 65},
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
        "SegFormer",
        "SegformerForSemanticSegmentation",
        images(64),
        {**STAGES, **HEADS, "decoder_hidden_size": 32},
        True,
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
]
