"""After a failover the same users may and may not do the same, with the same passwords."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.ganesha import INSIDE, OUTSIDE, Ganesha, ganesha
from tests.node_world import wait_until
from tests.separate_nodes import SeparateNode, replicate, separate_pair
from tests.smb import SmbServer

pytestmark = pytest.mark.mount

DOCS = Path(__file__).parents[1] / "docs"
BOB_MAY_READ = "ACL:NASFSTEST\\bob:ALLOWED/0x0/READ"
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
        for file in ("acl", "private", "denied", "granted"):
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
    modes = {"acl": 0o600, "private": 0o600, "denied": 0o666, "granted": 0o600}
    for name, mode in modes.items():
        (home / name).write_text(name)
        (home / name).chmod(mode)
    for name in ("private", "denied", "granted"):
        os.chown(home / name, 4001, 4001)
    a.shell("setfacl", "-m", "u:alice:rw", str(a.inner("tank/home") / "acl"))
    words = ("--user", "alice", "--user", "bob", "--nt-acls", "--listed-for-users")
    nfs = ("--nfs", "10.9.0.0/24:rw,no_root_squash", "--smb", "on")
    a.run("share", "add", "office", "tank/home", *words, *nfs)
    (home / "hers").mkdir(0o777)
    a.run("share", "add", "hers", "tank/home:/hers", "--user", "alice", "--listed-for-users")


def descriptor(server: SmbServer, file: str, *change: str) -> str:
    """Of a file, as Windows clients are shown it, once it is changed."""
    words = ("smbcacls", "//127.0.0.1/office", file, f"-Ualice%{ALICE}")
    done = server.run(*words, *change)
    assert done.returncode == 0, done.stdout + done.stderr
    return server.run(*words).stdout


def set_nt_acls(server: SmbServer) -> list[str]:
    """Entries that name bob by his SID: below the SID of the machine that has his account."""
    denied = descriptor(server, "denied", "--add", "ACL:NASFSTEST\\bob:DENIED/0x0/FULL")
    granted = descriptor(server, "granted", "--add", BOB_MAY_READ)
    for shown in (denied, granted):
        assert "NASFSTEST\\bob:" in shown
    return [denied, granted]


def ganesha_conf(node: SeparateNode) -> Path:
    return node.root / "etc/ganesha/ganesha.conf"


def have_ganesha(node: SeparateNode) -> None:
    ganesha_conf(node).parent.mkdir()
    ganesha_conf(node).touch()


@contextmanager
def serving_nfs(node: SeparateNode) -> Iterator[Ganesha]:
    own = node.root / "etc/nasfs/shares/ganesha.conf"
    with ganesha(
        node.root / "nfs", ganesha_conf(node), own, "office", inside=node.inside
    ) as server:
        yield server


def by_nfs(node: SeparateNode) -> tuple[dict[str, str], str]:
    """What Ganesha says to a client within the export's network and one outside; a handle."""
    with serving_nfs(node) as server:
        handle = server.ask("handle", "office/granted")

        def outcome(address: str, *words: str) -> str:
            return "ok" if server.nfs(address, *words).returncode == 0 else "refused"

        said = {
            "a host of the network, by NFS": outcome(INSIDE, "read", handle),
            "another host, by NFS": outcome(OUTSIDE, "handle", "office/granted"),
            "another host, by NFS with a handle": outcome(OUTSIDE, "read", handle),
        }
    return said, handle


def table(a: dict[str, str], b: dict[str, str]) -> str:
    """As docs/shares.md has it."""

    def plain(said: str) -> str:
        return said.removeprefix("NT_STATUS_").replace("_", " ").lower() or "nothing"

    rows = [f"| {what} | {plain(said)} | {plain(b[what])} |" for what, said in a.items()]
    return "\n".join(["| who does what | on A | on B after the merge |", "|---|---|---|", *rows])


MAY = {
    "alice reads acl": "ok",
    "alice writes acl": "ok",
    "alice reads private": "ok",
    "alice reads denied": "ok",
    "alice reads granted": "ok",
    "alice in the other's": "ok",
    "bob reads acl": "NT_STATUS_ACCESS_DENIED",
    "bob writes acl": "NT_STATUS_ACCESS_DENIED",
    "bob reads private": "NT_STATUS_ACCESS_DENIED",
    "bob reads denied": "NT_STATUS_ACCESS_DENIED",
    "bob reads granted": "ok",
    "bob in the other's": "NT_STATUS_ACCESS_DENIED",
    "a wrong password": "NT_STATUS_LOGON_FAILURE",
    "a stranger": "NT_STATUS_LOGON_FAILURE",
    "a guest": "NT_STATUS_ACCESS_DENIED",
}


