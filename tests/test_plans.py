"""The plans in which both nodes take part, and that of a group's rollback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import Refused
from replication import handover
from replication.endpoint import GroupStatus, SnapshotRef, VolumeStatus
from replication.errors import DataLossNotAccepted, RemoteProtocolError
from replication.plans import plan_failback, plan_join, plan_rollback, plan_takeover
from replication.roles import Action, GroupView, Plan, Role, VolumeView

NOW = 2_000_000_000_000_000_000
NAMES = ("home", "work")


def refs(text: str, volume: str) -> tuple[SnapshotRef, ...]:
    return tuple(SnapshotRef(f"{w}{volume}", w, NOW - 90 * 10**9, w) for w in text.split())


def theirs(role: Role, term: int, *snapshots: str) -> GroupStatus:
    volumes = zip(NAMES, snapshots or ("1 2", "1 2"), strict=True)
    return GroupStatus(
        "g", term, role.value, tuple(VolumeStatus(f"u-{n}", refs(s, n)) for n, s in volumes)
    )


def view(
    role: Role, term: int, peer: GroupStatus | None, *snapshots: str, home: bool = False
) -> GroupView:
    volumes = zip(NAMES, snapshots or ("1 2", "1 2"), strict=True)
    return GroupView(
        "office", role, term, "west", peer is not None,
        tuple(
            VolumeView(f"u-{n}", f"tank/{n}", f"/srv/{n}", False, refs(s, n)) for n, s in volumes
        ),
        NOW, peer, home,
    )  # fmt: skip


def takeover(seen: GroupView, **options: object) -> Plan:
    return plan_takeover(seen, **({"force": False, "lose_unreplicated": False} | options))  # type: ignore[arg-type]


SWITCHOVER = """\
switchover of office, term 7:
1. have west take a snap group of office, and receive it while people go on
2. have west end the shares of office, unmount its volumes and take the last snap group
3. wait until the last snap group of office is here
4. have west become passive in term 7
5. stop receiving office
6. roll tank/home back to the last snap group
7. roll tank/work back to the last snap group
8. skip inode numbers of tank/home that west has used
9. skip inode numbers of tank/work that west has used
10. raise the term to 7 and become active
11. replicate office to west
12. mount tank/home read-write at /srv/home
13. mount tank/work read-write at /srv/work"""


def test_a_living_primary_hands_over_and_nothing_is_lost() -> None:
    plan = takeover(view(Role.PASSIVE, 6, theirs(Role.ACTIVE, 6)))
    assert str(plan) == SWITCHOVER
    assert plan.losing == ""


def test_force_alone_does_not_rob_who_hands_over() -> None:
    seen = view(Role.PASSIVE, 6, theirs(Role.ACTIVE, 6))
    assert takeover(seen, force=True).kind == "switchover"
    robbing = takeover(seen, force=True, lose_unreplicated=True)
    assert robbing.kind == "failover"
    assert "lost is what west wrote" in robbing.losing


@pytest.mark.parametrize("role", [Role.STALE, Role.FAILED_OVER, Role.PASSIVE])
@pytest.mark.parametrize("term", [5, 6, 7, 8])
def test_who_is_not_the_primary_in_our_term_can_not_hand_over(role: Role, term: int) -> None:
    seen = view(Role.PASSIVE, 6, theirs(role, term, "1 2 3", "1 2 3"))
    with pytest.raises(Refused) as caught:
        takeover(seen)
    assert "can't hand" in str(caught.value)
    assert not isinstance(caught.value, DataLossNotAccepted)


def test_what_was_handed_over_and_forgotten_is_taken_without_a_loss() -> None:
    plan = takeover(view(Role.PASSIVE, 6, theirs(Role.PASSIVE, 7)))
    assert (plan.kind, plan.term, plan.losing) == ("failover", 7, "")
    with pytest.raises(Refused):  # something came after what is here
        takeover(view(Role.PASSIVE, 6, theirs(Role.PASSIVE, 7, "1 2 3", "1 2 3")))


def test_an_older_snap_group_may_be_chosen() -> None:
    seen = view(Role.PASSIVE, 6, None, "1 2 3", "1 2 3")
    plan = takeover(seen, force=True, lose_unreplicated=True, to="1")
    rolled = [step.snapshot.name for step in plan.steps if step.snapshot]
    assert rolled == ["1", "1"]
    assert "after snap group 1" in plan.losing
    with pytest.raises(Refused) as caught:
        takeover(seen, force=True, lose_unreplicated=True, to="9")
    assert "1, 2, 3" in caught.value.hint
    with pytest.raises(DataLossNotAccepted):
        takeover(seen, to="1")


def test_the_original_primary_gets_the_group_back() -> None:
    plan = plan_failback(view(Role.PASSIVE, 6, theirs(Role.ACTIVE, 6), home=True))
    assert (plan.kind, plan.term) == ("failback", 7)
    assert str(plan).partition("\n")[2] == SWITCHOVER.partition("\n")[2]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (view(Role.PASSIVE, 6, theirs(Role.ACTIVE, 6)), "not the original primary"),
        (view(Role.PASSIVE, 6, None, home=True), "does not answer"),
        (view(Role.STALE, 5, theirs(Role.FAILED_OVER, 6), home=True), "stale"),
        (view(Role.PASSIVE, 5, theirs(Role.FAILED_OVER, 6), home=True), "failed-over in term 6"),
        (view(Role.ACTIVE, 6, theirs(Role.PASSIVE, 6), home=True), "active"),
        (view(Role.FAILED_OVER, 6, theirs(Role.STALE, 5), home=True), "failed-over"),
    ],
)
def test_a_failback_needs_a_partner_that_hands_over(seen: GroupView, said: str) -> None:
    with pytest.raises(Refused) as caught:
        plan_failback(seen)
    assert said in str(caught.value)
    assert caught.value.hint


def test_the_old_primary_goes_back_to_the_newest_common_snap_group() -> None:
    old = theirs(Role.STALE, 6, "1 2 4", "1 2 4")
    plan = plan_join(view(Role.FAILED_OVER, 7, old, "1 2 3 5", "1 2 3 5"))
    assert str(plan) == (
        "failback-join of office, term 7:\n"
        "1. have west keep what only it has of office as a snapshot, go back to @2 and become"
        " passive\n"
        "2. replicate office to west\n"
        "3. become active, with west as the secondary"
    )
    assert plan.steps[0].common == {"u-home": "2home", "u-work": "2work"}


def test_common_is_what_all_volumes_have_on_both_sides() -> None:
    old = theirs(Role.STALE, 6, "1 2 3", "1 2")
    plan = plan_join(view(Role.FAILED_OVER, 7, old, "1 2 3", "1 2 3"))
    assert plan.steps[0].common == {"u-home": "2home", "u-work": "2work"}
    with pytest.raises(Refused) as caught:
        plan_join(view(Role.FAILED_OVER, 7, theirs(Role.STALE, 6, "8 9", "8 9")))
    assert "on both nodes" in str(caught.value)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (view(Role.ACTIVE, 7, theirs(Role.STALE, 6)), "active"),
        (view(Role.STALE, 6, theirs(Role.FAILED_OVER, 7)), "stale"),
        (view(Role.FAILED_OVER, 7, None), "does not answer"),
        (view(Role.FAILED_OVER, 7, theirs(Role.FAILED_OVER, 8)), "in term 8"),
        (view(Role.FAILED_OVER, 7, theirs(Role.ACTIVE, 7)), "active in term 7"),
    ],
)
def test_only_who_is_behind_joins(seen: GroupView, said: str) -> None:
    with pytest.raises(Refused) as caught:
        plan_join(seen)
    assert said in str(caught.value)


def test_a_group_goes_back_as_a_whole() -> None:
    seen = view(Role.ACTIVE, 6, None, "1 2 3", "1 2 3")
    plan = plan_rollback(seen, "2", replicated=True, name="rollback-now")
    assert str(plan) == (
        "rollback of office, term 6:\n"
        "1. keep office as it is now as a snap group\n"
        "2. make tank/home what it was at @2\n"
        "3. make tank/work what it was at @2\n"
        "4. take a snap group of office as it is then; with it west goes back, too"
    )
    alone = plan_rollback(seen, "2", replicated=False, name="rollback-now")
    assert "west" not in str(alone)
    for role in (Role.PASSIVE, Role.STALE):
        with pytest.raises(Refused):
            plan_rollback(view(role, 6, None), "2", replicated=True, name="x")
    with pytest.raises(Refused):  # one volume lacks it
        plan_rollback(view(Role.ACTIVE, 6, None, "1 2", "1"), "2", replicated=True, name="x")


histories = st.lists(st.sampled_from("12345"), unique=True).map(" ".join)
roles = st.sampled_from(Role)
peers = st.none() | st.builds(
    theirs, roles, st.integers(5, 8), st.shared(histories, key="t"), histories
)
views = st.builds(view, roles, st.integers(5, 8), peers, histories, histories, home=st.booleans())


@given(views, st.booleans(), st.booleans())
def test_whatever_is_planned_keeps_the_rules(seen: GroupView, force: bool, lose: bool) -> None:
    planners: list[Callable[[], Plan]] = [
        lambda: takeover(seen, force=force, lose_unreplicated=lose),
        lambda: plan_failback(seen),
        lambda: plan_join(seen),
    ]
    plans = []
    for planner in planners:
        with suppress(Refused):
            plans.append(planner())
    for plan in plans:
        actions = [step.action for step in plan.steps]
        taking = [step for step in plan.steps if step.action is Action.TAKE_OVER]
        assert len(taking) <= 1
        if taking:
            assert seen.role is Role.PASSIVE
            assert taking[0].term == plan.term == seen.term + 1
            mounts = actions.index(Action.MOUNT)
            assert max(actions.index(Action.TAKE_OVER), actions.index(Action.ROLL_BACK)) < mounts
        if Action.HAND_OVER in actions:  # nothing is changed here before
            assert actions[:4] == [
                Action.CATCH_UP, Action.DRAIN, Action.RECEIVE, Action.HAND_OVER
            ]  # fmt: skip
            assert plan.losing == ""
        elif taking and not (force and lose):
            assert plan.losing == ""
        if Action.REJOIN in actions:
            assert seen.theirs is not None
            assert (seen.theirs.term, seen.theirs.role) <= (seen.term, Role.PASSIVE.value)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan
        assert all(str(step) for step in plan.steps)


BODIES = [
    made
    for made in vars(handover).values()
    if isinstance(made, type) and issubclass(made, msgspec.Struct) and made is not handover.Seat
]


@given(st.binary(max_size=40), st.sampled_from(BODIES))
def test_what_a_partner_says_is_understood_or_refused(
    body: bytes, kind: type[msgspec.Struct]
) -> None:
    try:
        said = handover.decode(body, kind)
    except RemoteProtocolError:
        return
    assert handover.decode(handover.encode(said), kind) == said
