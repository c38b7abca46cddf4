"""Merging the partner's shares into a node's own, and taking that back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sharecfg.accounts import Accounts, Group, User
from sharecfg.checks import check_share, check_together
from sharecfg.document import render_document
from sharecfg.merge import Here, plan_merge
from sharecfg.model import Access, Nfs, NfsClient, Share, Smb
from sharecfg.ports import with_ports
from sharecfg.steps import RULES, AddMember, Change, CreateGroup, CreateUser, Kind, Rule
from sharecfg.unmerge import apply_changes, plan_undo
from tests.share_world import VOLUMES

HERE = frozenset(VOLUMES[:2])
ANYBODY = NfsClient(who="*")

smb_parts = st.none() | st.sampled_from(
    [Smb(), Smb(access=Access.READ_ONLY), Smb(users=("alice",))]
)
nfs_parts = st.none() | st.builds(
    Nfs,
    clients=st.sampled_from([(ANYBODY,), (NfsClient(who="10.0.0.0/8"),)]),
    export_id=st.integers(1, 3),
    pseudo=st.sampled_from(["", "/x"]),
    port=st.sampled_from([0, 0, 2050, 2051]),
)
few = st.builds(
    Share,
    name=st.sampled_from(["a", "A", "b", "a-west", "b-own"]),
    volume=st.sampled_from(VOLUMES),
    directory=st.sampled_from(["", "d"]),
    comment=st.sampled_from(["", "c"]),
    smb=smb_parts,
    nfs=nfs_parts,
).filter(lambda share: not check_share(share))


def are_possible(shares: list[Share]) -> bool:
    """A node never has two exports of a directory."""
    places = [(share.volume, share.directory) for share in shares if share.nfs]
    return not check_together(shares) and len(set(places)) == len(places)


sets = st.lists(few, max_size=4, unique_by=lambda share: share.key).filter(are_possible).map(tuple)
rules = st.fixed_dictionaries({kind: st.sampled_from(Rule) for kind in RULES})
sections = st.sets(st.sampled_from(["a", "b-west"])).map(frozenset)


def document(shares: tuple[Share, ...]) -> str:
    return render_document(shares, {})


@given(sets, sets, rules, sections, st.sets(st.integers(1, 2)), st.booleans())
def test_merge_undo_and_merge_again_are_the_same_to_the_byte(
    own: tuple[Share, ...],
    staged: tuple[Share, ...],
    chosen: dict[Kind, Rule],
    theirs: frozenset[str],
    ids: set[int],
    has_ganesha: bool,
) -> None:
    here = Here(own, HERE, sections=theirs, export_ids=frozenset(ids), has_ganesha=has_ganesha)
    group = frozenset(VOLUMES[:1])
    plan = plan_merge(here, staged, Accounts(), origin="west", rules=chosen, volumes=group)
    merged = apply_changes(own, plan.changes)
    assert [check_share(share) for share in merged] == [()] * len(merged)

    again = plan_merge(
        replace_shares(here, merged),
        staged,
        Accounts(),
        origin="west",
        rules=chosen,
        volumes=group,
    )
    assert again.changes == (), again.lines()

    undo, conflicts = plan_undo(merged, plan.changes, origin="west")
    assert conflicts == ()
    assert document(apply_changes(merged, undo)) == document(own)

    second = plan_merge(here, staged, Accounts(), origin="west", rules=chosen, volumes=group)
    assert document(apply_changes(own, second.changes)) == document(merged)


def replace_shares(here: Here, shares: tuple[Share, ...]) -> Here:
    return dataclasses.replace(here, shares=shares)


def exports(share: Share) -> Share:
    """What matters of a share beside its name, its number and its place in the tree of NFSv4."""
    nfs = share.nfs and replace(share.nfs, export_id=0, pseudo="", port=0)
    return replace(share, name="", nfs=nfs)


@given(sets, sets, rules, sections)
def test_nothing_is_lost_and_no_two_shares_are_in_each_others_way(
    own: tuple[Share, ...],
    staged: tuple[Share, ...],
    chosen: dict[Kind, Rule],
    theirs: frozenset[str],
) -> None:
    plan = plan_merge(
        Here(own, HERE, sections=theirs), staged, Accounts(), origin="w", rules=chosen
    )
    merged = apply_changes(own, plan.changes)
    there = [exports(share) for share in merged]
    told = {conflict.subject for conflict in plan.conflicts}
    for share in own:
        assert exports(share) in there or any(change.before == share for change in plan.changes)
        if share not in merged:  # never silently
            assert plan.conflicts
    for share in staged:
        if exports(share) not in there:
            assert f"share {share.name}" in told or any(
                s.casefold() == f"share {share.key}" for s in told
            )
    before = {complaint.key for complaint in check_together(own)}
    assert {complaint.key for complaint in check_together(merged)} <= before


@given(sets, sets, rules)
def test_no_two_volumes_have_the_same_ganesha(
    own: tuple[Share, ...], staged: tuple[Share, ...], chosen: dict[Kind, Rule]
) -> None:
    own, staged = with_ports(own), with_ports(staged)
    plan = plan_merge(
        Here(own, HERE, has_ganesha=True), staged, Accounts(), origin="w", rules=chosen
    )
    ports = {share.volume: share.nfs.port for share in own if share.nfs}
    for share in apply_changes(own, plan.changes):
        if share.nfs:
            assert ports.setdefault(share.volume, share.nfs.port) == share.nfs.port
    assert len(set(ports.values())) == len(ports)


@given(sets, sets, rules, st.data())
def test_what_is_changed_after_a_merge_is_not_lost_by_its_undoing(
    own: tuple[Share, ...], staged: tuple[Share, ...], chosen: dict[Kind, Rule], data: st.DataObject
) -> None:
    plan = plan_merge(Here(own, HERE), staged, Accounts(), origin="west", rules=chosen)
    merged = apply_changes(own, plan.changes)
    edited = {
        share: replace(share, comment="edited")
        for share in merged
        if data.draw(st.booleans(), label=f"edit {share.name}")
    }
    removed = [share for share in merged if share not in edited and data.draw(st.booleans())]
    now = tuple(edited.get(share, share) for share in merged if share not in removed)
    undo, _ = plan_undo(now, plan.changes, origin="west")
    after = apply_changes(now, undo)
    assert check_together(after) == ()
    comments = [exports(share) for share in after]
    for share in edited.values():
        assert exports(share) in comments
    names = {share.key for share in after}
    for share in removed:  # closed by somebody: never opened again
        if any(change.after == share for change in plan.changes):
            origin = {change.before for change in plan.changes if change.after == share}
            for before in origin - {None}:
                assert before is not None
                assert before.key not in names or before in own


def share(name: str, **fields: object) -> Share:
    return replace(Share(name=name, volume=VOLUMES[0], smb=Smb()), **fields)


def nfs(**fields: object) -> Nfs:
    return replace(Nfs(clients=(ANYBODY,), export_id=1), **fields)


OTHER = {"volume": VOLUMES[1]}


@pytest.mark.parametrize(
    ("own", "staged", "rules", "kind", "names"),
    [
        ([], [share("a")], {}, None, "a"),
        ([share("a")], [share("a")], {}, None, "a"),
        ([share("a", **OTHER)], [share("A")], {}, Kind.NAME, "a A-west"),
        ([share("a", **OTHER)], [share("a")], {Kind.NAME: Rule.KEEP_OWN}, Kind.NAME, "a"),
        (
            [share("a", **OTHER)],
            [share("a")],
            {Kind.NAME: Rule.TAKE_STAGED},
            Kind.NAME,
            "a a-own",
        ),
        ([share("a", comment="x")], [share("a")], {}, Kind.CHANGED, "a"),
        (
            [share("a", comment="x")],
            [share("a")],
            {Kind.CHANGED: Rule.RENAME},
            Kind.CHANGED,
            "a a-own",
        ),
        ([], [share("a", volume=VOLUMES[2])], {}, Kind.VOLUME, ""),
        (
            [share("b", nfs=nfs())],
            [share("a", nfs=nfs(export_id=2), smb=None)],
            {},
            Kind.PATH,
            "b",
        ),
        ([share("b", nfs=nfs(), **OTHER)], [share("a", nfs=nfs())], {}, Kind.EXPORT_ID, "a b"),
        ([], [share("a", smb=Smb(users=("alice",)))], {}, Kind.ACCOUNT, "a"),
        ([], [share("a", smb=Smb(hosts=("10.0.0.0/8",)))], {}, Kind.NETWORK, "a"),
        (
            [],
            [share("a", nfs=nfs(clients=(NfsClient(who="10.0.0.0/8"),)))],
            {},
            Kind.NETWORK,
            "a",
        ),
    ],
)
def test_each_conflict_is_told_and_decided(
    own: list[Share],
    staged: list[Share],
    rules: dict[Kind, Rule],
    kind: Kind | None,
    names: str,
) -> None:
    here = Here(tuple(own), HERE, networks=("192.168.7.0/24",))
    plan = plan_merge(here, staged, Accounts(), origin="west", rules=rules)
    assert [conflict.kind for conflict in plan.conflicts] == ([kind] if kind else [])
    assert " ".join(s.name for s in apply_changes(own, plan.changes)) == names
    assert len(plan.lines()) == len(plan.changes) + len(plan.conflicts)


def test_a_network_of_this_site_stands_for_the_partners() -> None:
    staged = [
        share(
            "a",
            smb=Smb(hosts=("10.0.0.0/8", "127.0.0.1")),
            nfs=nfs(clients=(NfsClient(who="10.0.0.0/8"), NfsClient(who="h.example"))),
        )
    ]
    here = Here((), HERE, networks=("192.168.7.0/24",))
    plan = plan_merge(
        here, staged, Accounts(), origin="w", networks={"10.0.0.0/8": "192.168.7.0/24"}
    )
    (made,) = apply_changes((), plan.changes)
    assert made.smb is not None
    assert made.nfs is not None
    assert made.smb.hosts == ("192.168.7.0/24", "127.0.0.1")
    assert [client.who for client in made.nfs.clients] == ["192.168.7.0/24", "h.example"]
    told = [(conflict.kind, conflict.reason.split()[0]) for conflict in plan.conflicts]
    assert told == [(Kind.NETWORK, "127.0.0.1")]


def test_what_is_put_aside_is_open_only_if_that_was_said() -> None:
    own, staged = share("a", comment="x"), share("a")
    for removed, opened in ((Rule.TIGHTER, False), (Rule.KEEP_OWN, True)):
        rules = {Kind.CHANGED: Rule.RENAME, Kind.REMOVED: removed}
        plan = plan_merge(
            Here((own,), HERE), [staged], Accounts(), origin="w", rules=rules,
            volumes=frozenset(VOLUMES[:1]),
        )  # fmt: skip
        after = {one.name: one for one in apply_changes((own,), plan.changes)}
        assert sorted(after) == ["a", "a-own"]
        aside = after["a-own"].smb
        assert aside is not None
        assert aside.enabled is opened


def test_missing_accounts_are_made_with_their_numbers_and_collisions_told() -> None:
    alice = User(name="alice", uid=1001, gid=100)
    there = Accounts(
        users=(alice, User(name="bob", uid=1002, gid=100), User(name="dave", uid=1004, gid=100)),
        groups=(
            Group(name="staff", gid=500, members=("alice", "bob", "erin")),
            Group(name="wheel", gid=501),
            Group(name="both", gid=502, members=("alice", "carol")),
        ),
    )
    here = Accounts(
        users=(User(name="carol", uid=1002, gid=100), User(name="dave", uid=1005, gid=100)),
        groups=(Group(name="own", gid=501), Group(name="both", gid=502, members=("carol",))),
    )
    plan = plan_merge(Here((), HERE, here), (), there, origin="w")
    assert plan.accounts == (
        CreateGroup(Group(name="staff", gid=500)),
        CreateUser(alice),
        AddMember("staff", "alice"),
        AddMember("both", "alice"),
    )
    assert [(one.kind, one.subject) for one in plan.conflicts] == [
        (Kind.NUMBER, "group wheel"),
        (Kind.NUMBER, "user bob"),
        (Kind.NUMBER, "user dave"),
    ]
    after = Accounts(
        users=(*here.users, alice),
        groups=(
            here.groups[0],
            Group(name="both", gid=502, members=("carol", "alice")),
            Group(name="staff", gid=500, members=("alice",)),
        ),
    )
    assert plan_merge(Here((), HERE, after), (), there, origin="w").accounts == ()


def test_what_was_removed_since_the_merge_stays_removed() -> None:
    own = (share("a", comment="own"),)
    plan = plan_merge(Here(own, HERE), [share("a")], Accounts(), origin="w")
    assert plan.changes == (Change(before=own[0], after=share("a")),)
    undo, conflicts = plan_undo((), plan.changes, origin="w")
    assert undo == ()
    assert [conflict.kind for conflict in conflicts] == [Kind.CHANGED]
