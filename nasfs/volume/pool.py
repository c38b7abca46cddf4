"""Pools and the volumes in them, as folders: making, finding, opening.

A pool is a directory with a ``pool.yaml`` (format version, UUID); each volume is a folder in it.
A new volume is built under a hidden name and renamed into place, so it is there whole or not.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path

import yaml

from nasfs.volume import schema
from nasfs.volume.errors import FormatError, MediaError, NoSuchVolume, VolumeExists
from nasfs.volume.layers import DIRECTORIES, directory_name
from nasfs.volume.lock import VolumeLock
from nasfs.volume.media import HostMedia, Media
from nasfs.volume.provision import Reservation, check_size
from nasfs.volume.types import Access, Snapshot, VolumeStats
from nasfs.volume.volume import Volume

from nasfs.errors import ConfigError, Failed  # isort: skip

POOL_FORMAT = 1
NAME_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Pool:
    path: Path
    uuid: str


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What can be told about a volume without owning it, as of its last commit."""

    uuid: str
    name: str
    size: int
    provision: str
    stats: VolumeStats
    snapshots: tuple[Snapshot, ...]
    reserved: int = 0
    """Bytes that an exact volume holds of the pool's disk, beyond what it uses."""
    unreserved: int = 0
    """Bytes of its guarantee that it could not get back, because others took them."""
    pending: tuple[str, ...] = ()
    """Snap groups of which its snapshot is sealed and not offered yet."""
    lists_snapshots: bool = False
    """Whether a mount lists `.snapshots` in its root, unless it is told otherwise."""
    ancestors: tuple[Snapshot, ...] = ()
    """The snapshots from which the live view descends: no rollback left them aside."""
    next_inode: int = 0
    """No inode number from this one on was ever given."""


