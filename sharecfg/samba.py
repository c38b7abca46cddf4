"""What smb.conf says of shares, as text, and what such text says.  Pure: the same value always
gives the same lines.

What decides who may do what is always written, also where it is Samba's default: an
administrator's [global] may have made something else the default.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from nasfs.errors import ConfigError

from .checks import SMB_FIELDS, check_share, smb_key
from .complaints import Complaint
from .model import Access, Guests, Share, Smb
from .placed import Placed
from .smbconf import Parameter, Section, join_list, parse_bool, parse_conf, split_list

SNAPDIR = ".snapshots/@GMT"
"""Where a mounted volume shows all its snapshots under names that are times in UTC."""

FORMAT = "@GMT-%Y.%m.%d-%H.%M.%S"
"""Those names, for strptime(3)."""

SHADOW = {
    "shadow:snapdir": SNAPDIR,
    "shadow:format": FORMAT,
    "shadow:localtime": "no",
    "shadow:sort": "desc",
}
"""What shadow_copy2 is told of every volume."""

_LISTS = {
    "valid users": "users",
    "invalid users": "denied_users",
    "read list": "readers",
    "write list": "writers",
    "admin users": "admins",
    "hosts allow": "hosts",
    "hosts deny": "denied_hosts",
}
_TEXTS = {
    "create mask": "create_mask",
    "directory mask": "directory_mask",
    "force user": "force_user",
    "force group": "force_group",
}
_SPECIAL = ("homes", "printers", "print$", "ipc$")

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
    return _lines(_previous_versions(versions))


def _previous_versions(versions: PreviousVersions) -> list[tuple[str, str]]:
    return [
        ("path", versions.path),
        ("vfs objects", " ".join((*versions.modules, "shadow_copy2"))),
        ("shadow:mountpoint", versions.mountpoint),
        *SHADOW.items(),
    ]


def _lines(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"    {name} = {value}".rstrip() + "\n" for name, value in pairs)


def render_section(placed: Placed) -> str:
    """The section of a share.  Raises AssertionError if it is not exported by SMB."""
    share, smb = placed.share, placed.share.smb
    assert smb is not None
    if smb.previous_versions:
        head = _previous_versions(PreviousVersions(placed.mountpoint, placed.path, smb.modules))
    else:
        head = [("path", placed.path), ("vfs objects", " ".join(smb.modules))]
    pairs = [
        ("comment", share.comment),
        *head,
        ("available", _word(smb.enabled)),
        ("read only", _word(smb.access is Access.READ_ONLY)),
        ("browseable", _word(smb.listed)),
        ("access based share enum", _word(smb.listed_for_users_only)),
        ("guest ok", _word(smb.guests is not Guests.NO)),
        ("guest only", _word(smb.guests is Guests.ONLY)),
        *((name, join_list(getattr(smb, of))) for name, of in _LISTS.items()),
        *((name, getattr(smb, of)) for name, of in _TEXTS.items() if getattr(smb, of)),
    ]
    extra = "".join(f"    {line}\n" for line in smb.extra)
    return f"[{share.name}]\n{_lines(pairs)}{extra}"


def render_samba(placed: Iterable[Placed]) -> str:
    """All sections, by name."""
    ordered = sorted(placed, key=lambda one: one.share.key)
    return "\n".join(render_section(one) for one in ordered if one.share.smb is not None)


def _word(value: bool) -> str:
    return "yes" if value else "no"


@dataclass(frozen=True, slots=True)
class FoundSmb:
    """A share as somebody's smb.conf has it."""

    name: str
    path: str
    comment: str
    smb: Smb
    where: str


