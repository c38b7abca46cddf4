"""What a share may be: every field checked, so that a renderer never has to.  Pure."""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Iterable, Iterator

from .complaints import Complaint
from .model import EXPORT_ID_MAX, NFS_PORT, Access, Nfs, NfsClient, Share, Smb

_SECTION = re.compile(r"[^\x00-\x1f\x7f\[\]/\\:|<>+=;,*?\"%]{1,80}")
"""What Windows and smb.conf both take as the name of a share."""
_RESERVED = {"global", "homes", "printers", "print$", "ipc$", "."}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MODULE = re.compile(r"[a-z0-9_]+")
_MASK = re.compile(r"[0-7]{3,4}")
_WHO = re.compile(r"\*|@?[A-Za-z0-9_*?.\[\]:/-]+")
_GANESHA_LINE = re.compile(r"([A-Za-z_]+) *= *[^\s{};#\"'%=,]+( *, *[^\s{};#\"'%=,]+)*")
_FLAVOURS = ("sys", "krb5", "krb5i", "krb5p", "none")

KERNEL_OPTIONS = re.compile(
    r"(no_)?(wdelay|subtree_check|acl|auth_nlm|hide|crossmnt|pnfs|security_label)|nohide"
    r"|(in)?secure_locks|auth_nlm|mountpoint|mp|(mountpoint|mp|refer|replicas)=[^\s,()]+"
    r"|xprtsec=[a-z:]+"
)
"""exports(5), but for what `NfsClient` has fields for."""


def check_share(share: Share) -> tuple[Complaint, ...]:
    """Everything that is wrong with a share; empty: it can be rendered for every server."""
    where = f"share {share.name}" if _is_text(share.name) else "share"
    return tuple(Complaint(where, key, reason) for key, reason in _share(share))


def _share(share: Share) -> Iterator[tuple[str, str]]:
    name = share.name
    if not _SECTION.fullmatch(name) or name != name.strip() or not _is_text(name):
        yield "name", f"{name!r} cannot be the name of a share: 1 to 80 letters, digits, - _ . $"
    elif share.key in _RESERVED:
        yield "name", f"{name} means something else to Samba"
    if not share.volume:
        yield "volume", "a share belongs to a volume"
    yield from _directory(share.directory)
    if not is_value(share.comment):
        yield "comment", "one line, without quotation marks around it"
    if share.smb is None and share.nfs is None:
        yield "smb, nfs", "by neither of them would it be seen"
    if share.smb is not None:
        yield from ((f"smb.{key}", why) for key, why in _smb(share.smb))
    if share.nfs is not None:
        yield from ((f"nfs.{key}", why) for key, why in _nfs(share.nfs))


def _directory(directory: str) -> Iterator[tuple[str, str]]:
    parts = directory.split("/") if directory else []
    if any(part in ("", ".", "..") for part in parts):
        yield "directory", f"{directory!r} is no plain path below the volume's root"
    elif parts and parts[0] == ".snapshots":
        yield "directory", "snapshots are shown in the shares of the volume, not shared themselves"
    elif reason := unsayable_path(directory):
        yield "directory", reason


def unsayable_path(path: str) -> str:
    """Why smb.conf or a file of NFS exports can't name a path; empty: both can."""
    if not _is_text(path):
        return f"{path!r} holds control characters or is not UTF-8"
    if "%" in path or '"' in path or path != path.strip() or path.endswith("\\"):
        return (
            f"smb.conf can't name {path!r}: Samba gives other meanings to % and to quotation"
            " marks, and a path can't end with a blank or a backslash"
        )
    return ""


def _smb(smb: Smb) -> Iterator[tuple[str, str]]:
    if smb.access is Access.NONE:
        yield "access", "read-write or read-only; to close it: enabled: false"
    lists = {
        "users": smb.users,
        "denied_users": smb.denied_users,
        "readers": smb.readers,
        "writers": smb.writers,
        "admins": smb.admins,
        "hosts": smb.hosts,
        "denied_hosts": smb.denied_hosts,
    }
    for key, words in lists.items():
        for word in words:
            if not word.strip("@+&") or not is_word(word):
                yield key, f"{word!r} cannot be one of them"
    yield from _modules(smb)
    for key, mask in {"create_mask": smb.create_mask, "directory_mask": smb.directory_mask}.items():
        if mask and not _MASK.fullmatch(mask):
            yield key, f"{mask!r} is no octal mode, like 0664"
    for key, name in {"force_user": smb.force_user, "force_group": smb.force_group}.items():
        if name and (not is_value(name) or '"' in name):
            yield key, f"{name!r} cannot be a name"
    for line in smb.extra:
        yield from _extra_smb(line)
    names = [smb_key(line.partition("=")[0]) for line in smb.extra]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "extra", f"{name} stands there twice"


