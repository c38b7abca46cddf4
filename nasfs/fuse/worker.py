"""A thread beside the loop for what waits for the disk, at the price of a switch of threads.

trio hands work to a thread, and what came of it back, through its scheduler and a socket: 0.3 ms
where a sync of a few blocks takes a fifth of that.  So the loop itself waits for the thread, but
for a moment only, as it does when it polls for the next request; whatever takes longer is awaited
as usual, and others have their turn.  Where waiting was in vain it is tried less and less often, so
a slow disk stalls nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import trio

from nasfs.fuse.loop import not_polling

PATIENCE_S = 0.0005
"""Seconds that the loop waits for the thread before others have their turn."""

MAX_SKIPPED = 63
"""Pieces of work that are not waited for, at most, until that is tried again."""


class Work:
    """What was handed over.  Whoever did so awaits it, whatever happens in between."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._over = threading.Lock()
        self._over.acquire()
        self._error: BaseException | None = None
        self._tell: Callable[[], object] | None = None

    def run(self) -> None:
        """In the thread."""
        try:
            self._work()
        except BaseException as exc:
            self._error = exc
        self._over.release()
        if self._tell is not None:
            self._tell()

    def is_over(self, patience_s: float) -> bool:
        """Whether it was done within so many seconds, during which the loop stands still."""
        return self._over.acquire(timeout=patience_s)

    async def until_over(self) -> None:
        """After `is_over` said no."""
        token, told = trio.lowlevel.current_trio_token(), trio.Event()
        self._tell = lambda: token.run_sync_soon(told.set)
        if self._over.acquire(blocking=False):  # just before it could see whom to tell
            return
        # Not cancellable: the thread would go on with nobody waiting for what it did.
        with not_polling(), trio.CancelScope(shield=True):
            await told.wait()

    def result(self) -> None:
        """Raises what the work has raised."""
        if self._error is not None:
            raise self._error


class Worker:
    """One thread, which begins with the first piece of work and does one after the other."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._skip = 0
        self._skipped = 0

    async def run(
        self, work: Callable[[], object], meanwhile: Callable[[], object] | None = None
    ) -> None:
        """Have *work* done in the thread; returns, mostly without a checkpoint, when it is over.

        Args:
            meanwhile: is called on the loop at once.
        """
        given = self._give(work)
        try:
            if meanwhile is not None:
                meanwhile()
        finally:
            if not self._wait(given):
                await given.until_over()
            given.result()

    def close(self) -> None:
        """The thread ends when nothing is left to do; more work would begin another one."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread = None

    def _give(self, work: Callable[[], object]) -> Work:
        if self._thread is None:
            self._queue = SimpleQueue()
            self._thread = threading.Thread(
                target=_work_off, args=(self._queue,), name="disk", daemon=True
            )
            self._thread.start()
        given = Work(work)
        self._queue.put(given)
        return given

    def _wait(self, given: Work) -> bool:
        if self._skipped < self._skip:
            self._skipped += 1
            return given.is_over(0)
        self._skipped = 0
        if given.is_over(PATIENCE_S):
            self._skip = 0
            return True
        self._skip = min(2 * self._skip + 1, MAX_SKIPPED)
        return False


def _work_off(queue: SimpleQueue[Work | None]) -> None:
    while (given := queue.get()) is not None:
        given.run()
