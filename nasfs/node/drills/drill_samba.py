"""An smbd of a test's own: the clones under the shares' names, on another port.

Its state is its own, so it and the node's smbd never meet.  What decides who people are is taken
from the node's: [global] of its smb.conf, its accounts and its SIDs.  It lives in a name space of
processes: when the first of them ends, the kernel ends all that it has started.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from nasfs.errors import Failed
from sharecfg.placed import Placed
from sharecfg.samba import render_samba
from sharecfg.smbconf import parse_conf

from ..context import Node
from ..shares.share_files import Server, share_files
from ..shares.share_servers import run_tool
from .drill_shares import exported_as, shares_of, take_staged_accounts
from .drill_table import Drill, DrillShare

START_S = 30.0
"""So long smbd may take until it answers (seconds)."""
TDB_LOCK = 168
"""From this byte on a tdb is locked by who changes all of it."""
DIRECTORIES = {
    "private dir": "private",
    "lock directory": "lock",
    "state directory": "state",
    "cache directory": "cache",
    "pid directory": "pid",
    "ncalrpc dir": "ncalrpc",
    "binddns dir": "binddns",
}
"""Where they are below `Drill.samba`."""
_NOT_TAKEN = (
    "include", "config backend", "registry shares", "smb ports", "interfaces", "log file",
    "logging", "bind interfaces only", "disable netbios", "usershare path", "passdb backend",
    *DIRECTORIES,
)  # fmt: skip
"""Of the node's [global]: what is the test's own."""


def served(node: Node, drill: Drill) -> tuple[DrillShare, ...]:
    """Under which names, from where, and what is not served, and why."""
    names = {volume.uuid: volume for volume in drill.volumes}
    has_samba = main_conf(node) is not None and shutil.which("smbd") is not None
    found = []
    for share in shares_of(node, drill):
        clone = drill.clone(names[share.volume])
        path = str(clone / share.directory) if share.directory else str(clone)
        nfs = exported_as(drill.prefix, share)
        if share.smb is None or not share.smb.enabled:
            note = "by NFS only" if nfs else "by NFS only, and Ganesha is not installed"
        elif not has_samba:
            note = "Samba is not set up on this node"
        else:
            note = ""
        found.append(DrillShare(drill.prefix + share.name, share.volume, path, note, nfs))
    return tuple(found)


def main_conf(node: Node) -> Path | None:
    """The node's own smb.conf; None: it has no Samba."""
    file = share_files(node.places, node.config.shares).get(Server.SAMBA)
    return file.main if file else None


def conf_of(drill: Drill) -> Path:
    return Path(drill.home) / "smb/smb.conf"


