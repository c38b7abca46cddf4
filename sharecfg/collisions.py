"""Numbers of the partner that mean somebody else here, and which stand for them.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from msgspec.structs import replace

from .accounts import Accounts, Group, User
from .merge_accounts import group_problem, user_problem

T = TypeVar("T", User, Group)

FIRST, LAST = 1000, 59_999
"""Numbers for people (login.defs(5))."""


def plan_numbers(
    here: Accounts, staged: Accounts, uids: Iterable[int], gids: Iterable[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """By the partner's number, the one that its user or group has here, where that is another.

    Whose name is here keeps the number of here; who is missing, and whose number is somebody
    else's, gets a free one.

    Args:
        uids, gids: numbers that the files use: none of them is free.
    """
    users = _numbers(
        [(user.uid, here.user(user.name)) for user in staged.users if user_problem(user, here)],
        {*uids, *(user.uid for user in (*here.users, *staged.users))},
        lambda user: user.uid,
    )
    groups = _numbers(
        [(one.gid, here.group(one.name)) for one in staged.groups if group_problem(one, here)],
        {*gids, *(one.gid for one in (*here.groups, *staged.groups))},
        lambda group: group.gid,
    )
    return users, groups


def _numbers(
    colliding: Iterable[tuple[int, T | None]], taken: set[int], number: Callable[[T], int]
) -> dict[int, int]:
    found: dict[int, int] = {}
    for staged, mine in colliding:
        if mine is None:
            found[staged] = _free(taken)
            taken.add(found[staged])
        elif number(mine) not in found.values():
            found[staged] = number(mine)
    return found


def _free(taken: set[int]) -> int:
    used = [number for number in taken if FIRST <= number <= LAST]
    highest = max(used, default=FIRST - 1)
    if highest < LAST:
        return highest + 1
    return next(number for number in range(LAST, 0, -1) if number not in taken)


def with_numbers(
    accounts: Accounts, uids: Callable[[int], int], gids: Callable[[int], int]
) -> Accounts:
    """The same people under other numbers."""
    return Accounts(
        users=tuple(replace(u, uid=uids(u.uid), gid=gids(u.gid)) for u in accounts.users),
        groups=tuple(replace(one, gid=gids(one.gid)) for one in accounts.groups),
    )


def tell(staged: Accounts, uids: Mapping[int, int], gids: Mapping[int, int]) -> list[str]:
    """A line for each number that stands for another one."""
    lines = [
        f"user {user.name} is {user.uid} there and {uids[user.uid]} here: the mount translates"
        for user in staged.users
        if user.uid in uids
    ]
    return lines + [
        f"group {one.name} is {one.gid} there and {gids[one.gid]} here: the mount translates"
        for one in staged.groups
        if one.gid in gids
    ]
