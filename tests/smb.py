"""A real smbd for tests: its own configuration, state, accounts and network, ended by its pid.

The network is a name space with nothing but loopback, so that no other smbd of the machine is in
the way: some of the clients can't be told another port than 445.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.node_world import wait_until

PASSWORD = "secret"

START = 'ip link set lo up && exec smbd -F --no-process-group -s "$0"'

GLOBALS = """\
[global]
    workgroup = TEST
    netbios name = NASFSTEST
    server role = standalone server
    interfaces = lo
    bind interfaces only = yes
    smb ports = 445
    disable netbios = yes
    private dir = {home}/private
    lock directory = {home}/lock
    state directory = {home}/state
    cache directory = {home}/cache
    pid directory = {home}/pid
    ncalrpc dir = {home}/ncalrpc
    binddns dir = {home}/bind-dns
    log file = {home}/log
    max log size = 0
    passdb backend = tdbsam:{home}/private/passdb.tdb
    load printers = no
    printcap name = /dev/null
    disable spoolss = yes
"""


@dataclass(frozen=True)
class SmbServer:
    """A running smbd."""

    home: Path
    pid: int
    config: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One of Samba's programs, where this server is to be found."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", *command, "-s", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def client(
        self, share: str, user: str, command: str, *, ok: bool = True, password: str = PASSWORD
    ) -> str:
        """What smbclient prints for its commands; it must succeed, or fail if not *ok*."""
        done = self.run("smbclient", f"//127.0.0.1/{share}", f"-U{user}%{password}", "-c", command)
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, f"{command}: {done.returncode}\n{output}\n{self.log}"
        return output

    def acls(self, share: str, user: str, path: str, *options: str) -> str:
        """What smbcacls prints of the security descriptor of a path."""
        done = self.run("smbcacls", f"//127.0.0.1/{share}", path, f"-U{user}%{PASSWORD}", *options)
        assert done.returncode == 0, f"{path}: {done.stdout}{done.stderr}\n{self.log}"
        return done.stdout

    @property
    def log(self) -> str:
        return "\n".join(p.read_text(errors="replace") for p in self.home.glob("log*"))[-20_000:]


def make_accounts(home: Path, config: Path, passwords: Mapping[str, str], shares: str = "") -> None:
    """A Samba's private directories below *home*, its smb.conf and its accounts."""
    for name in ("private", "lock", "state", "cache", "pid", "ncalrpc", "bind-dns"):
        (home / name).mkdir()
    config.write_text(GLOBALS.format(home=home) + shares)
    for user, password in passwords.items():
        subprocess.run(
            ["smbpasswd", "-c", str(config), "-s", "-a", user],
            input=f"{password}\n{password}\n",
            text=True,
            check=True,
            capture_output=True,
            timeout=60,
        )


@contextmanager
def smb_server(home: Path, shares: str, users: Sequence[str]) -> Iterator[SmbServer]:
    """smbd with these sections of smb.conf, until the end of the block.

    Args:
        home: an empty directory.
        users: accounts of this machine that may log in, all with `PASSWORD`.
    """
    config = home / "smb.conf"
    make_accounts(home, config, dict.fromkeys(users, PASSWORD), shares)
    with running(home, config, ()) as server:
        yield server


@contextmanager
def running(home: Path, config: Path, inside: Sequence[str]) -> Iterator[SmbServer]:
    """smbd with what `make_accounts` made, until the end of the block.

    Args:
        inside: what stands before a command so that it runs where the node does.
    """
    smbd = subprocess.Popen(
        [*inside, "unshare", "-n", "sh", "-c", START, str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its children are in its group, and end with it
    )
    server = SmbServer(home, smbd.pid, config)
    try:
        wait_until(lambda: _answers(server, smbd), "smbd answers")
        yield server
    finally:
        _end_helper(home)
        _end(smbd)


def _answers(server: SmbServer, smbd: subprocess.Popen[bytes]) -> bool:
    """It does, also to who may not come in; before, there is nobody to say no."""
    assert smbd.poll() is None, f"smbd has ended\n{server.log}"
    said = server.run("smbclient", "-L", "127.0.0.1", "-Unobody%nothing").stdout
    return "NT_STATUS_LOGON_FAILURE" in said or "Sharename" in said


def _end_helper(home: Path) -> None:
    """samba-dcerpcd, which smbd starts for what it does not do itself, outlives it."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((home / "pid/samba-dcerpcd.pid").read_text())
        if str(home) in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGTERM)


def _end(smbd: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(smbd.pid, signal.SIGTERM)
    try:
        smbd.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(smbd.pid, signal.SIGKILL)
        smbd.wait()
