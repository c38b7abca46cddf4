"""What each snapshot alone sees: by the counts, by the rows, and by looking at every block."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Pool,
    View,
    Volume,
    check_volume,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.kept import own_by_rows
from nasfs.volume.store import Store
from nasfs.volume.view import mapped_runs

from .test_volume_space import change_a_file, reclaim_all

Block = tuple[int, int, int]
"""Inode, number, layer."""


def blocks(view: View) -> set[Block]:
    return {
        (inode.ino, number, run.layer)
        for _, inode in view.readdir(ROOT_INO, 0, 100)
        for run in mapped_runs(view, inode)
        for number in range(run.start, run.stop)
    }


def own(volume: Volume) -> dict[int, int]:
    """By looking at every block of every view."""
    seen = {s.epoch: blocks(volume.view(s.epoch)) for s in volume.snapshots()}
    viewers = Counter(block for view in seen.values() for block in view)
    live = blocks(volume)
    return {
        epoch: sum(viewers[block] == 1 and block not in live for block in view)
        for epoch, view in seen.items()
    }


def known_of_snapshots(store: Store) -> tuple[object, ...]:
    return (
        list(store.all_snapshots),
        dict(store.sealed),
        dict(store.sealed_names),
        store.epochs.newest,
        store._newest_ancestor,
    )


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_own_blocks_are_those_that_nobody_else_sees(
    pool: Pool, seed: int, *, branches: bool
) -> None:
    chance = random.Random(seed)
    create_volume(pool, "v", size=1 << 30)
    path = volume_path(pool, "v")
    known = set()
    volume = open_volume(path)
    for number in range(120):
        change_a_file(volume, chance)
        snapshots = volume.snapshots()
        match chance.randrange(12):
            case 0 | 1 | 2:
                volume.seal(f"s{number}")
                known_now = known_of_snapshots(volume._store)
                volume._store.load_snapshots()
                assert known_of_snapshots(volume._store) == known_now
            case 3 | 4 if snapshots:
                doomed = chance.choice(snapshots)
                reclaim_all(volume)
                used, alone = volume.statfs().used, volume.own_blocks()[doomed.epoch]
                volume.destroy_snapshot(doomed.name)
                reclaim_all(volume)
                assert used - volume.statfs().used == alone * BLOCK
            case 5 if snapshots:
                target = chance.choice(snapshots) if branches else snapshots[-1]
                reclaim_all(volume)
                volume.rollback(target.epoch)
            case 6 if chance.random() < 0.3:
                volume.close()
                volume = open_volume(path)
        if chance.random() < 0.2:
            reclaim_all(volume)
            expected = own(volume)
            assert volume.own_blocks() == expected
            volume.commit()
            assert own_by_rows(volume._store.db, list(expected)) == expected
            known.add(volume._store.kept.is_known)
    assert branches or known == {True}
    for snapshot in volume.snapshots():
        assert snapshot.blocks == len(blocks(volume.view(snapshot.epoch)))
        volume.destroy_snapshot(snapshot.name)
    reclaim_all(volume)
    volume.seal("anew")
    assert volume._store.kept.is_known or volume._store.all_snapshots[0].name != "anew"
    volume.close()
    assert check_volume(path) == []
