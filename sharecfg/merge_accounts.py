"""Which of the partner's accounts are made on this node, and which are in the way.  Pure.

A number stays: files carry it, and NFS clients send it.  So an account whose number belongs to
somebody else here is told and never made under another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from .accounts import Accounts, Group, User, names_in
from .model import Share
from .steps import AccountStep, AddMember, Conflict, CreateGroup, CreateUser, Kind


def plan_accounts(
    here: Accounts, staged: Accounts, shares: Iterable[Share]
) -> tuple[list[AccountStep], list[Conflict]]:
    """Missing groups and users with their numbers; what collides is told and left alone.

    Args:
        shares: what is merged: who is named there and is nowhere known is told.
    """
    steps: list[AccountStep] = []
    conflicts: list[Conflict] = []
    for group in staged.groups:
        if problem := group_problem(group, here):
            conflicts.append(problem)
        elif here.group(group.name) is None:
            steps.append(CreateGroup(replace(group, members=())))
    for user in staged.users:
        if problem := user_problem(user, here):
            conflicts.append(problem)
        elif here.user(user.name) is None:
            steps.append(CreateUser(user))
    users = {*(one.name for one in here.users), *_created(steps)}
    for group in staged.groups:
        mine = here.group(group.name)
        if group_problem(group, here) is None:
            there = mine.members if mine else ()
            missing = [name for name in group.members if name in users and name not in there]
            steps += [AddMember(group.name, name) for name in missing]
    return steps, [*conflicts, *_missing(here, staged, shares)]


def _created(steps: Iterable[AccountStep]) -> set[str]:
    return {step.user.name for step in steps if isinstance(step, CreateUser)}


def user_problem(user: User, here: Accounts) -> Conflict | None:
    """Why a user of the partner can't simply have its number here."""
    mine, holder = here.user(user.name), here.user_of(user.uid)
    own = mine.uid if mine else None
    return _number_problem("user", user.name, user.uid, own, holder.name if holder else None)


def group_problem(group: Group, here: Accounts) -> Conflict | None:
    mine, holder = here.group(group.name), here.group_of(group.gid)
    own = mine.gid if mine else None
    return _number_problem("group", group.name, group.gid, own, holder.name if holder else None)


def _number_problem(
    what: str, name: str, number: int, mine: int | None, holder: str | None
) -> Conflict | None:
    if mine == number:
        return None
    if mine is not None:
        reason = f"is {number} there and {mine} here"
    elif holder is not None:
        reason = f"is {number} there, which is {holder} here"
    else:
        return None
    return Conflict(Kind.NUMBER, f"{what} {name}", reason, "left as it is here")


def _missing(here: Accounts, staged: Accounts, shares: Iterable[Share]) -> Iterator[Conflict]:
    users, groups = names_in(shares)
    known_users = {one.name for one in (*here.users, *staged.users)}
    known_groups = {one.name for one in (*here.groups, *staged.groups)}
    missing = [("group", name) for name in sorted(groups - known_groups)]
    missing += [("user", name) for name in sorted(users - known_users)]
    for what, name in missing:
        reason = "is neither here nor staged"
        yield Conflict(Kind.ACCOUNT, f"{what} {name}", reason, "the share is merged all the same")
