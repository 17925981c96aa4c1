"""From weights in one file to other weights, or to a program, in another."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from reparam.atomic_write import check_folder, write_files
from repvgg.checkpoints import save_checkpoint
from repvgg.layouts import FUSED, Layout, find_layout
from repvgg.networks import image_size, network_of

_BOUND = 1e-4
"""Largest difference of a program's float32 outputs, relative to the largest output."""


def convert_weights(
    name: str,
    weights: Path,
    output: Path,
    *,
    fused: bool = True,
    layout: Layout | None = None,
    size: int | None = None,
) -> None:
    """Converts weights, and prints what was written.

    Args:
        name: Name of the network.
        weights: Its weights.
        output: The new file; its suffix says the format.
        fused: Whether to fuse before.
        layout: The names in a file of weights, by default the authors' for the form.
        size: Height and width of the images of a program; as is usual for the network if `None`.

    Raises:
        ReparamError: If the weights do not fit, the suffix is unknown, or the file cannot be
            written.
    """
    check_folder(output.parent)
    network = network_of(name, weights)
    if find_layout(network.state_dict()) in FUSED:
        if not fused:
            raise ReparamError(
                f"{weights} is fused, and a sum does not tell its terms: there is no way back to "
                "the form as trained"
            )
    elif fused:
        network.remove_auxiliary_heads()
        network = reparam.fuse(network)
    form = "fused" if fused else "as trained"
    programs = {".onnx": _to_onnx, ".pt2": _to_exported_program}
    if output.suffix not in programs:
        save_checkpoint(network, output, layout=layout)
        click.echo(f"Wrote {output}: the weights, {form}")
        return
    if layout is not None:
        raise ReparamError(f"--layout is about files of weights; {output.name} will be a program")
    side = size or image_size(name)
    images = torch.rand(2, network.in_chans, side, side, generator=torch.Generator().manual_seed(0))
    data, run = programs[output.suffix](network, images)
    difference = None if run is None else _check(network, run, images)
    write_files(output.parent, {output.name: data})
    click.echo(
        f"Wrote {output}: the network, {form}, for any number of images of {side} by {side}"
        + (
            "; not run, since onnxruntime is not installed"
            if difference is None
            else f"; run on some, it differs by {difference:.0e} of the largest output"
        )
    )


_Run = Callable[[Tensor], Tensor]


def _to_onnx(network: nn.Module, images: Tensor) -> tuple[bytes, _Run | None]:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ReparamError(
                f".onnx files need the package {package}: pip install 'reparam[interop]'"
            )
    with warnings.catch_warnings():
        # torch.export copies its own tree structures
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    if program is None:
        raise ReparamError("torch.onnx.export returned no program")
    data: bytes = program.model_proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return data, None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _to_exported_program(network: nn.Module, images: Tensor) -> tuple[bytes, _Run]:
    program = torch.export.export(
        network, (images,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    return data, torch.export.load(io.BytesIO(data)).module()


def _check(network: nn.Module, run: _Run, images: Tensor) -> float:
    """Runs the program on batches of several sizes and compares it with the network."""
    worst = 0.0
    for batch in (images, images[:1], torch.cat([images, images.flip(-1)])):
        with torch.no_grad():
            expected: Tensor = network(batch)
            difference = (run(batch) - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(difference))
    if not worst <= _BOUND:
        raise ReparamError(
            f"the program returns something else than the network, by {worst:.1e} of the largest "
            "output; nothing was written. Please report it"
        )
    return worst
