"""``python -m nasfs.node.send GROUP``: brings the partner up to date with a group, then ends.

Reports to the daemon on standard output (see ``reports``); exits with the code of its error.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nasfs.errors import Failed, NasError
from replication.errors import Fenced, ReplicationError

from .children import end_with_daemon
from .context import Node
from .outgoing import Outgoing, group_spec
from .places import Places
from .records import Group
from .reports import Done, Failure, Report, Running, write_report

PATIENCE_S = 15.0
"""Without progress for so long, the daemon decides when to try again (seconds)."""
REPORT_S = 0.2
"""At most one report of progress in so many seconds."""


class Reporter:
    """Writes reports, progress not too often."""

    def __init__(self) -> None:
        self._next = 0.0

    def progress(self, running: Running) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPORT_S
            self.say(running)

    def say(self, report: Report) -> None:
        sys.stdout.buffer.write(write_report(report))
        sys.stdout.buffer.flush()


def main() -> int:
    """The exit code: 0, or the error's."""
    parser = argparse.ArgumentParser(prog="nasfs.node.send")
    parser.add_argument("--root", default="")
    parser.add_argument("group")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    end_with_daemon()
    reporter = Reporter()
    places = Places.find(options.root)
    try:
        with Node.open(places) as node:
            group = node.state.group(options.group)
            with _only_sender(places, group):
                reporter.say(send_group(node, group, reporter.progress))
    except NasError as exc:
        reporter.say(_failure(exc))
        return exc.exit_code
    return 0


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _only_sender(places: Places, group: Group) -> Iterator[None]:
    """One sender for each group.  Waits for one that a killed daemon left, which ends by itself."""
    descriptor = os.open(
        places.sender_lock(group.uuid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def send_group(node: Node, group: Group, report: Callable[[Running], None]) -> Done:
    """Agree on the passive side with the partner, then send every snap group that it lacks.

    Raises:
        Failed: the group is not replicated.
        ReplicationError: see `replication.sender.replicate`.
    """
    made = node.bond.replication(group.uuid)
    if made is None:
        raise Failed(f"group {group.name} is not replicated")
    outgoing = Outgoing(node, group, made, report, patience_s=PATIENCE_S)
    outgoing.agree(group_spec(node, group, made, node.bond.remote_names()))
    return outgoing.send()


def _failure(exc: NasError) -> Failure:
    return Failure(
        message=str(exc),
        hint=exc.hint,
        exit_code=exc.exit_code,
        transient=isinstance(exc, ReplicationError) and exc.transient,
        fenced=isinstance(exc, Fenced),
    )


if __name__ == "__main__":
    sys.exit(main())
