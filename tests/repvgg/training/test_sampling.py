"""The batches of all processes are those of one."""

from __future__ import annotations

from itertools import chain

from repvgg.training.processes import Processes
from repvgg.training.recipes import Recipe
from repvgg.training.sampling import TrainingBatches


def batches(rank: int, count: int, first: int = 0) -> list[list[tuple[int, int]]]:
    recipe = Recipe(epochs=2, batch_size=12)
    processes = Processes(rank, count)
    return list(TrainingBatches(50, recipe, seed=3, first_step=first, processes=processes))


def test_processes_share_the_batches_of_one() -> None:
    alone = batches(0, 1)
    shares = [batches(rank, 3) for rank in range(3)]
    for step, batch in enumerate(alone):
        assert sorted(chain(*(share[step] for share in shares))) == sorted(batch)
    assert len({index for _, index in chain(*alone[:4])}) == 48
    assert alone[0] != alone[4]
    assert batches(0, 1, first=5) == alone[5:]
