"""The training loop, and the state that it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reparam import ReparamError
from repvgg.data import Samples, import_torchvision, load_batches, seeded
from repvgg.models import Backbone
from repvgg.training.kernel_decay import KernelDecay
from repvgg.training.losses import training_loss
from repvgg.training.optimization import learning_rate, make_optimizer
from repvgg.training.processes import Processes
from repvgg.training.progress import progress_bar
from repvgg.training.recipes import Recipe
from repvgg.training.sampling import TrainingBatches


class TrainingState:
    """All that training changes: with it, and the recipe and the seed, training can go on.

    Args:
        model: The network; it is trained in place and moved to the device of the processes.
        recipe: How it is trained.
        processes: The processes that train it together.

    Attributes:
        step: How many steps have been taken.

    Raises:
        ReparamError: If the recipe needs a GPU and there is none, or its decay has no formula.
    """

    def __init__(self, model: Backbone, recipe: Recipe, processes: Processes) -> None:
        self.recipe = recipe
        self.processes = processes
        device = processes.device
        if recipe.sync_bn and device.type == "cpu":
            raise ReparamError(
                "`sync_bn` needs GPUs: PyTorch's SyncBatchNorm does not run on CPUs; "
                "`freeze_bn` makes batch norms independent of the batch there"
            )
        if recipe.channels_last and device.type == "cpu":
            raise ReparamError(
                "`channels_last` is for GPUs: on CPUs, PyTorch's gradient of a 1×1 convolution of "
                "stride 2 writes beyond its memory in that layout"
            )
        if recipe.sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place
        model.set_grad_checkpointing(recipe.grad_checkpointing)
        self.model = model.to(device)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: AveragedModel | None = None
        if recipe.average_decay:
            self.average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay), use_buffers=True
            )
        self.kernel_decay: KernelDecay | None = None
        if recipe.custom_l2:
            self.kernel_decay = KernelDecay(model, recipe.weight_decay)
        covered = () if self.kernel_decay is None else self.kernel_decay.covered
        self.optimizer = make_optimizer(model, recipe, decayed_elsewhere=covered)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.step = 0

    @property
    def evaluated(self) -> Backbone:
        """The network to evaluate and to keep: the average if there is one."""
        if self.average is None:
            return self.model
        return cast(Backbone, self.average.module)  # a copy of the model

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors, numbers and containers of them."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def train_steps(
    state: TrainingState, samples: Samples, *, seed: int, workers: int = 0
) -> Iterator[Tensor]:
    """Trains from where the state stands up to the recipe's end.

    Every random decision depends on the seed, the step and the process alone, so the state is
    complete between any two steps.

    Args:
        state: What is changed, by its recipe and in its processes.
        samples: What to train on.
        seed: Decides the order of the samples and mixup.
        workers: Number of further processes that read samples ahead; 0 for none.

    Yields:
        The loss of each step, without the decay of kernels, as the mean over all processes.

    Raises:
        ReparamError: If the samples do not fit the recipe or one of them cannot be read.
    """
    recipe, processes = state.recipe, state.processes
    steps = recipe.steps_in_epoch(len(samples))
    batches = TrainingBatches(
        len(samples), recipe, seed=seed, first_step=state.step, processes=processes
    )
    mixup = _mixup(recipe.mixup, len(samples.classes))
    network = processes.wrap(state.model)
    on_gpu = processes.device.type != "cpu"
    for images, targets in load_batches(samples, batches, workers=workers, pin_memory=on_gpu):
        with seeded(seed, "step", state.step, processes.rank):
            images, targets = mixup(images, targets)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, state.step, steps)
        loss = _take_step(state, network, images, targets)
        yield processes.sum(loss.double()) / processes.count


def _take_step(state: TrainingState, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Changes the state by what this process has of a batch, and returns its loss without decay.

    Args:
        state: What is changed.
        network: The state's model, or what wraps it for several processes.
        images: The images, on the CPU.
        targets: Their classes, or probabilities of classes.
    """
    recipe, device = state.recipe, state.processes.device
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    images = images.to(device, non_blocking=True, memory_format=layout)
    targets = targets.to(device, non_blocking=True)
    # Once per step, since whoever reads the yielded loss may evaluate the network in between.
    _set_training(network, freeze_bn=recipe.freeze_bn)
    with torch.autocast(
        device.type,
        dtype=torch.float16 if recipe.precision == "float16" else torch.bfloat16,
        enabled=recipe.precision != "float32",
    ):
        loss = training_loss(network(images), targets, label_smoothing=recipe.label_smoothing)
    total = loss if state.kernel_decay is None else loss + state.kernel_decay()
    state.scaler.scale(total).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1
    return loss.detach()


def train(model: Backbone, samples: Samples, recipe: Recipe, *, seed: int) -> None:
    """Trains in place, in this process and without files, and leaves the model in evaluation mode.

    Progress is shown in a terminal.

    Args:
        model: The network.
        samples: What to train on.
        recipe: How to train.
        seed: Equal seeds give equal weights.

    Raises:
        ReparamError: If the samples do not fit the recipe or one of them cannot be read.
    """
    state = TrainingState(model, recipe, Processes())
    total = recipe.total_steps(len(samples))
    with progress_bar() as progress:
        task = progress.add_task("training", total=total, note="")
        for loss in train_steps(state, samples, seed=seed):
            progress.update(task, advance=1, note=f"loss {loss.item():.3f}")
    model.eval()


def _set_training(network: nn.Module, *, freeze_bn: bool) -> None:
    network.train()
    if freeze_bn:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _mixup(parameter: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixes each image with its neighbour (Zhang et al., arXiv:1710.09412)."""
    if not parameter:
        return lambda images, targets: (images, targets)
    v2 = import_torchvision("torchvision.transforms.v2", purpose="mixup needs")
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    mixup = v2.MixUp(alpha=parameter, num_classes=classes)
    return mixup
