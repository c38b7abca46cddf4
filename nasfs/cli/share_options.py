"""The options of ``nasfs share add`` and ``set``, and what they make of a share."""

from __future__ import annotations

from dataclasses import dataclass
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
SmbParameters = Annotated[
    Words,
    typer.Option(
        "--smb",
        metavar="KEY=VALUE",
        help="A parameter as in smb.conf(5); repeatable. `on`: with what is usual; `off`: not.",
        rich_help_panel=_SMB,
    ),
]
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
NtAcls = Annotated[Flag, _flag("--nt-acls", "Windows permissions in full: acl_xattr.")]
Apple = Annotated[Flag, _flag("--apple", "For Macs: catia, fruit, streams_xattr.")]
Previous = Annotated[
    Flag, _flag("--previous-versions/--no-previous-versions", "Windows shows the snapshots.")
]
CreateMask = Annotated[Text, typer.Option(metavar="MODE", rich_help_panel=_SMB)]
DirectoryMask = Annotated[Text, typer.Option(metavar="MODE", rich_help_panel=_SMB)]
ForceUser = Annotated[Text, typer.Option(metavar="NAME", rich_help_panel=_SMB)]
ForceGroup = Annotated[Text, typer.Option(metavar="NAME", rich_help_panel=_SMB)]
SmbLines = Annotated[Words, _words("--smb-line", "'NAME = VALUE'", "A further line of the section")]
NfsClients = Annotated[
    Words,
    typer.Option(
        "--nfs",
        metavar="CLIENTS:OPTIONS",
        help="As in exports(5): 10.0.0.0/8:rw, or '10.0.0.0/8(rw)'; repeatable. `off`: not by NFS.",
        rich_help_panel=_NFS,
    ),
]
Pseudo = Annotated[
    Text,
    typer.Option(metavar="PATH", help="Where NFSv4 clients of Ganesha see it; /NAME.",
                 rich_help_panel=_NFS),
]  # fmt: skip
NfsPort = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(metavar="PORT", help="Of the volume's own Ganesha; 0: the administrator's.",
                 rich_help_panel=_NFS),
]  # fmt: skip
GaneshaLines = Annotated[
    Words,
    typer.Option("--ganesha-line", metavar="'NAME = VALUE'", help="Of Ganesha's EXPORT block.",
                 rich_help_panel=_NFS),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShareOptions:
    """What was given; None for what was not."""

    comment: Comment = None
    enabled: Enabled = None
    smb: SmbParameters = None
    read_only: ReadOnly = None
    listed: Listed = None
    listed_for_users: ListedForUsers = None
    guests: Guests = None
    user: Users = None
    deny_user: Deny = None
    reader: Readers = None
    writer: Writers = None
    admin: Admins = None
    host: Hosts = None
    deny_host: DenyHosts = None
    vfs: Modules = None
    nt_acls: NtAcls = None
    apple: Apple = None
    previous_versions: Previous = None
    create_mask: CreateMask = None
    directory_mask: DirectoryMask = None
    force_user: ForceUser = None
    force_group: ForceGroup = None
    smb_line: SmbLines = None
    nfs: NfsClients = None
    pseudo: Pseudo = None
    nfs_port: NfsPort = None
    ganesha_line: GaneshaLines = None


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


def apply(share: Share, options: ShareOptions) -> Share:
    """The share with what the options say.

    Raises:
        ConfigError: they contradict each other, or make no sense.
    """
    from msgspec.structs import replace

    smb, nfs = _smb(share, options), _nfs(share.nfs, options)
    share = replace(share, smb=smb, nfs=nfs)
    if options.comment is not None:
        share = replace(share, comment=options.comment)
    if options.enabled is not None:
        share = replace(
            share,
            smb=replace(smb, enabled=options.enabled) if smb else None,
            nfs=replace(nfs, enabled=options.enabled) if nfs else None,
        )
    return share


def _smb(share: Share, options: ShareOptions) -> Smb | None:
    from msgspec.structs import replace

    from sharecfg import model

    said = [word for word in options.smb or () if word not in ("on", "off")]
    smb = share.smb
    if said:
        smb = _with_parameters(replace(share, smb=smb or model.Smb(), nfs=None), said)
    changes = _smb_changes(smb, options)
    if "off" in (options.smb or ()):
        if changes or said or "on" in (options.smb or ()):
            raise ConfigError("--smb off, and options of SMB")
        return None
    if options.smb or changes:
        return replace(smb or model.Smb(), **changes)
    return smb


def _smb_changes(smb: Smb | None, options: ShareOptions) -> dict[str, Any]:
    """By field of `Smb`."""
    from sharecfg import model

    changes: dict[str, Any] = {
        field: getattr(options, option)
        for option, field in _SMB_FIELDS.items()
        if getattr(options, option) is not None
    }
    for option, field in _SMB_LISTS.items():
        if words := getattr(options, option):
            changes[field] = tuple(word for word in words if word)
    if options.read_only is not None:
        changes["access"] = model.Access.READ_ONLY if options.read_only else model.Access.READ_WRITE
    if options.guests is not None:
        try:
            changes["guests"] = model.Guests(options.guests)
        except ValueError:
            raise ConfigError(f"--guests {options.guests}: it is no, yes or only") from None
    more = (_APPLE if options.apple else ()) + (_NT if options.nt_acls else ())
    if more:
        modules = changes.get("modules", smb.modules if smb else ())
        changes["modules"] = (*modules, *(one for one in more if one not in modules))
    return changes


def _with_parameters(share: Share, said: list[str]) -> Smb:
    """What Samba would make of the share's section with further lines in it."""
    from sharecfg.complaints import misconfigured
    from sharecfg.placed import Placed
    from sharecfg.samba import parse_samba, render_section

    for word in said:
        key, equals, _ = word.partition("=")
        if not (key.strip() and equals) or "\n" in word or key.lstrip()[:1] in "[#;":
            raise ConfigError(f"--smb {word!r} is not KEY=VALUE", hint="--smb 'read only=yes'")
        if key.replace(" ", "").casefold() in ("path", "directory"):
            raise ConfigError("the path follows from the volume", hint="POOL/VOLUME:/PATH")
    section = render_section(Placed(share, "/any"))  # only the parameters are read
    parsed = parse_samba("\n".join(["[global]", section.rstrip(), *said, ""]), "--smb")
    if parsed.complaints or len(parsed.shares) != 1:
        raise misconfigured(parsed.complaints, hint="see smb.conf(5)")
    return parsed.shares[0].smb


def _nfs(nfs: Nfs | None, options: ShareOptions) -> Nfs | None:
    from msgspec.structs import replace

    from sharecfg import model

    words = [word for word in options.nfs or () if word not in ("off", "")]
    changes: dict[str, Any] = {}
    if words:
        changes["clients"] = _clients(words)
    if options.pseudo is not None:
        changes["pseudo"] = options.pseudo
    if options.nfs_port is not None:
        changes["port"] = options.nfs_port
    if options.ganesha_line:
        changes["ganesha"] = tuple(line for line in options.ganesha_line if line)
    if options.nfs and not words:
        if changes:
            raise ConfigError("--nfs off, and options of NFS")
        return None
    if not changes:
        return nfs
    made = replace(nfs or model.Nfs(), **changes)
    if not made.clients:
        raise ConfigError("NFS, but for whom?", hint="--nfs 10.0.0.0/8:rw, or '*:ro' for all")
    return made


def _clients(words: list[str]) -> tuple[Any, ...]:
    from sharecfg.complaints import misconfigured
    from sharecfg.exports import parse_exports

    line = "/x " + " ".join(client for word in words for client in _as_in_exports(word))
    parsed = parse_exports(line, "--nfs")
    if parsed.complaints or len(parsed.exports) != 1:
        raise misconfigured(parsed.complaints, hint="see exports(5)")
    nfs = parsed.exports[0].nfs
    if nfs.fsid:
        raise ConfigError("fsid is given by nasfs: it is in every file handle")
    return nfs.clients


def _as_in_exports(word: str) -> list[str]:
    """`A,B:rw,sync` is `A(rw,sync) B(rw,sync)`; the last colon counts, for IPv6 has others."""
    if "(" in word:
        return [word]
    clients, colon, options = word.rpartition(":")
    if not colon:
        clients, options = options, ""
    return [f"{client}({options})" if options else client for client in clients.split(",")]
