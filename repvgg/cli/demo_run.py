"""The demo: train a small RepVGG, fuse it, show that nothing but its speed has changed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import click
import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from reparam.deployment import Comparison, check_folder, compare, describe_machine, write_files
from repvgg.cli.operations import list_operations, operations_inside
from repvgg.cli.picture import Form, draw, render
from repvgg.data import Digits, predict, split_digits, training_digits
from repvgg.models import RepVGG
from repvgg.training import DIGITS, small_repvgg, train

_BLOCK = "stage1.1"
"""The block that the picture shows by itself; it has all three branches."""

_ROUNDS = 200
_BATCHES = (1, 64)
_FLOAT64_BOUND = 1e-12


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and wrote.

    Attributes:
        correct: How many held-out digits both forms read correctly.
        held_out: How many digits were held out.
        relative_error: Largest difference of the two forms in float64, relative to the largest
            output.
        comparisons: The latencies, one for each batch size.
        files: The paths of the files.
    """

    correct: int
    held_out: int
    relative_error: float
    comparisons: list[Comparison]
    files: list[Path]


def run_demo(output: Path, *, epochs: int, seed: int, rounds: int = _ROUNDS) -> DemoResult:
    """Runs the demo and prints what it finds.

    Args:
        output: Folder for the weights and the picture. All files are written at the end.
        epochs: How often training passes over the digits.
        seed: Equal seeds give equal results, apart from latencies.
        rounds: How often each form is timed.

    Raises:
        ReparamError: If the two forms differ, or the folder cannot be written to.
    """
    check_folder(output)
    digits = split_digits(seed)
    model = _trained(digits, epochs, seed)
    plan = reparam.plan(model)
    fused = plan.apply()
    click.echo(f"\n{plan}\n")
    click.echo(f"Fused: {_parameters(fused)}")

    images = digits.held_out_images
    relative_error = check_float64(model, images)
    click.echo(f"In float64: largest difference {relative_error:.1e} of the largest output")
    click.echo(f"reparam.verify: {reparam.verify(model, fused, images)}")
    correct, held_out = check_predictions(model, fused, digits), len(images)
    accuracy = f"{correct} of {held_out} correct ({correct / held_out:.2%})"
    click.echo(f"Held-out digits: the same prediction for all {held_out}, {accuracy}")

    machine = describe_machine()
    comparisons = [compare(model, fused, images[:batch], rounds=rounds) for batch in _BATCHES]
    _print_latencies(comparisons, machine)

    figure = draw(
        _form(model, images),
        _form(fused, images),
        comparisons,
        summary=(
            f"Held-out digits: {accuracy}, with the same prediction for each in both forms; "
            f"outputs equal to {relative_error:.0e} in float64"
        ),
        machine=f"Medians and quartiles of {rounds} alternating rounds. {machine}",
    )
    files = _write(output, model, fused, figure)
    return DemoResult(correct, held_out, relative_error, comparisons, files)


def _trained(digits: Digits, epochs: int, seed: int) -> RepVGG:
    click.echo(
        f"Digits: {len(digits.train_labels):,} to train on, {len(digits.held_out_labels)} held out "
        f"(seed {seed})"
    )
    model = small_repvgg(seed)
    click.echo(f"RepVGG: {1 + sum(model.config.blocks)} blocks, {_parameters(model)}")
    train(model, training_digits(digits, seed), DIGITS.changed(epochs=epochs), seed=seed)
    return model


def _write(output: Path, model: nn.Module, fused: nn.Module, figure: Figure) -> list[Path]:
    files = write_files(
        output,
        {
            "trained.safetensors": safetensors.torch.save(model.state_dict()),
            "fused.safetensors": safetensors.torch.save(fused.state_dict()),
            "demo.png": render(figure, "png"),
            "demo.svg": render(figure, "svg"),
        },
    )
    click.echo("\nWrote " + ", ".join(str(path) for path in files))
    return files


def check_float64(model: nn.Module, images: Tensor) -> float:
    """Fuses a float64 copy of the model and compares the outputs.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        ReparamError: If it is more than rounding explains.
    """
    exact = deepcopy(model).double()
    images = images.double()
    with torch.inference_mode():
        expected: Tensor = exact(images)
        actual: Tensor = reparam.fuse(exact)(images)
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not error <= _FLOAT64_BOUND:
        raise ReparamError(
            f"the fused model differs from the trained one by {error:.1e} in float64, "
            f"more than {_FLOAT64_BOUND:.0e}: this is a bug, please report it"
        )
    return error


def check_predictions(model: nn.Module, fused: nn.Module, digits: Digits) -> int:
    """Compares what both forms read on the held-out digits.

    Returns:
        How many digits they read correctly.

    Raises:
        ReparamError: If they read any digit differently.
    """
    expected = predict(model, digits.held_out_images)
    actual = predict(fused, digits.held_out_images)
    different = int((actual != expected).sum())
    if different:
        raise ReparamError(
            f"the fused model reads {different} of {len(expected)} held-out digits differently: "
            "this is a bug, please report it"
        )
    return int((expected == digits.held_out_labels).sum())


def _form(model: nn.Module, images: Tensor) -> Form:
    network = list_operations(model, images[:2])
    return Form(network, operations_inside(network, _BLOCK))


def _parameters(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"


def _print_latencies(comparisons: list[Comparison], machine: str) -> None:
    click.echo(
        f"\nLatency on {machine}\n"
        f"median (quartiles) of {comparisons[0].rounds} alternating rounds\n"
        f"{'images':>6}  {'as trained':<25}  {'fused':<25}  ratio"
    )
    for comparison in comparisons:
        click.echo(
            f"{comparison.batch:>6}  {comparison.original!s:<25}  {comparison.fused!s:<25}  "
            f"{comparison.speedup:.2f}×"
        )
