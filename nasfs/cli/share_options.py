"""The options of ``nasfs share create`` and ``set``, and what they make of a share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nasfs.errors import ConfigError

if TYPE_CHECKING:
    from sharecfg.model import Nfs, Share, Smb

Words = Optional[list[str]]  # noqa: UP045  # typer reads it at run time
Flag = Optional[bool]  # noqa: UP045
Text = Optional[str]  # noqa: UP045

_SMB, _NFS = "SMB", "NFS"


def _words(name: str, metavar: str, help: str) -> Any:
    return typer.Option(
        name, metavar=metavar, help=f"{help}; repeatable; '' takes all away.", rich_help_panel=_SMB
    )


def _flag(name: str, help: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=_SMB)


Comment = Annotated[Text, typer.Option(metavar="TEXT", help="What clients are shown of it.")]
WithSmb = Annotated[Flag, _flag("--smb/--no-smb", "Share it by SMB.")]
ReadOnly = Annotated[Flag, _flag("--read-only/--read-write", "Who may write at all.")]
Listed = Annotated[Flag, _flag("--listed/--hidden", "Whether clients see it in listings.")]
ListedForUsers = Annotated[
    Flag, _flag("--listed-for-users/--listed-for-all", "Only who may use it sees it.")
]
Enabled = Annotated[Flag, typer.Option("--open/--closed", help="Closed: nobody gets in.")]
Guests = Annotated[
    Text, typer.Option(metavar="no|yes|only", help="Without an account.", rich_help_panel=_SMB)
]
Users = Annotated[Words, _words("--user", "NAME|@GROUP", "Who may use it, instead of all")]
Deny = Annotated[Words, _words("--deny-user", "NAME|@GROUP", "Who may not")]
Readers = Annotated[Words, _words("--reader", "NAME|@GROUP", "Who may only read")]
Writers = Annotated[Words, _words("--writer", "NAME|@GROUP", "Who may write in spite of all")]
Admins = Annotated[Words, _words("--admin", "NAME|@GROUP", "Who acts as root")]
Hosts = Annotated[Words, _words("--host", "HOST", "From where, instead of from everywhere")]
DenyHosts = Annotated[Words, _words("--deny-host", "HOST", "From where not")]
Modules = Annotated[Words, _words("--vfs", "MODULE", "VFS modules in their order")]
NtAcls = Annotated[bool, _flag("--nt-acls", "Windows permissions in full: acl_xattr.")]
Apple = Annotated[bool, _flag("--apple", "For Macs: catia, fruit, streams_xattr.")]
Previous = Annotated[
    Flag, _flag("--previous-versions/--no-previous-versions", "Windows shows the snapshots.")
]
CreateMask = Annotated[Text, typer.Option(metavar="MODE", rich_help_panel=_SMB)]
DirectoryMask = Annotated[Text, typer.Option(metavar="MODE", rich_help_panel=_SMB)]
ForceUser = Annotated[Text, typer.Option(metavar="NAME", rich_help_panel=_SMB)]
ForceGroup = Annotated[Text, typer.Option(metavar="NAME", rich_help_panel=_SMB)]
SmbLines = Annotated[Words, _words("--smb-line", "'NAME = VALUE'", "A further line of the section")]
WithNfs = Annotated[
    Flag, typer.Option("--nfs/--no-nfs", help="Export it by NFS.", rich_help_panel=_NFS)
]
NfsClients = Annotated[
    Words,
    typer.Option(
        "--nfs-client",
        metavar="CLIENT(OPTIONS)",
        help="As in exports(5), for instance '10.0.0.0/8(rw)'; repeatable.",
        rich_help_panel=_NFS,
    ),
]
Pseudo = Annotated[
    Text,
    typer.Option(metavar="PATH", help="Where NFSv4 clients of Ganesha see it; /NAME.",
                 rich_help_panel=_NFS),
]  # fmt: skip
GaneshaLines = Annotated[
    Words,
    typer.Option("--ganesha-line", metavar="'NAME = VALUE'", help="Of Ganesha's EXPORT block.",
                 rich_help_panel=_NFS),
]  # fmt: skip

_NT, _APPLE = ("acl_xattr",), ("catia", "fruit", "streams_xattr")
_SMB_FIELDS = {
    "listed": "listed",
    "listed_for_users": "listed_for_users_only",
    "previous_versions": "previous_versions",
    "create_mask": "create_mask",
    "directory_mask": "directory_mask",
    "force_user": "force_user",
    "force_group": "force_group",
}
_SMB_LISTS = {
    "user": "users",
    "deny_user": "denied_users",
    "reader": "readers",
    "writer": "writers",
    "admin": "admins",
    "host": "hosts",
    "deny_host": "denied_hosts",
    "vfs": "modules",
    "smb_line": "extra",
}


def apply(share: Share, given: Mapping[str, Any]) -> Share:
    """The share with what the options say.

    Args:
        given: values of the options by name; None and False mean that they were not given.

    Raises:
        ConfigError: they contradict each other, or make no sense.
    """
    from msgspec.structs import replace

    smb, nfs = _smb(share.smb, given), _nfs(share.nfs, given)
    comment = given.get("comment")
    share = replace(share, comment=share.comment if comment is None else comment, smb=smb, nfs=nfs)
    if given.get("enabled") is not None:
        enabled = given["enabled"]
        share = replace(
            share,
            smb=replace(smb, enabled=enabled) if smb else None,
            nfs=replace(nfs, enabled=enabled) if nfs else None,
        )
    return share


def _smb(smb: Smb | None, given: Mapping[str, Any]) -> Smb | None:
    from msgspec.structs import replace

    from sharecfg import model

    changes: dict[str, Any] = {}
    for option, field in _SMB_FIELDS.items():
        if given.get(option) is not None:
            changes[field] = given[option]
    for option, field in _SMB_LISTS.items():
        if given.get(option):
            changes[field] = tuple(word for word in given[option] if word)
    if given.get("read_only") is not None:
        read_only = given["read_only"]
        changes["access"] = model.Access.READ_ONLY if read_only else model.Access.READ_WRITE
    if given.get("guests") is not None:
        try:
            changes["guests"] = model.Guests(given["guests"])
        except ValueError:
            raise ConfigError(f"--guests {given['guests']}: it is no, yes or only") from None
    more = (_APPLE if given.get("apple") else ()) + (_NT if given.get("nt_acls") else ())
    if more:
        modules = changes.get("modules", smb.modules if smb else ())
        changes["modules"] = (*modules, *(one for one in more if one not in modules))
    if given.get("with_smb") is False:
        if changes:
            raise ConfigError("--no-smb, and options of SMB")
        return None
    if given.get("with_smb") or changes:
        return replace(smb or model.Smb(), **changes)
    return smb


def _nfs(nfs: Nfs | None, given: Mapping[str, Any]) -> Nfs | None:
    from msgspec.structs import replace

    from sharecfg import model

    changes: dict[str, Any] = {}
    if given.get("nfs_client"):
        changes["clients"] = _clients(given["nfs_client"])
    if given.get("pseudo") is not None:
        changes["pseudo"] = given["pseudo"]
    if given.get("ganesha_line"):
        changes["ganesha"] = tuple(line for line in given["ganesha_line"] if line)
    if given.get("with_nfs") is False:
        if changes:
            raise ConfigError("--no-nfs, and options of NFS")
        return None
    if given.get("with_nfs") or changes:
        made = replace(nfs or model.Nfs(), **changes)
        if not made.clients:
            raise ConfigError(
                "NFS, but for whom?", hint="--nfs-client '10.0.0.0/8(rw)', or '*(ro)' for all"
            )
        return made
    return nfs


def _clients(words: list[str]) -> tuple[Any, ...]:
    from sharecfg.complaints import misconfigured
    from sharecfg.exports import parse_exports

    line = "/x " + " ".join(words)
    parsed = parse_exports(line, "--nfs-client")
    if parsed.complaints or len(parsed.exports) != 1:
        raise misconfigured(parsed.complaints, hint="see exports(5)")
    nfs = parsed.exports[0].nfs
    if nfs.fsid:
        raise ConfigError("fsid is given by nasfs: it is in every file handle")
    return nfs.clients
