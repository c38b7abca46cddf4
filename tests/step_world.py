"""A change of roles that is stopped behind every step of its plan, so that something may happen.

The daemons are those of `dying_node`, which pause where they are told.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nasfs.fuse.mountpoint import find_mount
from nasfs.node.children import environment
from tests.dying_node import PAUSE, PAUSED, pause
from tests.node_world import NodeWorld, wait_until

COMMAND_S = 120.0


@dataclass
class Site:
    """A node and its copies of the group's volumes; of what is written, on the first of them."""

    node: NodeWorld
    volumes: tuple[str, ...]

    @property
    def top(self) -> Path:
        return self.node.mountpoint(self.volumes[0])

    @property
    def role(self) -> str:
        return str(self.node.json("group", "show", "office")["role"])

    @property
    def next_step(self) -> str:
        return str(self.node.json("group", "show", "office")["next_step"])

    def write(self, record: str) -> bool:
        """Whether a client could: then it is on the disk."""
        if find_mount(self.top) is None:
            return False
        try:
            with (self.top / record).open("w") as file:
                file.write(record)
                os.fsync(file.fileno())
        except OSError:
            return False
        return True

    def records(self) -> set[str]:
        """Once it is mounted (again)."""
        wait_until(self._is_readable, f"{self.top} can be read")
        return {path.name for path in self.top.iterdir()}

    def _is_readable(self) -> bool:
        try:
            os.listdir(self.top)
        except OSError:
            return False
        return find_mount(self.top) is not None

    def is_mounted(self) -> bool:
        return all(
            self.node.json("volume", "show", name)["mount_state"] == "mounted"
            for name in self.volumes
        )

    def kill_mounts(self) -> None:
        """SIGKILL for all its mount processes."""
        for view in self.node.json("volume", "list"):
            if view["mount_pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(view["mount_pid"], signal.SIGKILL)


@dataclass
class Walk:
    """A command on *asked* that pauses at a point of *where*, and what happens there.

    Attributes:
        steps: of the plan, behind which it has paused, in their order.
        written: records that a client could write in between, acknowledged.
    """

    asked: Site
    other: Site
    words: tuple[str, ...]
    steps: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    pauses: int = 0
    _armed: str = ""
    both: bool = False
    """The other node serves, too: it is robbed although it lives."""

    def plan(self) -> list[str]:
        told = self.asked.node.json(*self.words, "--dry-run")["steps"]
        return [step["text"] for step in told]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "nasfs.cli.main"),
                *("--root", str(self.asked.node.root), *self.words),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def clients_write(self) -> None:
        """On both nodes, if they can; at most one lets them."""
        found = [
            record
            for site in (self.asked, self.other)
            if site.write(record := f"{self.words[0]}-{self.pauses}-{site.node.name}")
        ]
        assert len(found) <= 1 + self.both, found
        self.written |= set(found)

    def run(
        self,
        act: Callable[[subprocess.Popen[str]], None],
        *,
        done: Callable[[], bool],
        where: Site | None = None,
        points: Iterable[str] = itertools.repeat("step"),
    ) -> None:
        """Give the command until it is done; wherever it pauses, clients write and *act* happens.

        Args:
            where: the node that pauses; else the one that is asked.
            points: where it pauses, one after the other.
        """
        site = where or self.asked
        root = site.node.root
        ends = time.monotonic() + COMMAND_S
        coming = iter(points)
        self._armed = next(coming)
        pause(root, self._armed)
        while True:
            command = self.start()
            while command.poll() is None or (root / PAUSED).exists():
                assert time.monotonic() < ends, (self.words, self.steps)
                if (root / PAUSED).exists():
                    self._stop_there(act, command, site, next(coming, ""))
                time.sleep(0.02)
            assert command.stderr is not None
            said = command.stderr.read()
            command.stderr.close()
            if command.returncode == 0 or done():
                break
            assert command.returncode in (1, 3, 4, -signal.SIGKILL), said
            assert time.monotonic() < ends, said
        assert next(coming, "") in ("", self._armed), "it has not come by all of them"
        (root / PAUSE).unlink(missing_ok=True)
        (root / PAUSED).unlink(missing_ok=True)  # a daemon whose asker died may be there
        wait_until(done, f"{self.words} is done")

    def _stop_there(
        self,
        act: Callable[[subprocess.Popen[str]], None],
        command: subprocess.Popen[str],
        site: Site,
        then: str,
    ) -> None:
        self.pauses += 1
        if step := self.asked.next_step:
            self.steps.append(step)
        self.clients_write()
        act(command)
        self._armed = then or self._armed
        pause(site.node.root, then)
        (site.node.root / PAUSED).unlink()
