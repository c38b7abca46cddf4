"""What travels with a snap group beside its files: shares, accounts, secrets, policies.  Pure.

    nasfs-shares 1\\n          the first line: what it is, and its version
    {...}                      JSON, keys in order: the same content is the same bytes

A payload is known by the SHA-256 of all of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import msgspec

from nasfs.errors import Failed

from .accounts import Accounts, Directory, Group, User
from .model import Share, Value

HEAD = b"nasfs-shares 1\n"


class SmbAccount(Value, frozen=True):
    """An account of Samba's own, for a local user.  `hashes` is as good as the password."""

    name: str
    rid: int
    """The last number of its SID; the others are the machine's."""
    hashes: str = ""
    """What pdbedit(8) exports behind the number: ``LANMAN:NT:[FLAGS]:LCT-TIME:``."""

    def __repr__(self) -> str:
        return f"SmbAccount({self.name!r}, rid={self.rid})"

    __str__ = __repr__


class Following(Value, frozen=True):
    """A snapshot policy of the group, without its hooks."""

    uuid: str
    name: str
    spec: str
    """As the scheduler stores it: JSON."""
    paused: bool = False
    hooks: bool = False
    """It has some where it comes from."""


class Payload(Value, frozen=True):
    """What belongs to a group beside its files, as its active node sees it."""

    shares: tuple[Share, ...] = ()
    """Of the group's volumes, by name."""
    accounts: Accounts = Accounts()
    """Local ones that the shares name or the files use."""
    smb_accounts: tuple[SmbAccount, ...] = ()
    machine_sid: str = ""
    """Of the node, in the SIDs of its local accounts; empty: there is no Samba."""
    directory: Directory = Directory()
    policies: tuple[Following, ...] = ()

    def without_secrets(self) -> Payload:
        """For people and logs."""
        bare = tuple(SmbAccount(name=one.name, rid=one.rid) for one in self.smb_accounts)
        return msgspec.structs.replace(self, smb_accounts=bare)


def encode_payload(payload: Payload) -> bytes:
    return HEAD + msgspec.json.encode(payload, order="deterministic")


def decode_payload(data: bytes) -> Payload:
    """Raises Failed if it is not one that this release knows."""
    if not data.startswith(HEAD):
        raise Failed(
            "the partner's share configuration is of another version",
            hint="install the same release of nasfs on both nodes",
        )
    try:
        payload = msgspec.json.decode(data[len(HEAD) :], type=Payload)
    except (msgspec.ValidationError, msgspec.DecodeError):
        # What it says may quote what it read.
        raise Failed("the partner's share configuration cannot be read") from None
    if not _is_possible(payload):
        raise Failed("the partner's share configuration has numbers that cannot be")
    return payload


def _is_possible(payload: Payload) -> bool:
    accounts = payload.accounts
    numbers = [
        *(number for user in accounts.users for number in (user.uid, user.gid)),
        *(group.gid for group in accounts.groups),
        *(account.rid for account in payload.smb_accounts),
    ]
    return all(0 <= number < (1 << 32) - 1 for number in numbers) and (
        not payload.machine_sid or _is_sid(payload.machine_sid)
    )


def _is_sid(text: str) -> bool:
    return bool(_SID.fullmatch(text)) and all(int(n) < 1 << 32 for n in text.split("-")[4:])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_SID = re.compile(r"S-1-5-21-[0-9]{1,10}-[0-9]{1,10}-[0-9]{1,10}")
_HASHES = re.compile(r"[^:\n]*:[^:\n]*:\[[^]\n]*\]:[^:\n]*:")


def check_hashes(text: str) -> bool:
    """It can stand in a line of smbpasswd(5), and nothing beside it."""
    return bool(_HASHES.fullmatch(text))


def differences(staged: Payload, own: Payload) -> Iterator[str]:
    """What the partner's says otherwise than this node's own, a line each; no secrets."""
    yield from _sets("share", _shares(staged.shares), _shares(own.shares))
    yield from _sets(
        "user", {u.name: _user(u) for u in staged.accounts.users},
        {u.name: _user(u) for u in own.accounts.users}, only_there=True,
    )  # fmt: skip
    yield from _sets(
        "group", {g.name: _group(g) for g in staged.accounts.groups},
        {g.name: _group(g) for g in own.accounts.groups}, only_there=True,
    )  # fmt: skip
    yield from _smb_accounts(staged.smb_accounts, own.smb_accounts)
    if staged.machine_sid and own.machine_sid and staged.machine_sid != own.machine_sid:
        yield f"machine SID: {staged.machine_sid} there, {own.machine_sid} here"


def _sets(
    what: str,
    there: dict[str, dict[str, object]],
    here: dict[str, dict[str, object]],
    *,
    only_there: bool = False,
) -> Iterator[str]:
    for name in sorted({*there, *here}):
        one, other = there.get(name), here.get(name)
        if other is None:
            yield f"{what} {name}: only there"
        elif one is None:
            if not only_there:
                yield f"{what} {name}: only here"
        else:
            for key in sorted({*one, *other}):
                a, b = one.get(key), other.get(key)
                if a != b:
                    yield f"{what} {name}: {key}: {_say(a)} there, {_say(b)} here"


def _say(value: object) -> str:
    return "(default)" if value is None else msgspec.json.encode(value).decode()


def _shares(shares: Iterable[Share]) -> dict[str, dict[str, object]]:
    """Flat: smb.users, nfs.clients, ..."""
    found: dict[str, dict[str, object]] = {}
    for share in shares:
        flat: dict[str, object] = {}
        for key, value in msgspec.to_builtins(share).items():
            if isinstance(value, dict):
                flat[key] = "yes"
                flat.update({f"{key}.{name}": one for name, one in value.items()})
            else:
                flat[key] = value
        found[share.key] = flat
    return found


def _user(user: User) -> dict[str, object]:
    return {"uid": user.uid, "gid": user.gid, "home": user.home, "shell": user.shell}


def _group(group: Group) -> dict[str, object]:
    return {"gid": group.gid, "members": sorted(group.members)}


def _smb_accounts(there: Iterable[SmbAccount], here: Iterable[SmbAccount]) -> Iterator[str]:
    own = {one.name: one for one in here}
    for account in there:
        mine = own.get(account.name)
        if mine is None:
            yield f"SMB account {account.name}: only there"
        elif _nt(mine.hashes) != _nt(account.hashes):
            yield f"SMB account {account.name}: another password"


def _nt(hashes: str) -> str:
    return hashes.split(":")[1] if ":" in hashes else ""
