"""The group commit of a mounted volume: making changes durable while requests go on.

Theory of operation.  Changes run on the event loop without an ``await`` in their middle, after
they found the gate open.  So closing the gate takes no waiting: nothing is half done.  A round is

1. data written so far is synced in a thread, requests go on;
2. the gate closes: changes wait, reads go on;
3. what was written during (1) is synced in a thread: little, however busy the volume is;
4. metadata is committed, or a snapshot sealed, on the loop: one instant for the whole volume;
5. the gate opens;
6. the log is synced in a thread; then everybody who asked before (4) is answered.

Who asks while nothing is under way runs the round itself: on a fast disk that takes no turn of the
loop at all.  Who asks meanwhile is in it, up to (4), or in the next one, which `run` does.

Data is durable before metadata that names it, and nothing is acknowledged before (6).  For a snap
group the round of each volume waits between (3) and (4) until all volumes are there (`Hold`).
docs/durability.md tells what a power cut at each place leaves.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from nasfs.errors import Failed, NasError, Refused
from nasfs.fuse.loop import in_thread, requests
from nasfs.fuse.worker import Worker
from nasfs.volume import CorruptionError, MediaError, Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

RECLAIM_S = 0.005
"""So long space is given back (seconds) before requests have their turn."""
REST = 4
"""Where there are requests, they have so many times as long..."""
LONG_S = 30.0
"""...until it takes longer than that (seconds): then they have as long."""

MOST_ITEMS = 64
"""Layers given back, or parts of inodes of a destroyed snapshot, in one step of that."""

MAX_PASSES = 4
SHORT_S = 0.05
"""A sync as short as this leaves so little behind that the gate may close for the rest."""


class Gate:
    """Lets changes through, or holds them for the short moment of a commit."""

    def __init__(self) -> None:
        self._opened: trio.Event | None = None

    @property
    def is_closed(self) -> bool:
        return self._opened is not None

    async def wait_open(self) -> None:
        """On return the gate is open, and stays so until the caller's next ``await``."""
        while self._opened is not None:
            await self._opened.wait()

    @contextmanager
    def closed(self) -> Iterator[None]:
        assert self._opened is None, "one round at a time"
        self._opened = opened = trio.Event()
        try:
            yield
        finally:
            self._opened = None
            opened.set()


class _Job:
    """Something that is done at the instant of a commit."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.error: NasError | None = None


class _Round:
    """Those who wait for the same commit."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.is_wanted = False
        self.error: NasError | None = None
        self.jobs: list[_Job] = []
        self.holds: list[Hold] = []

    async def wait(self) -> None:
        if not self.done.is_set():  # else a turn of the loop for nothing
            await self.done.wait()
        if self.error is not None:
            # each waiter raises its own: one exception object in many tasks mixes tracebacks up
            raise _copy(self.error) from self.error


class Hold:
    """A round that waits, with the gate closed, for what shall be done at its instant."""

    def __init__(self, round_: _Round, limit_s: float) -> None:
        self.round = round_
        self.began = trio.Event()
        """Nothing changes any more and all data is synced; or the round came to an end before."""
        self._limit_s = limit_s
        self._decided = trio.Event()
        self._is_over = False

    async def wait(self) -> None:
        """In the round, for *limit_s* seconds at most."""
        self.began.set()
        with trio.move_on_after(self._limit_s):
            await self._decided.wait()
        self._is_over = True

    def decide(self, *jobs: _Job) -> None:
        """These jobs are done, if any, and changes go on.

        Raises:
            Refused: they went on already: there is no such instant any more.
        """
        if self._is_over and jobs:
            raise Refused(f"changes were held for {self._limit_s:g} s, and go on since")
        self.round.jobs.extend(jobs)
        self._decided.set()


