"""Random decisions as functions of where they are taken.

Whatever is drawn for a sample or a step depends on the seed and on the place alone, not on what was
drawn before: training goes on after an interruption as if there had been none, and samples are the
same for any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*place: int | str) -> int:
    """Derives a seed from a place; nearby places get unrelated seeds.

    Examples:
        >>> seed_of(0, "sample", 3) == seed_of(0, "sample", 3)
        True
        >>> seed_of(0, "sample", 3) == seed_of(0, "sample", 4)
        False
    """
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@contextmanager
def seeded(*place: int | str) -> Iterator[None]:
    """Seeds PyTorch's generator for one place, and puts it back as it was afterwards.

    That is the CPU's generator: nothing here is drawn on a GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*place))
        yield
