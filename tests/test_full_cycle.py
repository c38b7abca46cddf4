"""A to B to A with real servers, while clients write numbered records that are acknowledged.

A planned change of roles loses none of them.  A forced one loses only what was acknowledged after
the newest replicated snap group was begun, and all that is in the snapshot that the join keeps.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cycle_world import LOG, Cycle, Recorder, Site, cycle_world
from tests.ganesha import is_here
from tests.node_world import wait_until
from tests.role_world import LOSE
from tests.test_node_failover import picture

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        not is_here() or shutil.which("smbd") is None, reason="needs Samba and nfs-ganesha-vfs"
    ),
]


@pytest.fixture
def cycle() -> Iterator[Cycle]:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to other users
        Path(name).chmod(0o711)
        with cycle_world(Path(name)) as made:
            yield made


def held(cycle: Cycle, site: Site, volume: str) -> None:
    """Every acknowledged record is there, but for what was lost before."""
    for recorder in cycle.recorders:
        told = set(recorder.told())
        missing = told - recorder.there(site.mountpoint(volume)) - cycle.lost[recorder.kind]
        assert not missing, f"{recorder.kind}: {sorted(missing)[:5]} of {len(told)}"


def planned(cycle: Cycle, to: Site, volume: str, command: str) -> float:
    """It loses nothing; how long it took (seconds)."""
    began = time.monotonic()
    to.run(command, "office")
    took = time.monotonic() - began
    cycle.goes_on(to)
    held(cycle, to, volume)
    return took


def forced(cycle: Cycle, turn: int, *, parted: bool) -> None:
    """a is lost, or the line to it; then it is taken in again, and becomes the primary."""
    a, b = cycle.a, cycle.b
    began = time.monotonic_ns()
    a.run("snapshot", "create", f"office@safe-{turn}")
    a.run("replication", "run", "office", "--wait")
    cycle.goes_on(a)
    if parted:
        a.part_from(b)
    else:
        a.lose()
    b.run("failover", "office", *LOSE)
    if parted:  # two primaries; who is connected to the old one stays with it
        cycle.goes_on(a)
        a.meet(b)
    else:
        a.come_back()
    wait_until(lambda: a.role()[0] == "stale", "it learns of the higher term")
    cycle.goes_on(b)
    lost = {recorder.kind: find_lost(cycle, recorder, began) for recorder in cycle.recorders}
    b.run("failback-join", "office")
    b.run("replication", "run", "office", "--wait")
    planned(cycle, a, "tank/home", "failback")
    find_again(cycle, lost)


def find_lost(cycle: Cycle, recorder: Recorder, began: int) -> set[int]:
    """Acknowledged, and not on b; none of it before that moment."""
    told = recorder.told()
    here = recorder.there(cycle.b.mountpoint("safe/home"))
    lost = set(told) - here - cycle.lost[recorder.kind]
    assert lost, f"{recorder.kind}: nothing was written behind the newest snap group"
    assert all(told[number][0] == cycle.a.host for number in lost)
    early = [number for number in lost if told[number][1] < began]
    assert not early, f"{recorder.kind}: acknowledged before the snap group: {early[:5]}"
    cycle.lost[recorder.kind] |= lost
    return lost


def find_again(cycle: Cycle, lost: dict[str, set[int]]) -> None:
    """In the snapshot that the join has kept; and a copy beside what there is now."""
    a = cycle.a
    names = [view["name"].partition("@")[2] for view in a.json("snapshot", "list", "tank/home")]
    kept = [name for name in names if name.startswith("diverged-")][-1]
    home = a.mountpoint("tank/home")
    for recorder in cycle.recorders:
        found = recorder.there(home / ".snapshots" / kept)
        assert lost[recorder.kind] <= found, recorder.kind
    one = f"smb-{min(lost['smb'])}"
    for name, copy in ((one, one), (LOG, f"{LOG}-{kept}.orphan")):
        # What was lost may be there without its content: it was made before the snap group.
        a.run("snapshot", "restore", f"tank/home@{kept}", name, "--to", copy, "--replace")
        old = (home / ".snapshots" / kept / name).read_bytes()
        assert (home / copy).read_bytes() == old


def equal_ends(cycle: Cycle) -> int:
    """Both volumes are whole, and the same; how many paths."""
    a, b = cycle.a, cycle.b
    a.run("snapshot", "create", "office@last")
    a.run("replication", "run", "office", "--wait")
    expected = picture(a.mountpoint("tank/home") / ".snapshots/last")
    seen = cycle.base / "seen"
    seen.mkdir()
    b.run("mount", "safe/home", str(seen), "--snapshot", "last")
    try:
        assert picture(seen) == expected
    finally:
        b.run("unmount", str(seen))
    a.run("volume", "check", "tank/home")
    b.run("volume", "check", "safe/home")
    return len(expected)


@pytest.mark.parametrize("turns", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_only_what_was_behind_the_newest_snap_group_is_lost_and_it_is_found_again(
    cycle: Cycle, turns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = cycle.a, cycle.b
    cycle.record()
    took = []
    for turn in range(turns):
        took.append(planned(cycle, b, "safe/home", "failover"))
        took.append(planned(cycle, a, "tank/home", "failback"))
        forced(cycle, turn, parted=turn % 2 == 1)
    cycle.stop()
    held(cycle, a, "tank/home")
    paths = equal_ends(cycle)
    with capsys.disabled():
        counts = {one.kind: (one.count(), len(cycle.lost[one.kind])) for one in cycle.recorders}
        seconds = ", ".join(f"{one:.1f}" for one in took)
        print(f"\n{counts} records (acknowledged, lost by force), {paths} paths; {seconds} s")
