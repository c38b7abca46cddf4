"""The Ganeshas that nasfs runs: one for each exported volume that has a port of its own.

A Ganesha serves one volume (`sharecfg.ports`), and holds on to the mount that it found when it
began.  So each of these runs while its volume is mounted and exported, is started again when the
volume was mounted anew, and is ended before it is unmounted.  Like the mount processes they
outlive the daemon: the next one knows them by their pid files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nasfs.errors import Failed

from ..context import Node
from .share_files import read_text, replace_file
from .share_servers import run_tool

log = logging.getLogger(__name__)

PROGRAM = "ganesha.nfsd"
START_S = 20.0
"""So long it may take until it answers (seconds)."""
END_S = 10.0
"""So long it may take to end; then it is killed."""
_PAUSE_S = 0.05

telling = threading.Lock()
"""Held by who decides what the servers shall be told, until they have been."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Ganesha that shall run."""

    port: int
    volume: str
    """UUID of the volume that it serves."""
    mount: int
    """The process that has the volume mounted."""
    text: str
    """Its whole configuration."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Of the Ganesha at one port."""

    conf: Path
    pid: Path
    told: Path
    """What the running one was started for and told last."""
    log: Path

    @classmethod
    def of(cls, node: Node, port: int) -> _Files:
        run = node.places.run
        name = f"ganesha-{port}"
        return cls(conf_of(node, port), run / f"{name}.pid", run / f"{name}.told", run / name)


def conf_of(node: Node, port: int) -> Path:
    """What nasfs writes for the Ganesha at a port."""
    return node.places.config.parent / f"shares/ganesha-{port}.conf"


def recovery_of(node: Node, port: int) -> Path:
    """Where it notes which clients hold locks, so that they may have them again."""
    return node.places.state / f"ganesha-{port}"


def are_as(node: Node, wanted: Iterable[Wanted]) -> bool:
    """Whether those run, with what they shall be told, and no other does."""
    wanted = tuple(wanted)
    if _known(node) != {one.port for one in wanted}:
        return False
    return all(_is_as(_Files.of(node, one.port), one) for one in wanted)


def settle(node: Node, wanted: Iterable[Wanted]) -> list[str]:
    """Start, tell and end them, so that they are as wanted.

    Returns:
        What is to be known: those that do not run.
    """
    by_port = {one.port: one for one in wanted}
    for port in _known(node) - by_port.keys():
        _remove(_Files.of(node, port))
    notes = []
    for port, one in sorted(by_port.items()):
        try:
            _settle(node, _Files.of(node, port), one)
        except Failed as exc:
            notes.append(f"Ganesha at port {port}: {exc}")
    return notes


def release(node: Node, volume_uuid: str) -> None:
    """End the one that serves a volume, which is about to be unmounted."""
    with telling:  # who decided before that it is mounted has finished
        for port in _known(node):
            files = _Files.of(node, port)
            if _told(files).get("volume") == volume_uuid:
                _end(files)
                files.told.unlink(missing_ok=True)


def _known(node: Node) -> set[int]:
    """Ports for which there is a configuration."""
    names = (re.fullmatch(r"ganesha-(\d+)\.conf", p.name) for p in _listed(conf_of(node, 0).parent))
    return {int(match[1]) for match in names if match}


def _listed(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _is_as(files: _Files, one: Wanted) -> bool:
    return (
        _told(files) == _telling(one)
        and read_text(files.conf) == one.text
        and _running(files) is not None
    )


def _telling(one: Wanted) -> Mapping[str, object]:
    digest = hashlib.sha256(one.text.encode("utf-8", "surrogateescape")).hexdigest()
    return {"volume": one.volume, "mount": one.mount, "digest": digest}


def _told(files: _Files) -> Mapping[str, object]:
    try:
        found = json.loads(read_text(files.told))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _settle(node: Node, files: _Files, one: Wanted) -> None:
    if _is_as(files, one):
        return
    pid, told = _running(files), _told(files)
    files.told.unlink(missing_ok=True)  # until it has been told, it has not
    if pid is not None and (told.get("volume"), told.get("mount")) != (one.volume, one.mount):
        _end(files)
        pid = None
    replace_file(files.conf, one.text.encode("utf-8", "surrogateescape"))
    if pid is None:
        _start(node, files, one.port)
    else:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)
    replace_file(files.told, json.dumps(_telling(one)).encode())


def _start(node: Node, files: _Files, port: int) -> None:
    recovery_of(node, port).mkdir(parents=True, exist_ok=True)
    files.pid.unlink(missing_ok=True)
    files.log.unlink(missing_ok=True)
    done = run_tool(
        [PROGRAM, "-f", str(files.conf), "-p", str(files.pid), "-L", str(files.log)]
    )  # it goes into the background by itself
    if done.returncode != 0:
        raise Failed(f"it ended with code {done.returncode}: see {files.log}")
    until = time.monotonic() + START_S
    while not _answers(port):
        if _running(files) is None and files.pid.exists():
            raise Failed(f"it has ended: see {files.log}")
        if time.monotonic() > until:
            _end(files)
            raise Failed(f"it did not answer within {START_S:.0f} s: see {files.log}")
        time.sleep(_PAUSE_S)
    log.info("Ganesha at port %d: started", port)


def _answers(port: int) -> bool:
    """Somebody listens there, at whatever address."""
    wanted = f":{port:04X}"
    for name in ("tcp6", "tcp"):
        for line in read_text(Path(f"/proc/self/net/{name}")).splitlines()[1:]:
            words = line.split()
            if words[1].endswith(wanted) and words[3] == "0A":  # listening
                return True
    return False


def _running(files: _Files) -> int | None:
    """Its process; None: it does not run."""
    try:
        pid = int(read_text(files.pid).split()[0])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (IndexError, ValueError, OSError):
        return None
    return pid if os.fsencode(files.conf) in words else None


def _end(files: _Files) -> None:
    pid = _running(files)
    if pid is None:
        return
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        until = time.monotonic() + patience_s
        while _running(files) == pid and time.monotonic() < until:
            time.sleep(_PAUSE_S)
        if _running(files) is None:
            break
    files.pid.unlink(missing_ok=True)


def _remove(files: _Files) -> None:
    _end(files)
    for path in (files.told, files.log, files.conf):
        path.unlink(missing_ok=True)
