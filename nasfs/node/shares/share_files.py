"""The files that tell the servers of this node's shares, and how they are replaced.

They are the node's own; an administrator's smb.conf or ganesha.conf includes them by one line.
The kernel's NFS server reads every file of /etc/exports.d by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from nasfs.errors import Failed

from ..config import ShareServers
from ..places import Places

HEAD = "# Written by nasfs, and written anew whenever shares change: see nasfs share --help.\n\n"


class Server(Enum):
    """Who serves files."""

    SAMBA = "smb"
    KERNEL = "exports"
    GANESHA = "ganesha"


@dataclass(frozen=True, slots=True)
class ShareFile:
    """What one server is told by us, and by its administrator."""

    server: Server
    own: Path
    """Written by us."""
    main: Path
    """The administrator's; never written but for the line that includes ours, if he asks."""
    pid_file: Path

    @property
    def include_line(self) -> str:
        """Empty: none is needed."""
        match self.server:
            case Server.SAMBA:
                return f"include = {self.own}"
            case Server.GANESHA:
                return f'%include "{self.own}"'
            case Server.KERNEL:
                return ""

    def text(self) -> str:
        """What is told now; empty if there is no file."""
        return read_text(self.own)

    def is_included(self) -> bool:
        """Whether the server reads our file."""
        line = "".join(self.include_line.split())
        found = ("".join(one.split()) for one in read_text(self.main).splitlines())
        return not line or line in found


def share_files(places: Places, servers: ShareServers) -> dict[Server, ShareFile]:
    """The servers that there are on this node: those that have a configuration."""
    etc = (places.root or Path("/")) / "etc"
    ours = places.config.parent / "shares"
    smb_conf = Path(servers.smb_conf or etc / "samba/smb.conf")
    ganesha_conf = Path(servers.ganesha_conf or etc / "ganesha/ganesha.conf")
    run = (places.root or Path("/")) / "run"
    found = [
        ShareFile(Server.SAMBA, ours / "samba.conf", smb_conf, run / "samba/smbd.pid"),
        ShareFile(
            Server.GANESHA,
            ours / "ganesha.conf",
            ganesha_conf,
            Path(servers.ganesha_pid or run / "ganesha/ganesha.pid"),
        ),
    ]
    exports = ShareFile(Server.KERNEL, etc / "exports.d/nasfs.exports", etc / "exports", Path())
    here = {file.server: file for file in found if file.main.exists()}
    if servers.kernel_nfs == "on" or (servers.kernel_nfs == "auto" and exports.main.exists()):
        here[Server.KERNEL] = exports
    return here


def read_text(path: Path) -> str:
    """Empty if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        raise Failed(f"cannot read {path}: {exc.strerror}") from exc


class Disk(Protocol):
    """The few calls by which a file is replaced; tests cut them short."""

    def write(self, path: Path, data: bytes, mode: int) -> None: ...

    def rename(self, old: Path, new: Path) -> None: ...


class HostDisk:
    """The host's file system."""

    def write(self, path: Path, data: bytes, mode: int) -> None:
        """A new file, on stable storage on return."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as out:
            os.fchmod(fd, mode)  # whatever the umask is
            out.write(data)
            out.flush()
            os.fsync(out.fileno())

    def rename(self, old: Path, new: Path) -> None:
        """The new name, and that the old is gone, is on stable storage on return."""
        old.replace(new)
        fd = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def candidate_of(path: Path) -> Path:
    """Where the next content of a file is written before it takes its place.

    No server reads it: exports(5) takes names that end in .exports alone.
    """
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk | None = None) -> None:
    """The old content or the new one, never a part, whenever the power goes.

    Raises:
        Failed: the disk refused; the old content is there.
    """
    disk = disk or HostDisk()
    try:
        disk.write(candidate_of(path), data, mode)
        disk.rename(candidate_of(path), path)
    except OSError as exc:
        raise Failed(f"cannot write {path}: {exc.strerror}") from exc


def include_own(file: ShareFile) -> bool:
    """Add the one line to the administrator's file, which includes ours; False: it is there.

    Raises:
        Failed: the file can't be written.
    """
    if file.is_included():
        return False
    old = read_text(file.main)
    text = old if old.endswith("\n") or not old else old + "\n"
    mode = file.main.stat().st_mode & 0o7777
    data = f"{text}{file.include_line}\n".encode("utf-8", "surrogateescape")
    replace_file(file.main.resolve(), data, mode=mode)
    return True
