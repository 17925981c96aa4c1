"""A network of `transformers`, made small by its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.corpora.network import Inputs, Network


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
