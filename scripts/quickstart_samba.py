"""A Samba for a node of the quickstart: with directories, accounts and a port of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = ("smbd", "smbclient", "smbpasswd", "pdbedit", "testparm", "net")
USERS = ("daemon", "games", "bin")
"""Accounts that a system has anyway: nothing of the machine's is changed."""
WAIT_S = 30.0

CONF = """\
[global]
    server role = standalone server
    netbios name = {name}
    interfaces = 127.0.0.1
    bind interfaces only = yes
    smb ports = {port}
    disable netbios = yes
    private dir = {home}/p
    lock directory = {home}/l
    state directory = {home}/s
    cache directory = {home}/c
    pid directory = {home}/i
    ncalrpc dir = {home}/r
    binddns dir = {home}/b
    log file = {home}/log
    passdb backend = tdbsam:{home}/p/passdb.tdb
    load printers = no
    printcap name = /dev/null
    disable spoolss = yes
    rpc start on demand helpers = no
include = {own}
"""


def user_of_this_machine() -> str:
    """Who can log in to the Sambas here; empty: Samba is not installed."""
    if any(shutil.which(tool) is None for tool in TOOLS):
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in USERS if user in known), "")


@dataclass
class Samba:
    """Of one node; *root* is the node's."""

    name: str
    root: Path
    home: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def conf(self) -> Path:
        return self.root / "etc/samba/smb.conf"

    def prepare(self) -> None:
        """Its configuration, before the node's daemon looks whether there is one."""
        self.home.mkdir()
        for directory in "plscirb":
            (self.home / directory).mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        own = self.root / "etc/nasfs/shares/samba.conf"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.touch()
        self.conf.parent.mkdir(parents=True)
        text = CONF.format(name=f"quick{self.name}", port=self.port, home=self.home, own=own)
        self.conf.write_text(text)

    def add(self, user: str) -> str:
        """An account with a password that nobody else knows."""
        password = secrets.token_urlsafe(16)
        subprocess.run(
            ["smbpasswd", "-c", str(self.conf), "-s", "-a", user],
            input=f"{password}\n{password}\n", text=True, check=True, capture_output=True,
        )  # fmt: skip
        return password

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["smbd", "--foreground", "--no-process-group", f"--configfile={self.conf}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def read(self, share: str, path: str, user: str, password: str, work: Path) -> bytes:
        """A file, as a client gets it.  Raises RuntimeError with what the client said."""
        got, login = work / "got", work / "login"
        login.touch(mode=0o600)
        login.write_text(f"username = {user}\npassword = {password}\n")
        deadline = time.monotonic() + WAIT_S
        words = ["smbclient", "-p", str(self.port), "-A", str(login), "-s", str(self.conf)]
        while True:
            done = subprocess.run(
                [*words, f"//127.0.0.1/{share}", "-c", f'get "{path}" {got}'],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return got.read_bytes()
            if time.monotonic() > deadline:
                raise RuntimeError(f"smbclient: {done.stdout}{done.stderr}")
            time.sleep(0.2)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(WAIT_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
