"""Snap groups: one instant over all volumes of a group; all snapshots or none, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nasfs.errors import Failed, Unreachable
from nasfs.fuse.control import Conversation
from nasfs.node import snap_groups
from nasfs.node.context import Node
from nasfs.node.places import Places
from nasfs.node.records import VolumeRow
from nasfs.node.snapshots import take_snapshot
from nasfs.node.state import State
from nasfs.volume import check_volume, volume_info
from tests.node_world import NodeWorld, wait_until

pytestmark = pytest.mark.mount

VOLUMES = ("tank/a", "tank/b", "other/c")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeWorld]:
    """A group of three volumes of two pools, all mounted."""
    world = NodeWorld(tmp_path / "n", "east")
    try:
        world.start()
        for pool in ("tank", "other"):
            world.run("pool", "create", pool, str(tmp_path / "n" / pool))
        for volume in VOLUMES:
            world.volume(volume)
        world.run("group", "create", "office", *VOLUMES)
        yield world
    finally:
        world.close()


def names(node: NodeWorld) -> list[list[str]]:
    """The snapshots that each volume offers."""
    listed = node.json("snapshot", "list")
    return [[v["name"].partition("@")[2] for v in listed if v["volume"] == n] for n in VOLUMES]


def paths(node: NodeWorld) -> list[Path]:
    return [node.root / volume for volume in VOLUMES]


def pids(node: NodeWorld) -> list[int]:
    return [node.json("volume", "show", volume)["mount_pid"] for volume in VOLUMES]


WRITER = """
import os, sys
logs = [os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for path in sys.argv[1:]]
number = 0
while True:
    number += 1
    for log in logs:
        os.write(log, b"%08d\\n" % number)
        os.fsync(log)
