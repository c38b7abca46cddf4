"""Child processes: how they are started, found again, waited for and ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import trio

import nasfs

from .places import Places


def command(module: str, places: Places, *words: str) -> list[str]:
    """A command line that runs one of our modules for the same node."""
    return [sys.executable, "-m", module, *places.words(), *words]


def environment() -> dict[str, str]:
    """Ours, with this very package on the path, whatever the working directory."""
    package_root = str(Path(nasfs.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([package_root, known]) if known else package_root
    return {**os.environ, "PYTHONPATH": path}


@dataclass
class Child:
    """A process of ours: started by this daemon, or by one before it (then `process` is None)."""

    pid: int
    process: trio.Process | None = None
    _pidfd: int = field(default=-1)

    @classmethod
    def adopt(cls, pid: int) -> Child | None:
        """A running process that is not our child; None if it is gone."""
        try:
            return cls(pid, None, os.pidfd_open(pid))
        except ProcessLookupError:
            return None

    async def wait(self) -> None:
        """Until it has ended."""
        if self.process is not None:
            await self.process.wait()
        elif self._pidfd >= 0:
            own = os.dup(self._pidfd)  # several tasks may wait
            try:
                await trio.lowlevel.wait_readable(own)
            finally:
                os.close(own)

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing happens if the process is gone (its number is never taken for it)."""
        if self.process is not None:
            self.process.send_signal(number)
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    async def end(self, *, grace_s: float) -> None:
        """Ask it to end; after *grace_s* seconds it is killed."""
        self.send(signal.SIGTERM)
        with trio.move_on_after(grace_s, shield=True):
            await self.wait()
            return
        self.send(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await self.wait()

    def ending(self) -> str:
        """How it ended, for people."""
        code = self.process.returncode if self.process else None
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return "ended" if code is None else f"ended with code {code}"

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def end_with_daemon() -> None:
    """For a child: end when the daemon that holds the other end of our stdin is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="daemon-watch", daemon=True).start()
