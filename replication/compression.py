"""How hard to compress: a fixed level, none, or one that moves with what is left free.

`auto` watches the frames in front of the link.  If finished ones pile up there, the link is what
is scarce, and there is time to make them smaller.  If the link has to wait for one that is still
being compressed, the processors are scarce.  If neither is so, nobody waits for compression and
nothing would be won by another level.  Where the processors are scarce at the quickest level,
frames go as they are, for as long as that is sooner: what a byte took lately is compared, by the
median, because single measurements tell more of the disk that was just synced at the other end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from statistics import median
from typing import Final

import zstandard

AUTO: Final = -1
"""The setting that lets the level move; others are levels of zstandard, 0: none."""
FIRST_LEVEL: Final = 3
LOWEST_LEVEL: Final = 2
HIGHEST_LEVEL: Final = 9
"""Where `auto` begins, and between what it moves.  Level 1 is hardly quicker than 2."""
WORTH_IT: Final = 1.25
"""Frames as they are have to take so many times as long as compressed ones."""
REMEMBERED: Final = 5
"""Of each kind, so many measurements are compared; before there are as many, nothing is given up
again."""
TRUSTED: Final = 32
"""That frames as they are were slower is believed for so many decisions."""

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


def next_level(level: int, seen: Sequence[Scarce]) -> int:
    """The level after the last frames: one step at most."""
    if _says(Scarce.LINK, seen):
        return min(level + 1, HIGHEST_LEVEL)
    if _says(Scarce.PROCESSOR, seen):
        return max(level - 1, LOWEST_LEVEL)
    return level


def _says(scarce: Scarce, seen: Sequence[Scarce]) -> bool:
    return seen.count(scarce) >= SCARCE * len(seen)


class Depth:
    """The level of one connection.  For one thread at a time, but `level` may be read by any."""

    def __init__(self, setting: int) -> None:
        """*setting*: `AUTO`, 0 (none), or a level of zstandard up to 19."""
        self.level = FIRST_LEVEL if setting == AUTO else setting
        self._moves = setting == AUTO
        self._seen: list[Scarce] = []
        self._size = 0
        self._seconds = 0.0
        self._packed: deque[float] = deque(maxlen=REMEMBERED)
        """What a byte took lately, from one end to the other, at the lowest level (seconds)."""
        self._plain: deque[float] = deque(maxlen=REMEMBERED)
        """The same without compression, since that was begun."""
        self._distrust = 0
        """For so many decisions more, frames are not sent as they are: that was slower."""

    def begin(self) -> None:
        """A delta begins; most are small, and sooner gone if they are compressed."""
        if self._moves:
            self.level = max(self.level, LOWEST_LEVEL)

    def note(self, scarce: Scarce) -> None:
        """One frame more goes to the link."""
        if not self._moves:
            return
        self._seen.append(scarce)
        if len(self._seen) == FRAMES_A_DECISION:
            self._decide()
            self._seen.clear()
            self._size, self._seconds = 0, 0.0

    def spend(self, size: int, seconds: float) -> None:
        """A frame is gone, *seconds* after the one before it; *size* before compression."""
        self._size += size
        self._seconds += seconds

    def _decide(self) -> None:
        if not self._size:
            self.level = max(LOWEST_LEVEL, next_level(self.level, self._seen))
            return
        a_byte = self._seconds / self._size
        if self.level == 0:
            self._plain.append(a_byte)
            if len(self._plain) == REMEMBERED and self._is_slower():
                self.level, self._distrust = LOWEST_LEVEL, TRUSTED
            return
        self._distrust = max(0, self._distrust - 1)
        if self.level == LOWEST_LEVEL:
            self._packed.append(a_byte)
            if _says(Scarce.PROCESSOR, self._seen) and not self._distrust:
                self.level = 0
                self._plain.clear()
                return
        self.level = next_level(self.level, self._seen)

    def _is_slower(self) -> bool:
        """Without compression."""
        return median(self._plain) > WORTH_IT * median(self._packed)


class Compressor:
    """Compresses what shrinks.  For one thread at a time; remembers a context for each level."""

    def __init__(self) -> None:
        self._contexts: dict[int, zstandard.ZstdCompressor] = {}

    def compress(self, parts: Sequence[Buffer], level: int) -> bytes | None:
        """The zstandard frame; None if it is not worth it, which a sample tells early.

        Args:
            parts: one behind the other; they are put together only if that is worth it.
        """
        size = sum(map(len, parts))
        if size >= SAMPLE_FROM and not _pays(self._context(1), _sample(max(parts, key=len))):
            return None
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        packed = self._context(level).compress(data)
        return packed if _saves(len(packed), size) else None

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
