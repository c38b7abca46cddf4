"""``python -m nasfs.node.drills.drill_files``: tries a clone as a program would; says how it went.

In a process of its own, because a mount may hang and because it becomes other users.  Standard
input is a `FilesOrder`, standard output a list of probes, both JSON.
"""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from nasfs.errors import Failed

from ..children import environment
from .drill_table import Drill, DrillVolume, Probe

LOOKED_AT = 2000
"""Entries that are listed, of each clone."""
READ_FILES = 20
READ_BYTES = 16 << 20
"""So many files are read, and so much of each."""
USERS = 5
"""Owners of files whose rights are compared, and nobody's."""
NOBODY = 65_534
DEADLINE_S = 120.0
"""A clone that does not answer within so many seconds has failed."""


class FilesOrder(msgspec.Struct, frozen=True):
    where: str
    """What to call it."""
    clone: str
    snapshot: str
    """Where the same is mounted read-only."""
    mark: str
    """Part of the names of what is written."""


def probe_files(drill: Drill, volume: DrillVolume) -> tuple[Probe, ...]:
    """List, read, write and compare rights, in a process that is given up if it hangs."""
    clone, lower = str(drill.clone(volume)), str(drill.lower(volume))
    order = msgspec.json.encode(FilesOrder(volume.name, clone, lower, drill.id))
    began = time.monotonic()
    words = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            words, input=order, capture_output=True, timeout=DEADLINE_S, check=False,
            env=environment(), cwd="/",
        )  # fmt: skip
        return msgspec.json.decode(done.stdout, type=tuple[Probe, ...])
    except subprocess.TimeoutExpired:
        problem = f"did not answer within {DEADLINE_S:.0f} s"
    except msgspec.MsgspecError:
        problem = f"the probe ended with code {done.returncode}: {done.stderr[-500:]!r}"
    return (Probe(volume.name, "files", "failed", problem, time.monotonic() - began),)


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=FilesOrder)
    sys.stdout.buffer.write(msgspec.json.encode(tuple(_probes(order))))


def _probes(order: FilesOrder) -> Iterator[Probe]:
    root = Path(order.clone)
    found: list[Path] = []
    yield _try(order, "list", lambda: _list(root, found))
    yield _try(order, "read", lambda: _read(found))
    yield _try(order, "write", lambda: _write(root, order.mark))
    yield _try(order, "rights", lambda: _rights(order, found))


def _try(order: FilesOrder, what: str, does: Callable[[], str]) -> Probe:
    began = time.monotonic()
    try:
        detail, result = does(), "ok"
    except (OSError, Failed) as exc:
        detail, result = str(exc), "failed"
    return Probe(order.where, what, result, detail, time.monotonic() - began)


def _list(root: Path, found: list[Path]) -> str:
    if not os.path.ismount(root):
        raise Failed(f"nothing is mounted at {root}")
    found.extend(itertools.islice(_walk(root), LOOKED_AT))
    for path in found:
        path.lstat()
    more = " (there are more)" if len(found) == LOOKED_AT else ""
    return f"{len(found)} entries{more}"


def _walk(root: Path) -> Iterator[Path]:
    """Breadth first: some of everything."""
    waiting = [root]
    while waiting:
        level, waiting = waiting, []
        for directory in level:
            with os.scandir(directory) as entries:
                for entry in entries:
                    yield Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))


def _read(found: list[Path]) -> str:
    files = [path for path in found if stat.S_ISREG(path.lstat().st_mode)]
    chosen = files[:: max(1, len(files) // READ_FILES)][:READ_FILES]
    total = 0
    for path in chosen:
        with path.open("rb") as body:
            size = min(os.fstat(body.fileno()).st_size, READ_BYTES)
            data = body.read(READ_BYTES)
        if len(data) != size:
            raise Failed(f"{path} has {size} bytes, {len(data)} could be read")
        total += size
    return f"{len(chosen)} files, {total} bytes"


def _write(root: Path, mark: str) -> str:
    """A directory with a file in it, read back; renamed and linked; and taken away again."""
    old, new = root / f".nasfs-test-{mark}", root / f".nasfs-test-{mark}-renamed"
    data = os.urandom(1 << 16)
    try:
        old.mkdir()
        file = old / "file"
        with file.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.link(file, old / "link")
        old.rename(new)
        if (new / "link").read_bytes() != data or (new / "link").stat().st_nlink != 2:
            raise Failed("what was written is not what is read back")
    finally:
        for directory in (old, new):
            for name in ("file", "link"):
                (directory / name).unlink(missing_ok=True)
            if directory.exists():
                directory.rmdir()
    return f"{len(data)} bytes written, renamed, linked and read back"


def _rights(order: FilesOrder, found: list[Path]) -> str:
    """Users may do with the clone what they may with the snapshot: tried as them."""
    owners = {(at.st_uid, at.st_gid) for at in (path.lstat() for path in found) if at.st_uid}
    users = [*sorted(owners)[:USERS], (NOBODY, NOBODY)]
    below = [str(path.relative_to(order.clone)) for path in found]
    clone = os.open(order.clone, os.O_PATH | os.O_DIRECTORY)
    snapshot = os.open(order.snapshot, os.O_PATH | os.O_DIRECTORY)
    allowed = 0
    for uid, gid in users:
        may = _as_user(uid, gid, snapshot, below)
        differs = _as_user(uid, gid, clone, below)
        for name, old, new in zip(below, may, differs, strict=True):
            if old != new:
                raise Failed(f"user {uid} has rights {new!r} to {name}; in the snapshot {old!r}")
        allowed += sum(1 for one in may if "r" in one)
    tried = f"{len(users)} users, {len(below)} entries"
    return f"{tried}: the same as in the snapshot; {allowed} times readable"


def _as_user(uid: int, gid: int, root: int, names: list[str]) -> list[str]:
    """What of "rx" a user may do with each name, tried by a child that is that user."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answers = [
                "".join(
                    letter
                    for letter, mode in (("r", os.R_OK), ("x", os.X_OK))
                    if os.access(name, mode, dir_fd=root, follow_symlinks=False)
                )
                for name in names
            ]
            with open(writing, "wb") as out:
                out.write(msgspec.json.encode(answers))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as answers_in:
        raw = answers_in.read()
    os.waitpid(pid, 0)
    if not raw:
        raise Failed(f"user {uid} could not be tried")
    return msgspec.json.decode(raw, type=list[str])


if __name__ == "__main__":
    main()
