"""Bringing a file or a tree back from a snapshot: by reference where possible, and as a whole.

Theory of operation.  A layer file belongs to one inode number, so blocks can be shared with a
snapshot only under that number.  Each inode of the wanted tree takes one of three ways:

- *kept*: it lives, and nothing but the tree that is replaced names it.  Its attributes and its
  block map go back to the snapshot's, as in a rollback, but of this inode alone.
- *revived*: nothing live has its number.  It is the same file again, under its old number and
  generation, and its map names the snapshot's layers.
- *copied*: its number is in use elsewhere.  A new inode gets its blocks, run by run; holes stay.

`stage` makes what is revived and copied without names, as files are that were unlinked while they
are open: nobody sees them, deltas leave them out, and after a crash opening removes them.  It goes
in bounded steps, and others may change the volume between two of them.  `ready` and `apply` then
take place at one instant: names appear, those that are replaced go, and kept inodes change, in
one transaction.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import msgspec

from nasfs.errors import Failed, Refused
from nasfs.volume.errors import FsError, NoSuchSnapshot
from nasfs.volume.room import Kind
from nasfs.volume.space import by_layer, only_in
from nasfs.volume.store import Leaf
from nasfs.volume.types import BLOCK, ROOT_INO, Dirent, Ino, Inode, Layer
from nasfs.volume.view import AsOf, View, mapped_runs
from nasfs.volume.volume import Volume

_replace = msgspec.structs.replace

OBJECTS_MAX = 250_000
"""Files and directories that one restore may bring back, or replace.

All are kept in mind, at about 2 KB each, and requests wait while their names appear.
"""

CHUNK = 1 << 20
"""Bytes copied in one step."""

INODES_A_STEP = 64

PathName = tuple[bytes, ...]
Entry = tuple[int, bytes]
"""(directory, name)"""

Step = Callable[[], None]
"""What may be done in a thread before the next step: bringing data into the host's memory."""

Keeping = Callable[[Ino], AbstractContextManager[None]]
"""Entered where an inode loses its last name, by who wants it to live on while it is known."""


class Way(Enum):
    """How an inode comes back."""

    KEPT = "kept"
    REVIVED = "revived"
    COPIED = "copied"


class Summary(msgspec.Struct, frozen=True):
    """What a restore does, before it is done."""

    files: int
    """All but directories."""
    directories: int
    shared_bytes: int
    """In blocks that the restored files share with the snapshot."""
    copied_bytes: int
    replaced: int
    """Live files and directories in the place; 0 if it is free."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What is another than before, for who remembers it."""

    inodes: list[int]
    entries: list[Entry]


@dataclass(slots=True)
class _Tree:
    """A file, or a directory and all below it, in one view."""

    top: int
    inodes: dict[int, Inode] = field(default_factory=dict)
    entries: dict[Entry, Dirent] = field(default_factory=dict)
    """All but the one of the top."""
    names: Counter[int] = field(default_factory=Counter)
    """Names of each inode within the tree, the top's included."""
    subdirectories: Counter[int] = field(default_factory=Counter)

    def walk(self, view: View) -> Iterator[None]:
        """Read it, a page at each step."""
        top = view.getattr(self.top)
        self.inodes[self.top] = top
        self.names[self.top] += 1
        waiting = [self.top] if top.is_dir else []
        while waiting:
            directory = waiting.pop()
            after = 0
            while page := view.readdir(directory, after, 256):
                for entry, inode in page:
                    self.inodes[inode.ino] = inode
                    self.entries[directory, entry.name] = entry
                    self.names[inode.ino] += 1
                    if inode.is_dir:
                        self.subdirectories[directory] += 1
                        waiting.append(inode.ino)
                after = page[-1][0].cookie
                if len(self.inodes) > OBJECTS_MAX:
                    raise Refused(
                        f"more than {OBJECTS_MAX} files and directories are too many for one step",
                        hint="restore its directories one by one, or roll the volume back",
                    )
                yield


