"""A merge at a failover and its undoing, killed at every step, on a node without a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nasfs.errors import Failed
from nasfs.node.context import Node
from nasfs.node.database import Database
from nasfs.node.groups import make_group
from nasfs.node.inventory import make_pool, make_volume
from nasfs.node.messages import PoolCreate, VolumeCreate
from nasfs.node.places import Places
from nasfs.node.records import Group
from nasfs.node.setup import init_node
from nasfs.node.shares import account_tools, local_accounts, smb_accounts
from nasfs.node.shares.merges import attention, identity_map, merge_of
from nasfs.node.shares.share_handback import hand_back
from nasfs.node.shares.share_takeover import preview, take_over
from nasfs.node.shares.share_travel import capture
from nasfs.node.shares.staging import stage
from sharecfg.accounts import Accounts, User
from sharecfg.accounts import Group as LocalGroup
from sharecfg.document import render_document
from sharecfg.model import Share, Smb
from sharecfg.payload import Payload, SmbAccount, encode_payload

HASHES = f"{'X' * 32}:{'A' * 32}:[U          ]:LCT-00000000:"


class Killed(BaseException):
    """Nobody handles it."""


class Machine:
    """Tools and a Samba that a test can look into, and that die when they are told to."""

    def __init__(self, etc: Path) -> None:
        self.etc = etc
        self.smb: dict[str, SmbAccount] = {}
        self.left: int | None = None
        self.refuses = ""
        (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\nzoe:x:1009:1009::/:/bin/sh\n")
        (etc / "group").write_text("root:x:0:\nown:x:1009:zoe\n")

    def step(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1

    def run(self, tool: str, *words: str) -> None:
        self.step()
        if tool == self.refuses:
            raise Failed(f"{tool} refuses")
        passwd, group = self.etc / "passwd", self.etc / "group"
        match tool, *words:
            case "groupadd", "-g", gid, name:
                group.write_text(group.read_text() + f"{name}:x:{gid}:\n")
            case "useradd", "-u", uid, "-g", gid, *_, name:
                passwd.write_text(passwd.read_text() + f"{name}:x:{uid}:{gid}::/:/bin/sh\n")
            case "gpasswd", how, user, name:
                lines = []
                for line in group.read_text().splitlines():
                    fields = line.split(":")
                    if fields[0] == name:
                        members = set(filter(None, fields[3].split(",")))
                        members = members | {user} if how == "-a" else members - {user}
                        fields[3] = ",".join(sorted(members))
                    lines.append(":".join(fields))
                group.write_text("\n".join(lines) + "\n")
            case ("userdel", name) | ("groupdel", name):
                path = passwd if tool == "userdel" else group
                kept = [n for n in path.read_text().splitlines() if not n.startswith(f"{name}:")]
                path.write_text("\n".join(kept) + "\n")
            case _:
                raise AssertionError((tool, *words))
        self.step()

    # as `smb_accounts.Samba`

    def machine_sid(self) -> str:
        return "S-1-5-21-1-2-3"

    def accounts(self) -> tuple[SmbAccount, ...]:
        return tuple(self.smb[name] for name in sorted(self.smb))

    def take_all_in(self, accounts: list[tuple[SmbAccount, int]]) -> dict[str, Failed]:
        for account, _ in accounts:
            self.step()
            self.smb[account.name] = account
            self.step()
        return {}

    def take_away(self, name: str) -> None:
        self.step()
        self.smb.pop(name, None)
        self.step()

    def picture(self, node: Node) -> tuple[str, ...]:
        files = [(self.etc / name).read_text() for name in ("passwd", "group")]
        return (render_document(node.shares.all(), {}), *files, repr(self.accounts()))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    etc = tmp_path / "etc"
    etc.mkdir()
    made = Machine(etc)
    monkeypatch.setattr(local_accounts, "ETC", etc)
    monkeypatch.setattr(account_tools, "_run", made.run)
    monkeypatch.setattr(smb_accounts.Samba, "of", lambda node: made)
    do = Database.do

    def dying(self: Database, sql: str, *values: object) -> int:
        if "merge" in sql or "share" in sql:
            made.step()
        return do(self, sql, *values)

    monkeypatch.setattr(Database, "do", dying)
    return made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    places = Places.find(tmp_path / "n")
    init_node(places, name="n", listen="")
    with Node.open(places) as opened:
        make_pool(opened, PoolCreate("safe", str(tmp_path / "pool")))
        for name in ("home", "other"):
            make_volume(opened, VolumeCreate(f"safe/{name}", 1 << 30))
            make_group(opened, name, (f"safe/{name}",))
            set_role(opened, name, "passive", 1)
        yield opened


def set_role(node: Node, name: str, role: str, term: int) -> Group:
    node.state.change_role(node.state.group(name), role=role, term=term)
    return node.state.group(name)


def payload(node: Node, name: str, *shares: Share) -> Payload:
    (row,) = node.state.members(node.state.group(name).uuid)
    return Payload(
        shares=tuple(Share(name=one.name, volume=row.uuid, smb=one.smb) for one in shares),
        accounts=Accounts(
            users=(
                User(name="alice", uid=5001, gid=5001, smb=True),
                User(name="bob", uid=5002, gid=5001, smb=True),
                User(name="carol", uid=1009, gid=5001, smb=True),
            ),
            groups=(
                LocalGroup(name="alice", gid=5001),
                LocalGroup(name="own", gid=1009, members=("alice",)),
            ),
        ),
        machine_sid="S-1-5-21-7-8-9",
        smb_accounts=tuple(
            SmbAccount(name=user, rid=1000 + number, hashes=HASHES)
            for number, user in enumerate(("alice", "bob", "carol"))
        ),
    )


ONE, TWO = (
    Share(name=name, volume="", smb=Smb(users=("alice", "carol"))) for name in ("one", "two")
)


def staged(node: Node, name: str = "home") -> None:
    stage(node, node.state.group(name), encode_payload(payload(node, name, ONE, TWO)), "s")


def with_own(node: Node) -> None:
    """Shares of its own: one of another volume in the way, one of the group's that was closed."""
    home, other = ((row,) for n in ("home", "other") for row in members(node, n))
    node.shares.change(
        (),
        (
            Share(name="one", volume=other[0], smb=Smb()),
            Share(name="two", volume=home[0], smb=Smb(enabled=False)),
        ),
    )


