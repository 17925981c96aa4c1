"""From weights in one file to other weights, or to a program, in another."""

from __future__ import annotations

from pathlib import Path

import click
import torch

import reparam
from reparam import ReparamError
from reparam.deployment import SUFFIXES as PROGRAMS
from reparam.deployment import check_folder, program_error, record, write_files
from repvgg.models import RepVGG
from repvgg.training import image_size, network_of
from repvgg.weights import Layout, is_fused, save_checkpoint


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
    network = _network(name, weights, fused=fused)
    form = "fused" if fused else "as trained"
    if output.suffix not in PROGRAMS:
        save_checkpoint(network, output, layout=layout)
        click.echo(f"Wrote {output}: the weights, {form}")
        return
    if layout is not None:
        raise ReparamError(f"--layout is about files of weights; {output.name} will be a program")
    side = size or image_size(name)
    difference = _write_program(network, output, side)
    click.echo(
        f"Wrote {output}: the network, {form}, for any number of images of {side} by {side}"
        + (
            "; not run, since onnxruntime is not installed"
            if difference is None
            else f"; run on some, it differs by {difference:.0e} of the largest output"
        )
    )


def _network(name: str, weights: Path, *, fused: bool) -> RepVGG:
    """Reads a network, in the form that is asked for."""
    network = network_of(name, weights)
    if is_fused(network.state_dict()) == fused:
        return network
    if not fused:
        raise ReparamError(
            f"{weights} is fused, and a sum does not tell its terms: there is no way back to "
            "the form as trained"
        )
    network.remove_auxiliary_heads()
    return reparam.fuse(network)


def _write_program(network: RepVGG, output: Path, side: int) -> float | None:
    """Records the network as a program and writes it, if it returns what the network returns.

    Returns:
        By how much its outputs differ; `None` if it could not be run.
    """
    images = torch.rand(2, network.in_chans, side, side, generator=torch.Generator().manual_seed(0))
    program = record(
        network,
        (images,),
        output.suffix,
        any_batch=True,
        input_names=["images"],
        output_names=["logits"],
    )
    # Other numbers of images than the program was recorded with: its batch has to be free.
    cases = [(images,), (images[:1],), (torch.cat([images, images.flip(-1)]),)]
    difference = program_error(network, program, cases)
    write_files(output.parent, {output.name: program.data})
    return difference