def _modules(smb: Smb) -> Iterator[tuple[str, str]]:
    modules = [module.partition(":")[0] for module in smb.modules]
    for module in modules:
        if not _MODULE.fullmatch(module):
            yield "modules", f"{module!r} can't be the name of a VFS module, like acl_xattr"
    if len(set(smb.modules)) < len(smb.modules):
        yield "modules", "a VFS module stands in the line once"
    if smb.previous_versions and "shadow_copy2" in modules:
        yield "modules", "shadow_copy2 is there by previous_versions"
    if "fruit" in modules and "streams_xattr" not in modules[modules.index("fruit") :]:
        yield "modules", "fruit needs streams_xattr behind it (vfs_fruit(8))"


def _extra_smb(line: str) -> Iterator[tuple[str, str]]:
    name, equals, value = line.partition("=")
    key = smb_key(name)
    if not equals or not key or key[0] in "[;#" or not is_value(value.strip()):
        yield "extra", f"{line!r} is no line NAME = VALUE of smb.conf"
    elif key in SMB_FIELDS:
        yield "extra", f"{key} has a field of its own: {SMB_FIELDS[key]}"
    elif key in ("include", "copy", "configfile"):
        yield "extra", f"{key} would bring what is not checked here"
    elif key in ("preexec", "rootpreexec", "postexec", "rootpostexec", "exec", "magicscript"):
        yield "extra", f"{key} runs programs; let it stand in the smb.conf of the node"


SMB_FIELDS = {
    "path": "directory",
    "directory": "directory",
    "comment": "comment",
    "available": "enabled",
    "readonly": "access",
    "writable": "access",
    "writeable": "access",
    "writeok": "access",
    "browseable": "listed",
    "browsable": "listed",
    "accessbasedshareenum": "listed_for_users_only",
    "guestok": "guests",
    "public": "guests",
    "guestonly": "guests",
    "onlyguest": "guests",
    "validusers": "users",
    "invalidusers": "denied_users",
    "readlist": "readers",
    "writelist": "writers",
    "adminusers": "admins",
    "hostsallow": "hosts",
    "allowhosts": "hosts",
    "hostsdeny": "denied_hosts",
    "denyhosts": "denied_hosts",
    "vfsobjects": "modules",
    "vfsobject": "modules",
    "createmask": "create_mask",
    "createmode": "create_mask",
    "directorymask": "directory_mask",
    "directorymode": "directory_mask",
    "forceuser": "force_user",
    "forcegroup": "force_group",
    "group": "force_group",
}
"""Parameters of smb.conf, by `smb_key`, and which field holds them."""


def smb_key(name: str) -> str:
    """A parameter's name as Samba compares it: without blanks and case."""
    return re.sub(r"\s+", "", name).casefold()


def _nfs(nfs: Nfs) -> Iterator[tuple[str, str]]:
    if not 0 <= nfs.export_id <= EXPORT_ID_MAX:
        yield "export_id", f"from 1 to {EXPORT_ID_MAX}"
    if nfs.fsid and not _is_fsid(nfs.fsid):
        yield "fsid", f"{nfs.fsid!r} is neither a UUID nor a number of 32 bits nor root"
    if nfs.filesystem_id and not _is_filesystem_id(nfs.filesystem_id):
        yield "filesystem_id", f"{nfs.filesystem_id!r} is not MAJOR.MINOR, two numbers of 64 bits"
    if nfs.port and not (1024 <= nfs.port < 1 << 16 and nfs.port != NFS_PORT):
        yield "port", f"from 1024 to 65535, and not {NFS_PORT}: the administrator's Ganesha has it"
    pseudo = nfs.pseudo
    if pseudo and (not pseudo.startswith("/") or "//" in pseudo or unsayable_path(pseudo)):
        yield "pseudo", f"{pseudo!r} is no plain absolute path"
    if not nfs.versions or set(nfs.versions) - {3, 4} or len(set(nfs.versions)) < len(nfs.versions):
        yield "versions", "3, 4 or both"
    for line in nfs.ganesha:
        match = _GANESHA_LINE.fullmatch(line)
        if match is None or not _is_text(line):
            yield "ganesha", f"{line!r} is no NAME = VALUE"
        elif match[1].casefold() in GANESHA_FIELDS:
            yield "ganesha", f"{match[1]} has a field of its own"
    if not nfs.clients:
        yield "clients", "nobody may mount it; to close it: enabled: false"
    whos = [client.who for client in nfs.clients]
    if len(set(whos)) < len(whos):
        yield "clients", "each of them stands there once"
    for client in nfs.clients:
        yield from ((f"clients.{client.who}", why) for why in _client(client))


