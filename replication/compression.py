"""How hard to compress: a fixed level, none, or one that moves with what is left free.

`auto` watches the frames in front of the link.  If finished ones pile up there, the link is what
is scarce, and there is time to make them smaller.  If the link has to wait for one that is still
being compressed, the processors are scarce.  If neither is so, nobody waits for compression and
nothing would be won by another level.  A link that is faster than the quickest level gets frames as
they are, until they take it much longer than compressing them did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import zstandard

AUTO: Final = -1
"""The setting that lets the level move; others are levels of zstandard, 0: none."""
FIRST_LEVEL: Final = 3
LOWEST_LEVEL: Final = 2
HIGHEST_LEVEL: Final = 9
"""Where `auto` begins, and between what it moves.  Level 1 is hardly quicker than 2."""
WORTH_IT: Final = 2.0
"""Frames as they are have to take the link so many times as long as compressing them took."""
TRUSTED: Final = 32
"""What the link took for frames as they are is believed for so many decisions."""

FRAMES_A_DECISION: Final = 8
SCARCE: Final = 0.5
"""So many of the frames of a decision have to say the same."""

SAMPLES: Final = 8
SAMPLE_BYTES: Final = 8 * 1024
SAMPLE_FROM: Final = 4 * SAMPLES * SAMPLE_BYTES
"""Payloads of so many bytes on are sampled; compressing a smaller one is as quick."""
SAVING: Final = 16
"""What shrinks by less than a sixteenth goes as it is."""


Buffer = bytes | bytearray | memoryview


class Scarce(Enum):
    """What the next frame for the link waited for."""

    LINK = "link"
    """It was ready, and others behind it."""
    PROCESSOR = "processor"
    """The link was free, and the frame was still being compressed."""
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Cost:
    """What frames of *size* bytes, before compression, took a processor and the link (seconds)."""

    size: int = 0
    packing_s: float = 0.0
    link_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.size + other.size, self.packing_s + other.packing_s, self.link_s + other.link_s
        )

    @property
    def packing_s_a_byte(self) -> float:
        return self.packing_s / self.size if self.size else 0.0

    @property
    def link_s_a_byte(self) -> float:
        return self.link_s / self.size if self.size else 0.0


NOTHING: Final = Cost()


def next_level(level: int, seen: Sequence[Scarce]) -> int:
    """The level after the last frames: one step at most."""
    if seen.count(Scarce.LINK) >= SCARCE * len(seen):
        return min(level + 1, HIGHEST_LEVEL)
    if seen.count(Scarce.PROCESSOR) >= SCARCE * len(seen):
        return max(level - 1, LOWEST_LEVEL)
    return level


class Depth:
    """The level of one connection.  For one thread at a time, but `level` may be read by any."""

    def __init__(self, setting: int) -> None:
        """*setting*: `AUTO`, 0 (none), or a level of zstandard up to 19."""
        self.level = FIRST_LEVEL if setting == AUTO else setting
        self._moves = setting == AUTO
        self._seen: list[Scarce] = []
        self._cost = NOTHING
        self._packing_s = 0.0
        """What compressing a byte took lately (seconds)."""
        self._link_s = 0.0
        """What the link took for a byte that was not compressed, `_age` decisions ago."""
        self._age = TRUSTED

    def spend(self, cost: Cost) -> None:
        """That is what a frame took."""
        self._cost += cost

    def note(self, scarce: Scarce) -> None:
        """One frame more goes to the link."""
        if not self._moves:
            return
        self._seen.append(scarce)
        if len(self._seen) == FRAMES_A_DECISION:
            self._decide()
            self._seen.clear()
            self._cost = NOTHING

    def _decide(self) -> None:
        self._age += 1
        if self.level == 0:
            self._link_s, self._age = self._cost.link_s_a_byte, 0
            if self._link_s > WORTH_IT * self._packing_s:
                self.level = LOWEST_LEVEL
            return
        before, self.level = self.level, next_level(self.level, self._seen)
        self._packing_s = self._cost.packing_s_a_byte
        if before == LOWEST_LEVEL and self._seen.count(Scarce.PROCESSOR) >= SCARCE * len(
            self._seen
        ):
            slow = self._age < TRUSTED and self._link_s > WORTH_IT * self._packing_s
            if self._packing_s and not slow:
                self.level = 0


class Compressor:
    """Compresses what shrinks.  For one thread at a time; remembers a context for each level."""

    def __init__(self) -> None:
        self._contexts: dict[int, zstandard.ZstdCompressor] = {}

    def compress(self, data: Buffer, level: int) -> bytes | None:
        """The zstandard frame; None if it is not worth it, which a sample tells early."""
        if len(data) >= SAMPLE_FROM and not _pays(self._context(1), _sample(data)):
            return None
        packed = self._context(level).compress(data)
        return packed if _saves(len(packed), len(data)) else None

    def _context(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._contexts:
            self._contexts[level] = zstandard.ZstdCompressor(level=level)
        return self._contexts[level]


def _sample(data: Buffer) -> list[Buffer]:
    """A few pieces from all over."""
    step = len(data) // SAMPLES
    return [data[at * step : at * step + SAMPLE_BYTES] for at in range(SAMPLES)]


def _pays(context: zstandard.ZstdCompressor, pieces: list[Buffer]) -> bool:
    """Whether any of them shrinks: a frame may be half noise."""
    return any(_saves(len(context.compress(piece)), len(piece)) for piece in pieces)


def _saves(packed: int, size: int) -> bool:
    return packed <= size - size // SAVING
