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
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from quickstart_samba import Samba, user_of_this_machine
from quickstart_tree import change, differences, fill

NASFS = Path(sys.executable).with_name("nasfs")
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
    set_up(a, b, volume, clients)
    replicate(a, b, volume)
    lose(a, b, volume, replica, clients)
    compare(a, b, volume, replica)


def set_up(a: Node, b: Node, volume: Path, clients: Clients) -> None:
    """Two nodes; on A a volume that is full, shared, and in a group with a snapshot."""
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
        files, used = fill(volume, step.say)
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


def replicate(a: Node, b: Node, volume: Path) -> None:
    """Pair them; all of it to B, then what was changed."""
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


def lose(a: Node, b: Node, volume: Path, replica: Path, clients: Clients) -> None:
    """A is killed and B takes over."""
    with Step("a file written after the last snapshot, then node A is killed (SIGKILL)") as step:
        (volume / "too late").write_text("never replicated\n")
        step.figures = f"{a.kill()} processes"
    with Step("failover on B") as step:
        b.run("failover", "office", "--dry-run", "--force", "--lose-unreplicated")
        refusal = b.run("failover", "office", fails=True).splitlines()[0]
        b.run("failover", "office", "--force", "--lose-unreplicated")
        step.figures = f"refused at first ({refusal.removeprefix('error: ')}), then by force"
    if clients.user:
        with Step("the same file read as a client, from B, with the same password") as step:
            same = clients.read(b, "letter") == (replica / "letter").read_bytes()
            step.figures = f"as {clients.user}; the share and the account came from A"
            if not same:
                raise Problem("a client of B reads something else")


def compare(a: Node, b: Node, volume: Path, replica: Path) -> None:
    """What B serves with A's snapshot, path by path."""
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleaned up as after Ctrl-C
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