GANESHA_FIELDS = {
    "export_id",
    "path",
    "pseudo",
    "filesystem_id",
    "access_type",
    "squash",
    "sectype",
    "protocols",
    "nfs_protocols",
    "anonymous_uid",
    "anonymous_gid",
    "privilegedport",
    "clients",
    "tag",
}


def _client(client: NfsClient) -> Iterator[str]:
    if not _WHO.fullmatch(client.who):
        yield "no host, network, pattern or @netgroup"
    elif "/" in client.who:
        try:
            ipaddress.ip_network(client.who, strict=False)
        except ValueError as exc:
            yield f"no network: {exc}"
    for key, number in (("uid", client.anonymous_uid), ("gid", client.anonymous_gid)):
        if number is not None and not 0 <= number < 1 << 32:
            yield f"anonymous_{key}: a number of 32 bits"
    if not client.security or len(set(client.security)) < len(client.security):
        yield "security: one flavour or more, each once"
    for flavour in client.security:
        if flavour not in _FLAVOURS:
            yield f"security: {flavour!r} is none of {', '.join(_FLAVOURS)}"
    for option in client.options:
        if not KERNEL_OPTIONS.fullmatch(option):
            yield f"options: {option!r} is no option of exports(5), or has a field of its own"
    if len(set(client.options)) < len(client.options):
        yield "options: each of them stands there once"


def check_together(shares: Iterable[Share]) -> tuple[Complaint, ...]:
    """What is wrong between shares of one node: names and export ids are there once.

    Two volumes at port 0 are well: they get ports where there is a Ganesha (`ports`).
    """
    complaints: list[Complaint] = []
    names: dict[str, Share] = {}
    ids: dict[int, Share] = {}
    pseudos: dict[str, Share] = {}
    ports: dict[int, Share] = {}
    volumes: dict[str, Share] = {}
    for share in shares:
        where = f"share {share.name}"
        if (other := names.setdefault(share.key, share)) is not share:
            complaints.append(Complaint(where, "name", f"there is a share {other.name}"))
        if share.nfs is None:
            continue
        if share.nfs.export_id:
            other = ids.setdefault(share.nfs.export_id, share)
            if other is not share:
                reason = f"{share.nfs.export_id} is the one of share {other.name}"
                complaints.append(Complaint(where, "nfs.export_id", reason))
        port = share.nfs.port
        other = volumes.setdefault(share.volume, share)
        if other.nfs and other.nfs.port != port:
            reason = f"{port}, and {other.nfs.port} of share {other.name}: a volume has one"
            complaints.append(Complaint(where, "nfs.port", reason))
        other = ports.setdefault(port, share)
        if port and other.volume != share.volume:
            reason = f"{port} is the one of another volume, with share {other.name}"
            complaints.append(Complaint(where, "nfs.port", reason))
        pseudo = pseudo_path(share)
        other = pseudos.setdefault(pseudo, share)
        if other is not share and other.key != share.key:
            reason = f"{pseudo} is the one of share {other.name}"
            complaints.append(Complaint(where, "nfs.pseudo", reason))
    return tuple(complaints)


def pseudo_path(share: Share) -> str:
    """Where NFSv4 clients of Ganesha see a share."""
    return (share.nfs.pseudo if share.nfs else "") or f"/{share.name}"


def is_value(text: str) -> bool:
    """It can stand behind the = of smb.conf and is read as the same text."""
    return (
        _is_text(text)
        and text == text.strip()
        and not text.endswith("\\")
        and not (text.startswith('"') and text.endswith('"'))
    )


def is_word(text: str) -> bool:
    """It can be one word of a list in smb.conf, in quotation marks if need be."""
    return (
        _is_text(text)
        and '"' not in text
        and text == text.strip()
        and not text.endswith("\\")
        and "\\" not in text[-1:]
    )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not _CONTROL.search(text)


def _is_fsid(text: str) -> bool:
    if text == "root" or (text.isascii() and text.isdigit() and int(text) < 1 << 32):
        return True
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _is_filesystem_id(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 2 and all(
        part.isascii() and part.isdigit() and int(part) < 1 << 64 for part in parts
    )