"""


@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.soak)])
def test_no_snap_group_shows_an_effect_without_its_cause(node: NodeWorld, count: int) -> None:
    logs = [node.mountpoint(volume) / "log" for volume in VOLUMES]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *logs])
    try:
        wait_until(lambda: all(log.exists() and log.stat().st_size for log in logs), "it writes")
        for number in range(count):
            node.run("snapshot", "create", f"office@s{number}")
    finally:
        writer.kill()
        writer.wait()
    seen = set()
    for number in range(count):
        lasts = []
        for volume in VOLUMES:
            text = (node.mountpoint(volume) / f".snapshots/s{number}/log").read_bytes()
            assert len(text) % 9 == 0
            lasts.append(int(text[-9:]) if text else 0)
        assert lasts[0] >= lasts[1] >= lasts[2] >= lasts[0] - 1, (number, lasts)
        seen.add(tuple(last - lasts[0] for last in lasts))
    assert len(seen) > 1 or count < 40  # it did run beside: not always between two records
    times = {v["time"] for v in node.json("snapshot", "list") if v["name"].endswith("@s7")}
    groups = {v["snap_group"] for v in node.json("snapshot", "list") if v["name"].endswith("@s7")}
    assert len(times) == len(groups) == 1


def test_unmounted_volumes_are_in_the_snap_group(node: NodeWorld) -> None:
    (node.mountpoint("tank/b") / "f").write_text("kept")
    node.run("volume", "unmount", "tank/b")
    node.run("snapshot", "create", "office@s")
    assert names(node) == [["s"]] * 3
    assert len({v["snap_group"] for v in node.json("snapshot", "list")}) == 1
    node.run("volume", "mount", "tank/b")
    assert (node.mountpoint("tank/b") / ".snapshots/s/f").read_text() == "kept"


def test_a_participant_that_does_not_answer_ends_it_for_all(
    node: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = pids(node)[1]
    node.kill()
    monkeypatch.setattr(snap_groups, "PREPARE_S", 0.3)
    monkeypatch.setattr(snap_groups, "_settle", all_but("b"))
    os.kill(slow, signal.SIGSTOP)
    try:
        with Node.open(Places(node.root)) as ours:
            said = r"no snapshot s was taken of any volume: tank/b: .*in time"
            with pytest.raises(Failed, match=said):
                take_snapshot(ours, "office@s")
            assert ours.snap_groups.unsettled  # which the daemon looks after
        (node.mountpoint("tank/a") / "f").write_text("the others go on at once")
    finally:
        os.kill(slow, signal.SIGCONT)
    node.start()
    assert names(node) == [[], [], []]
    (node.mountpoint("tank/b") / "f").write_text("x")
    node.run("snapshot", "create", "office@s")
    assert names(node) == [["s"]] * 3


@pytest.mark.parametrize("noted", [False, True])
def test_a_note_that_failed_and_is_there_all_the_same_offers_none(
    node: NodeWorld, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    node.kill()
    decide = State.decide_snap_group

    def fails(state: State, snap_group: str, group_uuid: str) -> None:
        if noted:
            decide(state, snap_group, group_uuid)
        raise Failed("the disk refused")

    with Node.open(Places(node.root)) as ours, monkeypatch.context() as patched:
        patched.setattr(State, "decide_snap_group", fails)
        patched.setattr(snap_groups, "_settle", all_but("b"))
        with pytest.raises(Failed, match="the disk refused"):
            take_snapshot(ours, "office@s")
        assert ours.snap_groups.unsettled
    settle(node)
    assert not assert_all_or_none(node, "s")


def all_but(name: str) -> Callable[..., None]:
    """`_settle` that does not wait a minute for the process that is stopped."""
    real = snap_groups._settle

    def settle(node: Node, row: VolumeRow, snap_group: str, *, keep: bool) -> None:
        if row.name == name:
            raise Unreachable("it is stopped")
        real(node, row, snap_group, keep=keep)

    return settle


def test_changes_go_on_when_who_holds_them_is_gone(node: NodeWorld) -> None:
    row = next(v for v in node.json("volume", "list") if v["name"] == "tank/a")
    socket = Places(node.root).control_socket(row["uuid"])
    (node.mountpoint("tank/a") / "d").mkdir()
    with Conversation(socket) as held:
        held.send("changes_hold", limit_s=30.0)
        token = held.receive(time.monotonic() + 10)
        blocked = subprocess.Popen(["touch", node.mountpoint("tank/a") / "d/f"])
        with pytest.raises(subprocess.TimeoutExpired):
            blocked.wait(0.2)
        assert os.listdir(node.mountpoint("tank/a")) == ["d"]  # reading goes on
    assert blocked.wait(20) == 0
    with Conversation(socket) as late:
        late.send("changes_seal", token=token, name="s", time_ns=1, snap_group="g")
        with pytest.raises(Exception, match="nothing is held"):
            late.receive(time.monotonic() + 10)


def test_changes_are_held_for_a_bounded_time(node: NodeWorld) -> None:
    row = next(v for v in node.json("volume", "list") if v["name"] == "tank/a")
    with Conversation(Places(node.root).control_socket(row["uuid"])) as held:
        held.send("changes_hold", limit_s=0.2)
        token = held.receive(time.monotonic() + 10)
        (node.mountpoint("tank/a") / "f").write_text("it went on")
        held.send("changes_seal", token=token, name="s", time_ns=1, snap_group="g")
        with pytest.raises(Exception, match=r"held for 0\.2 s, and go on since"):
            held.receive(time.monotonic() + 10)
        held.send("changes_hold", limit_s=1e9)
        with pytest.raises(Exception, match="at most 30 s"):
            held.receive(time.monotonic() + 10)
    assert names(node) == [[], [], []]


# Deaths at every step.  The daemon is dead, so nobody but the test settles anything; the snap group
# is taken by a process of its own that runs the daemon's code and is killed before its n-th step.

STEPS = 200


def at_each_step(act: Callable[[int], None]) -> None:
    """Have *act* called with 1, 2, ... before each question, answer and note of a snap group."""
    count = 0

    def stepping(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            act(count)
            return real(*args, **kwargs)

        return step

    for owner, name in (
        (Conversation, "send"),
        (Conversation, "receive"),
        (State, "decide_snap_group"),
        (State, "forget_snap_group"),
        (State, "note"),
    ):
        setattr(owner, name, stepping(getattr(owner, name)))


def in_child(work: Callable[[], None]) -> int:
    """The status of a process that does *work*; 1 for an error of ours."""
    pid = os.fork()
    if not pid:
        code = 70
        try:
            work()
            code = 0
        except Failed:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def settle(node: NodeWorld) -> None:
    """What a daemon does when it starts, and goes on doing."""
    with Node.open(Places(node.root)) as ours:
        snap_groups.settle_leftovers(ours)
        assert not ours.snap_groups.unsettled
        assert ours.state.decided_snap_groups() == set()


def offered(node: NodeWorld) -> list[set[str]]:
    return [{s.name for s in volume_info(path).snapshots} for path in paths(node)]


def assert_all_or_none(node: NodeWorld, name: str) -> bool:
    """Whether all have the snapshot; fails if some have it, or if something is left pending."""
    infos = [volume_info(path) for path in paths(node)]
    assert [info.pending for info in infos] == [()] * 3
    has = {name in {s.name for s in info.snapshots} for info in infos}
    assert len(has) == 1, (name, offered(node))
    return has.pop()


def test_a_daemon_that_dies_at_any_step_leaves_a_whole_snap_group_or_none(node: NodeWorld) -> None:
    node.kill()
    for step in range(1, STEPS):

        def work(step: int = step) -> None:
            def act(count: int) -> None:
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            at_each_step(act)
            with Node.open(Places(node.root)) as ours:
                take_snapshot(ours, f"office@s{step}")

        status = in_child(work)
        before = [f"s{step}" in names for names in offered(node)]
        settle(node)
        whole = assert_all_or_none(node, f"s{step}")
        assert whole >= any(before), "one that was offered never goes"
        for volume in VOLUMES:  # nothing is held any more
            (node.mountpoint(volume) / "f").write_text(str(step))
        if status == 0:
            assert whole
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("it never came to its end")
    assert step > 20
    for path in paths(node):
        assert check_volume(path) == []


@pytest.mark.parametrize("victim", range(3))
def test_a_mount_that_dies_at_any_step_leaves_a_whole_snap_group_or_none(
    node: NodeWorld, victim: int, tmp_path: Path
) -> None:
    struck = tmp_path / "struck"
    for step in range(1, STEPS):
        pid = pids(node)[victim]
        node.kill()
        struck.unlink(missing_ok=True)

        def work(step: int = step, pid: int = pid) -> None:
            def act(count: int) -> None:
                if count == step:
                    os.kill(pid, signal.SIGKILL)
                    struck.touch()

            at_each_step(act)
            with Node.open(Places(node.root)) as ours:
                take_snapshot(ours, f"office@s{step}")

        status = in_child(work)
        assert status in (0, 1)
        settle(node)
        whole = assert_all_or_none(node, f"s{step}")
        assert whole == (status == 0), "what was told is true"
        node.start()
        for volume in VOLUMES:
            node.run("volume", "mount", volume)
        if not struck.exists():
            break
    else:
        pytest.fail("it never came to its end")
    assert step > 20
    for path in paths(node):
        assert check_volume(path) == []
