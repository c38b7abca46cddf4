"""Test failovers: clones of what has arrived, shared and tried, while replication goes on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nasfs.fuse.mountpoint import find_mount, process_of, watch
from nasfs.node.context import Node
from nasfs.node.drills import drill_clone, drill_samba, drills
from nasfs.node.drills.drill_files import probe_files
from nasfs.node.drills.drill_keeper import clear_leftovers, let_go
from nasfs.node.drills.drill_messages import DrillStart
from nasfs.node.drills.drill_table import HOLDER, Drills, Phase, Probe
from nasfs.node.places import Places
from nasfs.node.shares.smb_accounts import Samba
from nasfs.node.shares.staging import stage
from nasfs.node.words import VolumeName
from nasfs.volume import Access as VolumeAccess
from nasfs.volume import open_volume
from sharecfg.model import Share, Smb
from sharecfg.payload import Payload, SmbAccount, encode_payload
from tests.node_world import NodeWorld, mounts_below, wait_until
from tests.role_world import Pair, made_pair
from tests.smb import GLOBALS, PASSWORD

pytestmark = pytest.mark.mount

USER = "games"
"""An account that every Debian has."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    for directory in (tmp_path, *tmp_path.parents):
        directory.chmod(directory.stat().st_mode | 0o111)  # users shall come to their files
    with made_pair(tmp_path, "home", "mail") as made:
        made.a.run("replication", "set", "office", "--max-snapshots", "2")
        yield made


def traces(node: NodeWorld) -> list[str]:
    """What is there of test failovers: mounts, processes, directories, holds."""
    found = [str(path) for path in mounts_below(node.root)]
    state = node.root / "var/lib/nasfs/test-failover"
    for path in (state, node.root / "srv/nasfs-test"):
        if path.exists():
            found += [str(path), *map(str, path.iterdir())]
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(state) in line:
                found.append(line.decode(errors="replace").replace("\0", " "))
    with Node.open(Places(node.root)) as opened:
        found += [f"row {drill.id}: {drill.phase}" for drill in opened.drills.all()]
        ended = opened.drills.reports()
        found += [str(drill.samba) for drill in ended if drill.samba.exists()]
        for row in opened.state.volumes():
            with open_volume(opened.volume_path(row), VolumeAccess.READ_ONLY) as volume:
                for guid, holds in volume.all_holds().items():
                    found += [f"{guid} held by {h.owner}" for h in holds if h.owner == HOLDER]
    return found


def gone(node: NodeWorld) -> None:
    """Nothing is left; a hold goes when the receiver lets the volume go."""
    wait_until(lambda: traces(node) == [], "no trace")


def fill(root: Path) -> None:
    """Hard links, access lists, owners."""
    (root / "team").mkdir(mode=0o750)
    (root / "team/plan").write_text("first")
    os.link(root / "team/plan", root / "team/also")
    (root / "own").write_text("mine alone")
    os.chmod(root / "own", 0o600)
    os.chown(root / "own", 5, 60)
    for words in (
        ("-m", "u:5:rwx", "team"),
        ("-m", "u:5:rw", "team/plan"),
        ("-m", "d:u:5:rwx", "team"),
    ):
        subprocess.run(["setfacl", *words], cwd=root, check=True)
    os.chmod(root, 0o751)


