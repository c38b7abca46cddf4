"""The snapshots beside the one that is followed: leased while somebody looks into them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from nasfs.fuse.followed_snapshots import IDLE_S, LeasedTrees
from nasfs.fuse.snapdir import SNAPSHOTS_INO
from nasfs.volume import (
    Access,
    FsError,
    SnapshotHeld,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)


async def test_what_nobody_looks_into_may_go(tmp_path: Path) -> None:
    pool = create_pool(tmp_path / "pool")
    create_volume(pool, "v", size=1 << 30)
    path = volume_path(pool, "v")
    with open_volume(path) as owner, open_volume(path, Access.READ_ONLY) as reader:
        for name in ("old", "new"):
            owner.seal(name)
        newest = reader.view(reader.snapshot("new").epoch)
        trees = LeasedTrees(reader, lambda: newest)
        found = trees.directory.lookup(SNAPSHOTS_INO, b"old")
        assert trees.of(found.st_ino).getattr(found.st_ino).st_ino == found.st_ino
        with pytest.raises(SnapshotHeld):
            owner.destroy_snapshot("old")
        trees.let_go(trio.current_time() + IDLE_S - 1)
        with pytest.raises(SnapshotHeld):
            owner.destroy_snapshot("old")
        trees.let_go(trio.current_time() + IDLE_S + 1)
        trees.of(found.st_ino)  # and it is leased again
        with pytest.raises(SnapshotHeld):
            owner.destroy_snapshot("old")
        trees.let_go(trio.current_time() + IDLE_S + 1)
        owner.destroy_snapshot("old")
        for look in (
            lambda: trees.of(found.st_ino),
            lambda: trees.directory.lookup(SNAPSHOTS_INO, b"old"),
        ):
            with pytest.raises(FsError) as gone:
                look()
            assert gone.value.errno in (errno.ESTALE, errno.ENOENT)
        assert [name for name, _, _ in trees.directory.readdir(SNAPSHOTS_INO, 2, 9)] == [b"new"]