def members(node: Node, name: str) -> list[str]:
    return [row.uuid for row in node.state.members(node.state.group(name).uuid)]


def test_a_merge_and_its_undoing(node: Node, machine: Machine) -> None:
    with_own(node)
    before = machine.picture(node)
    staged(node)
    lines, told = preview(node, node.state.group("home"))
    assert lines == [
        "create group alice with number 5001",
        "create user alice with number 5001",
        "create user bob with number 5002",
        "create user carol with number 5003",
        "add user alice to group own",
        "create SMB account alice with its password",
        "create SMB account bob with its password",
        "create SMB account carol with its password",
        "add share one-partner",
        "change share two",
    ]
    assert "user carol is 1009 there and 5003 here: the mount translates" in told
    assert machine.picture(node) == before
    group = set_role(node, "home", "failed-over", 2)
    take_over(node, group)
    merged = machine.picture(node)
    shares = {share.name: share for share in node.shares.all()}
    assert sorted(shares) == ["one", "one-partner", "two"]
    assert shares["two"].smb == Smb(enabled=False, users=("alice", "carol"))
    assert sorted(machine.smb) == ["alice", "bob", "carol"]
    found = identity_map(node, members(node, "home")[0])
    assert found is not None
    assert [found.uids.to_here(n) for n in (1009, 5003, 5001)] == [5003, 1009, 5001]
    assert found.gids.is_identity
    assert (found.machine_stored, found.machine_here) == ("S-1-5-21-7-8-9", "S-1-5-21-1-2-3")
    sent = {user.name: user.uid for user in capture(node, group).accounts.users}
    assert sent == {"alice": 5001, "carol": 1009}
    assert HASHES not in node.database.row("SELECT body FROM merge")[0]  # type: ignore[index]
    take_over(node, group)
    assert machine.picture(node) == merged
    assert hand_back(node, group) == []  # it is active here: nothing happens
    assert machine.picture(node) == merged
    group = set_role(node, "home", "passive", 3)
    hand_back(node, group)
    assert machine.picture(node) == before
    assert identity_map(node, members(node, "home")[0]) is None
    hand_back(node, group)
    staged(node)
    take_over(node, set_role(node, "home", "active", 4))
    assert machine.picture(node) == merged


def killed_at(machine: Machine, number: int, act: Callable[[], object]) -> bool:
    """Whether it was killed before its end."""
    machine.left = number
    try:
        act()
    except Killed:
        return True
    finally:
        machine.left = None
    return False


