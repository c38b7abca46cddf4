"""The options of ``mount -t fuse.nasfs -o ...`` and of fstab(5): pure parsing.

Every word has one of four fates: the kernel carries it out, it is ours, it is meant for somebody
else (mount(8), systemd, the boot scripts) or asks for what is so anyway, or it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nasfs.errors import ConfigError

_FLAGS = {
    "ro": ("ro", True),
    "rw": ("ro", False),
    "nosuid": ("nosuid", True),
    "suid": ("nosuid", False),
    "nodev": ("nodev", True),
    "dev": ("nodev", False),
    "noexec": ("noexec", True),
    "exec": ("noexec", False),
    "noatime": ("noatime", True),
    "atime": ("noatime", False),
    "sync": ("sync", True),
    "async": ("sync", False),
}
"""Words for the kernel: which flag, and whether it is on from here."""

_OF_BOOT = (
    "defaults auto noauto user nouser users nousers owner noowner group nogroup"
    " nofail fail _netdev _rnetdev silent loud seclabel"
)
"""Read by mount(8), systemd and the boot scripts."""

_SO_ANYWAY = (
    "diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime"
    " acl noacl user_xattr nouser_xattr mand nomand iversion noiversion noquota"
    " default_permissions allow_other"
)
"""Without effect: access times are not kept, ACLs and user xattrs always are, mandatory locks and
quotas never; the last two every mount of ours has."""

_FOR_OTHERS = frozenset(f"{_OF_BOOT} {_SO_ANYWAY}".split())

_WITH_VALUE = "user comment helper uhelper context fscontext defcontext rootcontext"
_SHOWN = "user_id group_id max_read blksize"
"""In the mount table, from where mount(8) takes them for a remount."""

_VALUES_FOR_OTHERS = frozenset(f"{_WITH_VALUE} {_SHOWN}".split())

OURS = (
    "snapshot=NAME, follow, commit=SECONDS, log=FILE, list_snapshots, nolist_snapshots,"
    " noallow_other, root=DIR"
)

COMMIT_S = (0.05, 3600.0)
"""The shortest and the longest interval."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What an fstab line asks for, beside source and mount point."""

    flags: frozenset[str] = frozenset()
    """For the kernel: `nasfs.fuse.mount.KERNEL_FLAGS`."""
    remount: bool = False
    snapshot: str = ""
    follow: bool = False
    """Read-only as of the newest snapshot, and of those to come."""
    commit_interval_s: float | None = None
    """None: as the node's configuration says."""
    log_file: str = ""
    allow_other: bool = True
    list_snapshots: bool | None = None
    """Whether the root lists `.snapshots`; None: as the volume says."""
    root: str = ""
    """The node's root, where several live on one machine; empty: the system's places."""


def parse_options(text: str, *, sloppy: bool = False) -> MountOptions:
    """Read a list separated by commas; what comes later counts.

    Args:
        sloppy: pass over unknown words, as ``mount -s`` asks.

    Raises:
        ConfigError: an unknown word, or one whose value makes no sense.
    """
    flags: set[str] = set()
    ours = {"snapshot": "", "commit": "", "log": "", "root": ""}
    remount, allow_other, follow = False, True, False
    list_snapshots: bool | None = None
    for word in _split(text):
        name, equals, value = word.partition("=")
        if word in _FLAGS:
            flag, on = _FLAGS[word]
            (flags.add if on else flags.discard)(flag)
        elif word == "remount":
            remount = True
        elif word == "follow":
            follow = True
        elif word == "noallow_other":
            allow_other = False
        elif word in ("list_snapshots", "nolist_snapshots"):
            list_snapshots = word == "list_snapshots"
        elif equals and name in ours:
            ours[name] = _check_value(name, value)
        elif not (_is_for_others(word) or sloppy):
            raise ConfigError(f"unknown option {word!r}", hint=f"nasfs has: {OURS}")
    return MountOptions(
        flags=frozenset(flags),
        remount=remount,
        snapshot=ours["snapshot"],
        follow=follow,
        commit_interval_s=_commit_interval(ours["commit"]),
        log_file=ours["log"],
        allow_other=allow_other,
        list_snapshots=list_snapshots,
        root=ours["root"],
    )


def _split(text: str) -> Iterator[str]:
    """Words between commas; a value in double quotes may have commas."""
    for match in re.finditer(r'(?:[^,"]|"[^"]*")+', text):
        yield match[0].strip().replace('"', "")


def _is_for_others(word: str) -> bool:
    name, equals, _ = word.partition("=")
    if equals:
        return name in _VALUES_FOR_OTHERS or name.lower().startswith("x-")
    return word in _FOR_OTHERS or word.lower().startswith("x-") or not word


def _check_value(name: str, value: str) -> str:
    if not value:
        raise ConfigError(f"the option {name}= has no value")
    if name in ("log", "root") and not value.startswith("/"):
        raise ConfigError(f"{name}={value}: an absolute path is needed")
    return value


def _commit_interval(text: str) -> float | None:
    """Seconds; 0 is the default, as on ext4."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ConfigError(f"commit={text}: seconds are needed")
    seconds = float(text)
    if seconds == 0:
        return None
    shortest, longest = COMMIT_S
    if not shortest <= seconds <= longest:
        raise ConfigError(f"commit={text}: must be between {shortest:g} and {longest:g} seconds")
    return seconds