def test_the_same_users_may_the_same_after_a_failover(base: Path) -> None:
    users: tuple[list[tuple[str, int]], ...] = ([("alice", 4001), ("bob", 4002)], [("zoe", 4003)])
    passwords = ({"bob": BOB, "alice": ALICE}, {"zoe": "hers"})
    with separate_pair(base, users, passwords) as (a, b):
        for node in (a, b):
            have_ganesha(node)
        with a.smbd() as server:
            prepare(a)
            wait_until(lambda: "office" in shares_of(server, "alice", ALICE), "it is shared")
            shown = set_nt_acls(server)
            on_a = what_they_may(server, base)
            assert on_a == MAY
            on_a["what a guest sees listed"] = ", ".join(shares_of(server, "", ""))
        nfs, handle = by_nfs(a)
        on_a |= nfs | {"the NFS handle of a file": "some bytes"}
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
        before = b.json("share", "list"), (b.etc / "passwd").read_text()
        done = b.nasfs("failover", "office", *LOSE)
        assert done.returncode == 0, done.stderr
        with b.smbd() as server:
            assert sorted(shares_of(server, "alice", ALICE)) == ["hers", "office"]
            assert [descriptor(server, file) for file in ("denied", "granted")] == shown
            on_b = what_they_may(server, base)
            on_b["what a guest sees listed"] = ", ".join(shares_of(server, "", ""))
            wrote = server.run(
                "smbclient", "//127.0.0.1/office", f"-Ualice%{ALICE}", "-c", f"put {base}/put new"
            )
            assert wrote.returncode == 0, wrote.stdout

        nfs, handle_there = by_nfs(b)
        same = "the same bytes" if handle_there == handle else "others"
        on_b |= nfs | {"the NFS handle of a file": same}
        print(table(on_a, on_b))
        assert {what: on_b[what] for what in MAY} == MAY
        assert table(on_a, on_b) in (DOCS / "shares.md").read_text()

        a.start()  # and back: it is the secondary, then the primary again
        wait_until(lambda: a.json("group", "show", "office")["role"] == "stale", "stepping down")
        b.run("failback-join", "office")
        b.run("replication", "run", "office", "--wait")
        a.run("failback", "office")
        wait_until(lambda: b.json("share", "list") == before[0], "shares are handed back")
        wait_until(lambda: (b.etc / "passwd").read_text() == before[1], "accounts are, too")
        with a.smbd() as server:
            assert sorted(shares_of(server, "alice", ALICE)) == ["hers", "office"]
        assert (a.mountpoint("tank/home") / "new").stat().st_uid == 4001


def owners(pool: Path, name: str) -> set[int]:
    """The stored owners of files, whatever a mount shows."""
    with closing(sqlite3.connect(f"file:{pool / name}/meta.db?mode=ro", uri=True)) as db:
        return {row[0] for row in db.execute("SELECT uid FROM inode")}


def test_a_number_that_is_somebody_elses_is_translated(base: Path) -> None:
    users = ([("alice", 4001), ("bob", 4002)], [("zoe", 4001)])
    passwords = ({"alice": ALICE, "bob": BOB}, {"zoe": "hers"})
    with separate_pair(base, users, passwords) as (a, b):
        have_ganesha(b)
        prepare(a)
        with a.smbd() as server:
            wait_until(lambda: "office" in shares_of(server, "alice", ALICE), "it is shared")
            shown = set_nt_acls(server)
            may = what_they_may(server, base)
            assert may == MAY
        replicate(a, "one")
        a.kill_all()
        done = b.nasfs("failover", "office", *LOSE)
        assert done.returncode == 0, done.stderr
        number = int(b.shell("id", "-u", "alice"))
        assert number not in (4001, 4002)
        home, inner = b.mountpoint("safe/home"), b.inner("safe/home")
        assert (home / "private").stat().st_uid == number
        assert (home / ".snapshots/one/private").stat().st_uid == number
        assert "user:alice:rw-" in b.shell("getfacl", "-p", str(inner / "acl"))
        assert 4001 in owners(b.root / "pool", "home")
        assert number not in owners(b.root / "pool", "home")

        def as_user(user: str, *words: str) -> int:
            word = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
            return subprocess.run([*b.inside, *word, *words], capture_output=True).returncode

        assert as_user("alice", "cat", str(inner / "private")) == 0
        assert as_user("zoe", "cat", str(inner / "private")) != 0
        assert as_user("zoe", "touch", str(inner / "of zoe")) == 0
        assert as_user("alice", "touch", str(inner / "of alice")) == 0
        assert (home / "of zoe").stat().st_uid == 4001
        assert (home / "of alice").stat().st_uid == number
        assert as_user("zoe", "setfacl", "-m", "u:alice:r", str(inner / "of zoe")) == 0
        assert "user:alice:r--" in b.shell("getfacl", "-p", str(inner / "of zoe"))
        b.run("volume", "unmount", "safe/home")
        assert owners(b.root / "pool", "home") == {0, 4001, number}
        b.run("volume", "mount", "safe/home")
        assert (home / "private").stat().st_uid == number
        with serving_nfs(b) as nfs:  # clients send the numbers of this node
            handle = nfs.ask("handle", "office/private")
            may_read_it = {
                user: nfs.nfs(INSIDE, "read", handle, user=user).returncode == 0
                for user in (number, 4001)
            }
            assert may_read_it == {number: True, 4001: False}
        told = b.json("identity", "list", "office")
        assert {one["number"]: one["name"] for one in told if one["kind"] == "user"}[
            4001
        ] == "alice"
        with b.smbd() as server:
            wait_until(lambda: "office" in shares_of(server, "alice", ALICE), "it is shared")
            assert [descriptor(server, file) for file in ("denied", "granted")] == shown
            assert what_they_may(server, base) == may
            # What Samba sets here counts here, and in what is stored, for those of the other site.
            changed = descriptor(server, "private", "--add", BOB_MAY_READ)
            may_read = what_they_may(server, base)["bob reads private"]
            assert (may_read, "NASFSTEST\\bob:ALLOWED" in changed) == ("ok", True)

        # Both go their own ways: what was merged stays, and so does what is translated.
        shares, passwd = b.json("share", "list"), (b.etc / "passwd").read_text()
        b.run("replication", "delete", "office", "--force")
        assert b.json("share", "list") == shares
        assert (b.etc / "passwd").read_text() == passwd
        assert "translated" in b.fails(3, "group", "destroy", "office")
        assert "translated" in b.fails(3, "group", "remove", "office", "safe/home")
        b.run("volume", "unmount", "safe/home")
        b.run("volume", "mount", "safe/home")
        assert (home / "private").stat().st_uid == number
