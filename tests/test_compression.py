"""How hard it is compressed: the decision, what is left as it is, and what the pipeline sees."""

from __future__ import annotations

import random
import threading
from typing import cast

import pytest
import zstandard

from replication.compression import (
    AUTO,
    FIRST_LEVEL,
    FRAMES_A_DECISION,
    HIGHEST_LEVEL,
    LOWEST_LEVEL,
    REMEMBERED,
    SAMPLE_FROM,
    TRUSTED,
    Compressor,
    Depth,
    Scarce,
    next_level,
)
from replication.connection import Connection
from replication.pipeline import FRAMES, Pipeline
from replication.wire import Data

L, P, N = Scarce.LINK, Scarce.PROCESSOR, Scarce.NEITHER


@pytest.mark.parametrize(
    ("level", "seen", "expected"),
    [
        (3, [L] * 8, 4),
        (3, [P] * 8, 2),
        (3, [N] * 8, 3),
        (3, [L, L, L, L, N, N, N, P], 4),
        (3, [P, P, P, P, N, N, L, L], 2),
        (3, [L, L, L, P, P, P, N, N], 3),
        (HIGHEST_LEVEL, [L] * 8, HIGHEST_LEVEL),
        (LOWEST_LEVEL, [P] * 8, LOWEST_LEVEL),
    ],
)
def test_the_level_follows_what_is_scarce(level: int, seen: list[Scarce], expected: int) -> None:
    assert next_level(level, seen) == expected


def test_auto_moves_from_end_to_end_and_a_fixed_level_never() -> None:
    auto, fixed, off = Depth(AUTO), Depth(7), Depth(0)
    assert (auto.level, fixed.level, off.level) == (FIRST_LEVEL, 7, 0)
    for scarce, end in ((L, HIGHEST_LEVEL), (P, LOWEST_LEVEL)):
        for _ in range(FRAMES_A_DECISION * HIGHEST_LEVEL):
            for depth in (auto, fixed, off):
                depth.note(scarce)
        assert (auto.level, fixed.level, off.level) == (end, 7, 0)


def decide(depth: Depth, scarce: Scarce, ns: float) -> int:
    """The level after one decision; *ns* for a byte."""
    for _ in range(FRAMES_A_DECISION):
        depth.spend(1000, 1000 * ns / 1e9)
        depth.note(scarce)
    return depth.level


def test_frames_go_as_they_are_for_as_long_as_that_is_sooner() -> None:
    depth = Depth(AUTO)
    assert decide(depth, P, 4) == LOWEST_LEVEL
    assert decide(depth, P, 4) == 0
    for _ in range(100):
        assert decide(depth, L, 4) == 0, "it is no slower"
    for _ in range(REMEMBERED // 2):
        assert decide(depth, L, 40) == 0, "that may have been the other end's disk"
    assert decide(depth, L, 9) == LOWEST_LEVEL
    for _ in range(TRUSTED - 1):
        assert decide(depth, P, 4) == LOWEST_LEVEL, "without compression it was slower"
    assert decide(depth, P, 4) == 0, "the link may have become faster"
    for _ in range(REMEMBERED - 1):
        assert decide(depth, L, 9) == 0, "too little is known of it"
    assert decide(depth, L, 9) == LOWEST_LEVEL
    depth.begin()
    assert depth.level == LOWEST_LEVEL, "the next delta may be small"
    off = Depth(0)
    off.begin()
    assert off.level == 0


def test_a_decision_takes_several_frames() -> None:
    depth = Depth(AUTO)
    for _ in range(FRAMES_A_DECISION - 1):
        depth.note(L)
    assert depth.level == FIRST_LEVEL
    depth.note(L)
    assert depth.level == FIRST_LEVEL + 1


def test_noise_is_told_by_a_sample_and_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(1).randbytes(2 * SAMPLE_FROM)
    compressor = Compressor()
    context = compressor._context
    levels: list[int] = []

    def noting(level: int) -> zstandard.ZstdCompressor:
        levels.append(level)
        return context(level)

    monkeypatch.setattr(compressor, "_context", noting)
    assert compressor.compress((b"head", noise), 9) is None
    assert levels == [1]
    half = noise[:SAMPLE_FROM] + bytes(SAMPLE_FROM)
    packed = compressor.compress((b"head", half), 9)
    assert packed is not None
    assert levels[-1] == 9
    assert zstandard.ZstdDecompressor().decompress(packed) == b"head" + half
    assert len(packed) < len(half) * 0.6


class Link:
    """A connection and a gate in one, that make either the link or the processor scarce."""

    def __init__(self, scarce: Scarce) -> None:
        self.depth = Depth(AUTO)
        self.sent: list[bytes] = []
        self._scarce = scarce
        self._asked = 0
        self._packed = 0
        self._changed = threading.Condition()
        self.pipeline = Pipeline(cast("Connection", self), self)
        self.all_put = False

    def _wait(self, condition: object) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 30)  # type: ignore[arg-type]

    def put(self, number: int) -> None:
        message = Data(bytes(32), b"%d" % number)
        self.pipeline.put(message, lambda: None)
        with self._changed:
            self._changed.notify_all()

    def pack(self, message: Data) -> bytes:
        with self._changed:
            number = int(message.body)
        if self._scarce is P:  # until the link wants it
            self._wait(lambda: self._asked > number)
        return bytes(message.body)

    def has_room(self, size: int) -> bool:
        return True

    def wait_for_room(self, size: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def send_packed(self, message: Data, frame: bytes) -> int:
        if self._scarce is L:  # until the queue in front of it is full
            self._wait(lambda: self.all_put or self.pipeline._queue.qsize() >= FRAMES - 1)
        self.sent.append(frame)
        return len(frame)


@pytest.mark.parametrize("scarce", [L, P])
def test_the_pipeline_sees_what_is_scarce_and_keeps_the_order(
    scarce: Scarce, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(scarce)
    seen: list[Scarce] = []
    note = link.depth.note

    def noting(what: Scarce) -> None:
        seen.append(what)
        note(what)
        with link._changed:
            link._asked += 1
            link._changed.notify_all()

    monkeypatch.setattr(link.depth, "note", noting)
    count = 4 * FRAMES_A_DECISION
    with link.pipeline:
        for number in range(count):
            link.put(number)
        with link._changed:
            link.all_put = True
            link._changed.notify_all()
        link.pipeline.drain()
    assert link.sent == [b"%d" % number for number in range(count)]
    assert seen.count(scarce) > count // 2
    assert (link.depth.level > FIRST_LEVEL) is (scarce is L)
    assert (link.depth.level < FIRST_LEVEL) is (scarce is P)
    assert link.pipeline.packed == sum(map(len, link.sent))
