"""What smb.conf says of a share, as text.  Pure: the same value always gives the same lines.

Of a share this knows its path and the snapshots that Windows shows as Previous Versions.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from nasfs.errors import ConfigError

SNAPDIR = ".snapshots/@GMT"
"""Where a mounted volume shows all its snapshots under names that are times in UTC."""

FORMAT = "@GMT-%Y.%m.%d-%H.%M.%S"
"""Those names, for strptime(3)."""

_MODULE = re.compile(r"[a-z0-9_]+")
_NOT_TAKEN = re.compile(r'[%"\x00-\x1f\x7f]|[\s\\]\Z')
"""Samba replaces %, takes quotation marks off, and ends or goes on with a line at the others."""


@dataclass(frozen=True, slots=True)
class PreviousVersions:
    """The snapshots of a volume, as a share of it, or of a directory in it, shows them.

    Raises:
        ConfigError: smb.conf can't say it.
    """

    mountpoint: str
    """Of the volume: absolute."""
    path: str
    """Of the share: the mount point, or a directory below it."""
    modules: tuple[str, ...] = ()
    """The other VFS modules of the share, in their order: a share has one line for all."""

    def __post_init__(self) -> None:
        for path in (self.mountpoint, self.path):
            if not path.startswith("/") or posixpath.normpath(path) != path:
                raise ConfigError(f"{path!r} is not a plain absolute path")
            if _NOT_TAKEN.search(path) or not _is_utf8(path):
                raise ConfigError(
                    f"smb.conf can't name {path!r}: Samba gives other meanings to % and to"
                    " quotation marks, and a path can't end with a blank or a backslash",
                    hint="mount the volume elsewhere, or share a directory above or below",
                )
        if posixpath.commonpath([self.mountpoint, self.path]) != self.mountpoint:
            raise ConfigError(
                f"{self.path} is not below {self.mountpoint}, where the volume is mounted",
                hint="name a directory of the volume",
            )
        for module in self.modules:
            if not _MODULE.fullmatch(module):
                raise ConfigError(
                    f"{module!r} can't be the name of a VFS module",
                    hint="they look like acl_xattr; give the option once for each",
                )
        if len(set(self.modules)) < len(self.modules) or "shadow_copy2" in self.modules:
            raise ConfigError(
                "a VFS module stands in the line once", hint="shadow_copy2 is there already"
            )


def render_previous_versions(versions: PreviousVersions) -> str:
    """Lines for the section of the share.

    shadow_copy2 comes last, next to the file system: what the modules before it keep in extended
    attributes (NT ACLs, streams) they then find in a snapshot as they do in the live view.
    """
    lines = [
        ("path", versions.path),
        ("vfs objects", " ".join((*versions.modules, "shadow_copy2"))),
        ("shadow:mountpoint", versions.mountpoint),
        ("shadow:snapdir", SNAPDIR),
        ("shadow:format", FORMAT),
        ("shadow:localtime", "no"),
        ("shadow:sort", "desc"),
    ]
    return "".join(f"    {name} = {value}\n" for name, value in lines)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