def test_killed_at_every_step_it_is_finished_or_undone(node: Node, machine: Machine) -> None:
    with_own(node)
    before = machine.picture(node)
    steps = 0
    for number in range(200):
        staged(node)
        group = set_role(node, "home", "failed-over", 2 * number + 2)
        node.state.change_role(group, role="passive", term=group.term)
        staged_term = set_role(node, "home", "passive", 2 * number + 3)
        staged(node)
        group = set_role(node, "home", "failed-over", staged_term.term + 1)
        killed = killed_at(machine, number, partial(take_over, node, group))
        shares = render_document(node.shares.all(), {})
        if number % 2:  # goes on
            take_over(node, group)
            merged = machine.picture(node)
            assert "one-partner" in merged[0]
        elif killed:
            assert shares == before[0] or "one-partner" in shares
        group = set_role(node, "home", "passive", staged_term.term + 1)
        again = killed_at(machine, number, partial(hand_back, node, group))
        hand_back(node, group)
        assert machine.picture(node) == before
        assert merge_of(node, group.uuid) == merge_of(node, "none")
        steps = number
        if not killed and not again:
            break
    assert steps > 15, "accounts, SMB accounts, shares and records"


def test_what_a_tool_refuses_stops_nothing_and_is_told(node: Node, machine: Machine) -> None:
    staged(node)
    machine.refuses = "useradd"
    group = set_role(node, "home", "failed-over", 2)
    told = take_over(node, group)
    assert "create user alice with number 5001: useradd refuses" in told
    assert [share.name for share in node.shares.all()] == ["one", "two"]
    assert any("useradd refuses" in line for line in attention(node))
    machine.refuses = ""
    take_over(node, group)
    assert attention(node) == []
    assert sorted(machine.smb) == ["alice", "bob", "carol"]


def test_what_can_not_be_taken_away_is_tried_again_and_told_once(
    node: Node, machine: Machine
) -> None:
    before = machine.picture(node)
    staged(node)
    take_over(node, set_role(node, "home", "failed-over", 2))
    group = set_role(node, "home", "passive", 3)
    machine.refuses = "userdel"
    for _ in range(3):
        assert any("userdel refuses" in line for line in hand_back(node, group))
    assert node.shares.all() == ()
    assert any("user" in line or "alice" in line for line in attention(node))
    events = [event for event in node.state.events() if event.kind == "shares handed back"]
    assert len(events) == 1
    machine.refuses = ""
    hand_back(node, group)
    assert machine.picture(node) == before
    assert attention(node) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"machine_sid": "S-1-5-21-1-2-3\n"},
        {"machine_sid": "S-1-5-21-1-2-99999999999"},
        {"smb_accounts": (SmbAccount(name="a", rid=1 << 32),)},
        {"accounts": Accounts(users=(User(name="a", uid=-1, gid=1),))},
        {"accounts": Accounts(groups=(LocalGroup(name="a", gid=(1 << 32) - 1),))},
    ],
)
def test_what_cannot_be_is_not_staged(node: Node, damage: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="cannot be"):
        stage(node, node.state.group("home"), encode_payload(Payload(**damage)), "s")


def test_what_another_merge_needs_is_left_to_it(node: Node, machine: Machine) -> None:
    before = machine.picture(node)
    groups = []
    for name in ("home", "other"):
        staged(node, name)
        groups.append(set_role(node, name, "failed-over", 2))
        take_over(node, groups[-1])
    hand_back(node, set_role(node, "home", "passive", 3))
    assert "alice" in machine.smb
    assert "alice:x:5001" in (machine.etc / "passwd").read_text()
    hand_back(node, set_role(node, "other", "passive", 3))
    assert machine.picture(node) == before


def test_what_was_staged_in_an_earlier_life_is_not_merged(node: Node, machine: Machine) -> None:
    staged(node)
    set_role(node, "home", "passive", 2)  # the partner has been active twice since
    assert preview(node, node.state.group("home"))[0] == []
    (said,) = take_over(node, set_role(node, "home", "failed-over", 3))
    assert "are not staged: shares stay as they are here" in said
    assert node.shares.all() == ()
    assert any(said in line for line in attention(node))


def test_staged_text_never_reaches_a_tool_as_an_option(node: Node, machine: Machine) -> None:
    for name in ("-x", "a b", "a:b", "a\nb", ""):
        with pytest.raises(Failed):
            account_tools.create_user(User(name=name, uid=5, gid=5))
    with pytest.raises(Failed):
        account_tools.create_user(User(name="a", uid=5, gid=5, home="/x:0:0"))
    with pytest.raises(Failed):
        account_tools.create_group(LocalGroup(name="root", gid=7))
