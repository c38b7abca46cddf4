"""Roles, fencing and the plan of a failover."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import NasError, Refused
from replication.endpoint import SnapshotRef
from replication.errors import DataLossNotAccepted, Diverged, Fenced
from replication.plan import plan_deltas
from replication.roles import (
    Action,
    GroupView,
    Role,
    VolumeView,
    check_term,
    newest_complete,
    plan_failover,
)

NOW = 2_000_000_000_000_000_000


def refs(text: str, volume: str = "") -> tuple[SnapshotRef, ...]:
    """ "1 2 -x": snapshots of the snap groups 1 and 2, and a lone one."""
    return tuple(
        SnapshotRef(f"{word}{volume}", word, NOW - 90 * 10**9, "" if word[0] == "-" else word)
        for word in text.split()
    )


def view(
    role: Role = Role.PASSIVE,
    *,
    reachable: bool = False,
    home: str = "1 2 3",
    work: str = "1 2",
    mounted: str = "",
) -> GroupView:
    volumes = tuple(
        VolumeView(
            f"uuid-{name}", f"tank/{name}", f"/srv/{name}", name in mounted.split(), refs(text)
        )
        for name, text in (("home", home), ("work", work))
    )
    return GroupView("office", role, 6, "west", reachable, volumes, NOW)


def test_the_plan_prints_itself() -> None:
    plan = plan_failover(view(), force=True, lose_unreplicated=True)
    assert str(plan) == (
        "failover of office, term 7:\n"
        "1. stop receiving office\n"
        "2. roll tank/home back to @2\n"
        "3. roll tank/work back to @2\n"
        "4. skip inode numbers of tank/home that the lost primary may have used\n"
        "5. skip inode numbers of tank/work that the lost primary may have used\n"
        "6. raise the term to 7 and become failed-over\n"
        "7. mount tank/home read-write at /srv/home\n"
        "8. mount tank/work read-write at /srv/work\n"
        "lost is what west wrote after snap group 2 of 2033-05-18T03:31:50Z, 90 s ago"
    )


def test_all_volumes_go_back_to_the_same_snap_group() -> None:
    plan = plan_failover(view(), force=True, lose_unreplicated=True)
    rolled = [step for step in plan.steps if step.action is Action.ROLL_BACK]
    assert [step.snapshot.snap_group for step in rolled if step.snapshot] == ["2", "2"]
    assert plan.term == 7


@pytest.mark.parametrize(("force", "lose"), [(False, False), (True, False), (False, True)])
def test_a_silent_peer_needs_the_loss_to_be_named(force: bool, lose: bool) -> None:
    with pytest.raises(DataLossNotAccepted) as caught:
        plan_failover(view(), force=force, lose_unreplicated=lose)
    assert caught.value.exit_code == 3
    assert "--force --lose-unreplicated" in caught.value.hint


def test_a_living_peer_is_not_robbed_without_force() -> None:
    with pytest.raises(Refused) as caught:
        plan_failover(view(reachable=True), force=False, lose_unreplicated=False)
    assert not isinstance(caught.value, DataLossNotAccepted)
    assert "stop the primary" in caught.value.hint
    assert plan_failover(view(reachable=True), force=True, lose_unreplicated=True).steps


@pytest.mark.parametrize("role", [Role.ACTIVE, Role.STALE])
def test_only_a_passive_group_fails_over(role: Role) -> None:
    with pytest.raises(Refused):
        plan_failover(view(role), force=True, lose_unreplicated=True)


@pytest.mark.parametrize(("home", "work"), [("", ""), ("1", ""), ("1", "2"), ("-a", "-a")])
def test_without_a_complete_snap_group_there_is_nothing_to_fail_over_to(
    home: str, work: str
) -> None:
    with pytest.raises(Refused):
        plan_failover(view(home=home, work=work), force=True, lose_unreplicated=True)


def test_after_a_crash_behind_the_take_over_only_the_mounts_are_left() -> None:
    left = plan_failover(
        view(Role.FAILED_OVER, mounted="home"), force=False, lose_unreplicated=False
    )
    assert [str(step) for step in left.steps] == ["mount tank/work read-write at /srv/work"]
    with pytest.raises(Refused):
        plan_failover(
            view(Role.FAILED_OVER, mounted="home work"), force=True, lose_unreplicated=True
        )


@pytest.mark.parametrize(
    ("volumes", "newest"),
    [
        ({"a": "1 2 3"}, "3"),
        ({"a": "1 2 3 -x"}, "3"),
        ({"a": "1 2 3", "b": "1 2"}, "2"),
        ({"a": "1 3", "b": "1 2"}, "1"),
        ({"a": "9 1", "b": "9 1"}, "1"),  # the order of sealing decides, not the name
        ({"a": "1", "b": "2"}, None),
        ({"a": "1", "b": ""}, None),
        ({}, None),
    ],
)
def test_the_newest_complete_snap_group(volumes: dict[str, str], newest: str | None) -> None:
    found = newest_complete({name: refs(text, name) for name, text in volumes.items()})
    assert (found.guid if found else None) == newest
    if found:
        assert {name: ref.guid for name, ref in found.members.items()} == {
            name: f"{newest}{name}" for name in volumes
        }


@pytest.mark.parametrize(
    ("known", "offered", "raises"), [(3, 3, None), (3, 2, Fenced), (3, 4, Refused)]
)
def test_only_the_known_term_may_send(
    known: int, offered: int, raises: type[NasError] | None
) -> None:
    if raises is None:
        check_term("office", known, offered)
        return
    with pytest.raises(raises) as caught:
        check_term("office", known, offered)
    if isinstance(caught.value, Fenced):
        assert (caught.value.ours, caught.value.theirs) == (2, 3)


# which deltas to send


@pytest.mark.parametrize(
    ("sender", "receiver", "plan"),
    [
        ("", "", ""),
        ("1 2 3", "", "()1 12 23"),
        ("1 2 3", "1", "12 23"),
        ("1 2 3", "1 2 3", ""),
        ("2 3", "1 2", "23"),  # the receiver keeps what the sender has destroyed
        ("1 2 3", "1 3", ""),  # a skipped one is not sent later
        ("1 -a 2", "1", "12"),  # a snapshot of the volume alone stays at home
        ("1 2 3", "2", "23"),
    ],
)
def test_deltas_start_at_the_common_ground(sender: str, receiver: str, plan: str) -> None:
    steps = plan_deltas("home", refs(sender), refs(receiver))
    told = [f"{step.base.name if step.base else '()'}{step.target.name}" for step in steps]
    assert " ".join(told) == plan


@pytest.mark.parametrize(
    ("sender", "receiver"), [("1 2", "9"), ("", "1"), ("1 2 3", "1 9"), ("1 2", "2 1")]
)
def test_what_only_the_receiver_has_after_the_common_ground_is_divergence(
    sender: str, receiver: str
) -> None:
    with pytest.raises(Diverged):
        plan_deltas("home", refs(sender), refs(receiver))


def test_the_same_name_on_another_snapshot_is_not_common_ground() -> None:
    with pytest.raises(Diverged):
        plan_deltas("home", refs("1"), refs("1", "other"))


def test_a_delta_prints_itself() -> None:
    first, second = plan_deltas("home", refs("1 2"), ())
    assert (str(first), str(second)) == ("send home (empty) -> 1", "send home 1 -> 2")


@given(st.sets(st.integers(1, 20)), st.data())
def test_planning_again_after_some_steps_gives_the_rest(
    numbers: set[int], data: st.DataObject
) -> None:
    history = refs(" ".join(str(number) for number in sorted(numbers)))
    start = history[: data.draw(st.integers(0, len(history)))]
    plan = plan_deltas("home", history, start)
    done = data.draw(st.integers(0, len(plan)))
    received = [*start, *(step.target for step in plan[:done])]
    assert plan_deltas("home", history, received) == plan[done:]
