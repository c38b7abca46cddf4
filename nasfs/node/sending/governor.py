"""In a send process: lets bytes pass as the daemon ordered.  For many threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from replication.link import LinkClosed
from replication.pacing import TokenBucket, rest


class Governor:
    """A rate, a share of the time, and whether anything may pass at all; all may change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._bucket = TokenBucket(0, clock())
        self._percent = 100
        self._closed = ""
        self.passed = 0
        """Bytes that were let through."""

    def set(self, rate: int, percent: int) -> None:
        """From now on, also for who waits already: *rate* bytes a second (0: no limit)."""
        with self._changed:
            self._bucket.set_rate(rate, self._clock())
            self._percent = percent
            self._changed.notify_all()

    def close(self, reason: str) -> None:
        """Nothing passes any more."""
        with self._changed:
            self._closed = reason
            self._changed.notify_all()

    @property
    def closed(self) -> str:
        """Why nothing passes; empty: it does."""
        return self._closed

    def throttle(self, size: int) -> None:
        """Wait until so many bytes may go.

        Raises:
            LinkClosed: they may not.
        """
        with self._changed:
            position = self._bucket.take(size, self._clock())
            while True:
                if self._closed:
                    raise LinkClosed(self._closed)
                now = self._clock()
                wait = max(self._bucket.wait(position, now), rest(self._percent, now))
                if wait <= 0.0:
                    self.passed += size
                    return
                self._changed.wait(wait)
