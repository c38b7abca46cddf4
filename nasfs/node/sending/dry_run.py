"""What a run would send: from the deltas alone, and how well samples of the data compress."""

from __future__ import annotations

import stat
import time
from contextlib import closing

import zstandard
from msgspec.structs import replace

from nasfs.volume import Access, Delta, Epoch, Inode, open_volume
from replication.client import peer_status
from replication.link import Calendar
from replication.local import VolumeSource
from replication.plan import Retention, SendDelta, plan_deltas

from ..context import Node
from ..messages import DeltaView
from ..pairing import connect_peer
from ..records import Group, Replication, VolumeRow
from .lag import arrival
from .members import Members
from .outgoing import COMPRESSION_LEVELS, Waiting
from .traffic import calendar

SAMPLES = 32
SAMPLE_BYTES = 128 * 1024
ROW_BYTES = 120
"""About what a row takes on the wire, before compression."""


def delta_views(node: Node, group: Group, made: Replication, rate: float) -> list[DeltaView]:
    """What a run would send now, in its order.

    Args:
        rate: bytes on the wire in a second, as they were lately; 0: not known.
    """
    with connect_peer(node) as connection:
        status = peer_status(connection, group.uuid)
    rows = node.state.members(group.uuid)
    theirs = {volume.uuid: volume.snapshots for volume in status.volumes}
    known = {snapshot.guid for found in theirs.values() for snapshot in found}
    keeps = Retention(status.keep_most or made.max_snapshots, status.keep_least)
    with Members(node, rows) as members:
        waiting = Waiting(members, made, known, keeps)
    steps: dict[str, list[tuple[VolumeRow, SendDelta]]] = {
        snap_group.uuid: [] for snap_group in waiting.chosen
    }
    for row in rows:
        targets = [waiting.snapshots[row.uuid][chosen.uuid].guid for chosen in waiting.chosen]
        with closing(VolumeSource(node.volume_path(row))) as source:
            label = str(node.state.volume_name(row))
            ours = source.snapshots()
            for step in plan_deltas(label, ours, theirs.get(row.uuid, ()), targets):
                steps[step.target.snap_group].append((row, step))
    level, times = COMPRESSION_LEVELS[made.compression], calendar(made)
    views: list[DeltaView] = []
    wire = 0.0
    for row, step in [found for group_steps in steps.values() for found in group_steps]:
        view = _view(node, row, step, level)
        wire += (view.bytes + view.rows * ROW_BYTES) / view.ratio
        views.append(_timed(view, times, wire, rate))
    return views


def _view(node: Node, row: VolumeRow, step: SendDelta, level: int) -> DeltaView:
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        first = Epoch(0) if step.base is None else volume.snapshot(step.base.guid).epoch
        delta = volume.delta(first, volume.snapshot(step.target.guid).epoch)
        count = files = 0
        for change in delta.rows():
            count += 1
            if change.sort == "inode" and not change.gone:
                files += stat.S_ISREG(Inode(*change.row).mode)
        extents = size = 0
        for extent in delta.extents():
            if extent.layer:
                extents += 1
                size += extent.stop - extent.start
        return DeltaView(
            volume=step.volume,
            base=step.base.name if step.base else None,
            target=step.target.name,
            rows=count,
            bytes=size,
            files=files,
            ratio=round(_ratio(delta, extents, level), 2) if level else 1.0,
            seconds=None,
        )


def _ratio(delta: Delta, extents: int, level: int) -> float:
    """Of the beginnings of some extents, evenly spread over the delta."""
    compressor = zstandard.ZstdCompressor(level=level)
    step = max(1, extents // SAMPLES)
    number = plain = packed = 0
    for extent in delta.extents():
        if not extent.layer:
            continue
        if number % step == 0:
            stop = min(extent.stop, extent.start + SAMPLE_BYTES)
            data = delta.read(replace(extent, stop=stop))
            plain += len(data)
            packed += min(len(data), len(compressor.compress(data)))
        number += 1
    return plain / packed if packed else 1.0


def _timed(view: DeltaView, times: Calendar, wire: float, rate: float) -> DeltaView:
    now = time.time_ns()
    there = arrival(times, now, int(wire), 1.0, rate or times.rate)
    seconds = None if there is None else round((there - now) / 1e9, 1)
    return replace(view, seconds=seconds)
