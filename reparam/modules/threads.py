"""How many threads torch computes on: one in small work, as many as its user has set in large work.

Most tensors here are so small that threads would wait for each other longer than they compute. On a
busy machine, or where a container may use less than the cores that torch sees, each of thousands of
operators would wait for a thread that is not running, which takes tens of times as long.

OpenMP keeps the number for each thread of Python's, so that what is set here changes nothing for
those that compute meanwhile. But ``torch.set_num_threads`` also notes the number as that of all
threads that have not computed yet; that is put back at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from threading import Event, Thread

import torch

LARGE = 2**23
"""Numbers of a kernel from which on its making gains by threads on a quiet machine as much as it
may lose on a busy one. Below, it takes milliseconds."""


_USERS: ContextVar[int | None] = ContextVar("_USERS", default=None)


class OneThread:
    """Let torch compute on one thread, from `start` to `stop`, which may be called again.

    What is put back is what was there when this was made.
    """

    def __init__(self) -> None:
        self.number = torch.get_num_threads() if _is_of_openmp() else 1
        self.users = _USERS.get()

    def start(self) -> None:
        """Compute on one thread from now on."""
        if self.number > 1:
            _USERS.set(self.number)
            _compute_on(1)

    def stop(self) -> None:
        """Compute on as many as before."""
        if self.number > 1:
            _USERS.set(self.users)
            _compute_on(self.number)


@contextmanager
def users_threads() -> Iterator[None]:
    """Let torch compute on as many threads as its user has set: large work, or the user's own."""
    users, number = _USERS.get(), torch.get_num_threads()
    if users is None:
        yield
        return
    _compute_on(users)
    try:
        yield
    finally:
        _compute_on(number)


def threads_for(numbers: float) -> AbstractContextManager[None]:
    """A context in which the user's threads compute if a kernel of so many numbers is large."""
    return users_threads() if numbers >= LARGE else nullcontext()


@cache
def _is_of_openmp() -> bool:
    """Whether torch's threads are OpenMP's; others may not change once they have computed."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


def _compute_on(number: int) -> None:
    """Set the number of threads for this thread of Python's alone."""
    if torch.get_num_threads() == number:
        return
    known, changed = Event(), Event()

    def keep() -> None:
        """Let the number for those that have not computed yet, as this one, be what it was."""
        later = torch.get_num_threads()
        known.set()
        changed.wait(_AT_MOST)
        torch.set_num_threads(later)

    keeper = Thread(target=keep)
    try:
        keeper.start()
        known.wait(_AT_MOST)
        torch.set_num_threads(number)
    finally:
        changed.set()
        keeper.join()


_AT_MOST = 5.0
"""Seconds that are waited for another thread; if one is interrupted, the other one goes on."""
