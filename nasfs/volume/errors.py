"""What can go wrong inside a volume."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from nasfs.errors import Failed, NasError


@dataclass(eq=False)
class FsError(NasError):
    """A file operation that POSIX has a number for; the caller's business, not logged."""

    errno: int
    message: str = ""

    def __str__(self) -> str:
        return self.message or os.strerror(self.errno)


@dataclass(eq=False)
class MediaError(NasError):
    """The disk refused: out of space, or an I/O error.  Nothing acknowledged is lost."""

    errno: int
    where: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {os.strerror(self.errno)}"


@dataclass(eq=False)
class CorruptionError(NasError):
    """Stored bytes contradict an invariant.  Never retried; the volume goes read-only."""

    where: str
    problem: str
    hint: str = (
        "the volume was left as it is; check the disk, then run nasfs volume check, "
        "or take the data from its snapshots or its peer"
    )

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(eq=False)
class FormatError(NasError):
    """Written by a release that this one does not understand, or not ours at all."""

    where: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class WouldWait(Exception):
    """What is to be read is not in memory, and the caller asked not to wait for the disk.

    Nothing was changed.  Call `fetch` in a thread, then try again.
    """

    def __init__(self, fetch: Callable[[], None]) -> None:
        super().__init__()
        self.fetch = fetch


class VolumeBusy(Failed):
    """Another process owns the volume."""


class VolumeExists(Failed):
    """The name is taken."""


class NoSuchVolume(Failed):
    """There is no volume of that name in the pool."""


class NoSuchSnapshot(Failed):
    """There is no sealed snapshot of that name or GUID."""


class SnapshotExists(Failed):
    """The name, or the GUID, is taken by a snapshot of this volume."""


class SnapshotHeld(NasError):
    """Somebody holds the snapshot."""

    exit_code = 3

    def __init__(self, name: str, owners: list[str]) -> None:
        super().__init__(name, owners)
        self.name = name
        self.owners = owners
        self.hint = "release the holds first: nasfs snapshot release"

    def __str__(self) -> str:
        return f"snapshot {self.name} is held by {', '.join(self.owners)}"
