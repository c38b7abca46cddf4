"""A Ganesha of a test's own: the clones as NFSv4 exports, on another port; and trying them.

Its state is its own, so it and the node's Ganesha never meet.  Who may mount is as the shares say;
the address that it listens on may, besides, for the probes come from there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from nasfs.errors import Failed
from sharecfg.ganesha import render_ganesha
from sharecfg.model import Access, NfsClient, Share, Squash
from sharecfg.placed import Placed

from ..context import Node
from ..shares.share_servers import run_tool
from .drill_samba import free_port
from .drill_shares import renamed, shares_of
from .drill_table import Drill, DrillShare, Probe

START_S = 60.0
"""So long Ganesha may take until it answers (seconds)."""
CLIENT = ("nfs-ls", "nfs-cat", "nfs-cp")
"""Programs of libnfs, by which the probes are a client like others."""
SMALL = 4 << 20
TRIED = 50
"""So many entries are looked at until one is found that can be read."""
_CONF = """\
NFS_CORE_PARAM {{
    NFS_Protocols = 4; NFS_Port = {port}; Bind_addr = {listen};
    Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
}}
NFSv4 {{
    Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{home}"; Only_Numeric_Owners = true;
}}
"""


def start_ganesha(node: Node, drill: Drill) -> int:
    """Serve the clones; the port.  It answers when this returns.

    Raises:
        Failed: it does not come up; what was begun is taken away with the test.
    """
    home = Path(drill.home) / "nfs"
    home.mkdir(mode=0o700)
    port = free_port(drill.listen)
    conf = home / "ganesha.conf"
    text = _CONF.format(port=port, listen=drill.listen, home=home)
    conf.write_text(text + render_ganesha(_placed(node, drill)))
    words = ["ganesha.nfsd", "-F", "-f", str(conf), "-p", str(home / "pid")]
    process = subprocess.Popen(
        [*words, "-L", str(home / "log")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd="/", start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((drill.listen, port), timeout=2.0).close()
            return port
        except OSError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                said = f"the test's Ganesha does not answer on {drill.listen}:{port}"
                raise Failed(f"{said}: {_last_words(home / 'log')}") from exc
        time.sleep(0.05)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"


def _placed(node: Node, drill: Drill) -> list[Placed]:
    clones = {volume.uuid: str(drill.clone(volume)) for volume in drill.volumes}
    served = {share.name for share in drill.shares if share.nfs}
    found = []
    for share in shares_of(node, drill):
        if drill.prefix + share.name in served and share.nfs is not None:
            probe = NfsClient(who=drill.listen, access=_most(share), squash=Squash.NONE)
            named = renamed(drill.prefix, share)
            assert named.nfs is not None
            nfs = replace(named.nfs, clients=(probe, *named.nfs.clients), versions=(4,))
            found.append(Placed(replace(named, nfs=nfs), clones[share.volume]))
    return found


def _most(share: Share) -> Access:
    """What the share lets any of its clients do."""
    assert share.nfs is not None
    some = {client.access for client in share.nfs.clients}
    return Access.READ_WRITE if Access.READ_WRITE in some else Access.READ_ONLY


# trying them


def probe_exports(node: Node, drill: Drill) -> tuple[Probe, ...]:
    """List, read and write, of each share that is exported."""
    known = {drill.prefix + share.name: share for share in shares_of(node, drill)}
    found: list[Probe] = []
    for served in drill.shares:
        share = known.get(served.name)
        if not served.nfs or share is None:
            continue
        if any(shutil.which(tool) is None for tool in CLIENT):
            found.append(Probe(served.name, "NFS", "not tried", "libnfs-utils is not installed"))
        else:
            found += _probes(drill, served, share)
    return tuple(found)


# nfs-cp of libnfs 4.0 fails for more than 4096 bytes: it takes a short write for an error.


def _probes(drill: Drill, served: DrillShare, share: Share) -> Iterator[Probe]:
    def url(name: str) -> str:
        place = f"{served.nfs}/{name}" if name else served.nfs
        return f"nfs://{drill.listen}{place}?version=4&nfsport={drill.nfs_port}"

    def look() -> str:
        return f"{len(_said('nfs-ls', url('')).splitlines())} entries"

    def read() -> str:
        path = _readable(Path(served.path))
        if path is None:
            return "there is no small file near the top"
        name = str(path.relative_to(served.path))
        if _said("nfs-cat", url(name)).encode(errors="surrogateescape") != path.read_bytes():
            raise Failed(f"{name} is not what it is on the disk")
        return f"{name}, {path.stat().st_size} bytes"

    def write() -> str:
        name = f".nasfs-test-nfs-{drill.id}"
        new, text = Path(drill.home) / "nfs/new", f"written by a test at {time.time_ns()}\n" * 50
        new.write_text(text)
        _said("nfs-cp", str(new), url(name))
        back = _said("nfs-cat", url(name))
        (Path(served.path) / name).unlink()
        if back != text:
            raise Failed("what was written is not what is read back")
        return f"{len(text)} bytes written, read back and removed"

    tries: dict[str, Callable[[], str]] = {"NFS list": look, "NFS read": read}
    if _most(share) is Access.READ_WRITE:
        tries["NFS write"] = write
    for what, does in tries.items():
        began = time.monotonic()
        try:
            result, detail = "ok", does()
        except (Failed, OSError) as exc:
            result, detail = "failed", str(exc)
        yield Probe(served.name, what, result, detail, time.monotonic() - began)


def _said(*words: str) -> str:
    """What a client prints.  Raises Failed if it fails."""
    done = run_tool(words)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise Failed(said[-1] if said else f"{words[0]} ended with {done.returncode}")
    return done.stdout


def _readable(root: Path) -> Path | None:
    """A small text near the top, whose name needs no escapes."""
    tried = 0
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(files):
            path = Path(directory) / name
            tried += 1
            if tried > TRIED:
                return None
            plain = str(path.relative_to(root)).replace("/", "").replace("-", "").replace(".", "")
            if plain.isascii() and plain.replace("_", "").isalnum() and _is_small_text(path):
                return path
    return None


def _is_small_text(path: Path) -> bool:
    if not path.is_file() or path.is_symlink() or path.stat().st_size > SMALL:
        return False
    data = path.read_bytes()
    return data.isascii() and b"\r" not in data and b"\0" not in data
