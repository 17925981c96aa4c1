"""The public call that expands layers into branches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from reparam.errors import Refusal, ReparamError
from reparam.expansion.blocks import Block
from reparam.expansion.building import expanded, trains_alike
from reparam.expansion.choosing import ASKED, LAYERS, Candidates
from reparam.expansion.collapsing import difference
from reparam.expansion.expanded_layers import ExpandedLayer
from reparam.expansion.norms import add_norms
from reparam.expansion.noticing import noticed
from reparam.modules import ALONE, AtWork, Choice, check_module, chosen, copy_model, in_eval_mode
from reparam.report import ExpandedRow, ExpansionReport, RefusedRow
from reparam.rules import load_rules

ModelT = TypeVar("ModelT", bound=nn.Module)


def expand(
    model: ModelT,
    branches: Block,
    *,
    where: Choice = None,
    keep: Choice = None,
    norm: Literal["each"] | None = None,
    calibrate: Iterable[Any] | None = None,
) -> ModelT:
    """Give convolutions and linear layers branches to be trained with.

    The result computes what the model does, in eval and in training mode: the kernel of each layer
    becomes what is left of it without the branches. Train it, and `reparam.fuse` makes of each
    expanded layer one of the kind, the shape and the name that it had. The model may be one that
    was fused: so weights that are deployed are trained on.

    Args:
        model: Any module; it is not changed.
        branches: The branches, as a block of `reparam.blocks` or one of your own.
        where: Which layers: their paths, with wildcards or not, their types, or a function of path
            and module. By default all that the block fits.
        keep: Layers that stay as they are, said in the same ways.
        norm: ``"each"`` puts a batch norm at the end of every branch. In training mode these
            normalise by their batches: the model then computes the same in eval mode only.
        calibrate: Batches, each as example inputs are given to `reparam.fuse`, from which those
            norms have their statistics.

    Returns:
        A copy with expanded layers. What was expanded and what was not, and why, is its attribute
        ``reparam_report``.

    Raises:
        ReparamError: If the model is no module or cannot be copied, ``where`` means no module, no
            layer can be expanded, or the norms have no batches.

    Examples:
        >>> import torch
        >>> import reparam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> trained = reparam.expand(model, reparam.blocks.acnet())
        >>> x = torch.randn(1, 3, 7, 7)
        >>> torch.allclose(trained(x), model(x), atol=1e-5)
        True
        >>> fused = reparam.fuse(trained.eval())
        >>> fused.state_dict().keys() == model.state_dict().keys()
        True
    """
    check_module(model)
    if not isinstance(branches, Block):
        raise ReparamError(
            f"branches={branches!r}: expected a block, such as one of reparam.blocks"
        )
    if norm not in (None, "each"):
        raise ReparamError(f"norm={norm!r}: expected None or 'each'")
    if norm == "each" and calibrate is None:
        raise ReparamError(
            "norm='each' needs calibrate: batches from which the norms have their statistics"
        )
    if norm is None and calibrate is not None:
        raise ReparamError("calibrate is for norms: pass norm='each' with it")
    if isinstance(calibrate, Tensor):
        raise ReparamError("calibrate is one tensor: expected batches, such as [batch]")
    load_rules()
    with ALONE, AtWork() as work, work:
        target: Any = copy_model(model)
        report = ExpansionReport(type(model).__name__, branches.name)
        with in_eval_mode(target):
            candidates = Candidates(target, keep)
        layers = _replace(target, branches, where, candidates, report, normed=norm is not None)
        if not layers:
            raise ReparamError(f"no layer can be expanded\n{report}")
        if norm == "each":
            add_norms(target, layers, calibrate or ())
    for layer in layers.values():
        weight = layer.main[0].weight
        layer.requires_grad_(isinstance(weight, Tensor) and weight.requires_grad)
    vars(target)["reparam_report"] = report
    result: ModelT = target
    return result


def _replace(
    target: nn.Module,
    block: Block,
    where: Choice,
    candidates: Candidates,
    report: ExpansionReport,
    *,
    normed: bool,
) -> dict[str, ExpandedLayer]:
    """Expand the layers of a copy where that may be, and take down what was done."""
    pairs: dict[str, tuple[nn.Module, ExpandedLayer]] = {}
    refused: dict[str, Refusal] = {}
    asked = {p: m for p, m in chosen(target, where, "where").items() if p and isinstance(m, LAYERS)}
    for path, layer in asked.items():
        made: Any = candidates.refusal(layer)
        if made is None and normed and isinstance(layer, nn.Linear):
            made = Refusal("a norm beside a linear layer: which axis it is to count is not known")
        if made is None:
            made = expanded(layer, block)
        if isinstance(made, ExpandedLayer):
            made = difference(made, layer) or made
        if where is None and not normed and isinstance(made, ExpandedLayer) and trains_alike(made):
            made = Refusal("each branch would be the layer again, and all would train like one")
        if isinstance(made, Refusal):
            refused[path] = made
            continue
        holder, _, name = path.rpartition(".")
        setattr(target.get_submodule(holder), name, made)
        pairs[path] = layer, made
    with in_eval_mode(target):
        odd = noticed(target, pairs, candidates.graphs)
    refused |= dict.fromkeys(odd, ASKED)
    for path, layer in asked.items():
        if path in refused:
            row = RefusedRow(path, type(layer).__name__, refused[path].reason)
            report.refused.append(row)
        else:
            report.expanded.append(_row(path, *pairs[path]))
    return {path: made for path, (_, made) in pairs.items() if path not in odd}


def _row(path: str, layer: nn.Module, made: ExpandedLayer) -> ExpandedRow:
    counts = [sum(p.numel() for p in module.parameters()) for module in (layer, made)]
    return ExpandedRow(path, type(layer).__name__, len(made.branches) + 1, (counts[0], counts[1]))
