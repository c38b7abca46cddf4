"""The main job, for real, on one machine: run by scripts/quickstart.

Two nodes, A and B, live below one folder.  A volume is made and mounted on A, filled with a real
tree and shared by Samba, if that is installed; it is snapshotted, paired with B and replicated;
then much is changed and the delta replicated; A is killed; B takes over, and serves clients of A;
and every path of B's mount is compared with what A's snapshot holds.  Only the `nasfs` command is
used, as an administrator would.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from quickstart_samba import Samba, user_of_this_machine

NASFS = Path(sys.executable).with_name("nasfs")
FILES_WANTED = 20_000
SOURCES = (
    "/usr/share",
    "/usr/lib/python3",
    "/usr/lib/python3.11",
    "/usr/include",
    "/usr/lib",
    "/etc",
)
MANY = 3_000
BLOCK = 4096

console = Console(highlight=False, soft_wrap=True)


class Problem(Exception):
    """The quickstart can't go on, or the verdict is bad."""


@dataclass
class Node:
    """One of the two nodes: its folder, its daemon."""

    name: str
    home: Path
    port: int
    daemon: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        return self.home / "root"

    @property
    def log(self) -> Path:
        return self.home / "daemon.log"

    def run(self, *words: str, fails: bool = False) -> str:
        """An `nasfs` command on this node; its output.  Raises `Problem` if it fails."""
        done = subprocess.run(
            [NASFS, "--root", self.root, *words], capture_output=True, text=True, check=False
        )
        if (done.returncode != 0) != fails:
            raise Problem(
                f"nasfs {' '.join(words)} on {self.name} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return (done.stderr if fails else done.stdout).strip()

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def start(self) -> None:
        """Run the daemon, and wait until it answers."""
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [NASFS, "--root", self.root, "node", "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            asked = [NASFS, "--root", self.root, "status", "--json"]
            if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
                return
            if self.daemon.poll() is not None:
                break
            time.sleep(0.1)
        raise Problem(f"the daemon of node {self.name} does not start:\n{self.log.read_text()}")

    def kill(self) -> int:
        """SIGKILL to the daemon and everything it started; how many processes that were."""
        assert self.daemon is not None
        doomed = [self.daemon.pid, *descendants(self.daemon.pid)]
        for pid in doomed:
            os.kill(pid, signal.SIGSTOP)  # so that nobody restarts anybody meanwhile
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        self.daemon.wait()
        self.daemon = None
        return len(doomed)

    def stop(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.wait(timeout=120)
        self.daemon = None


def descendants(pid: int) -> list[int]:
    """All processes below *pid*."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                text = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
    found = [child for child, parent in parents.items() if parent == pid]
    for child in list(found):
        found += descendants(child)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


class Step:
    """A line of the story: what is done, then its figures and seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.figures = ""
        self._began = time.monotonic()
        self._status = console.status(title)

    def __enter__(self) -> Step:
        self._status.start()
        return self

    def say(self, progress: str) -> None:
        """Shown while the step runs, on a terminal."""
        self._status.update(f"{self.title}: {progress}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._status.stop()
        seconds = time.monotonic() - self._began
        mark = "[green]ok[/]" if kind is None else "[red]failed[/]"
        console.print(f"{mark} {self.title}: {self.figures or 'done'} [dim]({seconds:.1f} s)[/]")


# the tree


def choose_sources() -> list[Path]:
    """Real trees of this machine with at least `FILES_WANTED` files in all."""
    chosen: list[Path] = []
    total = 0
    for source in map(Path, SOURCES):
        if total >= FILES_WANTED:
            break
        if not source.is_dir() or any(other in source.parents for other in chosen):
            continue
        parts = sorted(p for p in source.iterdir() if p.is_dir() and not p.is_symlink())
        for part in parts:
            total += sum(len(files) for _, _, files in os.walk(part))
            chosen.append(part)
            if total >= FILES_WANTED:
                break
    return chosen


def corner_cases(top: Path) -> None:
    """What ordinary trees rarely hold."""
    top.mkdir()
    file = top / "owned by somebody"
    file.write_bytes(b"x" * 10_000)
    os.chown(file, 1234, 5678)
    os.chmod(file, 0o4751)
    os.setxattr(file, "user.comment", b"kept \x00 as it is")
    os.setxattr(file, "trusted.note", b"only root sees this")
    os.link(file, top / "another name")
    os.link(file, top / "a third name")
    os.symlink("nowhere/at all", top / "dangling")
    os.utime(file, ns=(-86_400_000_000_000, 4_300_000_000_123_456_789))
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
        sparse.seek(123 << 30)
        sparse.write(b"far out")
    (top / os.fsdecode(b"not \xff utf-8")).write_bytes(b"")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    many = top / "thousands"
    many.mkdir()
    for number in range(MANY):
        (many / f"{number:05}.txt").write_bytes(b"%d\n" % number)
    with (top / "image").open("wb") as image:
        image.truncate(256 << 20)
        for position in range(0, 256 << 20, 16 << 20):
            image.seek(position)
            image.write(os.urandom(1 << 20))


def inodes(mount: Path) -> int:
    """Inodes in a mounted volume."""
    found = os.statvfs(mount)
    return found.f_files - found.f_ffree


def fill(mount: Path, step: Step) -> tuple[int, int]:
    """Copy real trees into the volume; files and bytes in it then.

    A machine with few files gives them more than once, under other names.
    """
    sources, number = choose_sources(), 0
    while number == 0 or inodes(mount) < FILES_WANTED:
        for source in sources:
            step.say(f"{source}, {inodes(mount)} inodes so far")
            target = mount / f"{number:03}-{source.name}"
            subprocess.run(["cp", "-a", "--", source, target], check=True)
            number += 1
    corner_cases(mount / "corner cases")
    files = [os.path.join(where, name) for where, _, names in os.walk(mount) for name in names]
    return len(files), sum(os.lstat(file).st_blocks * 512 for file in files)


def change(mount: Path) -> str:
    """Edit, append, rename, delete, add; says what it did."""
    corner = mount / "corner cases"
    with (corner / "image").open("r+b") as image:
        image.seek(7 * BLOCK)
        image.write(os.urandom(BLOCK))
    with (corner / "another name").open("ab") as file:
        file.write(b"appended")
    os.rename(corner / "thousands", mount / "renamed thousands")
    edited = removed = 0
    ordinary = sorted(p for p in mount.iterdir() if p.name[:3].isdecimal())
    files = [os.path.join(where, name) for top in ordinary for where, _, names in os.walk(top)
             for name in names]  # fmt: skip
    for number, path in enumerate(files[:: max(len(files) // 600, 1)]):
        if os.path.islink(path):
            continue
        if number % 3 == 0:
            os.unlink(path)
            removed += 1
        else:
            with open(path, "ab") as file:
                file.write(b"\nedited\n")
            edited += 1
    os.removexattr(corner / "a third name", "user.comment")
    os.chmod(corner / "sparse", 0o400)
    added = mount / "added"
    added.mkdir()
    for number in range(200):
        (added / f"{number}").write_bytes(os.urandom(3000))
    return (
        f"{edited} files edited, {removed} deleted, 200 added, "
        f"a directory of {MANY} renamed, 1 block of a 256 MiB file written"
    )


# the comparison


def walk(top: bytes) -> Iterator[bytes]:
    """All paths below *top*, relative, itself included."""
    yield b"."
    for where, directories, files in os.walk(top):
        below = os.path.relpath(where, top)
        for name in (*directories, *files):
            yield os.path.normpath(os.path.join(below, name))


FIELDS = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size",
          "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blocks")  # fmt: skip


def differences(one: Path, other: Path) -> tuple[int, int, list[str]]:
    """Paths and bytes compared, and every difference in words."""
    top, second = os.fsencode(one), os.fsencode(other)
    paths, others = sorted(walk(top)), sorted(walk(second))
    found = [f"only in one: {path!r}" for path in set(paths) ^ set(others)]
    compared = 0
    for path in paths:
        a, b = os.path.join(top, path), os.path.join(second, path)
        try:
            left, right = os.lstat(a), os.lstat(b)
        except FileNotFoundError:
            continue
        for name in FIELDS:
            if getattr(left, name) != getattr(right, name):
                values = f"{getattr(left, name)} and {getattr(right, name)}"
                found.append(f"{path!r}: {name} is {values}")
        names = os.listxattr(a, follow_symlinks=False)
        if sorted(names) != sorted(os.listxattr(b, follow_symlinks=False)):
            found.append(f"{path!r}: other extended attributes")
        elif any(
            os.getxattr(a, name, follow_symlinks=False)
            != os.getxattr(b, name, follow_symlinks=False)
            for name in names
        ):
            found.append(f"{path!r}: another value of an extended attribute")
        if stat.S_ISLNK(left.st_mode) and os.readlink(a) != os.readlink(b):
            found.append(f"{path!r}: another target")
        if stat.S_ISREG(left.st_mode) and left.st_size < 1 << 32:
            compared += left.st_size
            if not same_content(a, b):
                found.append(f"{path!r}: other content")
        elif stat.S_ISREG(left.st_mode) and not same_far_out(a, b):
            found.append(f"{path!r}: other content")
    return len(paths), compared, found


def same_content(a: bytes, b: bytes) -> bool:
    with open(a, "rb") as left, open(b, "rb") as right:
        while True:
            one, two = left.read(1 << 20), right.read(1 << 20)
            if one != two:
                return False
            if not one:
                return True


def same_far_out(a: bytes, b: bytes) -> bool:
    """The sparse file: 1 TiB of holes, compared where it was written and around."""
    places = (0, (123 << 30) - 8192, 123 << 30, (123 << 30) + 8192, (1 << 40) - 8192)
    with open(a, "rb") as left, open(b, "rb") as right:
        for place in places:
            left.seek(place)
            right.seek(place)
            if left.read(8192) != right.read(8192):
                return False
    return True


# the story


def transfer_figures(node: Node) -> str:
    shown = node.json("replication", "show", "office")
    data, wire = size(shown["bytes_done"]), size(shown["wire_bytes"])
    return f"{shown['rows_done']} rows, {data} of file data, {wire} on the wire"


@dataclass
class Clients:
    """The Sambas of both nodes, and who comes as a client; without Samba none."""

    sambas: dict[str, Samba] = field(default_factory=dict)
    user: str = ""
    password: str = ""

    def prepare(self, nodes: tuple[Node, ...]) -> None:
        self.user = user_of_this_machine()
        for node in nodes if self.user else ():
            samba = self.sambas[node.name] = Samba(node.name, node.root, node.home / "samba")
            samba.prepare()
            if not self.password:
                self.password = samba.add(self.user)  # on A alone
            samba.start()

    def read(self, node: Node, path: str) -> bytes:
        try:
            return self.sambas[node.name].read("office", path, self.user, self.password, node.home)
        except RuntimeError as exc:
            raise Problem(f"reading {path} from {node.name} by SMB: {exc}") from exc

    def stop(self) -> None:
        for samba in self.sambas.values():
            samba.stop()


def tell(a: Node, b: Node, clients: Clients) -> None:
    """Everything up to the verdict.  Raises `Problem`."""
    volume, replica = a.root / "srv/nasfs/tank/home", b.root / "srv/nasfs/safe/home"
    with Step("two nodes, each with a daemon and a pool") as step:
        for node in (a, b):
            node.run("node", "init", "--name", node.name, "--listen", f"127.0.0.1:{node.port}")
        clients.prepare((a, b))
        for node, pool in ((a, "tank"), (b, "safe")):
            node.start()
            node.run("pool", "create", pool, str(node.home / "pool"))
        step.figures = f"A on port {a.port}, B on port {b.port}"
    with Step("a volume on A, mounted"):
        a.run("volume", "create", "tank/home", "--size", "100G", "--mountpoint", str(volume))
        a.run("volume", "mount", "tank/home")
    with Step("a real tree copied into it (cp -a)") as step:
        files, used = fill(volume, step)
        step.figures = f"{files} files, {size(used)}"
    if clients.user:
        with Step("shared by Samba, a file read as a client") as step:
            (volume / "letter").write_text("read by whoever may\n")
            a.run("share", "add", "office", "tank/home", "--user", clients.user, "--read-only")
            count = len(clients.read(a, "letter"))
            step.figures = f"{count} bytes as {clients.user}, from A"
    with Step("a snapshot of its group") as step:
        a.run("group", "create", "office", "tank/home")
        a.run("snapshot", "create", "office@monday")
        names = os.listdir(volume / ".snapshots")
        step.figures = f"office@monday, browsable in .snapshots/: {', '.join(names)}"
    with Step("paired by a one-time code") as step:
        code = b.run("pair", "invite").splitlines()[0]
        wrong = code[:-1] + ("a" if code[-1] != "a" else "b")
        refusal = a.run("pair", "join", wrong, fails=True).splitlines()[0]
        a.run("pair", "join", code)
        step.figures = f"a code with a typo was refused ({refusal.removeprefix('error: ')})"
    with Step("initial copy to B") as step:
        a.run("replication", "create", "office", "--to-pool", "safe")
        a.run("replication", "run", "office", "--wait")
        step.figures = transfer_figures(a)
    with Step("changes on A") as step:
        step.figures = change(volume)
    with Step("the delta to B") as step:
        a.run("snapshot", "create", "office@tuesday")
        a.run("replication", "run", "office", "--wait")
        step.figures = transfer_figures(a)
    with Step("a file written after the last snapshot, then node A is killed (SIGKILL)") as step:
        (volume / "too late").write_text("never replicated\n")
        step.figures = f"{a.kill()} processes"
    with Step("failover on B") as step:
        b.run("failover", "office", "--dry-run", "--force", "--lose-unreplicated")
        refusal = b.run("failover", "office", fails=True).splitlines()[0]
        b.run("failover", "office", "--force", "--lose-unreplicated")
        step.figures = "refused without naming the loss, done with it; mounted read-write"
    if clients.user:
        with Step("the same file read as a client, from B, with the same password") as step:
            same = clients.read(b, "letter") == (replica / "letter").read_bytes()
            step.figures = f"as {clients.user}; the share and the account came from A"
            if not same:
                raise Problem("a client of B reads something else")
    held = a.home / "snapshot"
    held.mkdir()
    with Step("B compared with A's snapshot") as step:
        a.run("unmount", str(volume))
        a.run("mount", "tank/home", str(held), "--snapshot", "tuesday")
        paths, compared, found = differences(held, replica)
        step.figures = (
            f"{paths} paths, {size(compared)} of content; types, sizes, modes, owners, times, "
            f"xattrs, link counts and inode numbers: {len(found)} differences"
        )
        a.run("unmount", str(held))
    with Step("both volumes checked, a new file written on B"):
        (replica / "B is active").write_text("work goes on\n")
        a.run("volume", "check", "tank/home")
        b.run("volume", "check", "safe/home")
    if found:
        raise Problem("B differs from A's snapshot:\n" + "\n".join(found[:20]))


def look_around(a: Node, b: Node) -> None:
    console.print(
        f"\nKept in {a.home.parent}. Node B runs and is active; A is as the crash left it."
    )
    console.print("Look around (end: kill the daemons, unmount, remove the folder):")
    for line in (
        f"{NASFS} --root {b.root} status",
        f"{NASFS} --root {b.root} snapshot list",
        f"ls {b.root}/srv/nasfs/safe/home/.snapshots/",
        f"{NASFS} --root {b.root} events",
        f"{NASFS} --root {a.root} status",
    ):
        console.print(f"  {line}")
    for node in (a, b):
        if node.daemon is not None:
            console.print(f"Node {node.name.upper()}: daemon {node.daemon.pid}, log {node.log}")


def clean_up(home: Path, nodes: tuple[Node, Node]) -> None:
    for node in nodes:
        node.stop()
    with open("/proc/self/mountinfo") as table:
        mounts = [line.split()[4] for line in table]
    for mount in sorted((m for m in mounts if m.startswith(f"{home}/")), reverse=True):
        subprocess.run(["fusermount3", "-u", "-z", mount], check=False)
    shutil.rmtree(home)


def main() -> int:
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the nodes, tell how to look")
    keep = parser.parse_args().keep
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="nasfs-quickstart-", dir="/var/tmp"))
    nodes = Node("a", home / "a", free_port()), Node("b", home / "b", free_port())
    home.chmod(0o711)  # clients come as another user
    for node in nodes:
        node.home.mkdir()
    clients = Clients()
    console.print(f"[bold]nasfs quickstart[/] in {home}")
    try:
        tell(*nodes, clients)
    except Problem as problem:
        console.print(f"[bold red]FAILED[/] {problem}")
        verdict = 1
    except KeyboardInterrupt:
        verdict = 130
    else:
        seconds = time.monotonic() - began
        console.print(
            f"[bold green]EQUAL[/] B holds what A's snapshot held. {seconds:.0f} s in all."
        )
        verdict = 0
    finally:
        clients.stop()
        if keep:
            nodes[0].start()
            look_around(*nodes)
        else:
            clean_up(home, nodes)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
