"""RepVGG: a plain stack of 3×3 convolutions that is trained with parallel branches.

A block computes

    ReLU(BN(conv3×3(x)) + BN(conv1×1(x)) + BN(x))

where the last term is there if input and output have the same shape. In evaluation mode each term
is affine in x, so the sum equals one 3×3 convolution, which `reparam.fuse` finds from the graph:
there is one model here, without a second "deploy" form and without a switch between the two.

Modules carry the names of the authors' checkpoints (`stage1.0.rbr_dense.conv.weight`), so that
those load strictly.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from reparam import ReparamError
from repvgg.models.backbone import Backbone, describe_levels
from repvgg.models.blocks import conv_norm
from repvgg.models.config import RepVGGConfig, check_positive

__all__ = ["RepVGG", "RepVGGConfig"]

_AUXILIARY = ("stage1", "stage2", "stage3_first")


class RepVGG(Backbone):
    r"""A RepVGG classifier.

    A RepVGGplus that is training returns a mapping from "main", "stage1_aux", "stage2_aux" and
    "stage3_first_aux" to logits, for a loss that adds a tenth of each auxiliary one to the main
    one. Otherwise the output is the logits.

    Args:
        config: The shape of the network.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.

    Shape:
        - Input: :math:`(N, in\_chans, H, W)`
        - Output: :math:`(N, num\_classes)`, the logits

    Raises:
        ReparamError: If `num_classes` or `in_chans` is not a positive integer.
    """

    def __init__(self, config: RepVGGConfig, *, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__(config, in_chans=in_chans)
        check_positive("num_classes", num_classes)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = config.channels[-1]
        self.linear: nn.Module = nn.Linear(self.num_features, num_classes)
        if config.plus:
            for level, stage in enumerate(_AUXILIARY, start=1):
                self.add_module(f"{stage}_aux", _auxiliary(config.channels[level], num_classes))

    @property
    def feature_info(self) -> list[dict[str, str | int]]:
        """Channels (`num_chs`), `reduction` and `module` of the features of each level."""
        return describe_levels(self.config)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Computes the logits; those of auxiliary classifiers too while a RepVGGplus trains."""
        auxiliary: dict[str, Tensor] = {}
        for stage in self.stage_names:
            x = getattr(self, stage)(x)
            head = getattr(self, f"{stage}_aux", None)
            if self.training and head is not None:
                auxiliary[f"{stage}_aux"] = head(x)
        logits = self.forward_head(x)
        return {"main": logits} | auxiliary if auxiliary else logits

    def forward_features(self, x: Tensor) -> Tensor:
        r"""Computes the features of the last stage.

        Shape:
            - x: :math:`(N, in\_chans, H, W)`
            - Output: :math:`(N, num\_features, H / 32, W / 32)`
        """
        for stage in self.stage_names:
            x = getattr(self, stage)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        r"""Computes the logits from the features of the last stage.

        Args:
            x: What `forward_features` returns.
            pre_logits: Whether to return the pooled features instead.

        Shape:
            - x: :math:`(N, num\_features, H, W)`
            - Output: :math:`(N, num\_classes)`, or :math:`(N, num\_features)`
        """
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        if pre_logits:
            return x
        logits: Tensor = self.linear(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """Returns the last layer."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, and the auxiliary ones, by fresh ones.

        Args:
            num_classes: Number of classes; with 0 the model returns its pooled features.
            global_pool: "avg" or `None`, which means the same.

        Raises:
            ReparamError: If `num_classes` is negative or no integer, or another pooling is asked
                for.

        Examples:
            >>> config = RepVGGConfig(blocks=(1, 1, 1, 1), channels=(8, 8, 16, 32, 64))
            >>> model = RepVGG(config)
            >>> model.reset_classifier(10)
            >>> model.get_classifier()
            Linear(in_features=64, out_features=10, bias=True)
        """
        if num_classes != 0 or isinstance(num_classes, bool):
            check_positive("num_classes", num_classes)
        if global_pool not in (None, "avg"):
            raise ReparamError(f"a RepVGG pools by the average, not by {global_pool!r}")
        self.num_classes = num_classes
        self.linear = self._fresh_classifier(self.num_features)
        for head in self._auxiliary_heads().values():
            head[-1] = self._fresh_classifier(head.get_parameter("0.bn.weight").numel())

    def remove_auxiliary_heads(self) -> None:
        """Removes the auxiliary classifiers of a RepVGGplus, which only training uses.

        Afterwards training returns logits only. Fusing leaves the heads as they are: remove them
        where the fused model is to be deployed.
        """
        for name in self._auxiliary_heads():
            delattr(self, name)

    def _auxiliary_heads(self) -> dict[str, nn.Sequential]:
        named = {f"{stage}_aux": getattr(self, f"{stage}_aux", None) for stage in self.stage_names}
        return {name: head for name, head in named.items() if head is not None}

    def _fresh_classifier(self, features: int) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        like = next(self.parameters())
        return nn.Linear(features, self.num_classes, device=like.device, dtype=like.dtype)


def build_classifier(config: RepVGGConfig, *, num_classes: int, in_chans: int) -> RepVGG:
    """Builds a `RepVGG`, where the files of others may ask for one without a classifier.

    Args:
        config: The shape of the network.
        num_classes: Number of classes; with 0 the model returns its pooled features.
        in_chans: Number of channels of the images.

    Raises:
        ReparamError: If `num_classes` is negative or no integer, or `in_chans` is not a positive
            integer.
    """
    model = RepVGG(config, num_classes=1 if num_classes == 0 else num_classes, in_chans=in_chans)
    if num_classes == 0:
        model.reset_classifier(0)
    return model


def _auxiliary(channels: int, num_classes: int) -> nn.Sequential:
    downsample = conv_norm(channels, channels, 3, stride=2)
    downsample.add_module("relu", nn.ReLU())
    return nn.Sequential(
        downsample, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    )
