"""A real NFS-Ganesha for tests: in a network of its own, with its state in its own directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import nfs4
from tests.node_world import wait_until

INSIDE, OUTSIDE = "10.9.0.1", "10.8.0.1"
"""Addresses of clients."""

START = (
    f"ip link set lo up && ip addr add {INSIDE}/32 dev lo && ip addr add {OUTSIDE}/32 dev lo"
    ' && exec ganesha.nfsd -F -f "$0" -p "$1" -L "$2"'
)
RPCBIND = (
    "mount -t tmpfs none /run && { rpcbind -f & }; ip link set lo up;"
    " until rpcinfo -p 127.0.0.1 >/dev/null 2>&1; do sleep 0.1; done; "
)
"""Clients of version 3 ask it for ports; its own are in /run."""
CONF = """\
NFS_CORE_PARAM {{
    NFS_Protocols = {protocols}; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
}}
NFSv4 {{
    Graceless = true; Lease_Lifetime = 5; RecoveryBackend = fs; RecoveryRoot = "{home}";
    Only_Numeric_Owners = true;
}}
"""


@dataclass(frozen=True)
class Ganesha:
    """A running one."""

    home: Path
    pid: int

    def nfs(self, address: str, *words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """`nfs4` as a client with that address, and for that user."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", sys.executable, nfs4.__file__, address, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"NFS4_USER": str(user)},
        )

    def libnfs(self, tool: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        """One of libnfs's programs: nfs-ls, nfs-cat, nfs-cp."""
        inside = ["nsenter", "-t", str(self.pid), "-n", "--", tool]
        return subprocess.run([*inside, *words], capture_output=True, timeout=60, check=False)

    def ask(self, *words: str) -> str:
        done = self.nfs(INSIDE, *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.log}"
        return done.stdout.strip()

    @property
    def log(self) -> str:
        path = self.home / "log"
        return path.read_text(errors="replace")[-5000:] if path.exists() else ""


def is_here() -> bool:
    return shutil.which("ganesha.nfsd") is not None


@contextmanager
def ganesha(
    home: Path,
    conf: Path,
    own: Path,
    share: str,
    *,
    version3: bool = False,
    inside: Sequence[str] = (),
) -> Iterator[Ganesha]:
    """With what a node writes included, until the end of the block; it serves that share then.

    Args:
        version3: NFSv3, too, with an rpcbind.
        inside: what stands before a command so that it runs where the node does.
    """
    home.mkdir(exist_ok=True)
    wait_until(lambda: f'"/{share}"' in own.read_text(), "Ganesha is told of the share")
    protocols = "3, 4" if version3 else "4"
    conf.write_text(CONF.format(home=home, protocols=protocols) + f'%include "{own}"\n')
    own_net = ["unshare", "-n", *(["-m", "--propagation", "slave"] if version3 else [])]
    start = RPCBIND + START if version3 else START
    process = subprocess.Popen(
        [*inside, *own_net, "sh", "-c", start, str(conf), str(home / "pid"), str(home / "log")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Ganesha(home, process.pid)
    try:

        def serves() -> bool:
            assert process.poll() is None, server.log
            return server.nfs(INSIDE, "handle", share).returncode == 0

        wait_until(serves, f"Ganesha serves {share}\n{server.log}", 60)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
