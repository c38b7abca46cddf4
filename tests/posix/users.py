"""Acting as other users: the effective ids of this process, for the time of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class User(NamedTuple):
    """Who does it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary ones."""


ROOT = User(0, 0)
ALICE = User(65_501, 65_501)
BOB = User(65_502, 65_502)
TEAM = 65_510
"""A group."""
BOB_IN_TEAM = BOB._replace(groups=(65_511, TEAM))


@contextmanager
def acting_as(user: User, umask: int = 0) -> Iterator[None]:
    """The block runs with the ids and the umask, and without root's capabilities."""
    groups, old_umask = os.getgroups(), os.umask(umask)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
        os.umask(old_umask)
