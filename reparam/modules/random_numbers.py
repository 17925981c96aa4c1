"""The random numbers of torch, Python and numpy that code draws without naming a generator.

`torch.manual_seed` would do more than is put back here: it seeds accelerators that are not in use
yet when they start, whatever the user has asked for in the meantime.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from reparam.modules.stateful_objects import set_state, state_of

RandomState = tuple[tuple[bytes, ...], Any, bytes]


def random_state() -> RandomState:
    """The states of torch's, Python's and numpy's random numbers, to compare and to restore."""
    return torch_random_state(), random.getstate(), pickle.dumps(np.random.get_state())


def torch_random_state() -> tuple[bytes, ...]:
    """The states of torch's random numbers alone, which torch's own operators draw."""
    return tuple(map(state_of, _generators()))


def set_random_state(state: RandomState) -> None:
    """Put all random numbers back where they were."""
    torch_states, python_state, numpy_state = state
    # An accelerator that has come into use since then has no state to go back to.
    for generator, torch_state in zip(_generators(), torch_states, strict=False):
        set_state(generator, torch_state)
    random.setstate(python_state)
    np.random.set_state(pickle.loads(numpy_state))


def start_random_numbers(seed: int) -> None:
    """Let all random numbers start anew."""
    for generator in _generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Leave all random numbers as they were."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _generators() -> Iterator[torch.Generator]:
    """Torch's own generators: of the processor, and of the accelerators that are in use."""
    yield torch.default_generator
    for backend in (torch.cuda, torch.xpu):
        if backend.is_initialized():
            yield from backend.default_generators
    if torch.backends.mps.is_available():
        yield torch.mps._get_default_mps_generator()