class Restore:
    """One file or tree on its way back.

    Args:
        source: the path in the snapshot.
        target: the path in the live view; the directory above it must be there.
        replace: what is at *target* may go.
    """

    def __init__(
        self, volume: Volume, snapshot: str, source: PathName, target: PathName, *, replace: bool
    ) -> None:
        self._volume = volume
        self._store = volume._store
        self._snapshot = volume.snapshot(snapshot)
        self._view = AsOf(volume._store, volume._layers, self._snapshot.epoch)
        self._source = source
        self._target = target
        self._replace = replace
        if not source or not target:
            raise Refused(
                "the root of a volume can't be restored as a tree",
                hint="roll the volume back instead: nasfs snapshot rollback",
            )
        self._then = _Tree(self._find(self._view, source, f"snapshot {snapshot}").ino)
        self._ways: dict[int, Way] = {}
        self._numbers: dict[int, int] = {}
        """From the snapshot's inode numbers to those that they have now."""
        self._staged: list[int] = []
        self._now: _Tree | None = None
        self._place = self._find_place()

    # the plan

    @staticmethod
    def _find(view: View, path: PathName, where: str) -> Inode:
        inode = view.getattr(ROOT_INO)
        for depth, name in enumerate(path):
            entry = view._dirent(inode.ino, name) if inode.is_dir else None
            if entry is None:
                shown = b"/".join(path[: depth + 1]).decode("utf-8", "backslashreplace")
                raise Failed(f"{where} has no {shown}")
            inode = view.getattr(entry.ino)
        return inode

    def _find_place(self) -> tuple[int, Dirent | None]:
        """The live directory, and the entry that is in the way.  Checks whether it may go."""
        above = self._find(self._volume, self._target[:-1], f"volume {self._volume.name}")
        shown = b"/".join(self._target).decode("utf-8", "backslashreplace")
        if not above.is_dir:
            raise Failed(f"{shown}: what is above it is no directory")
        self._volume._check_name(self._target[-1])
        entry = self._volume._dirent(above.ino, self._target[-1])
        if entry is not None and not self._replace:
            raise Refused(
                f"{shown} is there already",
                hint="restore to another path with --to, or name the loss with --replace",
            )
        return above.ino, entry

    def plan(self) -> Iterator[Step]:
        """Read both trees and choose the ways."""
        yield from map(_nothing_first, self._then.walk(self._view))
        now = _Tree(0 if self._place[1] is None else self._place[1].ino)
        try:
            if now.top:
                yield from map(_nothing_first, now.walk(self._volume))
        except FsError as exc:  # a directory that was to be read next is gone
            raise _changed() from exc
        for number, (ino, then) in enumerate(self._then.inodes.items()):
            self._ways[ino] = self._way(then, now)
            if number % INODES_A_STEP == 0:
                yield _nothing
        self._replaced = len(now.inodes)

    def _way(self, then: Inode, now: _Tree) -> Way:
        live = self._volume._inode(then.ino)
        if live is None:
            return Way.REVIVED
        return Way.KEPT if _may_be_kept(then, live, now) else Way.COPIED

    def summary(self) -> Summary:
        """After `plan`."""
        inodes = self._then.inodes
        size = dict.fromkeys(Way, 0)
        for ino, way in self._ways.items():
            size[way] += inodes[ino].blocks * BLOCK
        directories = sum(inode.is_dir for inode in inodes.values())
        return Summary(
            files=len(inodes) - directories,
            directories=directories,
            shared_bytes=size[Way.KEPT] + size[Way.REVIVED],
            copied_bytes=size[Way.COPIED],
            replaced=self._replaced,
        )

    # aside

    def stage(self) -> Iterator[Step]:
        """Make what does not live, without names."""
        if Way.REVIVED in self._ways.values():
            self._volume._begin(Kind.ADDS)
            self._store.came_back(self._snapshot.epoch)
        for number, (ino, way) in enumerate(self._ways.items()):
            then = self._then.inodes[ino]
            match way:
                case Way.KEPT:
                    self._numbers[ino] = ino
                case Way.REVIVED:
                    self._revive(then)
                case Way.COPIED:
                    yield from self._copy(then)
            if number % INODES_A_STEP == 0:
                yield _nothing

    def _revive(self, then: Inode) -> None:
        self._volume._begin(Kind.ADDS)
        if self._volume._inode(then.ino) is not None:
            raise _changed()
        inode = _replace(self._with_map(None, then), born=self._volume.epoch, nlink=0)
        self._store.inode.put(inode.ino, inode)
        self._add_aside(then, inode)

    def _copy(self, then: Inode) -> Iterator[Step]:
        volume, store = self._volume, self._store
        volume._begin(Kind.ADDS)
        inode = _replace(
            then,
            ino=volume._allocate_ino(),
            born=volume.epoch,
            generation=1,
            nlink=0,
            size=0 if then.is_file else then.size,
            layer=Layer(0),
            layer_end=0,
            leaves=0,
            blocks=0,
        )
        store.inode.put(inode.ino, inode, new=True)
        store.xattr.is_new(inode.ino)
        if then.is_dir:
            store.dirent.is_new(inode.ino)
        self._add_aside(then, inode)
        if not then.is_file:
            return
        for run in mapped_runs(self._view, then):
            start, end = run.start * BLOCK, min(run.stop * BLOCK, then.size)
            for offset in range(start, end, CHUNK):
                length = min(CHUNK, end - offset)
                yield partial(volume._layers.fetch, (then.ino, run.layer), length, offset)
                data = volume._layers.read(then.ino, run.layer, length, offset)
                self._write(inode.ino, offset, data)
        volume._begin()
        inode = _replace(volume.getattr(inode.ino), born=volume.epoch)
        store.inode.put(inode.ino, volume._data.truncate(inode, then.size))

    def _write(self, ino: int, offset: int, data: bytes) -> None:
        volume = self._volume
        volume._begin(Kind.ADDS, len(data))
        inode = _replace(volume.getattr(ino), born=volume.epoch)
        self._store.inode.put(ino, volume._data.write(inode, offset, data))

    def _add_aside(self, then: Inode, inode: Inode) -> None:
        """The new row is stored; everything beside it."""
        self._store.orphan.add((inode.ino,))
        self._store.counters.inodes += 1
        self._staged.append(inode.ino)
        self._numbers[then.ino] = inode.ino
        with self._store.sql_errors():
            for name, value in self._xattrs(then.ino).items():
                self._store.xattr.put(inode.ino, name, self._volume.epoch, value)

    def _xattrs(self, ino: int) -> dict[bytes, bytes]:
        rows = self._store.xattrs.scan_at("ino = ?", (ino,), self._view.epoch)
        return {row[1]: row[3] for row in rows}

    def _with_map(self, now: Inode | None, then: Inode) -> Inode:
        """*then* with leaf rows and the account of space moved to its map; the caller stores it."""
        if not then.is_file:
            return then
        volume, store, ino = self._volume, self._store, then.ino
        ours = {} if now is None else by_layer(mapped_runs(volume, now))
        theirs = by_layer(mapped_runs(self._view, then))
        volume._space.regained(only_in(theirs, ours))
        volume._space.dropped(ino, only_in(ours, theirs))
        leaves = dict(self._view._leaves(ino, 0, 1 << 40)) if then.leaves else {}
        for region in volume.leaf_regions(ino, 0) if now is not None and now.leaves else ():
            if region not in leaves:
                store.leaf.delete((ino, region))
        for region, value in leaves.items():
            leaf = store.leaf.get((ino, region))
            if leaf is None or leaf.map != value:
                store.leaf.put((ino, region), Leaf(ino, region, volume.epoch, value))
        return then

    def abandon(self) -> Iterator[Step]:
        """What was staged goes."""
        while self._staged and self._volume.writable:
            for ino in self._staged[-INODES_A_STEP:]:
                inode = self._volume._inode(ino)
                if inode is not None and inode.nlink == 0:
                    self._volume._begin(Kind.REMOVES)
                    self._volume._remove_orphan(inode)
            del self._staged[-INODES_A_STEP:]
            yield _nothing

    # the instant

    def ready(self) -> bool:
        """Look at everything once more, change nothing; whether something live will be replaced.

        To be called at the instant of `apply`, before it.

        Raises:
            Refused, Failed: it can't be done, or not any more.
        """
        if self._snapshot.epoch not in self._store.sealed:
            raise NoSuchSnapshot(f"the snapshot {self._snapshot.name} was destroyed meanwhile")
        self._place = self._find_place()
        entry = self._place[1]
        self._now = now = _Tree(0 if entry is None else entry.ino)
        if now.top:
            for _ in now.walk(self._volume):
                pass
        for ino, way in self._ways.items():
            if way is Way.KEPT:
                live = self._volume._inode(ino)
                if live is None or not _may_be_kept(self._then.inodes[ino], live, now):
                    raise _changed()
        self._volume._begin(Kind.ADDS)
        return entry is not None

    def apply(self, keeping: Keeping) -> Touched:
        """Within the open transaction, at once after `ready`; the caller commits."""
        assert self._now is not None, "ready comes before"
        now_ns = self._volume._begin(Kind.ADDS, may_commit=False)
        kept = {ino for ino, way in self._ways.items() if way is Way.KEPT}
        entries = self._set_entries(self._now, now_ns)
        inodes = self._set_inodes(kept, now_ns)
        for ino, names in self._now.names.items():
            if ino not in kept:
                with keeping(Ino(ino)):
                    self._drop(ino, names, now_ns)
                inodes.append(ino)
        self._staged.clear()
        return Touched([*inodes, self._place[0]], entries)

    def run(self, keep_as: str) -> str:
        """All of it, on a volume that nobody else changes meanwhile; durable on return.

        Args:
            keep_as: name of the snapshot that is taken first if something is replaced; or empty.

        Returns:
            The name of the snapshot that was taken; empty if none was.
        """
        _drain(self.plan())
        try:
            _drain(self.stage())
            kept = keep_as if self.ready() else ""
            if kept:
                self._volume.seal(kept)
        except BaseException:
            _drain(self.abandon())
            raise
        self.apply(lambda _: nullcontext())
        self._volume.commit()
        return kept

    def _set_entries(self, now: _Tree, now_ns: int) -> list[Entry]:
        """Names are what they shall be; those that the kernel may remember otherwise."""
        above, top = self._place
        numbers = self._numbers
        wanted = {
            (numbers[parent], name): (numbers[entry.ino], entry.kind)
            for (parent, name), entry in self._then.entries.items()
        }
        there = dict(now.entries)
        top_inode = self._then.inodes[self._then.top]
        place = (above, self._target[-1])
        wanted[place] = (numbers[self._then.top], stat.S_IFMT(top_inode.mode))
        if top is not None:
            there[place] = top
        changed = []
        for key, entry in there.items():
            if key not in wanted:
                self._volume._remove_entry(entry)
                changed.append(key)
        made = set(self._staged)
        for key, (ino, kind) in wanted.items():
            old = there.get(key)
            if old is None or old.ino != ino:
                cookie = self._store.next_cookie()
                self._store.dirent.put(
                    Dirent(Ino(key[0]), key[1], self._volume.epoch, cookie, Ino(ino), kind)
                )
                if key[0] not in made:
                    changed.append(key)
        if place in changed:
            links = top_inode.is_dir - (top is not None and stat.S_ISDIR(top.kind))
            self._volume._touch_dir(self._volume.getattr(above), now_ns, links=links)
        return changed

    def _set_inodes(self, kept: set[int], now_ns: int) -> list[int]:
        """Rows are what they shall be; those of kept inodes that changed."""
        then = self._then
        parents = {
            self._numbers[entry.ino]: self._numbers[parent]
            for (parent, _), entry in then.entries.items()
            if stat.S_ISDIR(entry.kind)
        }
        parents[self._numbers[then.top]] = self._place[0]
        if any(self._differs(ino) for ino in kept):
            self._store.came_back(self._snapshot.epoch)
        changed = []
        for ino, inode in then.inodes.items():
            number = self._numbers[ino]
            links = 2 + then.subdirectories[ino] if inode.is_dir else then.names[ino]
            parent = parents[number] if inode.is_dir else 0
            if ino not in kept:
                self._volume._put(
                    self._volume.getattr(number), nlink=links, parent=parent, ctime_ns=now_ns
                )
                self._store.orphan.remove((number,))
            elif self._take_back(inode, links, parent, now_ns):
                changed.append(ino)
        return changed

    def _differs(self, ino: int) -> bool:
        """Any row of an inode that lives was changed since: each change changes its own row."""
        return self._volume.getattr(ino).born > self._view.epoch

    def _take_back(self, then: Inode, links: int, parent: int, now_ns: int) -> bool:
        """A kept inode becomes what it was; whether it was another."""
        live = self._volume.getattr(then.ino)
        same = (live.nlink, live.parent) == (links, parent)
        if not self._differs(then.ino) and same:
            return False
        if self._differs(then.ino):
            then = self._with_map(live, then)
            self._take_xattrs_back(then.ino)
        self._volume._put(_replace(then, nlink=links, parent=parent, ctime_ns=now_ns))
        return True

    def _take_xattrs_back(self, ino: int) -> None:
        wanted = self._xattrs(ino)
        xattr = self._store.xattr
        with self._store.sql_errors():
            for name in xattr.names(ino):
                if name not in wanted:
                    xattr.delete(ino, name)
            for name, value in wanted.items():
                if xattr.get(ino, name) != value:
                    xattr.put(ino, name, self._volume.epoch, value)

    def _drop(self, ino: int, names: int, now_ns: int) -> None:
        """A replaced inode loses its names in the tree, which are removed already."""
        volume = self._volume
        inode = volume.getattr(ino)
        links = 0 if inode.is_dir else inode.nlink - names
        inode = volume._put(inode, nlink=links, ctime_ns=now_ns)
        if links:
            return
        if ino in volume._open:
            self._store.orphan.add((ino,))
        else:
            volume._remove_inode(inode)


def _may_be_kept(then: Inode, live: Inode, tree: _Tree) -> bool:
    """It is the same object, and the tree that is replaced has all of its names."""
    same = then.generation == live.generation and stat.S_IFMT(then.mode) == stat.S_IFMT(live.mode)
    links = 1 if live.is_dir else live.nlink
    return same and live.nlink > 0 and tree.names[live.ino] == links


def _changed() -> Failed:
    return Failed(
        "what is to be replaced has changed meanwhile; nothing was done", hint="try it again"
    )


def _nothing() -> None:
    pass


def _nothing_first(_: object) -> Step:
    return _nothing


def _drain(steps: Iterable[Step]) -> None:
    for _ in steps:
        pass
