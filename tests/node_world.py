"""Real nodes below temporary roots: their daemons, and the command as people run it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nasfs.cli.main import run
from nasfs.fuse.mountpoint import fusermount
from nasfs.node.children import environment

DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Until *condition* is true; fails after the deadline."""
    ends = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends, f"not within {deadline_s} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class NodeWorld:
    """One node below *root*; `close` ends everything that it started.

    Args:
        inside: the beginning of a command line that runs the rest of it in another network.
    """

    def __init__(
        self, root: Path, name: str, *, address: str = "", inside: tuple[str, ...] = ()
    ) -> None:
        self.root = root
        self.name = name
        self.address = address or f"127.0.0.1:{free_port()}"
        self._inside = inside
        self.daemon: subprocess.Popen[bytes] | None = None
        self.module = "nasfs.cli.main"
        """What runs as its daemon."""
        self.run("node", "init", "--name", name, "--listen", self.address)

    def nasfs(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command: its own entry, in this process because that is ten times faster."""
        argv = ["nasfs", "--root", str(self.root), *words]
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            run()
        code = ended.value.code
        assert code is None or isinstance(code, int), code
        return subprocess.CompletedProcess(argv, code or 0, out.getvalue(), err.getvalue())

    def run(self, *words: str) -> str:
        """Standard output of a command that works."""
        done = self.nasfs(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def fails(self, code: int, *words: str) -> str:
        """Standard error of a command that ends with *code* and tells what, without traceback."""
        done = self.nasfs(*words)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stderr}"
        assert "error: " in done.stderr or done.stderr.startswith("Usage: "), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def start(self) -> None:
        """Start the daemon; it answers when this returns."""
        log = (self.root / "daemon.log").open("ab")
        with log:
            self.daemon = subprocess.Popen(
                [
                    *(*self._inside, sys.executable, "-m", self.module),
                    *("--root", str(self.root), "node", "run"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )
        wait_until(self._is_up, f"daemon of {self.name}\n{self.log()}")

    def _is_up(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.log()
        return self.nasfs("pair", "show").returncode == 0

    def log(self) -> str:
        path = self.root / "daemon.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        """End the daemon as systemd does."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        assert self.daemon.wait(60) == 0, self.log()
        self.daemon = None

    def kill(self) -> None:
        """SIGKILL for the daemon alone."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def ganeshas(self) -> list[int]:
        """Those that nasfs runs."""
        return [int(path.read_text()) for path in self.root.glob("run/nasfs/ganesha-*.pid")]

    def kill_all(self) -> None:
        """The power of this node fails: daemon, mounts and servers of its own get SIGKILL."""
        pids = [v["mount_pid"] for v in self.json("volume", "list") if v["mount_pid"]]
        pids += self.ganeshas()
        self.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def mountpoint(self, volume: str) -> Path:
        return self.root / "srv/nasfs" / volume

    def volume(self, name: str, size: str = "100M", *, mount: bool = True) -> Path:
        """A new volume; its mount point."""
        self.run("volume", "create", name, "--size", size)
        if mount:
            self.run("volume", "mount", name)
        return self.mountpoint(name)

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(60)
            finally:
                self.daemon.kill()
                self.daemon.wait()
        for pid in self.ganeshas():  # of a daemon that was killed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mountpoint in mounts_below(self.root):
            fusermount("-u", "-z", path=mountpoint)


def mounts_below(root: Path) -> list[Path]:
    with open("/proc/self/mountinfo") as table:
        paths = [Path(line.split(" ")[4]) for line in table]
    return [path for path in paths if path.is_relative_to(root)]
