"""The names that weights of a RepVGG have in files, and the way from each set of names to another.

| layout | whose names | form |
| --- | --- | --- |
| "official" | the authors', which are those of `RepVGG` | as trained |
| "official_fused" | the authors' | fused |
| "timm" | timm's | as trained |
| "timm_fused" | timm's | fused |
| "reparam_fused" | those that `reparam.fuse` gives a `RepVGG` | fused |

A file as trained can become any other one. A fused file can only change its names: a sum does not
tell its terms.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

import reparam
from reparam import ReparamError
from repvgg.models import RepVGGBlock

Layout = Literal["official", "official_fused", "timm", "timm_fused", "reparam_fused"]

FUSED: frozenset[Layout] = frozenset({"official_fused", "timm_fused", "reparam_fused"})
"""The layouts of the fused form, which has no auxiliary heads."""

_SIGNS: Mapping[str, Layout] = {
    "rbr_dense": "official",
    "rbr_reparam": "official_fused",
    "conv_kxk": "timm",
    "reparam_conv": "timm_fused",
    "fused_conv": "reparam_fused",
}

_TIMM_PARTS = {
    "rbr_dense": "conv_kxk",
    "rbr_1x1": "conv_1x1",
    "rbr_identity": "identity",
    "rbr_reparam": "reparam_conv",
    "se.down": "attn.fc1",
    "se.up": "attn.fc2",
}
"""The parts of a block: the authors' names, and timm's."""


def find_layout(state: Mapping[str, Tensor]) -> Layout:
    """Tells by their names in which layout weights are.

    Args:
        state: The weights by their names.

    Raises:
        ReparamError: If these are not the names of a RepVGG.
    """
    parts = {part for name in state for part in name.split(".")}
    layouts = [layout for sign, layout in _SIGNS.items() if sign in parts]
    if len(layouts) != 1:
        what = f"names of {' and '.join(layouts)}" if layouts else "none that a RepVGG has"
        raise ReparamError(
            f"of the {len(state)} names ({_first(state)}) the layout cannot be told: {what}; "
            "give the weights of a RepVGG alone, without a prefix, in one of the layouts "
            f"{', '.join(get_args(Layout))}"
        )
    return layouts[0]


def is_fused(state: Mapping[str, Tensor]) -> bool:
    """Tells by their names whether weights are those of the fused form.

    Raises:
        ReparamError: If these are not the names of a RepVGG.
    """
    return find_layout(state) in FUSED


def convert_state_dict(state: Mapping[str, Tensor], *, to: Layout) -> dict[str, Tensor]:
    """Brings the weights of a RepVGG into another layout.

    Weights as trained are fused by `reparam.fuse` where a fused layout is asked for; of the batch
    norms, which weights alone do not tell, eps is taken to be PyTorch's 1e-5. Auxiliary heads are
    in the official training layout only, and left out of all others.

    Args:
        state: The weights by their names, in any layout.
        to: "official", "official_fused", "timm", "timm_fused" or "reparam_fused", the names that
            `reparam.fuse` gives.

    Returns:
        The weights by their new names. Those that only change their names are not copied.

    Raises:
        ReparamError: If the layout of `state` is not known, if it is fused and `to` is not, or if
            timm has no such network.

    Examples:
        >>> from repvgg import RepVGG, RepVGGConfig
        >>> model = RepVGG(RepVGGConfig(blocks=(1, 1, 1, 1), channels=(8, 8, 8, 8, 8)))
        >>> fused = convert_state_dict(model.state_dict(), to="official_fused")
        >>> sorted(fused)[:4]
        ['linear.bias', 'linear.weight', 'stage0.rbr_reparam.bias', 'stage0.rbr_reparam.weight']
    """
    if to not in get_args(Layout):
        raise ReparamError(f"unknown layout {to!r}; known: {', '.join(get_args(Layout))}")
    layout = find_layout(state)
    if layout in FUSED and to not in FUSED:
        raise ReparamError(
            f"the weights are fused ({layout}), and a sum does not tell its terms: they cannot "
            f"become {to}; convert the weights as they were trained"
        )
    named = {_official(name): tensor for name, tensor in state.items()}
    if to != "official":
        named = {name: tensor for name, tensor in named.items() if not is_auxiliary(name)}
    if to in FUSED and layout not in FUSED:
        named = _fuse(named)
    if to.startswith("timm"):
        return {_timm(name): tensor for name, tensor in named.items()}
    if to == "reparam_fused":
        return {_swap(name, "rbr_reparam", "fused_conv"): tensor for name, tensor in named.items()}
    return named


def _official(name: str) -> str:
    """The authors' name of a weight in any layout."""
    name = re.sub(r"^stem\.", "stage0.", name)
    name = re.sub(r"^stages[._](\d+)\.", lambda match: f"stage{int(match[1]) + 1}.", name)
    name = re.sub(r"^head\.fc\.", "linear.", name)
    for official, timm in _TIMM_PARTS.items():
        name = _swap(name, timm, official)
    return _swap(name, "fused_conv", "rbr_reparam")


def _timm(name: str) -> str:
    """Timm's name of a weight that has the authors'."""
    if ".post_se." in name:
        raise ReparamError(f"timm has no RepVGGplus, and no name for {name}; choose another layout")
    name = re.sub(r"^stage0\.", "stem.", name)
    name = re.sub(r"^stage(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.", name)
    name = re.sub(r"^linear\.", "head.fc.", name)
    for official, timm in _TIMM_PARTS.items():
        name = _swap(name, official, timm)
    return name


def _swap(name: str, old: str, new: str) -> str:
    return name.replace(f".{old}.", f".{new}.")


def is_auxiliary(name: str) -> bool:
    """Whether a weight is one of an auxiliary head, by its official name."""
    return name.partition(".")[0].endswith("_aux")


def _fuse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fuses the branches of each block; names are the authors'."""
    fused: dict[str, Tensor] = {}
    blocks: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        block, sign, branch = name.partition(".rbr_")
        if sign:
            blocks[block][f"rbr_{branch}"] = tensor
        else:
            fused[name] = tensor
    for block, branches in blocks.items():
        for name, tensor in _fuse_block(block, branches).items():
            fused[f"{block}.rbr_reparam.{name}"] = tensor
    return fused


def _fuse_block(path: str, branches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weight = branches.get("rbr_dense.conv.weight")
    if weight is None or weight.dim() != 4:
        raise ReparamError(f"{path} has no 3×3 convolution: {_first(branches)}; is a part missing?")
    out_channels, in_channels = weight.shape[:2]
    # Groups can be told, and matter, only where the identity is added.
    identity = any(name.startswith("rbr_identity.") for name in branches)
    groups = max(out_channels // in_channels, 1) if identity else 1
    block = RepVGGBlock(
        in_channels * groups, out_channels, stride=1 if identity else 2, groups=groups
    )
    try:
        block.to(device=weight.device, dtype=weight.dtype).load_state_dict(branches)
    except RuntimeError as error:
        raise ReparamError(f"{path} is not the block of a RepVGG: {error}") from error
    # Verifying would take most of the time, and this block is fused in one way, which is tested.
    fused = reparam.fuse(block.eval(), inplace=True, verify=False)
    return fused.get_submodule("fused_conv").state_dict()


def _first(names: Mapping[str, Tensor]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown}, …" if len(names) > 3 else shown
