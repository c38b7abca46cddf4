"""Going back through a mount: what the kernel remembers is right at once, open files work."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nasfs.errors import Failed
from tests.mounts import TestMount, failing, mounted

pytestmark = pytest.mark.mount

ACCESS = "system.posix_acl_access"
NOBODY = 0xFFFFFFFF


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[TestMount]:
    with mounted(tmp_path) as found:
        yield found


def seen(root: Path) -> dict[str, Any]:
    """All that can be seen below a directory; afterwards the kernel remembers it."""
    found: dict[str, Any] = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory) / name
            stats = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            found[str(path.relative_to(root))] = (
                stats.st_mode, stats.st_uid, stats.st_gid, stats.st_nlink, stats.st_size,
                stats.st_blocks, stats.st_mtime_ns, content, xattrs,
            )  # fmt: skip
    return found


def change_tree(root: Path, chance: random.Random, rounds: int, word: str) -> None:
    """What users do, everywhere in the tree."""
    for number in range(rounds):
        directories = [root, *(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())]
        files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
        place = chance.choice(directories) / f"{word}{number}"
        match chance.randrange(9):
            case 0:
                place.mkdir()
            case 1 | 2:
                place.write_bytes(chance.randbytes(chance.randrange(20_000)))
            case 3 if files:
                with chance.choice(files).open("r+b") as file:
                    file.seek(chance.randrange(12_000))
                    file.write(chance.randbytes(3000))
            case 4 if files:
                chance.choice(files).unlink()
            case 5 if files:
                chance.choice(files).rename(place)
            case 6 if files:
                os.setxattr(chance.choice(files), "user.k", chance.randbytes(4))
            case 7 if files:
                os.link(chance.choice(files), place)
            case 8 if len(directories) > 1:
                moved = chance.choice(directories[1:])
                if not place.is_relative_to(moved):
                    moved.rename(place)
            case _:
                place.symlink_to("anywhere")


@pytest.mark.parametrize("seed", range(3))
def test_after_a_rollback_everybody_sees_the_old_tree_at_once(mount: TestMount, seed: int) -> None:
    chance = random.Random(seed)
    change_tree(mount.root, chance, 60, "a")
    mount.snapshot("s")
    change_tree(mount.root, chance, 60, "b")
    before = seen(mount.root)  # which the kernel remembers now, for a day
    for path in seen(mount.root / ".snapshots/s"):
        (mount.root / path).exists()  # and also what is not there
    kept = mount.control.call("rollback", name="s", keep_as="kept")
    assert kept["name"] == "kept"
    assert seen(mount.root) == seen(mount.root / ".snapshots/s")
    for path in before:
        assert (mount.root / path).exists() == (mount.root / ".snapshots/s" / path).exists()
    assert seen(mount.root / ".snapshots/kept") == before
    change_tree(mount.root, chance, 20, "c")
    mount.control.call("rollback", name="kept", keep_as="kept2")
    assert seen(mount.root) == before


def test_open_files_that_were_there_show_the_old_state_and_others_are_stale(
    mount: TestMount,
) -> None:
    (mount.root / "old").write_bytes(b"as it was")
    (mount.root / "dir").mkdir()
    mount.snapshot("s")
    (mount.root / "old").write_bytes(b"newer and longer")
    (mount.root / "new").write_bytes(b"x")
    (mount.root / "newdir").mkdir()
    with (
        (mount.root / "old").open("r+b", buffering=0) as old,
        (mount.root / "new").open("r+b", buffering=0) as new,
    ):
        old.read()
        new.read()
        inside = os.open(mount.root / "newdir", os.O_RDONLY)
        mount.control.call("rollback", name="s", keep_as="kept")
        assert os.pread(old.fileno(), 100, 0) == b"as it was"
        assert os.pwrite(old.fileno(), b"AS", 0) == 2
        with failing(errno.ESTALE):
            os.pwrite(new.fileno(), b"y", 0)
        with failing(errno.ESTALE):
            os.pread(new.fileno(), 100, 0)
        with failing(errno.ESTALE):
            os.listdir(inside)
        os.close(inside)
    assert (mount.root / "old").read_bytes() == b"AS it was"
    assert sorted(os.listdir(mount.root)) == ["dir", "old"]
    assert (mount.root / ".snapshots/kept/new").read_bytes() == b"x"


def test_a_rollback_brings_access_lists_and_modes_back(mount: TestMount) -> None:
    path = mount.root / "f"
    path.write_text("x")
    path.chmod(0o640)
    plain = path.stat().st_mode
    mount.snapshot("s")
    entries = [(1, 6, NOBODY), (2, 7, 1234), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, ACCESS, value)
    assert os.getxattr(path, ACCESS)
    assert path.stat().st_mode != plain
    mount.control.call("rollback", name="s", keep_as="kept")
    assert path.stat().st_mode == plain
    with failing(errno.ENODATA):
        os.getxattr(path, ACCESS)


def test_a_rollback_that_can_not_be_changes_nothing(mount: TestMount) -> None:
    (mount.root / "f").write_text("x")
    mount.snapshot("s")
    (mount.root / "g").write_text("x")
    with pytest.raises(Failed, match="no snapshot none"):
        mount.control.call("rollback", name="none", keep_as="kept")
    with pytest.raises(Failed, match="has a snapshot s"):
        mount.control.call("rollback", name="s", keep_as="s")
    assert sorted(os.listdir(mount.root)) == ["f", "g"]
    assert os.listdir(mount.root / ".snapshots") == ["s"]


def test_a_file_that_was_open_without_a_name_when_it_was_brought_back_stays(
    mount: TestMount,
) -> None:
    path = mount.root / "f"
    path.write_bytes(b"as it was")
    mount.snapshot("s")
    with path.open("rb") as opened:
        path.unlink()
        mount.control.call("rollback", name="s", keep_as="kept")
        assert opened.read() == b"as it was"
    mount.control.call("commit")
    assert path.read_bytes() == b"as it was"