class Committer:
    """What commits a volume, one round at a time.  `run` it in a nursery; everybody else asks."""

    def __init__(self, volume: Volume, gate: Gate, *, interval_s: float = 5.0) -> None:
        self._volume = volume
        self._gate = gate
        self._interval_s = interval_s
        self._next = _Round()
        self._last: _Round | None = None
        self._under_way: trio.Event | None = None
        """Set when the round that runs is over; None if none does."""
        self._wanted = trio.Event()
        self._committed = trio.Event()
        self._worker = Worker()
        self._threads = trio.CapacityLimiter(2)
        self._items = 1
        self.rounds = 0
        """Rounds that ended well, for statistics."""

    async def commit(self) -> None:
        """Every change made before this call is durable on return.

        Raises:
            MediaError: the disk refused, now or so that the volume is read-only since.
        """
        if self._volume.changed or not self._volume.writable:
            round_ = self._next
            if self._under_way is None:
                await self._run_round()
            else:
                self._join()
            await round_.wait()
        elif self._last is not None:  # all is committed, but the log may not be synced yet
            await self._last.wait()

    async def at_commit(self, work: Callable[[], T]) -> T:
        """Run *work* at the instant of a commit: all data synced, no change under way.

        What it changed is durable on return, with everything that returned before this call.
        *work* is short; it may call `seal_nowait`.

        Raises:
            MediaError: the disk refused.
            NasError: what *work* raised.
        """
        round_ = self._join()
        results: list[T] = []
        job = _Job(lambda: results.append(work()))
        round_.jobs.append(job)
        await round_.wait()
        if job.error is not None:
            raise job.error
        return results[0]

    async def hold(self, limit_s: float) -> Hold:
        """Let nothing change from now on, for *limit_s* seconds at most, or until it is decided.

        Reading goes on; who asks for a commit meanwhile waits for its end.

        Raises:
            MediaError: the disk refused.
        """
        hold = Hold(self._join(), limit_s)
        hold.round.holds.append(hold)
        await hold.began.wait()
        if hold.round.done.is_set():
            await hold.round.wait()  # which says why
        return hold

    async def at_instant(self, hold: Hold, work: Callable[[], T]) -> T:
        """Run *work* at the instant that is held; like `at_commit` in all else.

        Raises:
            Refused: changes go on already.
        """
        results: list[T] = []
        job = _Job(lambda: results.append(work()))
        hold.decide(job)
        await hold.round.wait()
        if job.error is not None:
            raise job.error
        return results[0]

    async def in_steps(self, steps: Iterator[Callable[[], None]]) -> None:
        """Do something long in small steps, between which requests are served and commits made.

        Args:
            steps: each may change the volume, and gives what is to be done in a thread before
                the next one.
        """
        await self._gate.wait_open()
        for prepare_next in steps:
            await self._in_thread(prepare_next)
            await self._gate.wait_open()

    async def run(self) -> None:
        """Commit whenever somebody waits for it, and every `interval_s` seconds if need be."""
        try:
            while True:
                with trio.move_on_after(self._interval_s) as waiting:
                    await self._wanted.wait()
                self._wanted = trio.Event()
                while self._under_way is not None:
                    await self._under_way.wait()
                is_time = waiting.cancelled_caught
                if self._next.is_wanted or (is_time and self._volume.changed):
                    await self._run_round()
        finally:
            self._worker.close()

    async def run_reclaim(self) -> None:
        """After each commit give back, in small steps, what no view can reach any more."""
        while True:
            committed = self._committed
            await self._gate.wait_open()
            came, began = requests(), trio.current_time()
            hurries_from = began + LONG_S
            while self._reclaim():
                now = trio.current_time()
                before, came = came, requests()
                # A client that waits for each answer would have one request in each turn.
                rest = 0 if came == before else REST if now < hurries_from else 1
                await trio.sleep(rest * (now - began))
                await self._gate.wait_open()
                began = trio.current_time()
            await committed.wait()

    def _reclaim(self) -> bool:
        """One turn; False if there is nothing more to do for now."""
        began = now = trio.current_time()
        try:
            while now < began + RECLAIM_S:
                if not self._volume.reclaim_step(self._items):
                    return False
                before, now = now, trio.current_time()
                # A step costs something by itself; and an item may be a part of a huge map.
                if now - before > RECLAIM_S:
                    self._items = max(1, self._items // 2)
                elif now - before < RECLAIM_S / 4:
                    self._items = min(MOST_ITEMS, self._items * 2)
        except MediaError as exc:  # out of space, for instance: the next commit tries again
            log.error("reclaim waits for the next commit: %s", exc)
            return False
        except Exception as exc:
            log.critical("reclaim failed", exc_info=True)
            self._volume.go_read_only(f"reclaim failed: {exc}")
            return False
        return True

    def _join(self) -> _Round:
        self._next.is_wanted = True
        self._wanted.set()
        return self._next

    async def _run_round(self) -> None:
        assert self._under_way is None, "one round at a time"
        self._under_way = over = trio.Event()
        self._last = round_ = self._next
        # Whatever happens: nothing is acknowledged unless the last step was reached.
        round_.error = Failed("the commit did not come to its end")
        try:
            if not self._volume.writable:
                raise MediaError(errno.EIO, "the volume went read-only; its last changes are lost")
            await self._sync_in_passes()
            with self._gate.closed():
                await self._sync_data()
                self._begin_next()
                for hold in round_.holds:
                    await hold.wait()
                self._commit_nowait(round_)
                if self._volume.checkpoint_needed():
                    await self._checkpoint()
            await self._sync_log()
            round_.error = None
            self.rounds += 1
        except NasError as exc:
            log.error("commit failed: %s", exc)
            round_.error = exc
        except Exception as exc:
            log.critical("commit failed", exc_info=True)
            round_.error = Failed(f"commit failed: {exc}")
            self._volume.go_read_only(f"commit failed: {exc}")
        except BaseException:
            round_.error = Failed("the mount ended during the commit")
            raise
        finally:
            if self._next is round_:
                self._begin_next()
            self._under_way = None
            over.set()
            round_.done.set()
            for hold in round_.holds:
                hold.began.set()
            self._committed.set()
            self._committed = trio.Event()

    def _begin_next(self) -> None:
        """Who asks from here on is not in the round that runs."""
        self._next = _Round()

    async def _sync_in_passes(self) -> None:
        """Sync until little is left, so that the gate is closed for a short time only."""
        for _ in range(MAX_PASSES):
            began = trio.current_time()
            await self._sync_data()
            if trio.current_time() - began < SHORT_S:
                return

    def _commit_nowait(self, round_: _Round) -> None:
        for job in round_.jobs:
            try:
                job.work()
            except (MediaError, CorruptionError):
                raise
            except NasError as exc:  # of that job alone: a name that is taken, for instance
                job.error = exc
        # Also with nothing to commit: it raises if changes were dropped since they were made.
        self._volume.commit_nowait()

    async def _sync_data(self) -> None:
        work = self._volume.dirty_data()
        if not work.count:
            return
        try:
            await self._worker.run(work.run, meanwhile=self._volume.flush_rows)
        except MediaError as exc:
            self._volume.data_refused(work, exc)
            raise

    async def _checkpoint(self) -> None:
        try:
            await self._in_thread(self._volume.checkpoint)
        except MediaError as exc:
            self._volume.go_read_only(f"the log could not be moved into the tables: {exc}")
            raise

    async def _sync_log(self) -> None:
        try:
            await self._worker.run(self._volume.sync_log)
        except MediaError as exc:
            self._volume.go_read_only(f"the log could not be written: {exc}")
            raise

    async def _in_thread(self, work: Callable[[], object]) -> None:
        # Not cancellable: the thread would go on with nobody waiting for what it did.
        await in_thread(work, limiter=self._threads)


def _copy(error: NasError) -> NasError:
    if isinstance(error, MediaError):
        return MediaError(error.errno, error.where, error.hint)
    return Failed(str(error), error.hint)
