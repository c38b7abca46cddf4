"""Whether anything was changed after a snapshot: told truthfully, and at no cost."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasfs.volume import (
    ROOT_INO,
    Access,
    Ino,
    NoSuchSnapshot,
    Volume,
    create_pool,
    create_volume,
    open_volume,
)


def make(volume: Volume, name: bytes) -> Ino:
    return volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino


CHANGES: dict[str, Callable[[Volume, Ino], object]] = {
    "create": lambda volume, ino: make(volume, b"new"),
    "write": lambda volume, ino: volume.write(ino, 0, b"y"),
    "truncate": lambda volume, ino: volume.setattr(ino, size=0),
    "chmod": lambda volume, ino: volume.setattr(ino, mode=0o600),
    "unlink": lambda volume, ino: volume.unlink(ROOT_INO, b"f"),
    "rename": lambda volume, ino: volume.rename(ROOT_INO, b"f", ROOT_INO, b"g"),
    "link": lambda volume, ino: volume.link(ino, ROOT_INO, b"l"),
    "setxattr": lambda volume, ino: volume.setxattr(ino, b"user.a", b"1"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("commit", [False, True])
def test_each_change_counts_committed_or_not(volume: Volume, change: str, commit: bool) -> None:
    ino = make(volume, b"f")
    volume.write(ino, 0, b"x")
    old = volume.seal("old")
    assert not volume.changed_since("old")
    volume.read(ino, 0, 1)
    assert not volume.changed_since(old.guid)
    CHANGES[change](volume, ino)
    if commit:
        volume.commit()
    assert volume.changed_since("old")
    volume.seal("new")
    assert not volume.changed_since("new")
    assert volume.changed_since("old")
    volume.destroy_snapshot("new")
    assert volume.changed_since("old")


def test_a_reader_tells_what_is_committed(volume: Volume) -> None:
    volume.seal("s")
    make(volume, b"f")
    with open_volume(volume.path, Access.READ_ONLY) as reader:
        assert not reader.changed_since("s")
        volume.commit()
        assert reader.changed_since("s")
        with pytest.raises(NoSuchSnapshot):
            reader.changed_since("none")


def test_going_back_to_a_snapshot_leaves_nothing_changed_since_it(volume: Volume) -> None:
    ino = make(volume, b"f")
    old = volume.seal("old")
    volume.write(ino, 0, b"x")
    volume.rollback(old.epoch)
    names = {entry.name for entry, _ in volume.readdir(ROOT_INO, 0, 100)}
    assert names == {b"f"}
    volume.seal("new")
    assert not volume.changed_since("new")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*CHANGES, "seal", "commit", "destroy"]), max_size=25))
def test_it_agrees_with_what_was_done(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    base: Path = tmp_path_factory.mktemp("v")
    create_volume(create_pool(base / "pool"), "v", size=1 << 30)
    with open_volume(base / "pool/v") as volume:
        ino = make(volume, b"f")
        done, sealed = 0, dict[str, int]()
        for number, step in enumerate(steps):
            if step == "seal":
                volume.seal(f"s{number}")
                sealed[f"s{number}"] = done
            elif step == "destroy" and sealed:
                volume.destroy_snapshot(sealed.popitem()[0])
            elif step == "commit":
                volume.commit()
                while volume.reclaim_step():
                    pass
            elif step in ("write", "truncate", "chmod", "setxattr"):
                CHANGES[step](volume, ino)
                done += 1
            for name, then in sealed.items():
                assert volume.changed_since(name) == (done > then)
