"""EXPORT blocks of NFS-Ganesha's configuration, as text, and what such text says.  Pure.

``Export_Id`` and ``Filesystem_Id`` are parts of every file handle and are always written.  The
export itself gives nothing: each CLIENT block says what its clients may do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .checks import GANESHA_FIELDS, check_share, pseudo_path
from .complaints import Complaint
from .model import Access, Nfs, NfsClient, Share, Squash, filesystem_id
from .placed import Placed

T = TypeVar("T")

_ACCESS = {Access.READ_WRITE: "RW", Access.READ_ONLY: "RO", Access.NONE: "None"}
_SQUASH = {Squash.ROOT: "Root_Squash", Squash.ALL: "All_Squash", Squash.NONE: "No_Root_Squash"}
_READ_ACCESS = {"rw": Access.READ_WRITE, "ro": Access.READ_ONLY, "none": Access.NONE}
_READ_SQUASH = {
    "root": Squash.ROOT,
    "root_squash": Squash.ROOT,
    "rootsquash": Squash.ROOT,
    "all": Squash.ALL,
    "all_squash": Squash.ALL,
    "allsquash": Squash.ALL,
    "all_anonymous": Squash.ALL,
    "allanonymous": Squash.ALL,
    "no_root_squash": Squash.NONE,
    "none": Squash.NONE,
    "noidsquash": Squash.NONE,
}
_ANONYMOUS = 4_294_967_294
"""Ganesha's default for who is squashed."""


def render_ganesha(placed: Iterable[Placed]) -> str:
    """All EXPORT blocks, by export id.  Every share must have been given one."""
    blocks = []
    for one in sorted(placed, key=lambda one: one.share.nfs.export_id if one.share.nfs else 0):
        if one.share.nfs is not None and one.share.nfs.enabled:
            blocks.append(render_export(one))
    return "\n".join(blocks)


def render_export(placed: Placed) -> str:
    """The EXPORT block of a share."""
    share, nfs = placed.share, placed.share.nfs
    assert nfs is not None
    assert nfs.export_id, "given when the share was made"
    lines = [
        f"Export_Id = {nfs.export_id};",
        f'Path = "{placed.path}";',
        f'Pseudo = "{pseudo_path(share)}";',
        f"Filesystem_Id = {nfs.filesystem_id or filesystem_id(share.volume, share.directory)};",
        "Access_Type = None;",
        f"Protocols = {', '.join(map(str, nfs.versions))};",
        *(f"{line.strip()};" for line in (*_unless_said(nfs.ganesha), *nfs.ganesha)),
        "FSAL { Name = VFS; fsid_type = Major64; }",
    ]
    for client in nfs.clients:
        lines += ["CLIENT {", *(f"    {line}" for line in _client(client)), "}"]
    return "EXPORT {\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


@dataclass(frozen=True, slots=True)
class OwnGanesha:
    """Settings of a Ganesha that serves one volume and is run by nasfs."""

    port: int
    recovery: str
    """A directory, where it notes its clients."""
    address: str = ""
    """Where it listens; empty: everywhere."""
    more: str = ""
    """A file of the administrator's that it reads, too; empty: none."""


def render_own(own: OwnGanesha, exports: str) -> str:
    """A whole configuration.  NFSv4 alone: rpcbind knows one server of NFSv3."""
    core = [
        f"NFS_Port = {own.port};",
        "NFS_Protocols = 4;",
        *([f"Bind_addr = {own.address};"] if own.address else []),
        "Enable_NLM = false;",
        "Enable_RQUOTA = false;",
        "Enable_UDP = false;",
    ]
    version4 = [
        "RecoveryBackend = fs;",
        f'RecoveryRoot = "{own.recovery}";',
        "Only_Numeric_Owners = true;",
    ]
    blocks = [_block("NFS_CORE_PARAM", core), _block("NFSv4", version4)]
    if own.more:
        blocks.append(f'%include "{own.more}"\n')
    return "\n".join([*blocks, exports])


def _block(name: str, lines: Iterable[str]) -> str:
    return f"{name} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


FRESH = "Attr_Expiration_Time = 0"
"""Else what others change, by SMB or locally, is not seen for a minute."""


def _unless_said(lines: Iterable[str]) -> tuple[str, ...]:
    names = {line.partition("=")[0].strip().casefold() for line in lines}
    return () if "attr_expiration_time" in names else (FRESH,)


