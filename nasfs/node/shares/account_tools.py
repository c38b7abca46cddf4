"""Making and taking away users and groups of the machine, through its own tools.

Each function ends in the same state when it is called again.  An account that is made cannot be
logged in to: it has no password of the system's, and no home is made.
"""

from __future__ import annotations

import re

from nasfs.errors import Failed
from sharecfg.accounts import Group, User

from .local_accounts import read_accounts
from .share_servers import run_tool

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
_FIELD = re.compile(r"[^:\x00-\x1f\x7f]*")


def create_group(group: Group) -> None:
    """With its number, without members.

    Raises:
        Failed: the name has another number, the number another name, or groupadd refuses.
    """
    _check(group.name)
    here = read_accounts().group(group.name)
    if here is None:
        _run("groupadd", "-g", str(group.gid), group.name)
    elif here.gid != group.gid:
        raise Failed(f"group {group.name} is {here.gid} here, not {group.gid}")


def create_user(user: User) -> None:
    """With its numbers.  Raises Failed, as `create_group`."""
    _check(user.name, user.gecos, user.home, user.shell)
    here = read_accounts().user(user.name)
    if here is not None:
        if here.uid != user.uid:
            raise Failed(f"user {user.name} is {here.uid} here, not {user.uid}")
        return
    words = ["-u", str(user.uid), "-g", str(user.gid), "-M", "-N", "-c", user.gecos]
    words += ["-d", user.home or "/nonexistent"]
    if user.shell:
        words += ["-s", user.shell]
    _run("useradd", *words, user.name)


def add_member(group: str, user: str) -> None:
    _check(group)
    _check(user)
    here = read_accounts().group(group)
    if here is None or user not in here.members:
        _run("gpasswd", "-a", user, group)


def remove_member(group: str, user: str) -> None:
    here = read_accounts().group(group)
    if here is not None and user in here.members:
        _run("gpasswd", "-d", user, group)


def remove_user(user: User) -> None:
    """If it still is that user.  Raises Failed: somebody is logged in as that user."""
    here = read_accounts().user(user.name)
    if here is not None and here.uid == user.uid:
        _run("userdel", user.name)


def remove_group(group: Group) -> None:
    """If it still is that group and has no members that others gave it."""
    accounts = read_accounts()
    here = accounts.group(group.name)
    primary = any(user.gid == group.gid for user in accounts.users)
    if here is not None and here.gid == group.gid and not here.members and not primary:
        _run("groupdel", group.name)


def _check(name: str, *fields: str) -> None:
    if not _NAME.fullmatch(name):
        raise Failed(f"{name!r} can't be the name of a user or group here")
    for field in fields:
        if not _FIELD.fullmatch(field):
            raise Failed(f"{field!r} can't stand in passwd(5)")


def _run(tool: str, *words: str) -> None:
    done = run_tool([tool, *words])
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(said[-1] if said else f"{tool} ended with {done.returncode}")
