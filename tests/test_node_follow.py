"""A passive volume, mounted: its newest snapshot, whichever that is, without ever remounting."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.cli.mount_helper import mount
from nasfs.cli.mount_helper import run as helper
from nasfs.fuse.mountpoint import find_mount, fusermount, process_of, watch
from tests.node_world import wait_until
from tests.test_node_failover import Pair, picture
from tests.test_node_failover import pair as pair  # the fixture

pytestmark = pytest.mark.mount


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    """Where B's copy is mounted."""
    path = tmp_path / "there"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        fusermount("-u", "-z", path=path)


def test_a_mount_of_a_passive_volume_follows_what_arrives(pair: Pair, there: Path) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    assert "no snapshot that could be shown" in b.fails(3, "mount", "safe/home", str(there))
    shutil.copytree(Path(__file__).parent / "posix", here / "posix")
    (here / "f").write_text("first")
    (here / "gone").write_text("soon")
    (here / "sub").mkdir()
    (here / "sub/moved").write_text("moved")
    pair.replicate("one")
    b.run("mount", "safe/home", str(there))
    assert picture(there) == picture(here)
    holds = b.json("snapshot", "show", "safe/home@one")["holds"]
    assert {hold["owner"] for hold in holds} == {"reader", "replication"}
    with pytest.raises(OSError, match="Read-only") as refused:
        (there / "f").write_text("no")
    assert refused.value.errno == errno.EROFS
    assert not (there / "new").exists()  # which the kernel remembers
    with (there / "f").open() as kept, (there / "gone").open() as lost:
        assert (kept.read(), lost.read(1)) == ("first", "s")
        (here / "f").write_text("second, and longer")
        (here / "new").write_text("new")
        (here / "gone").unlink()
        (here / "sub/moved").rename(here / "posix/moved")
        os.setxattr(here / "f", "user.a", b"1")
        expected = picture(here)
        pair.replicate("two")
        wait_until(lambda: (there / "new").exists(), "it follows")
        wait_until(lambda: picture(there) == expected, "all of it")
        assert os.getxattr(there / "f", "user.a") == b"1"
        kept.seek(0)
        assert kept.read() == "second, and longer"  # a handle shows what is there now
        with pytest.raises(OSError, match="Stale") as stale:
            os.pread(lost.fileno(), 10, 0)
        assert stale.value.errno == errno.ESTALE
    shutil.rmtree(here / "posix")
    for name in ("three", "four"):
        (here / "f").write_text(name)
        pair.replicate(name)
    wait_until(lambda: (there / "f").read_text() == "four", "it follows on")
    assert picture(there) == picture(here)
    assert sorted(os.listdir(there / ".snapshots")) == ["four", "one", "three", "two"]
    for name in ("one", "two", "three", "four"):
        assert picture(there / ".snapshots" / name) == picture(here / ".snapshots" / name)
    assert (there / ".snapshots/one/f").read_text() == "first"
    with pytest.raises(OSError, match="Read-only"):
        (there / ".snapshots/one/f").write_text("no")
    b.run("unmount", str(there))
    own = b.mountpoint("safe/home")
    own.mkdir(parents=True)
    assert "a failover mounts there" in b.fails(3, "mount", "safe/home", str(own))


def test_retention_leaves_what_is_shown_and_receiving_goes_on(pair: Pair, there: Path) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    a.run("replication", "set", "office", "--max-snapshots", "1")
    (here / "f").write_bytes(b"1" * 100_000)
    pair.replicate("one")
    options = f"root={b.root},follow"  # as an fstab line says it
    assert helper("mount", mount, ["safe/home", str(there), "-o", options]) == 0
    process = mount_process(there)
    os.kill(process, signal.SIGSTOP)  # a slow reader
    try:
        for name in ("two", "three"):
            (here / "f").write_bytes(name.encode() * 30_000)
            pair.replicate(name)
        names = [view["name"] for view in b.json("snapshot", "list", "safe/home")]
        assert names == ["safe/home@one", "safe/home@three"]  # two was nobody's
    finally:
        os.kill(process, signal.SIGCONT)
    wait_until(lambda: (there / "f").read_bytes() == b"three" * 30_000, "it follows")
    b.run("volume", "check", "safe/home")


def test_older_snapshots_are_browsed_while_they_come_and_go(pair: Pair, there: Path) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    a.run("replication", "set", "office", "--max-snapshots", "2")
    for name in ("one", "two"):
        (here / "f").write_text(name)
        pair.replicate(name)
    b.run("mount", "safe/home", str(there))
    snapshots = there / ".snapshots"
    assert ".snapshots" not in os.listdir(there)
    assert os.listdir(snapshots) == ["one", "two"]
    assert (snapshots / "one/f").read_text() == "one"  # from now on it is leased
    process = mount_process(there)
    os.kill(process, signal.SIGSTOP)
    try:
        for name in ("three", "four", "five"):
            (here / "f").write_text(name)
            pair.replicate(name)
    finally:
        os.kill(process, signal.SIGCONT)
    wait_until(lambda: (there / "f").read_text() == "five", "it follows")
    # One is looked into, and two was shown until just now; three was nobody's.
    assert os.listdir(snapshots) == ["one", "two", "four", "five"]
    assert [(snapshots / name / "f").read_text() for name in ("one", "four")] == ["one", "four"]
    with pytest.raises(FileNotFoundError):
        os.stat(snapshots / "three")
    assert len(os.listdir(snapshots / "@GMT")) == 4
    assert "held" in b.fails(3, "snapshot", "destroy", "safe/home@one")
    b.run("volume", "check", "safe/home")


def mount_process(mountpoint: Path) -> int:
    mounted = find_mount(mountpoint)
    assert mounted is not None
    connection = watch(mounted)
    assert connection is not None
    with connection:
        return process_of(connection)
