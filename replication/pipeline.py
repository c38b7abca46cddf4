"""From batches to the link: compressed in some threads, sent by another, in order, bounded.

Whoever reads the source puts batches in; a few are compressed at a time, and a few finished ones
wait for the link, so that reading, compressing, encrypting and sending go on side by side.  What is
in here has not been sent: a batch counts as on its way from the moment the link takes it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from .compression import Scarce
from .connection import Connection
from .wire import Data, Rows

WORKERS = max(1, min(4, (os.cpu_count() or 1) - 1))
"""Threads that compress."""
FRAMES = 2 * WORKERS + 2
"""Batches between the reader and the link at most; each is about 2 MiB."""


class Gate(Protocol):
    """Where a batch is noted before it goes."""

    def has_room(self, size: int) -> bool: ...

    def wait_for_room(self, size: int) -> None:
        """Raises what made further sending useless."""
        ...

    def stop(self) -> None:
        """Whoever waits for room raises `Stopped`."""
        ...


class Stopped(Exception):
    """Nobody wants the rest to be sent."""


class _Item:
    def __init__(self, message: Rows | Data, launch: Callable[[], None]) -> None:
        self.message = message
        self.launch = launch
        self.frame: Future[bytes] | None = None


class Pipeline:
    """A context manager: inside, batches may be put; afterwards its threads are gone.

    Attributes:
        packed, packed_wire: bytes of batches sent, before and after compression.
    """

    def __init__(self, connection: Connection, gate: Gate) -> None:
        self.packed = 0
        self.packed_wire = 0
        self._sent_at = time.perf_counter()
        self._connection = connection
        connection.depth.begin()
        self._gate = gate
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="compress")
        self._queue: queue.Queue[_Item | None] = queue.Queue(FRAMES)
        self._failure: BaseException | None = None
        self._link = threading.Thread(target=self._run, name="link", daemon=True)

    def put(self, message: Rows | Data, launch: Callable[[], None]) -> None:
        """Send this next; waits while too much is in here.

        Args:
            launch: called in the thread of the link, just before the first byte goes.

        Raises:
            what stopped the link: see `Connection.send` and `Gate.wait_for_room`.
        """
        item = _Item(message, launch)
        item.frame = self._workers.submit(self._connection.pack, message)
        self._hand_over(item)

    def drain(self) -> None:
        """Until everything that was put has been sent.  Raises like `put`."""
        self._hand_over(None)
        self._link.join()
        self._check()

    def _hand_over(self, item: _Item | None) -> None:
        while True:
            self._check()
            try:
                self._queue.put(item, timeout=0.2)  # the link may have failed meanwhile
                return
            except queue.Full:
                continue

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._send(item)
        except Stopped:
            pass
        except BaseException as exc:  # carried to the thread that reads, and raised there
            self._failure = exc

    def _send(self, item: _Item) -> None:
        assert item.frame is not None
        size = len(item.message.body)
        if self._gate.has_room(size):
            self._connection.depth.note(self._what_is_scarce(item.frame))
        frame = item.frame.result()
        self._gate.wait_for_room(size)
        item.launch()
        self._connection.send_packed(item.message, frame)
        now = time.perf_counter()
        self._connection.depth.spend(size, now - self._sent_at)
        self._sent_at = now
        self.packed += size
        self.packed_wire += len(frame)

    def _what_is_scarce(self, frame: Future[bytes]) -> Scarce:
        if not frame.done():
            return Scarce.PROCESSOR
        return Scarce.LINK if self._queue.qsize() >= FRAMES // 2 else Scarce.NEITHER

    def __enter__(self) -> Pipeline:
        self._link.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._link.is_alive():  # somebody else failed
            self._gate.stop()
            self._connection.abort()
            self._empty()
            self._link.join()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _empty(self) -> None:
        """The link finds nothing more to send, and an end."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._queue.put(None)
