"""Objects that are elsewhere after they were used: generators of random numbers, arrays, iterators.

Of most the state can be read and set. An iterator has none that could be set; where Python can tell
how to make it again, a second one stands in for it.
"""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from reparam.errors import UntraceableError


class _Access(NamedTuple):
    """How the state of an object is read, to be compared, and set."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]


def _set_numbers(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _set_bits(generator: Any, state: bytes) -> None:
    getattr(generator, "bit_generator", generator).state = pickle.loads(state)


def _bits(generator: Any) -> bytes:
    return pickle.dumps(getattr(generator, "bit_generator", generator).state)


def _set_array(array: Any, state: bytes) -> None:
    array[...] = np.frombuffer(state, array.dtype).reshape(array.shape)


_ACCESS: dict[type, _Access] = {
    torch.Generator: _Access(lambda held: held.get_state().numpy().tobytes(), _set_numbers),
    random.SystemRandom: _Access(lambda held: None, lambda held, state: None),
    random.Random: _Access(random.Random.getstate, random.Random.setstate),
    np.random.Generator: _Access(_bits, _set_bits),
    np.random.BitGenerator: _Access(_bits, _set_bits),
    np.random.RandomState: _Access(
        lambda held: pickle.dumps(held.get_state(legacy=False)),
        lambda held, state: held.set_state(pickle.loads(state)),
    ),
    np.ndarray: _Access(lambda held: held.tobytes(), _set_array),
}


def has_state(value: Any) -> bool:
    """Whether an object has a state that is not in its attributes and can be set."""
    if isinstance(value, np.ndarray):
        return bool(value.flags.writeable) and not value.dtype.hasobject
    return isinstance(value, tuple(_ACCESS))


def draws(value: Any) -> bool:
    """Whether an object generates random numbers."""
    return has_state(value) and not isinstance(value, np.ndarray)


def state_of(value: Any) -> Any:
    """The state of an object."""
    return _access(value).read(value)


def set_state(value: Any, state: Any) -> None:
    """Give an object a state that it had."""
    _access(value).write(value, state)


def _access(value: Any) -> _Access:
    return next(access for kind, access in _ACCESS.items() if isinstance(value, kind))


# -- Iterators ------------------------------------------------------------------------------------


def is_iterator(value: Any) -> bool:
    """Whether a value is one of Python's or torch's iterators, which ends somewhere else."""
    home = type(value).__module__.partition(".")[0]
    return home in ("builtins", "itertools", "torch") and isinstance(value, Iterator)


def stand_in(value: Any) -> Any:
    """Another iterator at the same place; one that refuses to move if there can be none."""
    try:
        return _remade(value)
    except Exception:  # whatever stops it from being made again
        return _Unmovable()


def place_of(value: Any) -> Any:
    """Where an iterator is, to be compared."""
    if isinstance(value, _Unmovable):
        return None
    if is_iterator(value):
        return _place_in(_reduced(value))
    return _place_in(value)


class _Unmovable:
    """Stands for an iterator of which there is no second one."""

    def __iter__(self) -> _Unmovable:
        return self

    def __next__(self) -> Any:
        raise UntraceableError("it holds an iterator that cannot be put back")

    def __getattr__(self, name: str) -> Any:
        return self.__next__()


def _reduced(value: Any) -> Any:
    """How Python makes an iterator again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return value.__reduce__()


def _remade(value: Any) -> Any:
    """A second iterator at the place of a first; the iterators that it is made of are second too.

    Raises:
        TypeError: If there can be none.
    """
    if isinstance(value, tuple | list):
        return type(value)([_remade(entry) for entry in value])
    if not is_iterator(value):
        return value
    made: Any = _reduced(value)
    if made[0] not in (iter, reversed, type(value)):
        raise TypeError(f"no second {type(value).__name__} can be made")
    again = made[0](*_remade(made[1]))
    if len(made) > 2 and made[2] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            again.__setstate__(_remade(made[2]))
    return again


def _place_in(value: Any) -> Any:
    if is_iterator(value):
        return place_of(value)
    if isinstance(value, tuple | list):
        return [_place_in(entry) for entry in value]
    return value if isinstance(value, int | float | str | bytes | range) else id(value)
