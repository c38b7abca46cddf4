"""What a delta of a real volume costs on the wire, frames and conversation included."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import BLOCK, ROOT_INO, Pool, create_volume, open_volume, volume_path
from replication.endpoint import Sink
from replication.local import VolumeSink, VolumeSource
from replication.sender import Account, replicate

from .replication_world import GROUP, Pair

CONVERSATION = 1500
"""Bytes of greeting, offer, begin and seal, roughly."""


class RealPair:
    """Two volumes and the wire between them."""

    def __init__(self, tmp_path: Path, pool: Pool) -> None:
        for name in ("active", "passive"):
            create_volume(pool, name, size=1 << 40)
        self.active = volume_path(pool, "active")
        self._passive = volume_path(pool, "passive")
        self.sites = Pair(tmp_path)
        self.sites.b.open_sink = self._open_sink  # type: ignore[method-assign]

    def _open_sink(self, group_uuid: str, term: int, volume_uuid: str) -> Sink:
        return VolumeSink(self._passive)

    def send(self) -> Account:
        source = VolumeSource(self.active)
        account = replicate(source, self.sites.connect, GROUP, 1)
        source.close()
        return account


@pytest.fixture
def real(tmp_path: Path, pool: Pool) -> Iterator[RealPair]:
    pair = RealPair(tmp_path, pool)
    yield pair
    pair.sites.close()


def test_renaming_a_directory_of_10000_files_costs_a_few_hundred_bytes(real: RealPair) -> None:
    with open_volume(real.active) as volume:
        directory = volume.mkdir(ROOT_INO, b"many", 0o755, uid=0, gid=0).ino
        for number in range(10_000):
            volume.mknod(directory, b"%05d" % number, stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("one", snap_group="1")
        volume.rename(ROOT_INO, b"many", ROOT_INO, b"renamed")
    real.send()
    with open_volume(real.active) as volume:
        volume.seal("two", snap_group="2")
    account = real.send()
    assert account.sent.rows == 4
    assert account.packed_wire < 500
    assert account.wire_bytes < 500 + CONVERSATION


def test_one_changed_block_of_a_1_gib_file_costs_about_4_kib(real: RealPair) -> None:
    with open_volume(real.active) as volume:
        ino = volume.mknod(ROOT_INO, b"large", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        for offset in range(0, 1 << 30, 1 << 22):
            volume.write(ino, offset, bytes(1 << 22))
        volume.seal("one", snap_group="1")
        noise = random.Random(1).randbytes(BLOCK)  # nothing to compress
        volume.write(ino, 700 << 20, noise)
        volume.seal("two", snap_group="2")
    account = real.send()
    assert account.snapshots_sent == 2
    with open_volume(real.active) as volume:
        volume.write(ino, 300 << 20, noise[::-1])
        volume.seal("three", snap_group="3")
    account = real.send()
    assert account.sent.bytes == BLOCK
    assert account.packed_wire < BLOCK + 300
    assert account.wire_bytes < BLOCK + 300 + CONVERSATION
