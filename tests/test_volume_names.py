"""Listings from memory say what the table says, whatever changed in between."""

from __future__ import annotations

import random
import sqlite3

import pytest

from nasfs.volume import names as module
from nasfs.volume.names import Names
from nasfs.volume.schema import DDL, DIRENT
from nasfs.volume.table import Epochs, VersionedTable
from nasfs.volume.types import FIRST_COOKIE, Dirent, Epoch, Ino

MOUNT_BEGINS = 2
"""Behind the cookies of ``.`` and ``..``."""


class World:
    """Some directories, as `Names` has them and as a plain dictionary has them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = sqlite3.connect(":memory:")
        self.db.executescript(DDL)
        self.names = Names(self.db, VersionedTable(self.db, DIRENT, Epochs(5, 3)))
        self.model: dict[tuple[int, bytes], Dirent] = {}
        self.cookie = 2

    def next_cookie(self) -> int:
        self.cookie += self.random.randrange(1, 4)
        return self.cookie

    def make_directory(self) -> None:
        """One of the four goes, with its entries, and a new one has its number."""
        parent = self.random.randrange(4)
        for entry in self.expected(parent, 0):
            self.names.delete(entry)
            del self.model[entry.parent, entry.name]
        self.names.is_new(parent)

    def change(self) -> None:
        key = self.random.randrange(4), b"%d" % self.random.randrange(30)
        entry = self.model.get(key)
        if entry is None or self.random.random() < 0.1:
            self.put(Dirent(Ino(key[0]), key[1], Epoch(5), self.next_cookie(), Ino(9), 1))
        elif self.random.random() < 0.2:  # an exchange: the name means another inode
            self.put(Dirent(entry.parent, entry.name, Epoch(5), entry.cookie, Ino(10), 2))
        else:
            self.names.delete(entry)
            del self.model[key]

    def put(self, entry: Dirent) -> None:
        self.names.put(entry)
        self.model[entry.parent, entry.name] = entry

    def listing(self, parent: int, changes: float = 0.0) -> list[Dirent]:
        """Of one directory page by page, with changes between the pages."""
        found: list[Dirent] = []
        after = self.random.choice((0, MOUNT_BEGINS))
        while True:
            if not self.names.is_listed(parent):
                self.names.flush()
            page = self.names.page(parent, after, self.random.randrange(1, 9))
            assert page == self.expected(parent, after)[: len(page)]
            if not page:
                assert self.expected(parent, after) == []
                return found
            found += page
            after = page[-1].cookie
            if self.random.random() < changes:
                self.change()

    def expected(self, parent: int, after: int) -> list[Dirent]:
        here = [e for e in self.model.values() if e.parent == parent and e.cookie > after]
        return sorted(here, key=lambda entry: entry.cookie)


@pytest.mark.parametrize("seed", range(60))
def test_listings_follow_every_change(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 4)
    monkeypatch.setattr(module, "EMPTY", 1)
    monkeypatch.setattr(module, "LARGE", 20)
    monkeypatch.setattr(module, "LISTED", 32)
    world = World(seed)
    for _ in range(400):
        match world.random.randrange(12):
            case 0 | 1:
                found = world.listing(world.random.randrange(4), changes=0.3)
                assert len({entry.cookie for entry in found}) == len(found)
            case 2:
                world.names.flush()
            case 3:
                world.names.flush()
                world.names.forget()
            case 4 if world.random.random() < 0.2:
                world.make_directory()
            case _:
                world.change()
        name = b"%d" % world.random.randrange(30)
        assert world.names.get(1, name) == world.model.get((1, name))


def test_what_a_mount_lists_from_its_beginning_is_remembered() -> None:
    world = World(0)
    world.cookie = FIRST_COOKIE - 1
    for number in range(2 * module.PAGE):
        world.put(Dirent(Ino(1), b"%d" % number, Epoch(5), world.next_cookie(), Ino(9), 1))
    world.names.flush()
    world.names.forget()  # as after mounting
    after = MOUNT_BEGINS
    while page := world.names.page(1, after, 100):
        after = page[-1].cookie
    assert world.names.is_listed(1)
    world.db.execute("DELETE FROM dirent")
    assert world.names.page(1, MOUNT_BEGINS, 3) == world.expected(1, 0)[:3]


def test_an_entry_of_another_site_may_have_any_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0)
    for cookie in (10, 30, 20, 5):
        world.put(Dirent(Ino(1), b"%d" % cookie, Epoch(5), cookie, Ino(9), 1))
        assert [entry.cookie for entry in world.listing(1)] == sorted(
            entry.cookie for entry in world.model.values()
        )


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED", 100)
    world = World(0)
    for parent in range(200):
        for number in range(parent % 5):
            cookie = world.next_cookie()
            world.put(Dirent(Ino(parent), b"%d" % number, Epoch(5), cookie, Ino(9), 1))
        world.listing(parent)
    remembered = [parent for parent in range(200) if world.names.is_listed(parent)]
    assert 0 < len(remembered) <= 100 // module.EMPTY
    assert remembered[-1] == 199  # the oldest ones went
