"""What goes next, what hangs, how late it is: the decisions of replication without any node."""

from __future__ import annotations

import threading

import pytest

from nasfs.node.sending.governor import Governor
from nasfs.node.sending.lag import arrival, judge_rpo
from nasfs.node.sending.reports import Running
from nasfs.node.sending.watchdog import STALL_S, Watchdog
from replication.link import SECOND_NS, Calendar, LinkClosed
from replication.plan import Retention, SnapGroup, plan_snap_groups


@pytest.mark.parametrize(
    ("waiting", "there", "most", "least", "lag_s", "goes"),
    [
        ("1 2 3", 0, 64, 0, 0, "1 2 3"),  # no threshold: however late it is
        ("1 2 3", 0, 64, 0, 99, "1 2 3"),  # not late
        ("1 2 3", 0, 64, 0, 98, "3"),
        ("1 2! 3", 0, 64, 0, 98, "2! 3"),  # somebody holds it
        ("1 2 3 4", 0, 64, 2, 98, "3 4"),  # the receiver wants to have two
        ("1 2 3 4", 1, 64, 2, 98, "4"),  # it has one
        ("1 2! 3 4", 0, 64, 2, 98, "2! 4"),
        ("1! 2! 3! 4", 0, 2, 0, 98, "3! 4"),  # it would not keep more
        ("1", 0, 64, 0, 1, "1"),
        ("", 0, 64, 0, 1, ""),
    ],
)
def test_which_snap_groups_go_when_it_is_late(
    waiting: str, there: int, most: int, least: int, lag_s: int, goes: str
) -> None:
    """Each was taken in the second that is its name; it is second 100; ``!``: somebody holds it."""
    groups = [
        SnapGroup(word, word, int(word.strip("!")) * SECOND_NS, word.endswith("!"))
        for word in waiting.split()
    ]
    chosen = plan_snap_groups(
        groups,
        there=there,
        retention=Retention(most, least),
        now_ns=100 * SECOND_NS,
        max_lag_ns=lag_s * SECOND_NS,
    )
    assert [group.name for group in chosen] == goes.split()


def test_planning_again_after_the_first_has_arrived_gives_the_rest() -> None:
    groups = [SnapGroup(str(n), str(n), n) for n in range(9)]
    whole = plan_snap_groups(groups, there=0, retention=Retention(64, 4), now_ns=99, max_lag_ns=9)
    after = [group for group in groups if group.time_ns > whole[0].time_ns]
    rest = plan_snap_groups(after, there=1, retention=Retention(64, 4), now_ns=99, max_lag_ns=9)
    assert rest == whole[1:]


def test_a_stage_without_progress_hangs_and_one_that_gets_on_does_not() -> None:
    watchdog = Watchdog(0.0)
    assert watchdog.deadline == STALL_S["connecting"]
    watchdog.note(Running(phase="sending", wire_bytes=1), 10.0)
    watchdog.note(Running(phase="sending", wire_bytes=1), 50.0)  # nothing new
    assert watchdog.deadline == 10.0 + STALL_S["sending"]
    watchdog.note(Running(phase="sending", wire_bytes=2), 60.0)
    assert watchdog.deadline == 60.0 + STALL_S["sending"]
    watchdog.note(Running(phase="comparing", wire_bytes=2), 70.0)
    assert watchdog.deadline == 70.0 + STALL_S["comparing"]
    assert str(watchdog) == "no progress for 1800 s while comparing"


@pytest.mark.parametrize(
    ("now", "common", "newest", "there", "said"),
    [
        (50, None, None, None, "missed"),  # nothing has ever arrived
        (50, 10, None, None, "met"),
        (95, 10, None, None, "missed soon"),  # more than four fifths of the age
        (111, 10, None, None, "missed"),
        (50, 10, 40, 120, "missed soon"),  # what is on its way comes too late
        (95, 10, 90, 100, "met"),  # it will be there in time
        (5, 10, None, None, "met"),  # this node's clock was set back
    ],
)
def test_an_rpo_of_100_seconds(
    now: int, common: int | None, newest: int | None, there: int | None, said: str
) -> None:
    def at(second: int | None) -> int | None:
        return None if second is None else second * SECOND_NS

    assert judge_rpo(100, now * SECOND_NS, at(common), at(newest), at(there)) == said
    assert judge_rpo(0, now * SECOND_NS, at(common), at(newest), at(there)) == ""


def test_arrival_counts_what_compression_leaves() -> None:
    assert arrival(Calendar(), 0, 4000, 2.0, 100.0) == 20 * SECOND_NS
    assert arrival(Calendar(rate=50), 0, 4000, 2.0, 100.0) == 40 * SECOND_NS
    assert arrival(Calendar(), 0, 4000, 2.0, 0.0) is None


def test_a_governor_wakes_who_waits_when_the_rate_changes() -> None:
    now = [0.0]
    governor = Governor(clock=lambda: now[0])
    governor.set(16 * 1024, 100)
    lanes = [threading.Thread(target=governor.throttle, args=(1 << 30,)) for _ in range(3)]
    for lane in lanes:
        lane.start()
    governor.set(0, 100)
    for lane in lanes:
        lane.join(30)
        assert not lane.is_alive()
    assert governor.passed == 3 << 30


def test_a_governor_that_is_closed_lets_nothing_pass_and_tells_why() -> None:
    governor = Governor(clock=lambda: 0.0)
    governor.set(16 * 1024, 100)
    told: list[str] = []

    def send() -> None:
        try:
            governor.throttle(1 << 30)
        except LinkClosed as exc:
            told.append(exc.reason)

    lane = threading.Thread(target=send)
    lane.start()
    governor.close("its window has closed")
    lane.join(30)
    assert told == ["its window has closed"]
    with pytest.raises(LinkClosed):
        governor.throttle(1)
    assert governor.passed == 0
