"""Networks to which `peft` added adapters."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.corpora.network import Inputs, Network, images, tokens


@dataclass(frozen=True)
class AdaptedNetwork(Network):
    """A network, its adapters, and what is done with them."""

    name: str
    base: Callable[[], nn.Module]
    make: Inputs
    targets: str
    """Matches the names of the layers with an adapter."""
    method: str = "LoraConfig"
    settings: dict[str, Any] = field(default_factory=dict)
    adapters: int = 1
    """How many there are; all of them are active."""
    enabled: bool = True
    merged: bool = False
    selected: bool = False
    library = "peft"

    @property
    def within_reach(self) -> bool:  # type: ignore[override]
        """Others than LoRA compute their weights in forward, from more than parameters."""
        return self.method == "LoraConfig" and not self.settings.get("use_dora", False)

    def construct(self) -> nn.Module:
        import peft

        settings = dict(self.settings)
        if self.method == "LoraConfig":
            settings = {"r": 4, "lora_alpha": 12, **settings}
        adapter = getattr(peft, self.method)(target_modules=self.targets, **settings)
        model = peft.get_peft_model(self.base(), adapter)
        names = ["default", *(f"adapter{n}" for n in range(1, self.adapters))]
        for name in names[1:]:
            model.add_adapter(name, adapter)
        model.base_model.set_adapter(names)
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return self.make(count, seed)

    def build(self, seed: int) -> nn.Module:
        model: Any = super().build(seed)
        if not self.enabled:
            model.base_model.disable_adapter_layers()
        if self.merged:
            model.merge_adapter()
        return model

    def by_hand(self, model: nn.Module) -> nn.Module:
        adapted: Any = deepcopy(model)
        unmerged = self.enabled and not self.merged
        plain: nn.Module = adapted.merge_and_unload() if unmerged else adapted.unload()
        return plain


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=48, vocab_size=100))


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    stages = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1]}
    return ResNetForImageClassification(ResNetConfig(**stages, embedding_size=16))


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def create() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, **settings)
        return model

    return create


_VIT = _timm("vit_tiny_patch16_224", img_size=64, depth=2)
_ATTENTION = r".*\.(query|value)"
_PROJECTIONS = r".*\.(qkv|proj|fc1|fc2)"
_CONVOLUTIONS = r".*\.(conv1|conv2)"

PEFT_NETWORKS = [
    AdaptedNetwork("BERT, LoRA", _bert, tokens(), _ATTENTION, selected=True),
    AdaptedNetwork("BERT, LoRA, two adapters", _bert, tokens(), _ATTENTION, adapters=2),
    AdaptedNetwork("BERT, LoRA, disabled", _bert, tokens(), _ATTENTION, enabled=False),
    AdaptedNetwork("BERT, LoRA, merged", _bert, tokens(), _ATTENTION, merged=True),
    AdaptedNetwork("BERT, rsLoRA", _bert, tokens(), _ATTENTION, settings={"use_rslora": True}),
    AdaptedNetwork(
        "BERT, DoRA", _bert, tokens(), _ATTENTION, settings={"use_dora": True}, selected=True
    ),
    AdaptedNetwork(
        "BERT, LoRA with dropout and bias",
        _bert,
        tokens(),
        _ATTENTION,
        settings={"lora_dropout": 0.1, "lora_bias": True},
    ),
    AdaptedNetwork(
        "BERT, IA3",
        _bert,
        tokens(),
        r".*\.(key|value|output\.dense)",
        method="IA3Config",
        settings={"feedforward_modules": r".*\.output\.dense"},
        selected=True,
    ),
    AdaptedNetwork("ViT, LoRA", _VIT, images(64), _PROJECTIONS, selected=True),
    AdaptedNetwork("ViT, LoRA, three adapters", _VIT, images(64), _PROJECTIONS, adapters=3),
    AdaptedNetwork(
        "ViT, LoHa", _VIT, images(64), _PROJECTIONS, method="LoHaConfig", settings={"r": 4}
    ),
    AdaptedNetwork(
        "ViT, LoKr", _VIT, images(64), _PROJECTIONS, method="LoKrConfig", settings={"r": 4}
    ),
    AdaptedNetwork("ResNet-18, LoRA", _timm("resnet18"), images(64), _CONVOLUTIONS, selected=True),
    AdaptedNetwork(
        "ResNet-18, LoRA, two adapters", _timm("resnet18"), images(64), _CONVOLUTIONS, adapters=2
    ),
    AdaptedNetwork(
        "ResNet-18, LoRA, disabled",
        _timm("resnet18"),
        images(64),
        _CONVOLUTIONS,
        enabled=False,
    ),
    AdaptedNetwork(
        "ResNet-18, LoRA, merged", _timm("resnet18"), images(64), _CONVOLUTIONS, merged=True
    ),
    AdaptedNetwork(
        "ResNet-18, DoRA",
        _timm("resnet18"),
        images(64),
        _CONVOLUTIONS,
        settings={"use_dora": True},
    ),
    AdaptedNetwork(
        "MobileNetV2, LoRA", _timm("mobilenetv2_035"), images(64), r".*\.(conv_pw|conv_pwl)"
    ),
    AdaptedNetwork(
        "transformers' ResNet, LoRA", _resnet, images(64), r".*\.convolution", selected=True
    ),
]
