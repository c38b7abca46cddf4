"""The daemon: mounts that are kept up, adopted and given back, one daemon for each node."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.fuse.mountpoint import find_mount
from tests.node_world import NodeWorld, mounts_below, wait_until

pytestmark = pytest.mark.mount


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(tmp_path / "a", "a")
    try:
        world.start()
        world.run("pool", "create", "tank", str(tmp_path / "pool"))
        yield world
    finally:
        world.close()


def mount_pid(node: NodeWorld, volume: str = "tank/home") -> int:
    return int(node.json("volume", "show", volume)["mount_pid"])


def test_a_killed_mount_comes_back_with_what_was_synced(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    with (root / "f").open("wb") as out:
        out.write(b"kept")
        out.flush()
        os.fsync(out.fileno())
    first = mount_pid(node)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: mount_pid(node) not in (0, first), "another mount process")
    assert (root / "f").read_bytes() == b"kept"
    events = node.json("events")
    assert any(event["kind"] == "mount failed" for event in events)


def test_a_killed_mount_comes_back_though_the_kernel_remembers_its_root(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    os.chown(root, 65534, 65534)  # so that access(2) by us asks the dead process for the ACL
    first = mount_pid(node)
    os.stat(root)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: mount_pid(node) not in (0, first), "another mount process")
    assert node.log().count("WARNING") == 1, node.log()


def test_mounts_survive_the_daemon_and_are_adopted(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    pid = mount_pid(node)
    with (root / "open").open("wb") as out:
        out.write(b"before")
        node.kill()
        out.write(b" after")
        out.flush()
        node.start()
        wait_until(lambda: mount_pid(node) == pid, "adoption")
    assert (root / "open").read_bytes() == b"before after"
    node.run("snapshot", "create", "tank/home@s")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mount_pid(node) not in (0, pid), "another mount process")
    node.run("volume", "unmount", "tank/home")
    assert find_mount(root) is None
    node.run("volume", "check", "tank/home")


def test_the_end_of_the_daemon_unmounts_and_its_start_mounts(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    (root / "f").write_text("kept")
    node.stop()
    assert mounts_below(node.root) == []
    assert not (node.root / "run/nasfs/api.sock").exists()
    node.run("volume", "check", "tank/home")
    node.start()
    wait_until(lambda: find_mount(root) is not None, "the mount")
    assert (root / "f").read_text() == "kept"


def test_a_second_daemon_is_refused(node: NodeWorld) -> None:
    assert "runs already" in node.fails(1, "node", "run")


def test_a_busy_volume_stays_mounted(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    with (root / "f").open("wb"):
        assert "busy" in node.fails(1, "volume", "unmount", "tank/home")
        view = node.json("volume", "show", "tank/home")
        assert (view["mount_state"], view["wanted"]) == ("mounted", True)
    node.run("volume", "unmount", "tank/home")
    assert node.json("volume", "show", "tank/home")["mount_state"] == "unmounted"


def test_open_files_do_not_keep_the_daemon(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    opened = os.open(root / "f", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(opened, b"written")
        node.stop()
    finally:
        with contextlib.suppress(OSError):  # its file system is gone
            os.close(opened)
    assert mounts_below(node.root) == []
    node.start()
    wait_until(lambda: find_mount(root) is not None, "the mount")
    assert (root / "f").read_bytes() == b"written"


def test_a_busy_mount_point_is_told_and_nothing_is_wanted(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    node.run("volume", "create", "tank/other", "--size", "10M")
    node.run("volume", "unmount", "tank/home")
    node.run("mount", "tank/home", str(root))
    node.run("volume", "set", "tank/other", "--mountpoint", str(node.root / "m"))
    (node.root / "m").write_text("a file")
    assert "not a directory" in node.fails(1, "volume", "mount", "tank/other")
    assert not node.json("volume", "show", "tank/other")["wanted"]
    node.run("unmount", str(root))


def test_a_mount_by_hand_is_known_and_ended(node: NodeWorld, tmp_path: Path) -> None:
    root = node.volume("tank/home", mount=False)
    by_hand = tmp_path / "m"
    by_hand.mkdir()
    node.run("mount", "tank/home", str(by_hand))
    view = node.json("volume", "show", "tank/home")
    assert (view["mount_state"], view["mountpoint"]) == ("mounted", str(by_hand))
    (by_hand / "f").write_text("x")
    node.run("snapshot", "create", "tank/home@s")
    assert (by_hand / ".snapshots/s/f").read_text() == "x"
    node.run("volume", "unmount", "tank/home")
    assert find_mount(by_hand) is None
    node.run("volume", "mount", "tank/home")
    assert "keeps tank/home mounted" in node.fails(3, "unmount", str(root))


def test_a_mount_that_was_taken_over_elsewhere_is_kept_there(
    node: NodeWorld, tmp_path: Path
) -> None:
    node.volume("tank/home", mount=False)
    by_hand = tmp_path / "m"
    by_hand.mkdir()
    node.run("mount", "tank/home", str(by_hand))
    node.run("volume", "mount", "tank/home")
    (tmp_path / "link").symlink_to(by_hand)
    for place in (by_hand, tmp_path / "link"):
        assert "keeps tank/home mounted" in node.fails(3, "unmount", str(place))
    node.run("volume", "unmount", "tank/home")
    assert find_mount(by_hand) is None


def test_a_snapshot_is_mounted_beside_its_volume(node: NodeWorld, tmp_path: Path) -> None:
    root = node.volume("tank/home")
    (root / "f").write_text("old")
    node.run("snapshot", "create", "tank/home@s")
    (root / "f").write_text("new")
    place = tmp_path / "m"
    place.mkdir()
    node.run("mount", "tank/home", str(place), "--snapshot", "s")
    assert (place / "f").read_text() == "old"
    with pytest.raises(OSError):
        (place / "f").write_text("never")
    node.run("unmount", str(place))
    node.fails(1, "mount", "tank/home", str(place), "--snapshot", "none")


def test_a_damaged_volume_is_told_and_harms_no_other(node: NodeWorld, tmp_path: Path) -> None:
    node.volume("tank/home", mount=False)
    node.volume("tank/other")
    damaged = tmp_path / "pool/home/meta.db"
    for log in damaged.parent.glob("meta.db-*"):
        log.unlink()
    damaged.write_bytes(b"\xff" * damaged.stat().st_size)
    node.fails(1, "volume", "mount", "tank/home")
    node.fails(1, "snapshot", "create", "tank/home@s")
    done = node.nasfs("volume", "check", "tank/home")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    views = {view["name"]: view for view in node.json("volume", "list")}
    assert views["tank/home"]["problem"]
    assert views["tank/other"]["mount_state"] == "mounted"
    node.run("volume", "destroy", "tank/home", "--lose-data")


def test_a_volume_without_its_row_is_adopted(node: NodeWorld, tmp_path: Path) -> None:
    from nasfs.volume import create_volume, open_pool

    create_volume(open_pool(tmp_path / "pool"), "found", size=1 << 30)
    node.stop()
    node.start()
    assert [view["name"] for view in node.json("volume", "list")] == ["tank/found"]


def test_a_taken_address_ends_the_daemon_with_a_sentence(node: NodeWorld, tmp_path: Path) -> None:
    other = NodeWorld(tmp_path / "b", "b")
    other.run("node", "init", "--listen", node.address)
    assert f"cannot listen on {node.address}" in other.fails(1, "node", "run")
    assert not (other.root / "run/nasfs/api.sock").exists()


def test_paths_longer_than_a_socket_address(tmp_path: Path) -> None:
    world = NodeWorld(tmp_path / ("x" * 60) / ("y" * 60), "far")
    try:
        world.start()
        world.run("pool", "create", "tank", str(tmp_path / "pool"))
        root = world.volume("tank/home")
        world.run("snapshot", "create", "tank/home@s")
        assert (root / ".snapshots/s").is_dir()
    finally:
        world.close()
