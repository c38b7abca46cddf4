"""Counting what the kernel knows: like a dictionary, in little memory."""

from __future__ import annotations

import random

import pytest

from nasfs.fuse.known import LookupCounts


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    counts, model = LookupCounts(), dict[int, int]()
    numbers = [rng.choice([1, 300, 4095, 4096, 4097, 70_000, 1 << 39]) + i for i in range(8)]
    for _ in range(2000):
        some = rng.choices(numbers, k=rng.randrange(1, 6))
        if rng.random() < 0.5:
            if len(some) == 1:
                counts.add(some[0])
            else:
                counts.add_all(some)
            for number in some:
                model[number] = model.get(number, 0) + 1
        else:
            told = [(number, rng.randrange(1, 4)) for number in some]
            counts.take(told)
            for number, count in told:
                left = max(model.pop(number, 0) - count, 0)
                if left:
                    model[number] = left
        for other in numbers:
            assert (other in counts) == (other in model)
    assert counts.pages == len({number >> 12 for number in model})


def test_a_million_inodes_take_eight_megabytes() -> None:
    counts = LookupCounts()
    for number in range(256, 1_000_256):
        counts.add(number)
    assert counts.pages * 32_768 < 8.1e6
    counts.take((number, 1) for number in range(256, 1_000_256))
    assert counts.pages == 0
