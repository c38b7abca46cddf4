"""When a receiver commits what has come: by its size, and by how long it waits."""

from __future__ import annotations

import pytest

from replication import receiver, sender
from replication.endpoint import Amount, DataBatch, Extent, Progress
from replication.receiver import COMMIT_BYTES, COMMIT_MOST, COMMIT_REST_S, COMMIT_S
from replication.wire import chain_start, pack_batch

from .replication_world import Replica, ReplicaSink, snapshot

FILE = 300
PIECE = 2 << 20


class World:
    """An intake, its clock, and what comes."""

    def __init__(self) -> None:
        self.now = 100.0
        replica = Replica()
        replica.live[FILE] = b""
        target = snapshot("one")
        progress = Progress(None, target, Amount(), digest=chain_start(None, target.guid))
        self.intake = receiver._Intake(ReplicaSink(replica), progress, lambda: self.now)
        self._come = 0

    def take(self, size: int) -> None:
        end = self._come + size
        while self._come < end:
            extent = Extent(FILE, 0, PIECE, False)
            self._come += PIECE
            batch = DataBatch((extent,), bytes(PIECE), b"%d" % self._come)
            self.intake.apply(pack_batch(batch, self.intake.progress.digest))

    def waits(self) -> float | None:
        """The time until a commit is due, which it is then and not before."""
        waits = self.intake.patience()
        assert self.intake.is_due() == (waits == 0.0)
        return waits


def test_nothing_is_not_committed() -> None:
    world = World()
    assert world.waits() is None
    assert not world.intake.commit()


def test_a_little_waits_for_a_second() -> None:
    world = World()
    world.take(PIECE)
    assert world.waits() == COMMIT_S
    world.now += COMMIT_S / 2
    world.take(PIECE)
    assert world.waits() == COMMIT_S / 2  # since the first of it came
    world.now += COMMIT_S
    assert world.waits() == 0.0
    assert world.intake.commit()
    assert world.waits() is None


def test_some_mib_wait_for_a_moment_or_for_many() -> None:
    world = World()
    world.take(COMMIT_BYTES)
    assert world.waits() == pytest.approx(COMMIT_REST_S)
    world.now += 2 * COMMIT_REST_S
    assert world.waits() == 0.0
    assert world.intake.commit()
    world.take(COMMIT_MOST)
    assert world.waits() == 0.0  # on a link as quick as this one


def test_a_sender_does_not_wait_for_a_commit_that_waits_for_more() -> None:
    assert sender.WINDOW_BYTES > COMMIT_MOST > COMMIT_BYTES