def create_pool(directory: Path) -> Pool:
    """Make a pool of a directory that is empty or does not exist.

    Raises:
        Failed: something is in the directory, or the host refuses.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(name != "lost+found" for name in os.listdir(directory)):
            raise Failed(
                f"{directory} is not empty", hint="a new pool needs an empty directory of its own"
            )
        pool = Pool(directory, str(uuids.uuid4()))
        text = yaml.safe_dump({"format": POOL_FORMAT, "uuid": pool.uuid})
        _write_durably(directory / "pool.yaml", text)
    except OSError as exc:
        raise Failed(f"can't make a pool of {directory}: {exc.strerror}") from exc
    return pool


def open_pool(directory: Path) -> Pool:
    """Raises `FormatError` if the directory holds no pool, or one of another format."""
    path = directory / "pool.yaml"
    try:
        content = yaml.safe_load(path.read_text())
        version, identity = content["format"], str(content["uuid"])
    except FileNotFoundError:
        raise FormatError(
            str(directory), "this is not a pool", hint="make one: nasfs pool create NAME DIR"
        ) from None
    except (OSError, yaml.YAMLError, KeyError, TypeError) as exc:
        raise FormatError(str(path), f"can't be read ({exc})") from exc
    if version != POOL_FORMAT:
        raise FormatError(str(path), f"pool format {version}, this release knows {POOL_FORMAT}")
    return Pool(directory, identity)


def volume_path(pool: Pool, name: str) -> Path:
    return pool.path / name


def check_volume_name(name: str) -> None:
    """Raises `ConfigError` unless the name is one plain path component."""
    allowed = name.isprintable() and not set(name) & set("/@:\\ ")
    if not allowed or not name or name.startswith((".", "-")) or len(name.encode()) > NAME_LIMIT:
        raise ConfigError(
            f"{name!r} can't be the name of a volume",
            hint="letters, digits, '-', '_' and '.', beginning with a letter or digit",
        )


def create_volume(
    pool: Pool,
    name: str,
    *,
    size: int,
    provision: str = "thin",
    uuid: str | None = None,
    root_mode: int = 0o755,
    media: Media | None = None,
) -> None:
    """A new, empty volume; it is there, durable, when this returns, or it is not there at all.

    Args:
        size: bytes that it may hold, snapshots included.
        provision: ``thin``, or ``exact``: the pool's disk keeps so much for it from now on.
        uuid: its identity, if it is the copy of another site's volume.

    Raises:
        ConfigError: a name or size that can't be.
        VolumeExists: the name is taken.
        MediaError: the pool's disk refused.
    """
    check_volume_name(name)
    check_size(size)
    target = volume_path(pool, name)
    if target.exists():
        raise VolumeExists(
            f"the pool {pool.path} has a volume {name} already", hint="choose another name"
        )
    building = pool.path / f".new-{uuids.uuid4().hex}"
    try:
        _build(building, size, provision, uuid or str(uuids.uuid4()), root_mode)
        if provision == "exact":
            Reservation(building, HostMedia() if media is None else media, size).fill()
        os.rename(building, target)
        _sync_directory(pool.path)
    except OSError as exc:
        shutil.rmtree(building, ignore_errors=True)
        raise MediaError(exc.errno or 5, f"can't create volume {name} in {pool.path}") from exc
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _build(path: Path, size: int, provision: str, uuid: str, root_mode: int) -> None:
    path.mkdir(mode=0o700)
    layers = path / "layers"
    layers.mkdir()
    for index in range(DIRECTORIES):
        (layers / directory_name(index)).mkdir()
    mode = stat.S_IFDIR | root_mode
    try:
        schema.create(
            path / "meta.db",
            uuid=uuid,
            size=size,
            provision=provision,
            mode=mode,
            now_ns=time.time_ns(),
        )
    except sqlite3.Error as exc:
        raise OSError(28 if "full" in str(exc) else 5, str(exc)) from exc
    _write_durably(path / "lock", "")
    _sync_directory(layers)
    _sync_directory(path)


def list_volumes(pool: Pool) -> list[str]:
    """Names of the volumes in a pool, sorted."""
    return sorted(
        entry.name
        for entry in os.scandir(pool.path)
        if not entry.name.startswith(".") and (pool.path / entry.name / "meta.db").exists()
    )


def open_volume(
    path: Path, access: Access = Access.READ_WRITE, *, media: Media | None = None
) -> Volume:
    """Open a volume; with `READ_WRITE` this process is its owner until `close`.

    A read-only volume sees what its owner has committed, and needs no lock.

    Raises:
        NoSuchVolume, VolumeBusy, FormatError, CorruptionError
    """
    if not path.is_dir():
        raise NoSuchVolume(f"there is no volume {path.name} in {path.parent}")
    return Volume(path, access, HostMedia() if media is None else media)


def volume_info(path: Path) -> VolumeInfo:
    """What can be told about a volume, whoever owns it."""
    with open_volume(path, Access.READ_ONLY) as volume:
        return VolumeInfo(
            uuid=volume.uuid,
            name=volume.name,
            size=volume.size,
            provision=volume.provision,
            stats=volume.statfs(),
            snapshots=tuple(volume.snapshots()),
            reserved=volume.reserved,
            unreserved=volume.unreserved,
            pending=tuple(volume.pending()),
            lists_snapshots=volume.lists_snapshots,
            ancestors=tuple(volume.ancestors()),
            next_inode=volume.next_inode,
        )


def rename_volume(pool: Pool, name: str, new_name: str) -> None:
    """The name is only a label; the UUID stays.  Raises `VolumeExists`, `VolumeBusy`."""
    check_volume_name(new_name)
    path, target = volume_path(pool, name), volume_path(pool, new_name)
    if not path.is_dir():
        raise NoSuchVolume(f"there is no volume {name} in {pool.path}")
    if target.exists():
        raise VolumeExists(f"the pool {pool.path} has a volume {new_name} already")
    lock = VolumeLock(path / "lock")
    try:
        os.rename(path, target)
        _sync_directory(pool.path)
    finally:
        lock.release()


def destroy_volume(pool: Pool, name: str) -> None:
    """Remove a volume with all its snapshots.  Raises `NoSuchVolume`, `VolumeBusy`."""
    path = volume_path(pool, name)
    if not path.is_dir():
        raise NoSuchVolume(f"there is no volume {name} in {pool.path}")
    lock = VolumeLock(path / "lock")
    try:
        doomed = pool.path / f".destroyed-{uuids.uuid4().hex}"
        os.rename(path, doomed)  # gone at once, however long the removal takes
        _sync_directory(pool.path)
        shutil.rmtree(doomed)
    finally:
        lock.release()


def remove_leftovers(pool: Pool) -> None:
    """Finish what a crash interrupted: volumes half made, or half destroyed."""
    for entry in os.listdir(pool.path):
        if entry.startswith((".new-", ".destroyed-")):
            shutil.rmtree(pool.path / entry, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with open(path, "x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
