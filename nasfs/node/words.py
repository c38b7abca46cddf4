"""The words of commands: POOL/VOLUME, POOL/VOLUME@SNAPSHOT, GROUP, sizes like 100G.  Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from nasfs.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]*")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {letter: 1024**power for power, letter in enumerate(["", *"KMGTPE"])}
NAME_BYTES = 200
SIZE_MAX = 1 << 62
LONG_S = 6 * 3600.0
"""How long the asker of something waits that may move much data (seconds)."""


@dataclass(frozen=True, slots=True)
class VolumeName:
    """POOL/VOLUME."""

    pool: str
    volume: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.volume}"


@dataclass(frozen=True, slots=True)
class Target:
    """A volume or a group, and perhaps one of its snapshots."""

    volume: VolumeName | None
    group: str
    snapshot: str

    def __str__(self) -> str:
        what = str(self.volume) if self.volume else self.group
        return f"{what}@{self.snapshot}" if self.snapshot else what


def check_name(name: str, what: str) -> str:
    """*name* itself.  Raises ConfigError if it cannot be the name of a *what*."""
    if len(name) > NAME_BYTES or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a {what}",
            hint="letters, digits and _ . : + - are allowed, beginning with a letter or digit",
        )
    return name


def parse_volume(text: str) -> VolumeName:
    """POOL/VOLUME.  Raises ConfigError."""
    pool, slash, volume = text.partition("/")
    if not slash:
        raise ConfigError(f"{text!r} is not a volume", hint="volumes are written POOL/VOLUME")
    return VolumeName(check_name(pool, "pool"), check_name(volume, "volume"))


def parse_target(text: str) -> Target:
    """POOL/VOLUME, GROUP, or one of them with @SNAPSHOT.  Raises ConfigError."""
    what, at, snapshot = text.partition("@")
    if at:
        check_name(snapshot, "snapshot")
    if "/" in what:
        return Target(parse_volume(what), "", snapshot)
    return Target(None, check_name(what, "group"), snapshot)


def parse_snapshot(text: str) -> Target:
    """A target that names a snapshot.  Raises ConfigError."""
    target = parse_target(text)
    if not target.snapshot:
        raise ConfigError(
            f"{text!r} names no snapshot", hint="write POOL/VOLUME@SNAPSHOT or GROUP@SNAPSHOT"
        )
    return target


def check_provision(provision: str) -> None:
    """Raises ConfigError unless it is one of the two."""
    if provision not in ("thin", "exact"):
        raise ConfigError(f"{provision!r} is no provision", hint="thin or exact")


def parse_size(text: str) -> int:
    """Bytes in ``100G`` or ``1.5T`` (powers of 1024).  Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(Decimal(match[1]) * _POWERS[match[2].upper()]) if match else 0
    if not 0 < size <= SIZE_MAX:
        raise ConfigError(f"{text!r} is not a size", hint="write for instance 500M, 100G or 1.5T")
    return size


def render_size(size: int) -> str:
    """``100G``; one digit behind the point below ten."""
    if size < 1024:
        return f"{size}B"
    value = float(size)
    for letter in "KMGTPE":
        value /= 1024
        if value < 1023.95 or letter == "E":
            break
    return (
        f"{value:.1f}{letter}" if value < 9.95 and value != int(value) else f"{value:.0f}{letter}"
    )
