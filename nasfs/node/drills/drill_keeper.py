"""What the daemon does about test failovers: clears what was left, lets go of holds, ends all."""

from __future__ import annotations

import logging

import trio
from msgspec.structs import replace

from nasfs.errors import NasError

from ..context import Node
from .drill_table import Phase
from .drills import end, is_held, problems, settle

log = logging.getLogger(__name__)

SETTLE_EVERY_S = 5.0
"""How often a volume is tried that was in a receiver's hands (seconds)."""


def clear_leftovers(node: Node) -> None:
    """At the daemon's start: a test that still serves stays; what else is left of tests goes."""
    for drill in node.drills.all():
        if drill.phase is Phase.RUNNING and not problems(drill):
            node.state.note("daemon", "test failover goes on", drill.name, f"on @{drill.snapshot}")
        elif drill.phase is not Phase.RELEASING:
            _end(node.acting("daemon"), drill.id, "it was broken off")


def stop_drills(node: Node) -> None:
    """At the daemon's end: like every mount of a volume."""
    for drill in node.drills.all():
        if drill.phase is not Phase.RELEASING:
            _end(node.acting("daemon"), drill.id, "the daemon ended")


def _end(node: Node, ident: str, why: str) -> None:
    for drill in node.drills.all():
        if drill.id == ident:
            try:
                end(node, replace(drill, problem=drill.problem or why))
            except (NasError, OSError) as exc:
                log.error("test failover of %s: %s", drill.name, exc)
                node.note("test failover not ended", drill.name, str(exc))


async def keep_drills(node: Node) -> None:
    """Until cancelled: the holds follow the leases, as soon as a receiver lets a volume go."""
    while True:
        try:
            await trio.to_thread.run_sync(let_go, node)
        except (NasError, OSError) as exc:  # a volume that can't be read is told elsewhere
            log.warning("holds of test failovers: %s", exc)
        await trio.sleep(SETTLE_EVERY_S)


def let_go(node: Node) -> None:
    """Release the holds of what is over, and hold what runs, once nobody has the volumes."""
    for drill in node.drills.all():
        if drill.phase is Phase.RELEASING and settle(node, drill):
            node.drills.forget(drill)
        elif drill.phase is Phase.RUNNING and not is_held(node, drill):
            settle(node, drill)
