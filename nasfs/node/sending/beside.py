"""In a send process: what waits for disks or the partner goes on beside the transfer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

T = TypeVar("T")
Values = TypeVarTuple("Values")

THREADS = 2


class Beside:
    """A context manager: what was begun in it has ended when it is left.

    What one call raises is raised by `join`; if the context ends by another error, that one counts.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="beside")
        self._begun: list[Future[Any]] = []

    def begin(self, call: Callable[[*Values], T], *args: *Values) -> Future[T]:
        """Call it in a thread of its own, as soon as one is free."""
        future = self._pool.submit(call, *args)
        self._begun.append(future)
        return future

    def join(self) -> None:
        """Until all that was begun has ended; raises what the first of them raised."""
        begun, self._begun = self._begun, []
        for future in begun:
            future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if kind is None:
            self.join()
