"""What both forms of a share allow, and nothing that one of them does not: against naive judges."""

from __future__ import annotations

import ipaddress
import itertools

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sharecfg.accounts import Accounts
from sharecfg.checks import check_share
from sharecfg.merge import Here, plan_merge
from sharecfg.model import Access, Guests, Nfs, NfsClient, Share, Smb, Squash
from sharecfg.steps import Kind
from sharecfg.tighter import tighter
from sharecfg.unmerge import apply_changes, plan_undo
from tests.share_world import VOLUMES

GROUPS = {"alice": {"alice", "@staff"}, "bob": {"bob", "@staff"}, "carol": {"carol"}}
HOSTS = ("10.1.0.1", "10.2.0.1", "192.168.0.1")
names = st.lists(st.sampled_from(["alice", "bob", "@staff"]), max_size=2, unique=True).map(tuple)
nets = st.lists(
    st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "192.168.0.1", "10.2.0.1"]),
    max_size=2,
    unique=True,
).map(tuple)
smbs = st.builds(
    Smb,
    enabled=st.sampled_from([True, True, False]),
    access=st.sampled_from([Access.READ_WRITE, Access.READ_ONLY]),
    guests=st.sampled_from(Guests),
    users=names,
    denied_users=names,
    readers=names,
    writers=names,
    admins=names,
    hosts=nets,
    denied_hosts=nets,
)
clients = st.builds(
    NfsClient,
    who=st.sampled_from(["*", "10.0.0.0/8", "10.1.0.0/16", "10.2.0.1", "h.example"]),
    access=st.sampled_from(Access),
    squash=st.sampled_from(Squash),
    security=st.sampled_from([("sys",), ("krb5",), ("krb5", "sys")]),
    privileged_ports=st.booleans(),
)
nfses = st.builds(
    Nfs,
    enabled=st.sampled_from([True, True, False]),
    clients=st.lists(clients, min_size=1, max_size=3, unique_by=lambda c: c.who).map(tuple),
    export_id=st.just(7),
    versions=st.sampled_from([(3, 4), (4,), (3,)]),
)
forms = st.builds(
    Share,
    name=st.just("a"),
    volume=st.just(VOLUMES[0]),
    smb=st.none() | smbs,
    nfs=st.none() | nfses,
).filter(lambda share: not check_share(share))


def _is_about(word: str, host: str) -> bool:
    if word in ("*", host):
        return True
    if not (word[0].isdigit() and host[0].isdigit()):
        return False
    return ipaddress.ip_address(host) in ipaddress.ip_network(word)


def _lies_in(host: str, words: tuple[str, ...]) -> bool:
    return any(_is_about(word, host) for word in words)


def smb_judge(smb: Smb | None, user: str | None, host: str) -> tuple[int, ...]:
    """As smb.conf(5) says, of an account or (None) a guest: (sees, writes, is root, is himself)."""
    nothing = (0, 0, 0, 0)
    if smb is None or not smb.enabled:
        return nothing
    if smb.hosts and _lies_in(host, smb.hosts):
        pass
    elif (smb.hosts and not smb.denied_hosts) or _lies_in(host, smb.denied_hosts):
        return nothing
    if user is None:
        if smb.guests is Guests.NO:
            return nothing
        mine: set[str] = {"nobody"}
    else:
        mine = GROUPS[user]
    himself = user is not None and smb.guests is not Guests.ONLY
    if mine & set(smb.denied_users) or (smb.users and not mine & set(smb.users)):
        return nothing
    if mine & set(smb.admins):
        return (1, 1, 1, himself)
    writes = smb.access is Access.READ_WRITE and not mine & set(smb.readers)
    return (1, int(writes or bool(mine & set(smb.writers))), 0, himself)


def nfs_judge(nfs: Nfs | None, host: str, flavour: str, version: int) -> tuple[int, ...]:
    """(sees, writes, is root, is himself), by the narrowest entry that is about the host."""
    if nfs is None or not nfs.enabled or version not in nfs.versions:
        return (0, 0, 0, 0)
    fitting = [client for client in nfs.clients if _is_about(client.who, host)]
    if not fitting:
        return (0, 0, 0, 0)

    def width(client: NfsClient) -> int:
        if client.who == "*":
            return -1
        return ipaddress.ip_network(client.who).prefixlen if client.who[0].isdigit() else 99

    client = max(fitting, key=width)
    if client.access is Access.NONE or flavour not in client.security:
        return (0, 0, 0, 0)
    writes = client.access is Access.READ_WRITE
    return (1, int(writes), int(client.squash is Squash.NONE), int(client.squash is not Squash.ALL))


def judgements(share: Share) -> list[tuple[int, ...]]:
    smb = [
        smb_judge(share.smb, user, host) for user, host in itertools.product([*GROUPS, None], HOSTS)
    ]
    nfs = [
        nfs_judge(share.nfs, host, flavour, version)
        for host, flavour, version in itertools.product(
            [*HOSTS, "h.example"], ["sys", "krb5"], [3, 4]
        )
    ]
    return smb + nfs


@given(forms, forms)
def test_nobody_may_what_one_of_the_two_does_not_allow(mine: Share, staged: Share) -> None:
    both = tighter(mine, staged)
    assert check_share(both) == ()
    for own, theirs, now in zip(*map(judgements, (mine, staged, both)), strict=True):
        assert all(n <= min(o, t) for o, t, n in zip(own, theirs, now, strict=True))
    assert tighter(both, staged) == both
    assert tighter(mine, mine) == mine


def test_a_share_that_was_closed_or_tightened_is_not_opened_by_a_merge() -> None:
    staged = Share(
        name="a", volume=VOLUMES[0], comment="new", smb=Smb(users=("alice", "bob")),
        nfs=Nfs(clients=(NfsClient(who="10.0.0.0/8"),), export_id=7),
    )  # fmt: skip
    assert staged.smb is not None
    assert staged.nfs is not None
    shut = replace(staged, smb=replace(staged.smb, enabled=False), comment="")
    tight = replace(
        staged,
        smb=replace(staged.smb, users=("alice",), access=Access.READ_ONLY),
        nfs=Nfs(clients=(NfsClient(who="10.1.0.0/16", access=Access.READ_ONLY),), export_id=7),
    )
    volumes = frozenset(VOLUMES[:1])
    for own in (shut, tight):
        plan = plan_merge(Here((own,), volumes), [staged], Accounts(), origin="w", volumes=volumes)
        (merged,) = apply_changes((own,), plan.changes)
        assert merged == replace(own, comment="new")
        assert plan.conflicts[0].kind is Kind.CHANGED
        undo, _ = plan_undo((merged,), plan.changes, origin="w")
        assert apply_changes((merged,), undo) == (own,)


def test_what_the_partner_shares_no_more_is_closed_here() -> None:
    own = Share(name="old", volume=VOLUMES[0], smb=Smb())
    other = Share(name="other", volume=VOLUMES[1], smb=Smb())
    volumes = frozenset(VOLUMES[:2])
    group = frozenset(VOLUMES[:1])
    plan = plan_merge(Here((own, other), volumes), [], Accounts(), origin="w", volumes=group)
    after = apply_changes((own, other), plan.changes)
    assert [(share.name, share.smb and share.smb.enabled) for share in after] == [
        ("old", False),
        ("other", True),
    ]
    assert [conflict.kind for conflict in plan.conflicts] == [Kind.REMOVED]
    undo, _ = plan_undo(after, plan.changes, origin="w")
    assert apply_changes(after, undo) == (own, other)
