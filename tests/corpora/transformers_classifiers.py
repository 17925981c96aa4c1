"""Networks of `transformers` that tell what an image shows."""

from tests.corpora.network import images
from tests.corpora.transformers_network import (
    HEADS,
    HGNET,
    RESNET,
    STAGES,
    VISION,
    TransformersNetwork,
)

CLASSIFIERS = [
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
        "MobileViTV2",
        "MobileViTV2ForImageClassification",
        images(64),
        {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
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
        "PP-LCNet", "PPLCNetForImageClassification", images(64), {"scale": 0.25}, True
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
]
