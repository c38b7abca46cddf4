"""How far something is: a bar on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from nasfs.errors import Refused
from nasfs.node.client import ApiError, Client, replication_url
from nasfs.node.messages import ErrorView, ReplicationView
from nasfs.node.words import render_size

LINE_S = 5.0
"""Without a terminal, a line in so many seconds."""


class _Display(Protocol):
    def show(self, view: ReplicationView) -> None: ...

    def close(self) -> None: ...


def wait_for_attempt(client: Client, view: ReplicationView) -> ReplicationView:
    """Until the attempt that was asked for has ended; its view.

    Raises:
        ApiError: it failed.
    """
    target = view.asked_attempt
    display: _Display = _Bar() if sys.stderr.isatty() else _Lines()
    try:
        while view.finished_attempts < target:
            url = replication_url(view.group)  # answers when it has ended, else after a moment
            before, view = view, client.get(url, ReplicationView, finished=str(target))
            if view.paused:
                raise Refused(f"replication of {view.group} was paused meanwhile")
            if view.finished_attempts < before.finished_attempts:
                target = 1  # another daemon: its first attempt sees everything
            display.show(view)
    finally:
        display.close()
    if view.state in ("waiting", "stopped") and view.reason:
        raise ApiError(ErrorView(view.reason, view.hint, view.exit_code))
    print(
        f"{view.group}: {view.rows_done} rows, {render_size(view.bytes_done)} in files,"
        f" {render_size(view.wire_bytes)} on the wire, {view.seconds:.1f} s"
    )
    return view


def progress_line(view: ReplicationView) -> str:
    """``sending s7: 40% of 1.2G, 12M/s, 3.1 to 1, done at ...``."""
    share = view.bytes_done * 100 // view.bytes_total if view.bytes_total else 100
    eta = f", done at {view.eta}" if view.eta else ""
    return (
        f"{view.phase} {view.snapshot}: {share}% of {render_size(view.bytes_total)},"
        f" {view.rows_done}/{view.rows_total} rows, {render_size(int(view.rate_now))}/s,"
        f" {view.ratio:.1f} to 1{eta}"
    )


class _Lines:
    """A line for each snapshot and every few seconds, and one for each reason to wait."""

    def __init__(self) -> None:
        self._next = 0.0
        self._snapshot = ""
        self._reason = ""

    def show(self, view: ReplicationView) -> None:
        now = time.monotonic()
        if view.state == "waiting" and view.reason != self._reason:
            self._reason = view.reason
            print(f"{view.group} waits: {view.reason}", file=sys.stderr)
        if not view.snapshot or (now < self._next and view.snapshot == self._snapshot):
            return
        self._next, self._snapshot = now + LINE_S, view.snapshot
        print(progress_line(view), file=sys.stderr)

    def close(self) -> None:
        """Nothing is left open."""


class _Bar:
    """Bytes done of the snapshot under way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("connecting", total=None)
        self._progress.start()

    def show(self, view: ReplicationView) -> None:
        if view.state == "waiting":
            self._progress.update(self._task, description=f"waits: {view.reason}")
        if not view.snapshot:
            return
        eta = f", done at {view.eta}" if view.eta else ""
        self._progress.update(
            self._task,
            description=f"{view.phase} {view.snapshot} ({view.rows_done}/{view.rows_total} rows,"
            f" {view.ratio:.1f} to 1{eta})",
            completed=view.bytes_done,
            total=view.bytes_total or None,
        )

    def close(self) -> None:
        self._progress.stop()


@contextmanager
def check_display(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; it is told the step, what is done of it, and how much it is."""
    if quiet or not sys.stderr.isatty():
        yield lambda step, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task("", total=None)

    def show(step: str, done: int, total: int) -> None:
        progress.update(task, description=step, completed=done, total=total or None)

    with progress:
        yield show
