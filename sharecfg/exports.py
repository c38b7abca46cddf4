"""What exports(5) says of shares, as text, and what such text says.  Pure.

Every option is written, also the default one; ``fsid`` always: without it the kernel's server
does not export a FUSE file system, and with it file handles are the same on both nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from .checks import KERNEL_OPTIONS, check_share
from .complaints import Complaint
from .model import Access, Nfs, NfsClient, Share, Squash, derived_fsid
from .placed import Placed

_SQUASH = {
    Squash.ROOT: ("root_squash", "no_all_squash"),
    Squash.ALL: ("root_squash", "all_squash"),
    Squash.NONE: ("no_root_squash", "no_all_squash"),
}


def render_exports(placed: Iterable[Placed]) -> str:
    """One line for each path: for /etc/exports.d."""
    lines = []
    for one in sorted(placed, key=lambda one: (one.path, one.share.key)):
        nfs = one.share.nfs
        if nfs is None or not nfs.enabled:
            continue
        clients = [
            f"{client.who}({','.join(_options(one.share, nfs, client))})"
            for client in nfs.clients
            if client.access is not Access.NONE
        ]
        if clients:
            lines.append(f"{_quoted(one.path)} {' '.join(clients)}\n")
    return "".join(lines)


def _options(share: Share, nfs: Nfs, client: NfsClient) -> Iterator[str]:
    yield "ro" if client.access is Access.READ_ONLY else "rw"
    yield "sync" if client.sync else "async"
    yield "secure" if client.privileged_ports else "insecure"
    yield from _SQUASH[client.squash]
    if client.anonymous_uid is not None:
        yield f"anonuid={client.anonymous_uid}"
    if client.anonymous_gid is not None:
        yield f"anongid={client.anonymous_gid}"
    yield f"sec={':'.join(client.security)}"
    yield f"fsid={nfs.fsid or derived_fsid(share.volume, share.directory)}"
    yield from client.options


def _quoted(path: str) -> str:
    """Blanks and the rest in octal, as exports(5) has it."""
    return re.sub(r"[\s#\\()\"]", lambda match: f"\\{ord(match[0]):03o}", path)


@dataclass(frozen=True, slots=True)
class FoundExport:
    """An export as somebody's file has it."""

    path: str
    nfs: Nfs
    where: str


@dataclass(frozen=True, slots=True)
class Exports:
    """What a file of exports says, and what of it can't be taken."""

    exports: tuple[FoundExport, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    paths: tuple[str, ...] = ()
    """All that are exported, also those with complaints."""


def parse_exports(text: str, file: str) -> Exports:
    """The exports of a file; those of one path in several lines are one."""
    found: dict[str, FoundExport] = {}
    complaints: list[Complaint] = []
    paths: list[str] = []
    for number, line in _logical_lines(text):
        where = f"{file}, line {number}"
        path, *words = _words(line)
        paths.append(path)
        try:
            nfs = _parse_line(path, words)
            if path in found:
                nfs = _joined(found[path].nfs, nfs)
        except _Odd as exc:
            complaints.append(Complaint(where, exc.key, exc.reason))
            continue
        wrong = check_share(Share(name="x", volume="?", nfs=nfs))
        complaints += [Complaint(where, f"{path} {one.key}", one.reason) for one in wrong]
        if not wrong:
            found[path] = FoundExport(path, nfs, where)
    return Exports(tuple(found.values()), tuple(complaints), tuple(paths))


class _Odd(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    pending, began = "", 0
    for number, raw in enumerate(text.split("\n"), start=1):
        began = number if not pending else began
        line = pending + raw
        if line.endswith("\\"):
            pending = line[:-1] + " "
            continue
        pending = ""
        line = re.sub(r'^((?:[^"#]|"[^"]*")*)#.*$', r"\1", line).strip()
        if line:
            yield began, line
    if pending.strip():
        yield began, pending.strip()


def _words(line: str) -> list[str]:
    found = re.findall(r'(?:[^\s"]|"[^"]*")+', line)
    return [_plain(word) for word in found]


def _plain(word: str) -> str:
    """Without quotation marks; three octal digits are a byte."""
    raw = word.replace('"', "").encode("utf-8", "surrogateescape")
    raw = re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), raw)
    return raw.decode("utf-8", "surrogateescape")


def _parse_line(path: str, words: list[str]) -> Nfs:
    if not path.startswith("/"):
        raise _Odd(path, "no absolute path")
    defaults: list[str] = []
    clients, fsids = [], set()
    for word in words:
        if word.startswith("-"):
            defaults = word[1:].split(",")
            continue
        who, bracket, rest = word.partition("(")
        if bracket and not rest.endswith(")"):
            raise _Odd(f"{path} {word}", "no CLIENT(OPTION,...)")
        options = [*defaults, *filter(None, rest[:-1].split(","))]
        client, fsid = _parse_client(path, who or "*", options)
        clients.append(client)
        fsids.add(fsid)
    if not clients:
        client, fsid = _parse_client(path, "*", defaults)
        clients, fsids = [client], {fsid}
    if len(fsids) > 1:
        raise _Odd(f"{path} fsid", "not the same for all clients")
    return Nfs(clients=tuple(clients), fsid=fsids.pop())


def _parse_client(path: str, who: str, options: list[str]) -> tuple[NfsClient, str]:
    """exports(5): the defaults are ro, sync, secure, root_squash."""
    client = NfsClient(who=who, access=Access.READ_ONLY)
    root, everybody, fsid = True, False, ""
    flavours, kept = 0, []
    for option in options:
        name, _, value = option.partition("=")
        match name:
            case "ro" | "rw":
                access = Access.READ_ONLY if name == "ro" else Access.READ_WRITE
                client = replace(client, access=access)
            case "sync" | "async":
                client = replace(client, sync=name == "sync")
            case "secure" | "insecure":
                client = replace(client, privileged_ports=name == "secure")
            case "root_squash" | "no_root_squash":
                root = name == "root_squash"
            case "all_squash" | "no_all_squash":
                everybody = name == "all_squash"
            case "anonuid" | "anongid":
                client = replace(client, **{f"anonymous_{name[4:]}": _number(path, option, value)})
            case "sec":
                flavours += 1
                client = replace(client, security=tuple(value.split(":")))
            case "fsid":
                fsid = "root" if value in ("0", "root") else value.casefold()
            case _:
                if not KERNEL_OPTIONS.fullmatch(option):
                    raise _Odd(f"{path} {who}({option})", "no option of exports(5)")
                kept.append(option)
    if flavours > 1:
        reason = "options that differ by flavour can't be kept in one record"
        raise _Odd(f"{path} {who}(sec=...)", reason)
    squash = Squash.ALL if everybody else Squash.ROOT if root else Squash.NONE
    return replace(client, squash=squash, options=tuple(dict.fromkeys(kept))), fsid


def _number(path: str, option: str, value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", value):
        raise _Odd(f"{path} {option}", "no number")
    return int(value) % (1 << 32)


def _joined(first: Nfs, second: Nfs) -> Nfs:
    if first.fsid != second.fsid:
        raise _Odd("fsid", "not the same in all lines of this path")
    return replace(first, clients=first.clients + second.clients)
