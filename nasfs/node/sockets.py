"""UNIX sockets at paths of any length: the kernel takes 107 bytes, a descriptor's path is short."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Another name of *path*, short enough for a socket address, while the context lasts."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def bind_unix(path: Path, *, backlog: int = 64) -> socket.socket:
    """A listening socket at *path*, for its owner only; a left-over file there is replaced.

    The caller must have made sure (by a lock) that nobody else serves that path.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as name:
            sock.bind(name)
            os.chmod(name, 0o600)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
