"""Nodes on this machine with accounts and a Samba of their own, for measurements of a pair.

Each lives in a mount name space with a private copy of /etc; nothing of it reaches this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nasfs.node.children import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from quickstart_samba import Samba

START_S = 60.0
END_S = 120.0
HOLD = 'mount --bind "$0" /etc && touch "$1" && exec sleep infinity'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, within_s: float = START_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.05)


class Site:
    """A node below *home*, its daemon and its smbd."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.root = home / name
        etc, ready = home / f"etc-{name}", home / f"ready-{name}"
        shutil.copytree("/etc", etc, symlinks=True)
        words = ["unshare", "-m", "--propagation", "private", "sh", "-c", HOLD]
        self._holder = subprocess.Popen([*words, str(etc), str(ready)])
        wait_until(ready.exists, "a private /etc")
        self._running: list[subprocess.Popen[bytes]] = []
        # Names of sockets have room for 107 bytes, wherever *home* is.
        self._sockets = Path(tempfile.mkdtemp(prefix="nasfs-"))
        samba = Samba(name, self.root, self._sockets / "smb")
        samba.prepare()
        self.smb_conf = samba.conf

    def seen(self, path: Path) -> Path:
        """A path of the node's, as this process can open it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def shell(self, *words: str, stdin: str = "") -> str:
        """A program, where the node lives."""
        done = subprocess.run(
            self._inside(words), input=stdin, capture_output=True, text=True, env=environment()
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _inside(self, words: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self._holder.pid), "-m", "--", *words]

    def run(self, *words: str) -> str:
        """The nasfs command."""
        program = [sys.executable, "-m", "nasfs.cli.main", "--root", str(self.root)]
        return self.shell(*program, *words)

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def add_user(self, name: str, number: int) -> None:
        """With an account of Samba."""
        self.shell("useradd", "-u", str(number), "-U", "-M", name)
        login = f"{name}\n{name}\n"
        self.shell("smbpasswd", "-c", str(self.smb_conf), "-s", "-a", name, stdin=login)

    def start(self) -> None:
        """The node and its smbd; the node answers when this returns."""
        if not (self.root / "etc/nasfs/nasfs.yaml").exists():
            self.run("node", "init", "--name", self.name, "--listen", f"127.0.0.1:{free_port()}")
        node = [sys.executable, "-m", "nasfs.cli.main", "--root", str(self.root), "node", "run"]
        smbd = ["smbd", "-F", "--no-process-group", f"--configfile={self.smb_conf}"]
        with (self.root / "log").open("ab") as log:
            self._running += [
                subprocess.Popen(
                    self._inside(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=environment(), start_new_session=True,
                )
                for words in (node, smbd)
            ]  # fmt: skip
        wait_until(lambda: self._answers(), f"node {self.name} answers")

    def _answers(self) -> bool:
        with suppress(RuntimeError):
            return bool(self.run("pool", "list"))
        return False

    def lose(self) -> None:
        """Its power fails."""
        pids = [one["mount_pid"] for one in self.json("volume", "list") if one["mount_pid"]]
        self._end(signal.SIGKILL)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(how)  # the daemon ends what it has started
        for process in self._running:
            try:
                process.wait(END_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self._running.clear()

    def close(self) -> None:
        self._end(signal.SIGTERM)
        self._holder.kill()
        self._holder.wait()
        shutil.rmtree(self._sockets)
