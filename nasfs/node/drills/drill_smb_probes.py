"""Tries the shares of a test with smbclient, as one of the people who may use them.

It logs in with the hash of the password that Samba keeps: what people will log in with.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nasfs.errors import Failed
from sharecfg.model import Access, Guests, Share, Smb

from ..context import Node
from ..shares.share_servers import run_tool
from .drill_samba import conf_of
from .drill_shares import missing_accounts, shares_of
from .drill_table import Drill, DrillShare, Probe

TRIED = 50
"""So many files are tried until one is found that may be read."""
SMALL = 16 << 20
NOT_FOR_SMB = frozenset('"\\:*?<>|;')
GUEST = "nobody"


@dataclass(frozen=True, slots=True)
class _Account:
    """Somebody whom Samba knows; *nt_hash* empty: a guest."""

    user: str
    nt_hash: str


def probe_shares(node: Node, drill: Drill) -> tuple[Probe, ...]:
    """Log in and list, read, and write, of each share."""
    return tuple(_probes(node, drill))


def _probes(node: Node, drill: Drill) -> Iterator[Probe]:
    known = {drill.prefix + share.name: share for share in shares_of(node, drill)}
    accounts: list[_Account] | None = None
    for served in drill.shares:
        share = known.get(served.name)
        if served.note or share is None or share.smb is None:
            yield Probe(served.name, "SMB", "not tried", served.note or "the share has gone")
            continue
        if shutil.which("smbclient") is None:
            yield Probe(served.name, "SMB", "not tried", "smbclient is not installed")
            continue
        accounts = _accounts(conf_of(drill)) if accounts is None else accounts
        account = _who(share.smb, accounts)
        if account is None:
            yield _nobody(node, drill, served, share.smb)
            continue
        yield from _Tries(drill, served, share, account).all()


def _nobody(node: Node, drill: Drill, served: DrillShare, smb: Smb) -> Probe:
    """No account here may use the share; perhaps one that a failover would make."""
    coming = [_Account(name, "") for name in missing_accounts(node, drill)]
    if (who := _who(smb, coming)) is not None and who.user:
        detail = f"{who.user} may use it, and is made here by a failover, not by a test"
        return Probe(served.name, "SMB", "not tried", detail)
    detail = "Samba has no account here that may use the share"
    return Probe(served.name, "SMB", "failed", detail)


def _accounts(conf: Path) -> list[_Account]:
    found = []
    for line in run_tool(["pdbedit", "-s", str(conf), "-L", "-w"]).stdout.splitlines():
        fields = line.split(":")  # smbpasswd(5)
        if (
            len(fields) >= 5
            and set(fields[3]) != {"X"}
            and "U" in fields[4]
            and "D" not in fields[4]
        ):
            found.append(_Account(fields[0], fields[3]))
    return found


def _who(smb: Smb, accounts: list[_Account]) -> _Account | None:
    """The first account that may use the share; one that may also write, if there is one."""
    if smb.guests is Guests.ONLY:
        return _Account("", "")
    may = [
        one
        for one in accounts
        if (not smb.users or _named(one.user, (*smb.users, *smb.admins)))
        and not _named(one.user, smb.denied_users)
    ]
    may.sort(key=lambda one: not _may_write(smb, one.user))
    if not may and smb.guests is Guests.YES:
        return _Account("", "")
    return may[0] if may else None


def _may_write(smb: Smb, user: str) -> bool:
    if _named(user, (*smb.writers, *smb.admins)):
        return True
    return smb.access is not Access.READ_ONLY and not _named(user, smb.readers)


def _named(user: str, names: tuple[str, ...]) -> bool:
    """As in smb.conf: users, and groups behind @, + or &."""
    for name in names:
        group = name.lstrip("@+&")
        if group == name and name.casefold() == user.casefold():
            return True
        if group != name:
            with suppress(KeyError):
                found, gid = grp.getgrnam(group), pwd.getpwnam(user).pw_gid
                if user in found.gr_mem or gid == found.gr_gid:
                    return True
    return False


class _Tries:
    """One share, as one account."""

    def __init__(self, drill: Drill, served: DrillShare, share: Share, account: _Account) -> None:
        self._drill = drill
        self._served = served
        self._root = Path(served.path)
        assert share.smb is not None
        self._smb = share.smb
        self._account = account
        self._mark = f".nasfs-test-{drill.id}"
        self._scratch = Path(drill.home) / "probe"
        self._who = account.user or "a guest"

    def all(self) -> Iterator[Probe]:
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        yield self._try("SMB log in, list", self._list)
        yield self._try("SMB read", self._read)
        by_share = not self._account.user or _may_write(self._smb, self._account.user)
        if not (by_share and self._may("-w", self._root)):
            yield self._try("SMB write is denied", self._denied)
        else:
            yield self._try("SMB write", self._write)

    def _try(self, what: str, does: Callable[[], str]) -> Probe:
        began = time.monotonic()
        try:
            detail, result = does(), "ok"
        except (OSError, Failed) as exc:
            detail, result = f"as {self._who}: {exc}", "failed"
        return Probe(self._served.name, what, result, detail, time.monotonic() - began)

    def _client(self, command: str) -> str:
        """What smbclient says.  Raises Failed if it fails."""
        words = [
            "smbclient", "-s", str(conf_of(self._drill)), "-p", str(self._drill.port),
            f"//{self._drill.listen}/{self._served.name}", "-c", command,
        ]  # fmt: skip
        if self._account.user:
            login = self._scratch / "login"
            login.touch(mode=0o600)
            login.write_text(
                f"username = {self._account.user}\npassword = {self._account.nt_hash}\n"
            )
            words += ["-A", str(login), "--pw-nt-hash"]
        else:
            words += ["-N"]
        done = run_tool(words)
        said = (done.stdout + done.stderr).strip()
        if done.returncode != 0 or "NT_STATUS_" in said:
            raise Failed(said.splitlines()[-1] if said else "smbclient said nothing")
        return said

    def _list(self) -> str:
        lines = self._client("ls").splitlines()
        return f"as {self._who}: {len(lines)} lines"

    def _read(self) -> str:
        path = self._readable()
        if path is None:
            return f"there is no file that {self._who} may read"
        name = str(path.relative_to(self._root)).replace("/", "\\")
        got = self._scratch / "got"
        got.unlink(missing_ok=True)
        self._client(f'get "{name}" "{got}"')
        if got.read_bytes() != path.read_bytes():
            raise Failed(f"{name} is not what it is on the disk")
        return f"as {self._who}: {name}, {got.stat().st_size} bytes"

    def _write(self) -> str:
        new, back = self._scratch / "new", self._scratch / "back"
        data = f"written by a test failover at {time.time_ns()}\n".encode() * 100
        new.write_bytes(data)
        back.unlink(missing_ok=True)
        self._client(f'put "{new}" {self._mark}; get {self._mark} "{back}"; del {self._mark}')
        if back.read_bytes() != data:
            raise Failed("what was written is not what is read back")
        return f"as {self._who}: {len(data)} bytes written, read back and removed"

    def _denied(self) -> str:
        new = self._scratch / "new"
        new.write_bytes(b"this must not be written\n")
        try:
            self._client(f'put "{new}" {self._mark}')
        except Failed as exc:
            return f"as {self._who}: {exc}"
        raise Failed("who may only read has written a file")

    def _readable(self) -> Path | None:
        """A small file near the top that this account may read."""
        tried = 0
        for directory, directories, files in os.walk(self._root):
            directories.sort()
            for name in sorted(files):
                path = Path(directory) / name
                if tried == TRIED:
                    return None
                if name.isascii() and not set(name) & NOT_FOR_SMB and _is_small_file(path):
                    tried += 1
                    if self._may("-r", path):
                        return path
        return None

    def _may(self, access: str, path: Path) -> bool:
        """Whether the file system lets the account do that: asked as that user."""
        user = self._smb.force_user or self._account.user or GUEST
        if _named(self._account.user, self._smb.admins):
            user = "root"
        try:
            gid = pwd.getpwnam(user).pw_gid
        except KeyError:
            return False
        words = ["setpriv", f"--reuid={user}", f"--regid={gid}", "--init-groups", "--"]
        return run_tool([*words, "test", access, str(path)]).returncode == 0


def _is_small_file(path: Path) -> bool:
    at = path.lstat()
    return stat.S_ISREG(at.st_mode) and at.st_size < SMALL
