"""Receiving ahead: one thread takes messages from the link while another one applies them.

So that decryption, decompression and writing go on side by side, with bounded memory.  A small
delta is not worth a thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from .connection import Connection
from .errors import PeerUnreachable
from .wire import Message, Seal

AHEAD = 8
"""Messages that wait to be applied at most; each is a few MiB at most."""
WORTH_BYTES = 8 * 1024 * 1024
"""A delta of so many bytes of file data is worth a thread."""
LOOK_S = 0.2
"""How often the thread looks whether anybody still wants what it receives (seconds)."""


Receive = Callable[[float | None], Message | None]
"""The next message if one comes within so many seconds (None: it is waited for)."""


@contextmanager
def receiving(connection: Connection, size: int) -> Iterator[Receive]:
    """How to receive a delta with *size* bytes of file data, from Resume up to its Seal."""
    if size < WORTH_BYTES:
        yield connection.receive_within
        return
    with Ahead(connection) as ahead:
        yield ahead.receive_within


class Ahead:
    """A context manager: inside, messages up to a `Seal` may be taken; then the thread is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: queue.Queue[Message | BaseException] = queue.Queue(AHEAD)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiving", daemon=True)

    def receive_within(self, seconds: float | None) -> Message | None:
        """Like `Connection.receive_within`, in the order in which they came; raises alike."""
        try:
            got = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(got, BaseException):
            raise got
        return got

    def _run(self) -> None:
        try:
            while not self._unwanted.is_set():
                message = self._receive()
                if message is None:
                    return
                self._hand_over(message)
                if isinstance(message, Seal):
                    return
        except BaseException as exc:  # carried to the thread that applies, and raised there
            self._hand_over(exc)

    def _receive(self) -> Message | None:
        """None: nobody wants it any more."""
        silent = self._connection.timeout_s
        while not self._unwanted.is_set():
            message = self._connection.receive_within(LOOK_S)
            if message is not None:
                return message
            if self._connection.silent_s > silent:
                raise PeerUnreachable(self._connection.peer, f"nothing for {silent:g} seconds")
        return None

    def _hand_over(self, what: Message | BaseException) -> None:
        while not self._unwanted.is_set():
            try:
                self._queue.put(what, timeout=LOOK_S)
                return
            except queue.Full:
                continue

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unwanted.set()
        self._thread.join()