@dataclass(frozen=True, slots=True)
class SmbConf:
    """What an smb.conf says of shares, and what of it can't be taken."""

    shares: tuple[FoundSmb, ...] = ()
    includes: tuple[str, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    """Where each section stands that is a share, by its name in lower case; also the others."""


def parse_samba(text: str, file: str) -> SmbConf:
    """The shares of an smb.conf.

    What [global] makes the default for shares is written into each of them, for the fields of
    `Smb`: so they mean the same behind another [global].
    """
    parsed = parse_conf(text, file)
    sections = {section.name.casefold(): section for section in parsed.sections}
    shares, complaints = [], list(parsed.complaints)
    places = {}
    for key, section in sections.items():
        where = f"{file}, line {section.line}"
        if key == "global":
            continue
        places[key] = where
        reader = _Reader(section, sections, file)
        if key in _SPECIAL or reader.flag("printable", "printok", "printableok"):
            complaints.append(Complaint(where, section.name, "is no directory with a fixed path"))
            continue
        found = reader.read(where)
        complaints += reader.complaints
        if found is not None and not reader.complaints:
            shares.append(found)
    includes = tuple(include.text for include in parsed.includes)
    return SmbConf(tuple(shares), includes, tuple(complaints), places)


class _Reader:
    """One section, with what it copies and what [global] says beforehand."""

    def __init__(self, section: Section, sections: Mapping[str, Section], file: str) -> None:
        self._section = section
        self._file = file
        self.complaints: list[Complaint] = []
        defaults = sections["global"].parameters
        self._values = {key: one for key, one in defaults.items() if key in SMB_FIELDS}
        for key in ("path", "directory"):
            self._values.pop(key, None)
        copied = section.parameters.get("copy")
        if copied is not None:
            other = sections.get(copied.text.casefold())
            if other is None or other is section or "copy" in other.parameters:
                self._complain(copied, f"there is no plain section {copied.text}")
            else:
                self._merge(other)
        self._merge(section)

    def _merge(self, section: Section) -> None:
        """What is said later counts, by whatever name of a parameter."""
        for key, parameter in section.parameters.items():
            if key == "copy":
                continue
            for other in _same(key):
                self._values.pop(other, None)
            self._values[key] = parameter

    def _complain(self, parameter: Parameter, reason: str) -> None:
        where = f"{self._file}, line {parameter.line}"
        self.complaints.append(Complaint(where, parameter.name, reason))

    def _take(self, *keys: str) -> Parameter | None:
        found = None
        for key in keys:
            found = self._values.pop(key, None) or found
        return found

    def flag(self, *keys: str, default: bool = False) -> bool:
        parameter = self._take(*keys)
        if parameter is None or not parameter.text:
            return default
        value = parse_bool(parameter.text)
        if value is None:
            self._complain(parameter, f"{parameter.text!r} is neither yes nor no")
            return default
        return value

    def _text(self, *keys: str) -> str:
        parameter = self._take(*keys)
        return parameter.text if parameter else ""

    def _list(self, *keys: str) -> tuple[str, ...]:
        parameter = self._take(*keys)
        return split_list(parameter.value) if parameter else ()

    def _access(self) -> Access:
        if writable := self._take("writable", "writeable", "writeok"):
            value = parse_bool(writable.text)
            if value is None:
                self._complain(writable, f"{writable.text!r} is neither yes nor no")
            return Access.READ_WRITE if value else Access.READ_ONLY
        return Access.READ_ONLY if self.flag("readonly", default=True) else Access.READ_WRITE

    def _guests(self) -> Guests:
        ok = self.flag("guestok", "public")
        only = self.flag("guestonly", "onlyguest")
        return Guests.NO if not ok else Guests.ONLY if only else Guests.YES

    def _modules(self, path: str) -> tuple[tuple[str, ...], bool, tuple[str, ...]]:
        """The modules, whether the last of them shows a volume's snapshots as we do, and the
        lines of shadow_copy2 if it does something else."""
        modules = self._list("vfsobjects", "vfsobject")
        shadow = {
            key: self._values.pop(key) for key in [*self._values] if key.startswith("shadow:")
        }
        ours = {smb_key(name): value for name, value in SHADOW.items()}
        said = {key: parameter.text for key, parameter in shadow.items()}
        mountpoint = said.pop("shadow:mountpoint", "")
        if modules[-1:] == ("shadow_copy2",) and said == ours and _is_above(mountpoint, path):
            return modules[:-1], True, ()
        lines = (f"{one.name} = {one.value}" for one in shadow.values())
        return modules, False, tuple(lines)

    def read(self, where: str) -> FoundSmb | None:
        name = self._section.name
        path_parameter = self._take("path", "directory")
        if path_parameter is None or not path_parameter.text.startswith("/"):
            self.complaints.append(Complaint(where, f"[{name}] path", "no absolute path"))
            return None
        path = posixpath.normpath(path_parameter.text)
        if "%" in path:
            self._complain(path_parameter, "depends on who comes: that stays in your smb.conf")
            return None
        comment = self._text("comment")
        modules, previous_versions, shadow = self._modules(path)
        smb = Smb(
            enabled=self.flag("available", default=True),
            access=self._access(),
            listed=self.flag("browseable", "browsable", default=True),
            listed_for_users_only=self.flag("accessbasedshareenum"),
            guests=self._guests(),
            modules=modules,
            previous_versions=previous_versions,
        )
        lists = {of: self._list(*_same(smb_key(name))) for name, of in _LISTS.items()}
        texts = {of: self._text(*_same(smb_key(name))) for name, of in _TEXTS.items()}
        for mask in ("create_mask", "directory_mask"):  # testparm writes 02775
            texts[mask] = re.sub(r"^0([0-7]{4})$", r"\1", texts[mask])
        rest = tuple(f"{one.name} = {one.value}" for one in self._values.values())
        smb = replace(smb, **lists, **texts, extra=shadow + rest)
        for complaint in check_share(Share(name=name, volume="?", comment=comment, smb=smb)):
            self.complaints.append(Complaint(where, f"[{name}] {complaint.key}", complaint.reason))
        return FoundSmb(name, path, comment, smb, where)


def _same(key: str) -> tuple[str, ...]:
    """All names of a parameter."""
    of = SMB_FIELDS.get(key)
    if of == "guests":  # two parameters make one field
        ok = ("guestok", "public")
        return ok if key in ok else ("guestonly", "onlyguest")
    return tuple(other for other, field in SMB_FIELDS.items() if field == of) if of else (key,)


def _is_above(mountpoint: str, path: str) -> bool:
    return mountpoint.startswith("/") and posixpath.commonpath([mountpoint, path]) == mountpoint


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