def test_clones_are_writable_and_go_without_trace(pair: Pair) -> None:
    a, b = pair.a, pair.b
    home = a.mountpoint("tank/home")
    fill(home)
    pair.replicate("one")
    plan = b.json("test-failover", "start", "office", "--dry-run")
    assert plan["state"] == "planned"
    assert any("hold safe/home@one" in step for step in plan["plan"])
    gone(b)
    view = b.json("test-failover", "start", "office")
    assert (view["state"], view["ok"], view["snapshot"]) == ("running", True, "one")
    assert [stage["name"] for stage in view["stages"]] == [
        "hold", "mount", "overlay", "export", "probes",
    ]  # fmt: skip
    assert {probe["result"] for probe in view["probes"]} == {"ok"}

    def reasons() -> str:
        return str(b.json("snapshot", "show", "safe/home@one")["holds"])

    wait_until(lambda: "test failover of group office" in reasons(), "it is held")
    clone = b.root / "srv/nasfs-test/office/safe/home"
    assert clone.stat().st_mode & 0o7777 == 0o751
    (clone / "team/also").write_text("changed in the test")
    assert (clone / "team/plan").read_text() == "changed in the test"
    (clone / "team").rename(clone / "renamed")
    assert (clone / "renamed/plan").stat().st_nlink == 2

    (home / "team/plan").write_text("second")  # replication goes on meanwhile
    for name in ("two", "three", "four"):
        pair.replicate(name)
    held = [view["name"] for view in b.json("snapshot", "list", "office")]
    assert "safe/home@one" in held
    assert "safe/home@two" not in held
    assert "test" in b.fails(3, "snapshot", "destroy", "safe/home@one")
    assert (clone / "own").read_text() == "mine alone"
    assert b.json("test-failover", "show", "office")["state"] == "running"

    (clone / "own").chmod(0o644)  # the probes see what is not as it should be
    results = {probe.what: probe.result for probe in probes_of(b, "safe/home")}
    assert results == {"list": "ok", "read": "ok", "write": "ok", "rights": "failed"}
    subprocess.run(["mount", "-o", "remount,ro", str(clone)], check=True)
    (broken,) = (probe for probe in probes_of(b, "safe/home") if probe.what == "write")
    assert "Read-only" in broken.detail

    b.run("test-failover", "stop", "office")
    gone(b)
    last = b.json("test-failover", "show", "office")
    assert (last["state"], last["ok"], last["snapshot"]) == ("ended", True, "one")
    pair.replicate("five")
    wait_until(
        lambda: "safe/home@one" not in [v["name"] for v in b.json("snapshot", "list", "office")],
        "what the test held goes",
    )
    for volume in ("safe/home", "safe/mail"):
        b.run("volume", "check", volume)


def probes_of(node: NodeWorld, volume: str) -> tuple[Probe, ...]:
    """What the probes of a clone say now."""
    with Node.open(Places(node.root)) as opened:
        (drill,) = opened.drills.all()
        (found,) = (one for one in drill.volumes if one.name == volume)
        return probe_files(drill, found)


