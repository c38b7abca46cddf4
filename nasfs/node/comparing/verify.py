"""``python -m nasfs.node.comparing.verify``: compares this site's snapshots with the partner's.

Tells lines of `verify_messages` on standard output; exits with the code of its error.  It ends
when its standard input does: the daemon, or who asked the daemon, is gone then.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing

import msgspec

from nasfs.errors import NasError
from nasfs.volume.types import BLOCK
from replication.witness import LocalWitness

from ..children import end_with_daemon
from ..context import Node
from ..messages import ErrorView
from ..places import Places
from ..records import Group
from ..sending.replications import made_replication
from .comparison import Partner, common_snapshots, newest_snapshots
from .findings import findings
from .verify_messages import Comparing, FailedLine, FindingView, VerifiedView
from .witnesses import stand_back

REPORT_S = 1.0


def verify(
    node: Node, group: Group, *, name: str, newest: bool, say: Callable[[object], None]
) -> VerifiedView:
    """Compare volume after volume; what differs is said as it is found."""
    partner = Partner(node, group)
    with closing(partner):
        chosen = (
            newest_snapshots(node, group, partner)
            if newest
            else common_snapshots(node, group, partner, name)
        )
        progress = _Progress(say)
        for row in node.state.members(group.uuid):
            ours, theirs = chosen[row.uuid]
            path = node.volume_path(row)
            with closing(LocalWitness(path, ours)) as witness:
                progress.begin(str(node.state.volume_name(row)), witness)
                remote = partner.witness(row, theirs)
                for finding in findings(progress.volume, witness, remote):
                    progress.found(finding)
                progress.end()
    return VerifiedView(len(chosen), progress.snapshot, progress.bytes, progress.differences)


class _Progress:
    """Says what was found, and about once a second how far it is."""

    def __init__(self, say: Callable[[object], None]) -> None:
        self.volume = self.snapshot = ""
        self.bytes = self.differences = 0
        """Of all volumes."""
        self._say = say
        self._witness: LocalWitness | None = None
        self._next = 0.0

    def begin(self, volume: str, witness: LocalWitness) -> None:
        self.volume, self.snapshot = volume, witness.snapshot.name
        self._witness = witness
        witness.on_part = self._at_part

    def end(self) -> None:
        assert self._witness is not None
        self._tell()
        self.bytes += self._witness.read_bytes
        self._witness = None

    def _at_part(self) -> None:
        if time.monotonic() >= self._next:
            self._tell()

    def found(self, finding: FindingView) -> None:
        self.differences += 1
        self._say(finding)

    def _tell(self) -> None:
        self._next = time.monotonic() + REPORT_S
        assert self._witness is not None
        total = self._witness.snapshot.blocks * BLOCK
        done = min(self._witness.read_bytes, total)
        self._say(Comparing(self.volume, self.snapshot, done, total, self.differences))


def main() -> int:
    """The exit code: 0, or the error's."""
    parser = argparse.ArgumentParser(prog="nasfs.node.comparing.verify")
    parser.add_argument("--root", default="")
    parser.add_argument("--snapshot", default="")
    parser.add_argument("--newest", action="store_true")
    parser.add_argument("group")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    end_with_daemon()
    stand_back()
    try:
        with Node.open(Places.find(options.root)) as node:
            group, _ = made_replication(node, options.group)
            done = verify(node, group, name=options.snapshot, newest=options.newest, say=_say)
            node.acting("admin").note("replication verified", group.name, _told(done))
            _say(done)
    except NasError as exc:
        _say(FailedLine(ErrorView(str(exc), exc.hint, exc.exit_code)))
        _say({"end": {}})
        return exc.exit_code
    _say({"end": {}})
    return 0


def _told(done: VerifiedView) -> str:
    result = f"{done.differences} differences" if done.differences else "equal"
    return f"@{done.snapshot}: {result}"


def _say(line: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