def _client(client: NfsClient) -> Iterator[str]:
    yield f"Clients = {client.who};"
    yield f"Access_Type = {_ACCESS[client.access]};"
    yield f"Squash = {_SQUASH[client.squash]};"
    yield f"SecType = {', '.join(client.security)};"
    yield f"PrivilegedPort = {'true' if client.privileged_ports else 'false'};"
    if client.anonymous_uid is not None:
        yield f"Anonymous_uid = {client.anonymous_uid};"
    if client.anonymous_gid is not None:
        yield f"Anonymous_gid = {client.anonymous_gid};"


@dataclass(slots=True)
class Block:
    """``NAME { ... }``"""

    name: str
    line: int
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By name in lower case; one that is said again counts as the last."""
    spelled: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FoundExport:
    """An export as somebody's file has it."""

    path: str
    nfs: Nfs
    where: str


@dataclass(frozen=True, slots=True)
class GaneshaConf:
    """What a configuration of Ganesha says of exports, and what of it can't be taken."""

    exports: tuple[FoundExport, ...] = ()
    includes: tuple[str, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    paths: tuple[str, ...] = ()
    """All that are exported, also those with complaints."""
    export_ids: tuple[int, ...] = ()
    """All that are taken, also those with complaints."""


class _Odd(Exception):
    def __init__(self, line: int, key: str, reason: str) -> None:
        super().__init__(line, key, reason)
        self.line, self.key, self.reason = line, key, reason


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*) | (?P<newline>\n) | (?P<mark>[{}=;,])
      | "(?P<double>[^"\n]*)" | '(?P<single>[^'\n]*)' | (?P<word>[^\s{}=;,\#"']+) | (?P<odd>.)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    line: int
    quoted: bool = False

    def is_mark(self, mark: str) -> bool:
        return self.text == mark and not self.quoted


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "newline":
            line += 1
        elif kind in ("double", "single"):
            yield _Token(match[kind], line, quoted=True)
        elif kind in ("mark", "word"):
            yield _Token(match[kind], line)
        elif kind == "odd":
            raise _Odd(line, match[0], "a quotation mark without its end")


def parse_ganesha(text: str, file: str) -> GaneshaConf:
    """The exports of a configuration of Ganesha."""
    try:
        blocks, includes = _parse(list(_tokens(text)))
    except _Odd as exc:
        where = f"{file}, line {exc.line}"
        return GaneshaConf(complaints=(Complaint(where, exc.key, exc.reason),))
    exports, complaints, paths, ids = [], [], [], []
    defaults = next((b.values for b in blocks if b.name == "export_defaults"), {})
    for block in blocks:
        if block.name != "export":
            continue
        where = f"{file}, line {block.line}"
        path = " ".join(block.values.get("path", ()))
        paths.append(path)
        try:
            number = _number(block, "export_id") or 0
            ids.append(number)
            nfs = _export(block, {**defaults, **block.values}, number)
        except _Odd as exc:
            complaints.append(Complaint(f"{file}, line {exc.line}", exc.key, exc.reason))
            continue
        wrong = check_share(Share(name="x", volume="?", nfs=nfs))
        complaints += [Complaint(where, f"{path} {one.key}", one.reason) for one in wrong]
        if not path.startswith("/"):
            complaints.append(Complaint(where, "Path", f"{path!r} is no absolute path"))
        elif not wrong:
            exports.append(FoundExport(path, nfs, where))
    return GaneshaConf(tuple(exports), tuple(includes), tuple(complaints), tuple(paths), tuple(ids))


def _parse(tokens: list[_Token]) -> tuple[list[Block], list[str]]:
    """Blocks at the top, and the files that are included."""
    top, includes = Block("", 1), []
    stack = [top]
    at = 0

    def mark(offset: int, what: str) -> bool:
        return at + offset < len(tokens) and tokens[at + offset].is_mark(what)

    while at < len(tokens):
        token = tokens[at]
        if token.is_mark("}") and len(stack) > 1:
            stack.pop()
            at += 1
        elif token.is_mark(";"):
            at += 1
        elif token.text.startswith("%") and not token.quoted and at + 1 < len(tokens):
            if token.text not in ("%include", "%url"):
                raise _Odd(token.line, token.text, "no directive of Ganesha")
            includes.append(tokens[at + 1].text)
            at += 2
        elif mark(1, "{"):
            block = Block(token.text.casefold(), token.line)
            stack[-1].blocks.append(block)
            stack.append(block)
            at += 2
        elif mark(1, "=") and len(stack) > 1:
            at = _value(tokens, at, stack[-1])
        else:
            raise _Odd(token.line, token.text, "no NAME = VALUE; and no block")
    if len(stack) > 1:
        raise _Odd(stack[-1].line, stack[-1].name, "a block without its end")
    return top.blocks, includes


