"""Who copies: nasfs, rsync and btrfs, each with a source and a copy of it at another place.

A copier is an entry of `COPIERS`: a context manager that gives a `Copier`, or raises `Missing`.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from candidates import Missing
from replicated import HostTree, Tree

from nasfs.fuse.control import ControlClient
from nasfs.node.children import environment
from nasfs.node.client import Client, replication_url
from nasfs.node.context import Node
from nasfs.node.messages import ReplicationView
from nasfs.node.places import Places

MIB = 1 << 20
VOLUME_SIZE = "64G"
IMAGE_BYTES = 16 << 30
PIPE_BYTES = 1 << 20
PATIENCE_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Cost:
    """What bringing the copy up to date once took.

    `durable_seconds` ends when the copy is on stable storage: nasfs has it there when it is done;
    for the others the copy's file system is synced afterwards.
    """

    seconds: float
    durable_seconds: float
    cpu_seconds: float
    wire_bytes: int


class Copier:
    """Changes a source and brings its copy up to date."""

    def change(self, step: Callable[[Tree], None]) -> None:
        """Change the source, durable and in the host's memory; not measured."""
        raise NotImplementedError

    def update(self) -> Cost:
        raise NotImplementedError


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def run(*command: str | Path, **options: object) -> str:
    """Standard output.  Raises RuntimeError with what a command that failed said."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout}")
    return str(done.stdout)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# nasfs


class _Node:
    """A node below a directory; its daemon runs between `start` and `stop`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.places = Places.find(str(root))
        self.daemon: subprocess.Popen[bytes] | None = None
        root.mkdir()
        self.nasfs("node", "init", "--name", name, "--listen", f"127.0.0.1:{free_port()}")

    def nasfs(self, *words: str) -> str:
        command = [sys.executable, "-m", "nasfs.cli.main", "--root", str(self.root), *words]
        return run(*command, env=environment())

    def start(self) -> None:
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "nasfs.cli.main", "--root", str(self.root), "node", "run"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.root / "log").open("ab"),
            env=environment(),
        )
        for _ in range(300):
            try:
                self.nasfs("pair", "show")
                return
            except RuntimeError:
                time.sleep(0.1)
        raise RuntimeError(f"no daemon: {(self.root / 'log').read_text()}")

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(60)
            self.daemon = None

    def cpu_seconds(self) -> float:
        """Of all processes of this node, and of those that they started and that have ended."""
        ticks = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if os.fsencode(self.root) in words:
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


class Nasfs(Copier):
    """Two nodes on this machine with their daemons, TLS between them, as people run them.

    The clock runs from the request to replicate until the sending daemon knows that all is durable.
    """

    def __init__(self, a: _Node, b: _Node) -> None:
        self._a = a
        self._b = b
        with Node.open(a.places) as node:
            (row,) = node.state.volumes()
            self._owner = ControlClient(a.places.control_socket(row.uuid), timeout_s=600.0)
            self._tree = HostTree(node.mountpoint(row))
        self._round = 0

    def change(self, step: Callable[[Tree], None]) -> None:
        """Through the mount; the snapshot is asked of its process, and nobody replicates it yet."""
        self._round += 1
        self._tree.new_round()
        step(self._tree)
        self._owner.call("snapshot", name=f"s{self._round}", snap_group=str(uuid.uuid4()))

    def update(self) -> Cost:
        before = self._cpu_seconds()
        client = Client(self._a.places)
        began_ns = time.time_ns()
        view = client.post(f"{replication_url('g')}/run", ReplicationView)
        with Node.open(self._a.places) as node:
            group = node.state.group("g")
            while True:
                past = node.traffic.past(group.uuid, 1)
                if past and past[0].ended_ns > began_ns:
                    break
                if time.time_ns() - began_ns > PATIENCE_NS:
                    raise RuntimeError(f"nothing was replicated: {view}")
                time.sleep(0.01)
        if past[0].result != "done":
            raise RuntimeError(past[0].detail)
        seconds = (past[0].ended_ns - began_ns) / 1e9
        time.sleep(0.2)  # the daemon has collected what it started
        return Cost(seconds, seconds, self._cpu_seconds() - before, past[0].wire_bytes)

    def _cpu_seconds(self) -> float:
        return self._a.cpu_seconds() + self._b.cpu_seconds()


@contextmanager
def nasfs(home: Path, *options: str) -> Iterator[Copier]:
    """*options*: of ``replication create``."""
    a, b = (_Node(home / name, name) for name in ("a", "b"))
    try:
        for node, pool in ((a, "tank"), (b, "safe")):
            node.start()
            node.nasfs("pool", "create", pool, str(node.root / "pool"))
        a.nasfs("pair", "join", b.nasfs("pair", "invite").strip())
        a.nasfs("volume", "create", "tank/v", "--size", VOLUME_SIZE)
        a.nasfs("group", "create", "g", "tank/v")
        a.nasfs("replication", "create", "g", "--to-pool", "safe", *options)
        a.nasfs("volume", "mount", "tank/v")
        yield Nasfs(a, b)
    finally:
        a.stop()
        b.stop()


# rsync


