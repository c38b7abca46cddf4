"""Shares as data: what of a volume is exported, by which protocol, to whom.  Pure.

A share names its volume by UUID and its directory inside the volume, so it means the same on
both nodes, wherever the volume is mounted.  How a server is told of it stands in ``samba``,
``exports`` and ``ganesha``; how people write it, in ``document``; what is allowed, in ``checks``.
"""

from __future__ import annotations

import hashlib
import uuid
from enum import Enum

import msgspec


class Value(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """Base of all values here: an unknown key is an error, what is not said is the default."""


class Access(Enum):
    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    NONE = "none"
    """Of an NFS client: not even looking."""


class Guests(Enum):
    """Who comes to an SMB share without an account."""

    NO = "no"
    YES = "yes"
    ONLY = "only"


class Squash(Enum):
    """Whom NFS takes for nobody."""

    ROOT = "root"
    ALL = "all"
    NONE = "none"


class Smb(Value, frozen=True):
    """A share as Samba serves it.  Names of users are as in smb.conf: ``alice``, ``@staff``."""

    enabled: bool = True
    access: Access = Access.READ_WRITE
    listed: bool = True
    """Whether clients see it when they look what there is."""
    listed_for_users_only: bool = False
    """Only who may use it sees it."""
    guests: Guests = Guests.NO
    users: tuple[str, ...] = ()
    """Who may use it; empty: everybody with an account."""
    denied_users: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    """Who may only read, whatever `access` says."""
    writers: tuple[str, ...] = ()
    """Who may write, whatever `access` says."""
    admins: tuple[str, ...] = ()
    """Who acts as root."""
    hosts: tuple[str, ...] = ()
    """From where; empty: from everywhere."""
    denied_hosts: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    """VFS modules in their order, without the one of `previous_versions`, which comes last."""
    previous_versions: bool = True
    """Windows shows the volume's snapshots."""
    create_mask: str = ""
    """Octal, as in smb.conf; empty: Samba's default."""
    directory_mask: str = ""
    force_user: str = ""
    force_group: str = ""
    extra: tuple[str, ...] = ()
    """Further lines of the section, kept as they are."""


class NfsClient(Value, frozen=True):
    """Who may mount an export, and how."""

    who: str
    """A host, a network, a name with * and ?, @NETGROUP, or * for everybody."""
    access: Access = Access.READ_WRITE
    squash: Squash = Squash.ROOT
    anonymous_uid: int | None = None
    anonymous_gid: int | None = None
    security: tuple[str, ...] = ("sys",)
    """Flavours: sys, krb5, krb5i, krb5p, none."""
    sync: bool = True
    """The kernel's server answers a write when it is on disk.  (Ganesha always does.)"""
    privileged_ports: bool = True
    """Requests come from ports below 1024."""
    options: tuple[str, ...] = ()
    """Further options of the kernel's server, kept as they are."""


class Nfs(Value, frozen=True):
    """A share as the kernel's NFS server or Ganesha serves it."""

    enabled: bool = True
    clients: tuple[NfsClient, ...] = ()
    export_id: int = 0
    """Ganesha's, in every file handle: given once, and kept.  0: not given yet."""
    fsid: str = ""
    """Of the kernel's server, in every file handle; empty: derived from volume and directory."""
    filesystem_id: str = ""
    """Ganesha's (MAJOR.MINOR); empty: derived from volume and directory."""
    pseudo: str = ""
    """Where NFSv4 clients of Ganesha see it; empty: /NAME."""
    port: int = 0
    """Of the Ganesha that serves the volume: one of nasfs's own; 0: the administrator's."""
    versions: tuple[int, ...] = (3, 4)
    """Ganesha's protocols.  (The kernel's server has one setting for all exports.)"""
    ganesha: tuple[str, ...] = ()
    """Further parameters of Ganesha's EXPORT block (``Name = value``), kept as they are."""


class Share(Value, frozen=True):
    """A directory of a volume under a name."""

    name: str
    volume: str
    """The volume's UUID; where people write shares, POOL/VOLUME stands in its place."""
    directory: str = ""
    """Below the volume's root, without a slash at its ends; empty: the whole volume."""
    comment: str = ""
    smb: Smb | None = None
    nfs: Nfs | None = None

    @property
    def key(self) -> str:
        """Two shares with the same key are the same to Samba: it does not tell cases apart."""
        return self.name.casefold()


NFS_PORT = 2049
"""Where clients look if they are told nothing."""
EXPORT_ID_MAX = 65_535
_NAMES = uuid.UUID("0b1d9a44-6f0c-5c7e-9d0e-6e6173667300")


def derived_fsid(volume: str, directory: str) -> uuid.UUID:
    """The same on both nodes, after every restart: what file handles are made of."""
    return uuid.uuid5(_NAMES, f"{volume}/{directory}")


def filesystem_id(volume: str, directory: str) -> str:
    """The derived fsid as Ganesha writes it: two numbers of 64 bits."""
    number = derived_fsid(volume, directory).int
    return f"{number >> 64}.{number & (1 << 64) - 1}"


def free_export_id(share: Share, taken: set[int]) -> int:
    """An export id for a share: the same for the same share, unless others have it already."""
    seed = f"{share.volume}/{share.directory}:{share.key}"
    for attempt in range(EXPORT_ID_MAX):
        digest = hashlib.sha256(f"{seed}:{attempt}".encode()).digest()
        number = 1 + int.from_bytes(digest[:8], "big") % EXPORT_ID_MAX
        if number not in taken:
            return number
    raise AssertionError("65,535 exports on one node")
