"""Who uses the files below a directory: for the message that tells why it can't be unmounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MOST = 5


def users_below(directory: Path) -> str:
    """``bash (process 4711), ...``: working directories and open files; empty if none is found."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and any(_is_below(p, directory) for p in _paths(process)):
            found.append(f"{_name(process)} (process {process.name})")
    shown = ", ".join(found[:MOST])
    return f"{shown} and {len(found) - MOST} more" if len(found) > MOST else shown


def _is_below(path: str, directory: Path) -> bool:
    return path == str(directory) or path.startswith(f"{directory}/")


def _paths(process: Path) -> Iterator[str]:
    """What a process has open; nothing of one that has just ended."""
    try:
        links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link)
        except OSError:
            continue


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"