class Rsync(Copier):
    """From a directory to a module of a daemon on the loopback interface."""

    def __init__(self, home: Path, flags: list[str]) -> None:
        self._home = home
        self._flags = flags
        self._source, self._copy = home / "source", home / "copy"
        for place in (self._source, self._copy):
            place.mkdir()
        self._tree = HostTree(self._source)
        self._port = free_port()
        self._config = home / "rsyncd.conf"
        self._config.write_text(
            f"use chroot = no\nreverse lookup = no\n[copy]\npath = {self._copy}\n"
            "read only = no\nuid = root\ngid = root\n"
        )

    def change(self, step: Callable[[Tree], None]) -> None:
        self._tree.new_round()
        step(self._tree)
        run("sync", "-f", self._source)

    def update(self) -> Cost:
        before = cpu_seconds()
        server = subprocess.Popen(
            ["rsync", "--daemon", "--no-detach", f"--config={self._config}", f"--port={self._port}",
             "--address=127.0.0.1"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._await_server()
            began = time.perf_counter()
            words = ["rsync", *self._flags, "--delete", "--stats", f"{self._source}/"]
            said = run(*words, f"rsync://127.0.0.1:{self._port}/copy/")
            seconds = time.perf_counter() - began
            run("sync", "-f", self._copy)
            durable = time.perf_counter() - began
        finally:
            server.terminate()
            server.wait()
        wire = sum(
            int(found.replace(",", ""))
            for found in re.findall(r"Total bytes (?:sent|received): ([\d,]+)", said)
        )
        return Cost(seconds, durable, cpu_seconds() - before, wire)

    def _await_server(self) -> None:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("the rsync daemon does not listen")


@contextmanager
def rsync(home: Path, *flags: str) -> Iterator[Copier]:
    if shutil.which("rsync") is None:
        raise Missing("rsync is not installed")
    yield Rsync(home, list(flags))


# btrfs


class Btrfs(Copier):
    """From one btrfs to another, each in an image of its own; through a pipe that counts."""

    def __init__(self, source: Path, copy: Path, packer: list[list[str]]) -> None:
        self._source, self._copy = source, copy
        self._packer = packer
        self._round = 0
        run("btrfs", "subvolume", "create", source / "live")
        self._tree = HostTree(source / "live")

    def change(self, step: Callable[[Tree], None]) -> None:
        self._round += 1
        step(self._tree)
        snapshot = self._source / str(self._round)
        run("btrfs", "subvolume", "snapshot", "-r", self._source / "live", snapshot)
        run("sync", "-f", self._source)

    def update(self) -> Cost:
        before = cpu_seconds()
        began = time.perf_counter()
        parent = ["-p", str(self._source / str(self._round - 1))] if self._round > 1 else []
        send = ["btrfs", "send", "-q", *parent, str(self._source / str(self._round))]
        receive = ["btrfs", "receive", "-q", str(self._copy)]
        wire = self._pipeline([send, *self._packer[:1]], [*self._packer[1:], receive])
        seconds = time.perf_counter() - began
        run("sync", "-f", self._copy)
        durable = time.perf_counter() - began
        return Cost(seconds, durable, cpu_seconds() - before, wire)

    def _pipeline(self, near: list[list[str]], far: list[list[str]]) -> int:
        """Bytes from the last command of *near* to the first one of *far*."""
        started: list[subprocess.Popen[bytes]] = []

        def chain(commands: list[list[str]], stdin: int, stdout: int) -> None:
            for at, command in enumerate(commands):
                last = at == len(commands) - 1
                process = subprocess.Popen(
                    command, stdin=stdin, stdout=stdout if last else subprocess.PIPE
                )
                started.append(process)
                if not last:
                    assert process.stdout is not None
                    stdin = process.stdout.fileno()

        out_read, out_write = os.pipe()
        in_read, in_write = os.pipe()
        chain(near, subprocess.DEVNULL, out_write)
        os.close(out_write)
        chain(far, in_read, subprocess.DEVNULL)
        os.close(in_read)
        wire = 0
        while count := os.splice(out_read, in_write, PIPE_BYTES):
            wire += count
        os.close(in_write)
        os.close(out_read)
        for process in started:
            if process.stdout is not None:
                process.stdout.close()
            if process.wait():
                raise RuntimeError(f"{process.args} ended with {process.returncode}")
        return wire


@contextmanager
def btrfs(home: Path, *packer: list[str]) -> Iterator[Copier]:
    for program in ("btrfs", "mkfs.btrfs", *(command[0] for command in packer)):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")
    mounted: list[Path] = []
    try:
        for name in ("source", "copy"):
            image, place = home / f"{name}.img", home / name
            place.mkdir()
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            run("mkfs.btrfs", "-q", image)
            run("mount", "-o", "loop", image, place)
            mounted.append(place)
        yield Btrfs(*mounted, list(packer))
    finally:
        for place in mounted:
            run("umount", place)


ZSTD = (["zstd", "-q", "-3", "-c"], ["zstd", "-q", "-d", "-c"])

COPIERS: dict[str, Callable[[Path], AbstractContextManager[Copier]]] = {
    "nasfs": lambda home: nasfs(home),
    "nasfs, level 3": lambda home: nasfs(home, "--compression", "3"),
    "nasfs, clear": lambda home: nasfs(home, "--compression", "off", "--encryption", "off"),
    "rsync -a": lambda home: rsync(home, "-a"),
    "rsync -az": lambda home: rsync(home, "-az"),
    "btrfs": lambda home: btrfs(home),
    "btrfs, zstd": lambda home: btrfs(home, *ZSTD),
}
