"""The way from one request of the kernel to the next, made short.

Before each request pyfuse3 takes a fair lock and waits in trio's epoll: two turns of trio's
scheduler, then a sleep from which the kernel has to wake this process on another processor.
Measured on a lone client, that is two thirds of what a request costs.  `shorten` puts a namespace
in place of trio in pyfuse3, as its own asyncio mode does, with two differences:

- The lock is not fair.  Workers are alike: the one that is awake takes the next request, and
  another one is woken only to take over when this one has to wait for something.
- A request that is there already is taken at once.  If there is none, the other tasks get their
  turn, and then the descriptor is polled for a moment, because a busy client asks again within
  microseconds.  Only then does the process sleep.  Where polling finds nothing it is tried less
  and less often, so that an idle or slow client costs next to nothing.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyfuse3
import trio

POLL_NS = 100_000
"""Nanoseconds that the descriptor is polled before the process sleeps."""

MAX_SKIPPED = 63
"""Sleeps without polling before them, at most, until polling is tried again."""

MAX_STREAK = 64
"""Requests taken one after the other before other tasks get their turn."""


async def in_thread(work: Callable[[], object], *, limiter: trio.CapacityLimiter) -> None:
    """Run *work* in a thread, not cancellable; meanwhile the descriptor is not polled.

    Polling would keep the interpreter's lock from the thread.
    """
    with not_polling():
        await trio.to_thread.run_sync(work, limiter=limiter)


@contextmanager
def not_polling() -> Iterator[None]:
    """A thread works while the body runs."""
    mark = object()
    _threads.append(mark)
    try:
        yield
    finally:
        _threads.remove(mark)


_threads: list[object] = []
"""One for each thread that works; there is one loop in a process."""


def requests() -> int:
    """How many requests have come so far."""
    return _requests


_requests = 0


def shorten(is_introduced: Callable[[], bool]) -> None:
    """Make `pyfuse3.main` of this process take requests the short way.

    Args:
        is_introduced: asked before each wait for a request, until it has said yes.
    """
    lowlevel = _Lowlevel(is_introduced, can_poll=len(os.sched_getaffinity(0)) > 1)
    namespace = SimpleNamespace(
        Lock=UnfairLock,
        lowlevel=lowlevel,
        ClosedResourceError=trio.ClosedResourceError,
        open_nursery=trio.open_nursery,
        from_thread=trio.from_thread,
    )
    vars(pyfuse3)["trio"] = namespace


class UnfairLock:
    """A lock whose owner may take it again at once, though others wait for it."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._woken = False

    async def __aenter__(self) -> None:
        # Without a checkpoint when it is free: `RequestDescriptor.wait_readable` makes them.
        while self._held:
            await self._waiting.park()
            self._woken = False
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        if self._waiting and not self._woken:
            self._woken = True  # one is enough: it runs when this task next waits
            self._waiting.unpark()


class RequestDescriptor:
    """Waiting for the kernel's descriptor to have a request.

    Args:
        ready: whether it has one, without waiting.
        can_poll: a second processor is there, on which the client can run meanwhile.
        now_ns: a clock.
    """

    def __init__(
        self,
        fd: int,
        ready: Callable[[], object],
        *,
        can_poll: bool,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._fd = fd
        self._ready = ready
        self._can_poll = can_poll
        self._now_ns = now_ns
        self._streak = 0
        self._skip = 0
        self._skipped = 0
        self._is_closing = False

    def close(self) -> None:
        """Nobody may wait any more; who does gets `trio.ClosedResourceError`."""
        self._is_closing = True

    async def wait_readable(self) -> None:
        """Return when a request can be read, in most cases without a checkpoint."""
        global _requests
        _requests += 1
        if self._ready():
            self._streak += 1
            if self._streak == MAX_STREAK:
                self._streak = 0
                await self._let_others_run()
            return
        self._streak = 0
        if self._can_poll and not _threads and self._is_worth_it():
            await self._let_others_run()
            if self._poll():
                return
        await trio.lowlevel.wait_readable(self._fd)

    async def _let_others_run(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_closing:  # trio told those who wait in its epoll; we were not there
            raise trio.ClosedResourceError

    def _is_worth_it(self) -> bool:
        if self._skipped < self._skip:
            self._skipped += 1
            return False
        self._skipped = 0
        return True

    def _poll(self) -> bool:
        ready, now_ns = self._ready, self._now_ns
        end = now_ns() + POLL_NS
        while now_ns() < end:
            if ready():
                self._skip = 0
                return True
        self._skip = min(2 * self._skip + 1, MAX_SKIPPED)
        return False


class _Lowlevel:
    """`trio.lowlevel`, but for the two functions that concern the kernel's descriptor."""

    def __init__(self, is_introduced: Callable[[], bool], *, can_poll: bool) -> None:
        self._is_introduced = is_introduced
        self._can_poll = can_poll
        self._descriptor: RequestDescriptor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        if self._descriptor is None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            ready = poll.poll
            self._descriptor = RequestDescriptor(fd, lambda: ready(0), can_poll=self._can_poll)
        if self._is_introduced():
            # From now on without another coroutine in between.
            wait_readable = self._descriptor.wait_readable
            self.wait_readable = lambda fd: wait_readable()  # type: ignore[method-assign]
        await self._descriptor.wait_readable()

    def notify_closing(self, fd: int) -> None:
        if self._descriptor is not None:
            self._descriptor.close()
        trio.lowlevel.notify_closing(fd)
