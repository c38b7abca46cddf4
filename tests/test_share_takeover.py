"""After a failover the same users may and may not do the same, with the same passwords."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_world import wait_until
from tests.separate_nodes import SeparateNode, replicate, separate_pair
from tests.smb import SmbServer

pytestmark = pytest.mark.mount

ALICE, BOB = "alice's own", "bob's own"
LOSE = ("--force", "--lose-unreplicated")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to other users
        Path(name).chmod(0o711)
        yield Path(name)


def shares_of(server: SmbServer, user: str, password: str) -> list[str]:
    """What a user (or with an empty name a guest) sees in the list of shares."""
    who = ["-N"] if not user else [f"-U{user}%{password}"]
    done = server.run("smbclient", "-g", "-L", "127.0.0.1", *who)
    lines = (line.split("|") for line in done.stdout.splitlines())
    return [words[1] for words in lines if words[0] == "Disk"]


def what_they_may(server: SmbServer, work: Path) -> dict[str, str]:
    """The first words of what Samba says to each of these."""
    said = {}
    (work / "put").write_text("x")

    def ask(name: str, share: str, user: str, password: str, command: str) -> None:
        done = server.run(
            "smbclient", f"//127.0.0.1/{share}", f"-U{user}%{password}", "-c", command
        )
        words = [word for word in (done.stdout + done.stderr).split() if "NT_STATUS" in word]
        said[name] = "ok" if done.returncode == 0 else words[0] if words else done.stdout
        (work / "got").unlink(missing_ok=True)

    for user, password in (("alice", ALICE), ("bob", BOB)):
        for file in ("acl", "private", "denied"):
            command = f"get {file} {work}/got"
            ask(f"{user} reads {file}", "office", user, password, command)
        ask(f"{user} writes acl", "office", user, password, f"put {work}/put acl")
        ask(f"{user} in the other's", "hers", user, password, "ls")
    ask("a wrong password", "office", "alice", BOB, "ls")
    ask("a stranger", "office", "carol", "x", "ls")
    ask("a guest", "office", "", "", "ls")
    return said


def prepare(a: SeparateNode) -> None:
    home = a.mountpoint("tank/home")
    home.chmod(0o777)
    for name, mode in (("acl", 0o600), ("private", 0o600), ("denied", 0o666)):
        (home / name).write_text(name)
        (home / name).chmod(mode)
    os.chown(home / "private", 4001, 4001)
    a.shell("setfacl", "-m", "u:alice:rw", str(a.inner("tank/home") / "acl"))
    a.run("share", "add", "office", "tank/home", "--user", "alice", "--user", "bob", "--nt-acls")
    (home / "hers").mkdir(0o777)
    a.run("share", "add", "hers", "tank/home:/hers", "--user", "alice", "--listed-for-users")


def test_the_same_users_may_the_same_after_a_failover(base: Path) -> None:
    users: tuple[list[tuple[str, int]], ...] = ([("alice", 4001), ("bob", 4002)], [])
    with separate_pair(base, users, ({"alice": ALICE, "bob": BOB}, {})) as (a, b):
        with a.smbd() as server:
            prepare(a)
            wait_until(lambda: "office" in shares_of(server, "alice", ALICE), "it is shared")
            before = what_they_may(server, base)
        assert before == {
            "alice reads acl": "ok",
            "alice writes acl": "ok",
            "alice reads private": "ok",
            "alice reads denied": "ok",
            "alice in the other's": "ok",
            "bob reads acl": "NT_STATUS_ACCESS_DENIED",
            "bob writes acl": "NT_STATUS_ACCESS_DENIED",
            "bob reads private": "NT_STATUS_ACCESS_DENIED",
            "bob reads denied": "ok",
            "bob in the other's": "NT_STATUS_ACCESS_DENIED",
            "a wrong password": "NT_STATUS_LOGON_FAILURE",
            "a stranger": "NT_STATUS_LOGON_FAILURE",
            "a guest": "NT_STATUS_ACCESS_DENIED",
        }
        replicate(a, "one")
        a.kill_all()
        plan = b.run("failover", "office", "--dry-run")
        for step in (
            "create user alice with number 4001",
            "create SMB account bob with its password",
            "add share hers",
            "mount safe/home",
        ):
            assert step in plan
        assert "alice" not in (b.etc / "passwd").read_text()
        done = b.nasfs("failover", "office", *LOSE)
        assert done.returncode == 0, done.stderr
        with b.smbd() as server:
            assert sorted(shares_of(server, "alice", ALICE)) == ["hers", "office"]
            assert what_they_may(server, base) == before