def set_up_samba(node: NodeWorld, *, account: bool = True) -> None:
    """A Samba of the node, perhaps with an account; its smbd does not run."""
    home = node.root / "samba"
    home.mkdir()
    for name in ("private", "lock", "state", "cache", "pid", "ncalrpc", "bind-dns"):
        (home / name).mkdir()
    conf = node.root / "etc/samba/smb.conf"
    conf.parent.mkdir()
    conf.write_text(GLOBALS.format(home=home))
    if not account:
        return
    subprocess.run(
        ["smbpasswd", "-c", str(conf), "-s", "-a", USER],
        input=f"{PASSWORD}\n{PASSWORD}\n", text=True, check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def client(view: dict[str, Any], share: str, command: str) -> str:
    """What smbclient says, with the password that people have."""
    address, _, port = view["listen"].rpartition(":")
    done = subprocess.run(
        ["smbclient", f"//{address}/{share}", "-p", port, f"-U{USER}%{PASSWORD}", "-c", command],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_shares_are_served_by_an_smbd_of_its_own(pair: Pair) -> None:
    a, b = pair.a, pair.b
    set_up_samba(a)
    set_up_samba(b, account=False)
    home, mail = a.mountpoint("tank/home"), a.mountpoint("tank/mail")
    fill(home)
    os.chmod(home, 0o777)
    a.run("share", "add", "docs", "tank/home", "--user", USER, "--nt-acls")
    a.run("share", "add", "look", "tank/home", "--user", USER, "--read-only")
    a.run("share", "add", "other", "tank/mail", "--user", "@nogroup")
    a.run("share", "add", "nfs", "tank/mail", "--nfs", "*:ro")
    pair.replicate("one")  # they travel with it, and the account as well
    done = b.nasfs("test-failover", "start", "office", "--prefix", "t-", "--json")
    view = json.loads(done.stdout)
    results = {(probe["where"], probe["what"]): probe for probe in view["probes"]}
    for where, what in (
        ("t-docs", "SMB log in, list"), ("t-docs", "SMB read"), ("t-docs", "SMB write"),
        ("t-look", "SMB log in, list"), ("t-look", "SMB write is denied"),
    ):  # fmt: skip
        assert results[where, what]["result"] == "ok", results[where, what]
    assert "bytes" in results["t-docs", "SMB read"]["detail"]
    assert "no account" in results["t-other", "SMB"]["detail"]  # nobody could come to it
    assert (done.returncode, view["ok"]) == (1, False)
    assert results["t-nfs", "SMB"]["result"] == "not tried"

    clone = b.root / "srv/nasfs-test/office/safe/home"
    client(view, "t-docs", "mkdir new; rename team moved")
    assert (clone / "new").stat().st_uid == 5
    assert (clone / "moved/plan").exists()
    assert "first" in client(view, "t-docs", "get moved\\\\plan /dev/stdout")
    assert not (home / "new").exists()
    assert not list(mail.iterdir())
    b.run("test-failover", "stop", "office")
    gone(b)
    accounts = Samba(b.root / "etc/samba/smb.conf").accounts()
    assert accounts == ()  # nothing of the node's own has changed


def test_shares_of_users_who_are_not_here(pair: Pair) -> None:
    b = pair.b
    set_up_samba(b, account=False)
    pair.replicate("one")
    with Node.open(Places(b.root)) as node:
        group = node.state.group("office")
        volume = node.state.members(group.uuid)[0].uuid
        who = "nasfs-nobody-here"
        payload = Payload(
            shares=(Share(name="docs", volume=volume, smb=Smb(users=(who,))),),
            smb_accounts=(SmbAccount(name=who, rid=5000, hashes="X:X:[U]:LCT-0:"),),
        )
        stage(node, group, encode_payload(payload), "one")
    view = b.json("test-failover", "start", "office")
    (probe,) = (probe for probe in view["probes"] if probe["where"] == "docs")
    assert (probe["result"], view["ok"]) == ("not tried", True)
    assert "made here by a failover" in probe["detail"]
    b.run("test-failover", "stop", "office")
    gone(b)


def test_what_is_refused(pair: Pair) -> None:
    a, b = pair.a, pair.b
    assert "passive" in a.fails(3, "test-failover", "start", "office")
    assert "no snap group" in b.fails(3, "test-failover", "start", "office")
    b.fails(1, "test-failover", "start", "nothing")
    b.fails(1, "test-failover", "show", "office")
    b.fails(1, "test-failover", "stop", "office")
    pair.replicate("one")
    pair.replicate("two")
    start = ("test-failover", "start", "office")
    assert "no complete snap group" in b.fails(1, *start, "--snapshot", "never")
    b.fails(2, *start, "--listen", "127.0.0.1:http")
    b.fails(1, *start, "--space", str(b.root / "missing"))
    odd = b.root / "with,comma"
    odd.mkdir()
    assert "contains ','" in b.fails(1, *start, "--space", str(odd))
    busy = b.root / "busy/safe/home"
    busy.mkdir(parents=True)
    (busy / "file").touch()
    assert "not empty" in b.fails(1, *start, "--mountpoint", str(b.root / "busy"))
    (b.root / "file").touch()
    assert "no directory" in b.fails(1, *start, "--mountpoint", str(b.root / "file"))
    gone(b)
    assert b.json("test-failover", "show") == []  # nothing was begun

    space, place = b.root / "space", b.root / "place"
    space.mkdir()
    words = ("--snapshot", "one", "--space", str(space), "--mountpoint", str(place))
    assert b.json(*start, *words)["snapshot"] == "one"
    (place / "safe/home/file").write_text("x" * 100_000)
    assert sum(path.stat().st_size for path in space.rglob("file")) == 100_000
    assert "already" in b.fails(3, *start)
    assert [view["state"] for view in b.json("test-failover", "show")] == ["running"]
    with (place / "safe/home/open").open("w") as busy_file:  # a program that does not go away
        b.run("test-failover", "stop", "office")
        busy_file.write("into nothing")
    gone(b)
    assert list(space.iterdir()) == []
    assert not place.exists()


def test_a_failover_ends_the_test_first(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("kept")
    pair.replicate("one")
    b.run("test-failover", "start", "office")
    (b.root / "srv/nasfs-test/office/safe/home/f").write_text("of the test")
    a.kill_all()
    b.run("failover", "office", "--dry-run")
    assert b.json("test-failover", "show", "office")["state"] == "running"
    b.run("failover", "office", "--force", "--lose-unreplicated")
    assert (b.mountpoint("safe/home") / "f").read_text() == "kept"
    assert b.json("test-failover", "show", "office")["problems"] == ["stopped for a failover"]
    b.fails(3, "test-failover", "start", "office")
    for volume in ("safe/home", "safe/mail"):
        b.run("volume", "unmount", volume)
    gone(b)


def test_the_daemon_and_mount_processes_are_killed(pair: Pair) -> None:
    b = pair.b
    pair.replicate("one")
    b.run("test-failover", "start", "office")
    b.kill()
    b.start()  # what still serves goes on
    assert b.json("test-failover", "show", "office")["state"] == "running"
    lower = next(path for path in mounts_below(b.root) if "/lower/" in str(path))
    os.kill(mount_process(lower), signal.SIGKILL)
    wait_until(
        lambda: b.json("test-failover", "show", "office")["state"] == "broken", "it is noticed"
    )
    (problem,) = b.json("test-failover", "show", "office")["problems"]
    assert "is gone" in problem
    assert problem in str(b.json("status")["attention"])
    assert "failed" in {probe.result for probe in probes_of(b, problem.split()[-3])}
    b.run("test-failover", "stop", "office")
    gone(b)

    b.run("test-failover", "start", "office")
    b.kill()
    for lower in [path for path in mounts_below(b.root) if "/lower/" in str(path)]:
        os.kill(mount_process(lower), signal.SIGKILL)
    b.start()  # what does not serve any more is cleared
    assert b.json("test-failover", "show", "office")["problems"] == ["it was broken off"]
    gone(b)
    b.run("test-failover", "start", "office")
    b.stop()
    assert mounts_below(b.root) == []
    b.start()
    gone(b)


def mount_process(mountpoint: Path) -> int:
    mount = find_mount(mountpoint)
    assert mount is not None
    connection = watch(mount)
    assert connection is not None
    with connection:
        return process_of(connection)


def test_holds_wait_for_a_receiver(pair: Pair) -> None:
    b = pair.b
    pair.replicate("one")

    def holders() -> list[str]:
        return [hold["owner"] for hold in b.json("snapshot", "show", "safe/home@one")["holds"]]

    with Node.open(Places(b.root)) as node:
        path = node.volume_path(node.state.volume(VolumeName("safe", "home")))
    with open_volume(path):  # as a receiver does for as long as something comes
        b.run("test-failover", "start", "office")
        assert HOLDER not in holders()
        assert "test failover" in b.fails(3, "snapshot", "destroy", "safe/home@one")
    for name in ("two", "three", "four"):
        pair.replicate(name)
    assert holders() == [HOLDER]  # by the receiver: it destroys what is surplus, but this
    with open_volume(path):
        b.run("test-failover", "stop", "office")
        b.fails(1, "test-failover", "stop", "office")
        assert holders() == [HOLDER]
        b.fails(1, "test-failover", "start", "office", "--snapshot", "two")
        b.run("test-failover", "start", "office", "--snapshot", "one")
        b.run("test-failover", "stop", "office")
    wait_until(lambda: traces(b) == [], "the hold is released")


SEAMS: tuple[tuple[Any, str], ...] = (
    (Drills, "save"), (Drills, "report"), (Drills, "forget"), (Drills, "settle"),
    (drills, "mount_snapshot"), (drills, "mount_clone"), (drills, "start_smbd"),
    (drills, "probe_files"), (drills, "probe_shares"), (drill_samba, "_copy_database"),
    (drill_samba, "_wait_until_answers"), (drill_clone, "end_processes"), (drill_clone, "umount"),
    (shutil, "rmtree"), (subprocess.Popen, "__init__"),
)  # fmt: skip
"""Before each call of one of these a test is killed."""
ASKING = ("testparm", "pdbedit", "setpriv", "smbclient")


def asks(args: tuple[Any, ...]) -> bool:
    """Whether it is the start of a tool that changes nothing."""
    words = args[1] if len(args) > 1 else None
    return isinstance(words, list) and words[0] in ASKING


def run_and_kill(root: Path, at: int) -> bool:
    """A test failover and its end, in a process that gets SIGKILL at call number *at*.

    Returns:
        Whether it was killed; False: it came to its end before.
    """
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status != 0
    calls = itertools.count()

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def seam(*args: Any, **named: Any) -> Any:
            if not asks(args) and next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        return seam

    try:
        for of, name in SEAMS:
            setattr(of, name, before(getattr(of, name)))
        with Node.open(Places(root)) as node:
            drills.start(node, "office", DrillStart())
            drills.stop(node, "office")
        os._exit(0)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


def test_killed_at_every_step(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        directory.chmod(directory.stat().st_mode | 0o111)
    with made_pair(tmp_path, "home") as pair:
        b = pair.b
        set_up_samba(b)
        fill(pair.a.mountpoint("tank/home"))
        pair.replicate("one")
        with Node.open(Places(b.root)) as node:
            uuid = node.state.volumes()[0].uuid
            share = Share(name="docs", volume=uuid, smb=Smb(users=(USER,)))
            node.shares.change((), (share,))
        b.kill()
        at, phases = 0, set[Phase]()
        while run_and_kill(b.root, at):
            with Node.open(Places(b.root)) as node:
                found = node.drills.all()
                phases |= {drill.phase for drill in found}
                if at % 2:
                    clear_leftovers(node)  # as the daemon does; what runs well goes on
                if node.drills.of_group(node.state.group("office").uuid):
                    drills.stop(node, "office")  # as a person does
                let_go(node)
            assert traces(b) == [], at
            at += 1
        assert phases == set(Phase)
        assert at > 20
        b.start()