def _value(tokens: list[_Token], at: int, block: Block) -> int:
    """``NAME = A, B;``: the place behind it."""
    name = tokens[at]
    values: list[str] = []
    for index in range(at + 2, len(tokens)):
        token = tokens[index]
        if token.is_mark(";"):
            block.values[name.text.casefold()] = tuple(values)
            block.spelled[name.text.casefold()] = name.text
            return index + 1
        if token.is_mark("{") or token.is_mark("}") or token.is_mark("="):
            break
        if not token.is_mark(","):
            values.append(token.text)
    raise _Odd(name.line, name.text, "no ; at its end")


def _number(block: Block, key: str) -> int | None:
    words = block.values.get(key)
    if words is None:
        return None
    if len(words) != 1 or not re.fullmatch(r"-?[0-9]{1,10}", words[0]):
        raise _Odd(block.line, key, f"{' '.join(words)!r} is no number")
    return int(words[0]) % (1 << 32)


def _export(block: Block, values: dict[str, tuple[str, ...]], export_id: int) -> Nfs:
    """Raises _Odd: it says what `Nfs` can't."""
    clients: list[NfsClient] = []
    for inner in block.blocks:
        if inner.name == "client":
            clients += _clients(inner, values)
        elif inner.name == "fsal":
            name = inner.values.get("name", ("",))
            if [word.casefold() for word in name] != ["vfs"]:
                raise _Odd(inner.line, "FSAL", f"{' '.join(name)!r}: volumes are exported by VFS")
            odd = set(inner.values) - {"name", "fsid_type"}
            if odd or inner.blocks:
                raise _Odd(inner.line, "FSAL", f"{', '.join(sorted(odd)) or 'a block'} in it")
        else:
            raise _Odd(inner.line, inner.name, "a block that is not known here")
    if "clients" in values:
        clients.append(_client_of("*", block.line, values))
    access = _word(values, "access_type", _READ_ACCESS, "none", block.line)
    if access is not Access.NONE and all(client.who != "*" for client in clients):
        clients.append(_client_of("*", block.line, values))  # whoever is in no CLIENT block
    protocols = values.get("protocols") or values.get("nfs_protocols") or ("3", "4")
    versions = tuple(sorted({_version(word, block.line) for word in protocols}))
    extra = tuple(
        f"{block.spelled[key]} = {', '.join(words)}"
        for key, words in block.values.items()
        if key not in GANESHA_FIELDS
    )
    return Nfs(
        clients=tuple(clients),
        export_id=export_id,
        filesystem_id="".join(values.get("filesystem_id", ())),
        pseudo=" ".join(values.get("pseudo", ())),
        versions=versions,
        ganesha=tuple(line for line in extra if line != FRESH),
    )


def _version(word: str, line: int) -> int:
    number = word.casefold().removeprefix("nfs").removeprefix("v")
    if number not in ("3", "4"):
        raise _Odd(line, "Protocols", f"{word!r} is neither 3 nor 4")
    return int(number)


def _clients(block: Block, above: dict[str, tuple[str, ...]]) -> list[NfsClient]:
    values = {**above, **block.values}
    known = {"clients", "access_type", "squash", "sectype", "anonymous_uid", "anonymous_gid"}
    odd = set(block.values) - known - {"privilegedport", "protocols"}
    if odd or block.values.get("protocols", above.get("protocols")) != above.get("protocols"):
        raise _Odd(block.line, "CLIENT", f"{', '.join(sorted(odd)) or 'Protocols'} in it")
    return [_client_of(who, block.line, values) for who in block.values.get("clients", ())]


def _client_of(who: str, line: int, values: dict[str, tuple[str, ...]]) -> NfsClient:
    uid, gid = (_anonymous(values, f"anonymous_{key}", line) for key in ("uid", "gid"))
    return NfsClient(
        who=who,
        access=_word(values, "access_type", _READ_ACCESS, "none", line),
        squash=_word(values, "squash", _READ_SQUASH, "root_squash", line),
        anonymous_uid=uid,
        anonymous_gid=gid,
        security=tuple(word.casefold() for word in values.get("sectype", ("none", "sys"))),
        privileged_ports=_word(values, "privilegedport", _BOOLS, "false", line),
    )


_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


def _word(
    values: Mapping[str, tuple[str, ...]], key: str, words: Mapping[str, T], default: str, line: int
) -> T:
    said = " ".join(values.get(key, (default,)))
    try:
        return words[said.casefold()]
    except KeyError:
        raise _Odd(line, key, f"{said!r} is none of {', '.join(words)}") from None


def _anonymous(values: dict[str, tuple[str, ...]], key: str, line: int) -> int | None:
    """None: Ganesha's default, be it written or not."""
    number = _number(Block("", line, {key: values[key]}), key) if key in values else None
    return None if number == _ANONYMOUS else number