def start_smbd(node: Node, drill: Drill) -> int:
    """Serve the clones; the port.  The smbd answers when this returns.

    Raises:
        Failed: it does not come up; what was begun is taken away with the test.
    """
    main = main_conf(node)
    assert main is not None, "served() has looked"
    conf = conf_of(drill)
    for directory in (conf.parent, drill.samba):
        directory.mkdir(mode=0o700)
    for name in DIRECTORIES.values():
        (drill.samba / name).mkdir()
    port = drill.port or free_port(drill.listen)
    conf.write_text(_globals(main, drill, port) + "\n" + _sections(node, drill))
    done = run_tool(["testparm", "-s", str(conf)])
    if done.returncode != 0:
        raise Failed(f"testparm refuses the test's smb.conf: {done.stderr.strip()[-500:]}")
    _take_accounts(main, drill)
    take_staged_accounts(node, drill, conf)
    with (Path(drill.home) / "smbd.log").open("ab") as log:
        process = subprocess.Popen(
            [
                "unshare", "--pid", "--fork", "--kill-child",
                "smbd", "--foreground", "--no-process-group", f"--configfile={conf}",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
        )  # fmt: skip
    _wait_until_answers(process, drill, port)
    return port


def _globals(main: Path, drill: Drill, port: int) -> str:
    """[global] of the node, with places and network of the test's own."""
    known = run_tool(["testparm", "-s", str(main)])
    if known.returncode != 0:
        raise Failed(f"testparm refuses {main}: {known.stderr.strip()[-500:]}")
    parsed = parse_conf(known.stdout, str(main))
    section = next(one for one in parsed.sections if one.name == "global")
    lines = [
        f"    {parameter.name} = {parameter.value}"
        for parameter in section.parameters.values()
        if parameter.name.lower() not in _NOT_TAKEN
    ]
    own = {
        "smb ports": str(port),
        "interfaces": drill.listen,
        "bind interfaces only": "yes",
        "disable netbios": "yes",
        "log file": str(conf_of(drill).parent / "log.smbd"),
        "load printers": "no",
        "printcap name": "/dev/null",
        "disable spoolss": "yes",
        "passdb backend": _backend(main, drill),
        **{name: str(drill.samba / place) for name, place in DIRECTORIES.items()},
    }
    return "\n".join(["[global]", *lines, *(f"    {key} = {own[key]}" for key in own)]) + "\n"


def _backend(main: Path, drill: Drill) -> str:
    """A copy of local accounts; others are asked for where they are."""
    told = _told(main, "passdb backend")
    if told and not told.startswith("tdbsam"):
        return told
    return f"tdbsam:{drill.samba / 'private/passdb.tdb'}"


def _sections(node: Node, drill: Drill) -> str:
    """The clones have no snapshots of their own, so no previous versions are told of."""
    clones = {volume.uuid: str(drill.clone(volume)) for volume in drill.volumes}
    shown = {share.name for share in drill.shares if not share.note}
    placed = []
    for share in shares_of(node, drill):
        name = drill.prefix + share.name
        if name in shown and share.smb is not None:
            smb = replace(share.smb, previous_versions=False)
            placed.append(Placed(replace(share, name=name, smb=smb), clones[share.volume]))
    return render_samba(placed)


def _take_accounts(main: Path, drill: Drill) -> None:
    """The SIDs and the local accounts of the node's Samba, if it has any."""
    private = Path(_told(main, "private dir"))
    kind, _, named = _told(main, "passdb backend").partition(":")
    if (private / "secrets.tdb").exists():
        _copy_database(private / "secrets.tdb", drill.samba / "private/secrets.tdb")
    accounts = Path(named or private / "passdb.tdb")
    if kind == "tdbsam" and accounts.exists():
        _copy_database(accounts, drill.samba / "private/passdb.tdb")


def _told(main: Path, parameter: str) -> str:
    return run_tool(["testparm", "-s", f"--parameter-name={parameter}", str(main)]).stdout.strip()


def _copy_database(old: Path, new: Path) -> None:
    """One of Samba's, between two of its transactions: whoever commits waits for this lock."""
    with old.open("rb") as source, new.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        fcntl.lockf(source, fcntl.LOCK_SH, 0, TDB_LOCK)
        shutil.copyfileobj(source, copy)


def free_port(listen: str) -> int:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.bind((listen, 0))
            return int(sock.getsockname()[1])
    except OSError as exc:
        raise Failed(
            f"cannot listen on {listen}: {exc.strerror}", hint="an address of this machine"
        ) from exc


def _wait_until_answers(process: subprocess.Popen[bytes], drill: Drill, port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((drill.listen, port), timeout=2.0).close()
            return
        except OSError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(
                    f"the test's smbd does not answer on {drill.listen}:{port}: {_said(drill)}"
                ) from exc
        time.sleep(0.05)


def _said(drill: Drill) -> str:
    for path in (conf_of(drill).parent / "log.smbd", Path(drill.home) / "smbd.log"):
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        if lines:
            return lines[-1]
    return "it said nothing"


def names(shares: Iterable[DrillShare]) -> str:
    return ", ".join(share.name for share in shares if not share.note)
