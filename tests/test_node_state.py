"""node.db: roles by compare-and-set, one partner, one use of a code, formats."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nasfs.errors import Failed, Refused
from nasfs.node.bond import Bond
from nasfs.node.children import environment
from nasfs.node.database import Database
from nasfs.node.records import Group, Invitation, Journal, Pool, Replication, Transfer, VolumeRow
from nasfs.node.state import State, TermChanged
from nasfs.node.words import VolumeName
from replication.endpoint import PeerIdentity
from replication.errors import NotAuthenticated

PEER = PeerIdentity("u-1", "east", "127.0.0.1:1", "PEM")
OTHER = PeerIdentity("u-2", "north", "127.0.0.1:2", "PEM")
GROUP = Group("g-1", "office", "passive", 3)
POOL = Pool("p-1", "tank", "/tank")
HOME = VolumeRow("v-1", "p-1", "home", "", 0, "")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "node.db")
    yield opened
    opened.close()


@pytest.fixture
def state(database: Database) -> State:
    return State(database)


@pytest.fixture
def bond(database: Database) -> Bond:
    return Bond(database)


def test_what_can_be_found_out_again_waits_for_no_disk(database: Database) -> None:
    """strace would tell; SQLite's own setting does, too, and is back afterwards."""
    seen: list[object] = []
    database._sql.create_function("sync", 0, lambda: seen.append(_synchronous(database)))
    database.do_soon("SELECT sync()")
    database.do("SELECT sync()")
    with database.change():
        database.do_soon("SELECT sync()")  # belongs to the transaction, and is as durable
    assert seen == [NORMAL, FULL, FULL]
    database.do_soon("INSERT INTO pool VALUES ('p-1', 'tank', '/tank')")
    with closing(sqlite3.connect(database._path)) as other:
        assert other.execute("SELECT name FROM pool").fetchall() == [("tank",)]


NORMAL, FULL = 1, 2
"""Of SQLite's ``synchronous``."""


def _synchronous(database: Database) -> object:
    return database._sql.execute("PRAGMA synchronous").fetchone()[0]


def test_a_role_changes_only_in_the_term_that_was_seen(state: State) -> None:
    state.add_group(GROUP)
    state.change_role(GROUP, role="failed-over", term=4)
    with pytest.raises(TermChanged) as caught:
        state.change_role(GROUP, role="stale", term=5)
    assert caught.value.expected == 3
    assert state.group("office") == Group("g-1", "office", "failed-over", 4)


def test_only_an_active_group_steps_down(state: State) -> None:
    state.add_group(GROUP)
    assert not state.step_down("g-1")
    state.change_role(GROUP, role="active", term=4)
    assert state.step_down("g-1")
    assert state.group("office").role == "stale"
    assert not state.step_down("g-1")


def test_a_failed_transaction_leaves_nothing(state: State) -> None:
    state.add_pool(POOL)
    state.add_volume(HOME)
    state.add_group(GROUP)
    state.add_group(Group("g-2", "other", "active", 1))
    state.join_group([HOME], "g-2")
    second = VolumeRow("v-2", "p-1", "mail", "", 0, "")
    state.add_volume(second)
    with pytest.raises(Refused):
        state.join_group([second, HOME], "g-1")
    assert state.members("g-1") == []
    assert [row.uuid for row in state.members("g-2")] == ["v-1"]


def test_names_are_taken_once(state: State) -> None:
    state.add_pool(POOL)
    state.add_volume(HOME)
    with pytest.raises(Failed):
        state.add_pool(Pool("p-2", "tank", "/elsewhere"))
    with pytest.raises(Failed):
        state.add_volume(VolumeRow("v-2", "p-1", "home", "", 0, ""))
    with pytest.raises(Failed):
        state.volume(VolumeName("tank", "none"))
    with pytest.raises(Failed):
        state.group("none")


def test_there_is_one_partner_at_most(bond: Bond) -> None:
    bond.set_peer(PEER)
    bond.set_peer(PEER)
    with pytest.raises(Refused):
        bond.set_peer(OTHER)
    assert bond.peer() == PEER


def test_a_code_is_used_once(bond: Bond) -> None:
    seen: list[Invitation | None] = []

    def accept(invitation: Invitation | None) -> None:
        seen.append(invitation)
        if invitation is None:
            raise NotAuthenticated("no such code")

    bond.set_invitation(Invitation(b"digest", 7))
    bond.accept_pairing(PEER, accept)
    assert bond.peer() == PEER
    with pytest.raises(NotAuthenticated):
        bond.accept_pairing(PEER, accept)
    assert seen == [Invitation(b"digest", 7), None]


def test_a_refused_candidate_uses_nothing_up(bond: Bond) -> None:
    bond.set_invitation(Invitation(b"digest", 7))
    bond.set_peer(PEER)
    with pytest.raises(Refused):
        bond.accept_pairing(OTHER, lambda invitation: None)
    seen: list[Invitation | None] = []
    bond.accept_pairing(PEER, seen.append)
    assert seen == [Invitation(b"digest", 7)]


def test_a_journal_only_goes_forward(state: State, bond: Bond) -> None:
    state.add_group(GROUP)
    bond.begin_journal(Journal("g-1", "failover", b"plan", 0))
    bond.step_done("g-1", 2)
    bond.step_done("g-1", 1)
    assert bond.journal("g-1") == Journal("g-1", "failover", b"plan", 2)
    with pytest.raises(sqlite3.IntegrityError):
        bond.begin_journal(Journal("g-1", "failover", b"another", 0))
    bond.end_journal("g-1")
    assert bond.journal("g-1") is None


def test_a_transfer_of_a_deleted_replication_is_forgotten(state: State, bond: Bond) -> None:
    state.add_group(GROUP)
    bond.add_replication(Replication("g-1", "tank", "thin", 8, "auto", 0), {})
    transfer = Transfer("g-1", "waiting", "why", "", 4, 1, 5, 0, 0, 0, 0, 0.0)
    bond.set_transfer(transfer)
    assert bond.transfer("g-1") == transfer
    bond.delete_replication("g-1")
    assert bond.transfer("g-1") is None
    bond.set_transfer(transfer)
    assert bond.transfer("g-1") is None


def test_events_are_kept_in_order_and_bounded(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasfs.node.state.EVENTS_KEPT", 5)
    for number in range(8):
        state.note("admin", "did", str(number))
    assert [event.subject for event in state.events()] == ["3", "4", "5", "6", "7"]
    assert [event.subject for event in state.events(after=6, limit=1)] == ["7"]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nasfs.node.database import Database; from nasfs.node.state import State\n"
        "from nasfs.node.records import Pool\n"
        "state = State(Database(Path(sys.argv[1])))\n"
        "state.add_pool(Pool('p', 'kept', '/kept'))\n"
        "with state.change():\n"
        "    state.add_pool(Pool('q', 'half', '/half'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment(), check=False)
    assert done.returncode == -9
    database = Database(path)
    assert [pool.name for pool in State(database).pools()] == ["kept"]
    database.close()


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    Database(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.commit()
    other.close()
    with pytest.raises(Failed) as caught:
        Database(path)
    assert "99" in caught.value.message


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    path.write_bytes(b"this is no database at all, not even close" * 100)
    with pytest.raises(Failed):
        Database(path)
