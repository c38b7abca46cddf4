"""A random history of a volume, recorded together with a model of it, and judged after a cut.

`History` works on a volume and on the model at the same time, and notes at each COMMIT what the
model was, and after each acknowledgement which state is durable now.
"""

from __future__ import annotations

import random
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nasfs.errors import Failed, NasError, Refused
from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Ino,
    MediaError,
    Restore,
    Volume,
    check_volume,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.types import REGION_BLOCKS

from .crash_disk import Image, Log, RecordingMedia, read_image
from .crash_model import (
    Model,
    Node,
    Past,
    PathName,
    Picture,
    State,
    Touch,
    look,
    picture,
    pictures,
    restored,
    shape,
)
from .crash_sqlite import watched
from .test_volume_model import RAM, layer_bytes

NAMES = [b"a", b"b", b"c", b"d", b"e"]
FAR = REGION_BLOCKS * BLOCK


class History:
    """One volume's work, recorded.

    Args:
        start: what is there, durable.
        media: the disk, recording too.
    """

    def __init__(self, chance: random.Random, start: State, media: RecordingMedia) -> None:
        self.media = media
        self.log = media.log
        self.past = Past([start], [(0, 0)])
        self.done: Counter[str] = Counter()
        self._chance = chance
        self._model = Model(start.live)
        self._snapshots = dict(start.snapshots)
        self._foreseen: list[Picture] = []
        self._unlinked: list[Ino] = []
        self._number = chance.randrange(1 << 20) << 10  # words of its own

    def run(self, steps: int) -> None:
        """Open the volume, do so many things, and leave it as it is then: the power goes."""
        with watched(self.log):
            self._open()
            for _ in range(steps):
                self._step()
            self._acknowledge(self._volume.commit)
            assert picture(self._volume) == self._model.picture()
            assert pictures(self._volume) == self._snapshots
            self._volume.abandon()

    def run_refused(self, steps: int) -> list[NasError]:
        """Like `run` on a disk that refuses something; then let go of the volume as a mount does.

        What a refusal leaves is looked at at once: a volume that is writable is as it was before
        the operation that was refused, any other is as of a commit, and says why.
        """
        refused: list[NasError] = []
        with watched(self.log):
            try:
                self._open()
            except NasError as exc:
                return [exc]
            while steps and self._volume.writable:
                steps -= 1
                try:
                    self._step(restarts=False)
                except NasError as exc:
                    refused.append(exc)
                    self.media.meanwhile = None
                    self._look_after_refusal()
            try:
                if self._volume.writable:
                    self._acknowledge(self._volume.close)
                else:
                    self._volume.close()
            except NasError as exc:
                refused.append(exc)
        return refused

    def _look_after_refusal(self) -> None:
        volume = self._volume
        with suppress(NasError):
            volume.setattr(ROOT_INO, mode=0o755)  # the next to ask hears that it is read-only
        past = self.past
        if volume.writable:
            before = State(self._begun, volume.epoch, self._model.picture(), self._snapshots)
            past = Past([before], [(0, 0)], past.touches)
        else:
            assert volume._read_only_reason
        found = look(volume)
        past.match(len(self.log) + 1, found)
        # Half of a refused write in place may be seen.
        self._model.nodes |= {node.ino: node for node in found.live.values()}

    # the volume's lifetime

    def _open(self) -> None:
        self.media.MANY = self._chance.choice([2, 48])
        self._volume = open_volume(self.log.root, media=self.media)
        self._volume._store.db.set_trace_callback(self._statement)
        self._unlinked = []

    def _statement(self, sql: str) -> None:
        if sql == "COMMIT":
            live = self._foreseen.pop(0) if self._foreseen else self._model.picture()
            self.past.states.append(
                State(len(self.log), self._volume.epoch, live, dict(self._snapshots))
            )

    def _acknowledge(self, work: Callable[[], object]) -> None:
        """Do what makes everything durable that was committed by the end of it."""
        work()
        self.past.durable.append((len(self.log), len(self.past.states) - 1))

    def _reopen(self) -> None:
        self._acknowledge(self._volume.close)
        self._open()

    def _die(self) -> None:
        """The owner is killed.  What its successor shows is durable from then on."""
        self._volume.abandon()
        killed_at = len(self.log)
        self._open()
        found = look(self._volume)
        self.past.match(killed_at, found)
        self._model = Model(found.live)
        self.past.states.append(replace(found, index=len(self.log)))
        self._acknowledge(lambda: None)

    # what can happen

    def _step(self, *, restarts: bool = True) -> None:
        self._begun = len(self.log)
        happenings: list[tuple[int, Callable[[], None]]] = [
            (70, self._change), (8, self._round), (6, self._commit), (4, self._seal),
            (1 + len(self._snapshots), self._destroy), (1, self._roll_back), (14, self._reclaim),
            (3 * restarts, self._restore),
            (restarts, self._reopen), (restarts, self._die),
        ]  # fmt: skip
        self._one_of(happenings)

    def _one_of(self, things: list[tuple[int, Callable[[], None]]]) -> None:
        weights, works = zip(*things, strict=True)
        work = self._chance.choices(works, weights)[0]
        self.done[work.__name__.lstrip("_")] += 1
        work()

    def _changes(self) -> None:
        for _ in range(self._chance.randrange(4)):
            self._one_of([(6, self._change), (3, self._reclaim)])

    def _commit(self) -> None:
        self._acknowledge(self._volume.commit)
        if self._chance.random() < 0.5:  # as a mount does after each commit
            while self._volume.reclaim_step(3):
                pass

    def _round(self) -> None:
        """A commit as a mount does it: requests are served while threads sync."""
        for _ in range(self._chance.randrange(1, 3)):
            self.media.meanwhile = self._changes
            self._sync_data()
            self.media.meanwhile = None
        self._sync_data()
        if self._chance.random() < 0.3:
            name = self._new_snapshot()
            self._volume.seal_nowait(name)
        else:
            self._volume.commit_nowait()
        committed = len(self.past.states) - 1
        if self._volume.checkpoint_needed():
            self._volume.checkpoint()
        try:
            self.media.meanwhile = self._changes
            self._volume.sync_log()
            self.media.meanwhile = None
        except MediaError as exc:  # the end, as in nasfs/fuse/commit.py
            self._volume.go_read_only(f"the disk of the test: {exc}")
            raise
        self.past.durable.append((len(self.log), committed))

    def _sync_data(self) -> None:
        work = self._volume.dirty_data()
        try:
            work.run()
        except MediaError as exc:
            self._volume.data_refused(work, exc)
            raise

    def _new_snapshot(self) -> str:
        self._number += 1
        name = f"{self._number}-{self._chance.randrange(1 << 30)}"
        self._snapshots[name] = self._model.picture()
        return name

    def _seal(self) -> None:
        name = self._new_snapshot()
        try:
            self._acknowledge(lambda: self._volume.seal(name))
        except MediaError:
            if self._volume.writable:  # the data of small writes found no room: nothing was done
                del self._snapshots[name]
            raise

    def _destroy(self) -> None:
        if self._snapshots:
            name = self._chance.choice(sorted(self._snapshots))
            del self._snapshots[name]
            self._acknowledge(lambda: self._volume.destroy_snapshot(name))

    def _roll_back(self) -> None:
        if self._snapshots:
            self._release_all()
            name = self._chance.choice(sorted(self._snapshots))
            target = self._snapshots[name]
            self._foreseen = [self._model.picture(), target]
            epoch = self._volume.snapshot(name).epoch
            try:
                self._acknowledge(lambda: self._volume.rollback(epoch))
            except MediaError:
                if self._volume.writable:
                    self._foreseen.clear()
                raise
            assert not self._foreseen
            self._model = Model(target)

    def _restore(self) -> None:
        """A file or tree comes back to its place or elsewhere, while others change things."""
        if not self._snapshots:
            return
        name = self._chance.choice(sorted(self._snapshots))
        then = self._snapshots[name]
        source = self._any([path for path in then if path])
        target = self._any([*self._model.names][1:]) if self._chance.random() < 0.3 else source
        if source is None or target is None or target[:-1] not in self._model.names:
            return
        if not self._model.node(target[:-1]).is_dir:
            return
        restore = Restore(self._volume, name, source, target, replace=True)
        try:
            self._in_steps(restore.plan())
            self._in_steps(restore.stage())
            replaces = restore.ready()
        except (Failed, Refused):  # the changes meanwhile were of what is replaced
            for _ in restore.abandon():
                pass
            self.done["restore_refused"] += 1
            return
        assert replaces == (target in self._model.names)
        if replaces and self._chance.random() < 0.5:
            self._volume.seal(self._new_snapshot())
        restore.apply(lambda _: nullcontext())
        found = picture(self._volume)
        assert shape(found) == shape(restored(self._model, then, source, target))
        known = self._model.nodes.keys() | {node.ino for node in then.values()}
        for ino in {node.ino for node in found.values()} - known:
            self.past.numbers.append((len(self.log), ino))
        nodes = self._model.nodes
        self._model = Model(found)
        self._model.nodes = nodes | self._model.nodes
        self.done[f"restore_{'over' if replaces else 'new'}"] += 1
        if self._chance.random() < 0.7:
            self._acknowledge(self._volume.commit)

    def _in_steps(self, steps: Iterator[Callable[[], None]]) -> None:
        for step in steps:
            step()
            if self._chance.random() < 0.1:
                self._changes()
            if self._chance.random() < 0.1:
                self._acknowledge(self._volume.commit)

    def _reclaim(self) -> None:
        self._volume.reclaim_step(self._chance.choice([1, 3, 100]))

    def _release_all(self) -> None:
        for ino in self._unlinked:
            self._volume.release(ino)
        self._unlinked = []

    # changes of the tree

    def _change(self) -> None:
        self._one_of([
            (8, self._create), (16, self._write), (9, self._truncate), (5, self._replace),
            (4, self._unlink), (2, self._unlink_open), (1, self._release_all), (2, self._mkdir),
            (1, self._rmdir), (2, self._symlink), (2, self._link), (3, self._rename),
            (1, self._exchange), (3, self._setxattr), (1, self._removexattr), (1, self._chmod),
        ])  # fmt: skip

    def _any(self, paths: list[PathName]) -> PathName | None:
        return self._chance.choice(paths) if paths else None

    def _a_file(self) -> PathName | None:
        return self._any(self._model.paths(lambda node: node.is_file))

    def _new_path(self) -> PathName | None:
        """A path that is free, in a directory that is there."""
        path = (*self._chance.choice(self._model.directories()), self._chance.choice(NAMES))
        return None if path in self._model.names or len(path) > 4 else path

    def _parent(self, path: PathName) -> Ino:
        return self._model.names[path[:-1]]

    def _data(self) -> bytes:
        """Never twice the same, so that no byte is taken for another's."""
        self._number += 1
        return b"%d." % self._number * self._chance.choice([1, 30, 800, 2400])

    def _mknod(self, path: PathName) -> Ino:
        ino = self._volume.mknod(
            self._parent(path), path[-1], stat.S_IFREG | 0o644, uid=0, gid=0
        ).ino
        self._add(path, Node(ino, stat.S_IFREG | 0o644))
        return ino

    def _add(self, path: PathName, node: Node) -> None:
        self._model.names[path] = node.ino
        self._model.nodes[node.ino] = node
        self.past.numbers.append((len(self.log), node.ino))

    def _create(self) -> None:
        if path := self._new_path():
            self._mknod(path)

    def _write_to(self, ino: Ino, offset: int, data: bytes) -> None:
        old = self._model.nodes[ino].data
        self._touch(ino, len(old), bytes(max(0, offset - len(old))))
        self._touch(ino, offset, data)
        self._volume.write(ino, offset, data)
        grown = old.ljust(offset, b"\0")
        self._model.change(ino, data=grown[:offset] + data + grown[offset + len(data) :])

    def _touch(self, ino: Ino, offset: int, data: bytes) -> None:
        if data:
            self.past.touches.append(Touch(len(self.log), self._volume.epoch, ino, offset, data))

    def _write(self) -> None:
        path = self._a_file()
        if path is None:
            return
        ino = self._model.names[path]
        if self._unlinked and self._chance.random() < 0.2:
            ino = self._chance.choice(self._unlinked)
        start = FAR - 2 * BLOCK if self._chance.random() < 0.02 else 0
        within = self._chance.choice([0, 0, 1, 777, BLOCK - 1])
        self._write_to(ino, start + self._chance.randrange(5) * BLOCK + within, self._data())

    def _truncate(self) -> None:
        if path := self._a_file():
            ino, old = self._model.names[path], self._model.node(path).data
            size = self._chance.choice(
                [0, self._chance.randrange(5 * BLOCK), len(old) // 2, len(old) // 2]
            )
            self._touch(ino, len(old), bytes(max(0, size - len(old))))
            self._volume.setattr(ino, size=size)
            self._model.change(ino, data=old[:size].ljust(size, b"\0"))

    def _replace(self) -> None:
        """A file is written anew and renamed over the old one."""
        path = self._a_file()
        temporary = (b"tmp",)
        if path is None or temporary in self._model.names:
            return
        self._write_to(self._mknod(temporary), 0, self._data())
        self._volume.rename(ROOT_INO, b"tmp", self._parent(path), path[-1])
        self._model.move(temporary, path)

    def _unlink(self) -> None:
        if path := self._any(self._model.paths(lambda node: not node.is_dir)):
            self._volume.unlink(self._parent(path), path[-1])
            del self._model.names[path]

    def _unlink_open(self) -> None:
        """An open file loses its last name."""
        path = self._any(
            self._model.paths(
                lambda node: node.is_file and list(self._model.names.values()).count(node.ino) == 1
            )
        )
        if path is not None:
            ino = self._model.names.pop(path)
            self._volume.acquire(ino)
            self._volume.unlink(self._parent(path), path[-1])
            self._unlinked.append(ino)

    def _mkdir(self) -> None:
        if path := self._new_path():
            ino = self._volume.mkdir(self._parent(path), path[-1], 0o755, uid=0, gid=0).ino
            self._add(path, Node(ino, stat.S_IFDIR | 0o755))

    def _rmdir(self) -> None:
        empty = [p for p in self._model.directories()[1:] if not self._model.below(p)]
        if path := self._any(empty):
            self._volume.rmdir(self._parent(path), path[-1])
            del self._model.names[path]

    def _symlink(self) -> None:
        if path := self._new_path():
            target = self._data()[:200]
            ino = self._volume.symlink(self._parent(path), path[-1], target, uid=0, gid=0).ino
            self._add(path, Node(ino, stat.S_IFLNK | 0o777, data=target))

    def _link(self) -> None:
        path, new = self._a_file(), self._new_path()
        if path is not None and new is not None:
            self._volume.link(self._model.names[path], self._parent(new), new[-1])
            self._model.names[new] = self._model.names[path]

    def _rename(self) -> None:
        path, new = self._any(self._model.paths(lambda node: True)), self._new_path()
        if path is not None and new is not None and new[: len(path)] != path:
            self._volume.rename(self._parent(path), path[-1], self._parent(new), new[-1])
            self._model.move(path, new)

    def _exchange(self) -> None:
        one, other = self._a_file(), self._a_file()
        if one is not None and other is not None:
            self._volume.rename(self._parent(one), one[-1], self._parent(other), other[-1], 2)
            names = self._model.names
            names[one], names[other] = names[other], names[one]

    def _setxattr(self) -> None:
        if path := self._any(self._model.paths(lambda node: True)):
            name, value = b"user." + self._chance.choice(NAMES), self._data()
            self._volume.setxattr(self._model.names[path], name, value)
            xattrs = dict(self._model.node(path).xattrs) | {name: value}
            self._model.change(self._model.names[path], xattrs=tuple(sorted(xattrs.items())))

    def _removexattr(self) -> None:
        if path := self._any(self._model.paths(lambda node: bool(node.xattrs))):
            xattrs = dict(self._model.node(path).xattrs)
            name = self._chance.choice(sorted(xattrs))
            self._volume.removexattr(self._model.names[path], name)
            del xattrs[name]
            self._model.change(self._model.names[path], xattrs=tuple(sorted(xattrs.items())))

    def _chmod(self) -> None:
        if path := self._any(self._model.paths(lambda node: not stat.S_ISLNK(node.mode))):
            mode = self._chance.choice([0o600, 0o640, 0o755])
            ino = self._model.names[path]
            self._volume.setattr(ino, mode=mode)
            kind = stat.S_IFMT(self._model.nodes[ino].mode)
            self._model.change(ino, mode=kind | mode)


@contextmanager
def place_in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for many small disks; checkpoints and reservations of numbers come often."""
    monkeypatch.setattr("nasfs.volume.store.CHECKPOINT_BYTES", 1 << 17)
    monkeypatch.setattr("nasfs.volume.store.INO_RESERVE", 6)
    monkeypatch.setattr("nasfs.volume.volume.INO_RESERVE", 6)
    directory = Path(tempfile.mkdtemp(prefix="nasfs-crash-", dir=RAM))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def fresh(place: Path) -> tuple[Image, State]:
    """The files of an empty volume, and what it holds."""
    pool = create_pool(place / "pool")
    create_volume(pool, "v", size=1 << 40)
    image = read_image(volume_path(pool, "v"))
    with open_volume(volume_path(pool, "v")) as volume:
        return image, look(volume)


def reclaim_all(volume: Volume) -> None:
    """Until nothing is left to give back."""
    while True:
        while volume.reclaim_step(50):
            pass
        if not volume.changed:
            return
        volume.commit()


def verify(path: Path, past: Past, cut: int) -> None:
    """What a power cut before operation *cut* has left in *path* is what it may leave."""
    with open_volume(path) as volume:
        found = look(volume)
        past.match(cut, found)
        # Open files without a name are gone.
        assert volume.statfs().inodes == len({node.ino for node in found.live.values()})


def verify_use(path: Path, past: Past, cut: int, chance: random.Random) -> None:
    """What a power cut has left is sound, goes on, and has lost no space and no number."""
    assert [str(finding) for finding in check_volume(path)] == []
    with open_volume(path) as volume:
        start = look(volume)
        reclaim_all(volume)
        assert volume.reclaim_pending() == {"layers": 0, "snapshots": 0, "directories": 0}
        used = volume.statfs().used
    assert layer_bytes(path) == used
    assert all(file.stat().st_size for file in (path / "layers").glob("*/*"))
    after = History(chance, start, RecordingMedia(Log(path)))
    after.run(12)
    assert not past.given(cut) & after.past.given(len(after.log))
    assert [str(finding) for finding in check_volume(path)] == []
