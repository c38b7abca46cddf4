"""Sending a group by what differs, whatever the two sites have in common."""

from __future__ import annotations

import time
from contextlib import closing

from nasfs.volume.types import BLOCK
from replication.endpoint import Source
from replication.local import VolumeSource
from replication.rebase import RebaseSource
from replication.witness import LocalWitness

from ..comparing.comparison import Partner
from ..records import VolumeRow
from .outgoing import Outgoing, Waiting
from .reports import Running

REPORT_S = 1.0


class Rebasing(Outgoing):
    """One attempt: the newest snap group goes, as the delta from the partner's newest snapshots.

    Those before it are left out.  What the partner has stays as its snapshots.
    """

    _targets: dict[str, str]
    """By the volume's UUID, the GUID of what is sent."""

    def _send(self, waiting: Waiting, theirs: set[str]) -> None:
        newest = waiting.chosen[-1]
        self._under_way = (newest,)
        targets = {row.uuid: waiting.snapshots[row.uuid][newest.uuid] for row in self._rows}
        self._targets = {uuid: snapshot.guid for uuid, snapshot in targets.items()}
        self._hold([newest.uuid], waiting)
        for row in self._rows:
            if waiting.lacks(row, newest.uuid):
                self._send_volume(row, [targets[row.uuid]], 1)
                theirs.add(targets[row.uuid].guid)
        self._beside.join()
        self._note_common(waiting, newest.uuid)

    def _source(self, row: VolumeRow) -> Source:
        """What differs, found out now; the partner answers over a connection of its own."""
        with closing(Partner(self._node, self._group)) as partner:
            base = partner.newest(row)
            if base is None:  # the initial copy
                return VolumeSource(self._node.volume_path(row))
            ours = LocalWitness(self._node.volume_path(row), self._targets[row.uuid])
            try:
                ours.on_part = _Teller(self, ours)
                return RebaseSource(ours, base, partner.witness(row, base.guid))
            except BaseException:
                ours.close()
                raise

    def tell_comparing(self, witness: LocalWitness) -> None:
        total = witness.snapshot.blocks * BLOCK
        done = min(witness.read_bytes, total)
        self._say(
            Running(
                phase="comparing",
                snapshot=witness.snapshot.name,
                bytes_done=done,
                bytes_total=total,
                wire_bytes=self._done.wire_bytes,
                seconds=time.monotonic() - self._began,
            )
        )


class _Teller:
    """Tells now and then how far the comparison is."""

    def __init__(self, rebasing: Rebasing, witness: LocalWitness) -> None:
        self._rebasing = rebasing
        self._witness = witness
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_S
            self._rebasing.tell_comparing(self._witness)
