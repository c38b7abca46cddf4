"""Agreeing with the partner on who is primary: the new primary's side of a switchover and a join.

Until the partner is asked to hand over, everything can be called off: it then goes on as before,
by itself if it can't be told.  Whether a question about handing over was granted may not be known
when the link breaks; the same question is asked again later.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import trio

from nasfs.errors import Failed, NasError, Refused
from replication import handover
from replication.client import operate
from replication.errors import PeerFailed, PeerUnreachable, RefusedByPeer
from replication.handover import (
    CatchUp,
    CaughtUp,
    Drain,
    Drained,
    HandedOver,
    HandOver,
    Keep,
    Kept,
    Rejoin,
    Rejoined,
    Sending,
    Sent,
)
from replication.roles import Action, Plan, Step

from ..context import Node
from ..engine import info
from ..pairing import connect_peer
from ..records import Group
from ..services import Services
from .progress import Work

T = TypeVar("T", bound=msgspec.Struct)

LOOK_S = 0.2
"""How often it is looked whether a snap group has arrived (seconds)."""
ASK_S = 3.0
"""How often the partner is asked how far it is."""
STALL_S = 120.0
"""If nothing moves for so long, the change of roles is called off."""
UNHEARD_S = 45.0
"""The same, if the partner does not answer; it takes the group back a little later."""

UNDECIDED = (Action.CATCH_UP, Action.DRAIN, Action.RECEIVE)
"""Steps during which the partner is still the primary, whatever happens."""

PARTNERS = (*UNDECIDED, Action.HAND_OVER, Action.REJOIN)
"""Steps that `agree` does."""


async def ask(
    services: Services, group: Group, operation: str, body: msgspec.Struct, answer: type[T]
) -> T:
    """What the partner answers.

    Raises:
        PeerUnreachable: it is not known whether it has done it.
        RefusedByPeer, PeerFailed: it did not.
    """

    def talk(node: Node) -> bytes:
        with connect_peer(node) as connection:
            return operate(connection, group.uuid, operation, handover.encode(body))

    return handover.decode(await services.run(talk), answer)


async def agree(services: Services, group: Group, work: Work, step: Step, *, force: bool) -> Work:
    """One of the steps that the partner takes part in."""
    plan = work.plan
    match step.action:
        case Action.CATCH_UP:
            body = CatchUp(plan.token, plan.term)
            caught_up = await ask(services, group, handover.CATCH_UP, body, CaughtUp)
            await _receive(services, group, plan, caught_up.snap_group, drained=False)
        case Action.DRAIN:
            asked = Drain(plan.token, plan.term, force)
            drained = await ask(services, group, handover.DRAIN, asked, Drained)
            work = msgspec.structs.replace(work, drained=drained)
        case Action.RECEIVE:
            assert work.drained is not None, "the step before has noted it"
            await _receive(services, group, plan, work.drained.snap_group, drained=True)
        case Action.HAND_OVER:
            assert work.drained is not None, "an earlier step has noted it"
            last = HandOver(plan.token, step.term, work.drained.snap_group)
            await ask(services, group, handover.HAND_OVER, last, HandedOver)
        case Action.REJOIN:
            back = Rejoin(step.term, dict(step.common))
            joined = await ask(services, group, handover.REJOIN, back, Rejoined)
            work = msgspec.structs.replace(work, rejoined=joined)
    return work


async def _receive(
    services: Services, group: Group, plan: Plan, snap_group: str, *, drained: bool
) -> None:
    """Wait until that snap group is here whole.

    Raises:
        Failed: nothing moves any more, or it needs a person.
        Refused: the partner has taken the group back.
        PeerUnreachable: it has not answered for too long.
    """
    heard = moved = trio.current_time()
    asked, progress = 0.0, -1
    while not await services.run(_has, group, snap_group):
        now = trio.current_time()
        if now - asked >= ASK_S:
            asked = now
            try:
                sent = await ask(services, group, handover.SENDING, Sending(plan.token), Sent)
            except (PeerUnreachable, PeerFailed):
                if now - heard > UNHEARD_S:
                    raise
                continue
            heard = now
            if sent.moved != progress:
                moved, progress = now, sent.moved
            if drained and not sent.drained:
                raise Refused("the primary has taken the group back meanwhile")
            if sent.state == "stopped" or now - moved > STALL_S:
                raise Failed(
                    f"the partner does not replicate: {sent.reason or 'nothing moves'}",
                    hint=f"there: nasfs replication explain {group.name}",
                )
        await trio.sleep(LOOK_S)


def _has(node: Node, group: Group, snap_group: str) -> bool:
    return all(
        any(snapshot.snap_group == snap_group for snapshot in info(node, row).snapshots)
        for row in node.state.members(group.uuid)
    )


async def call_off(services: Services, group: Group, work: Work, *, must_know: bool) -> str:
    """The partner goes on as the primary; a sentence about that.

    Raises:
        Refused: it has handed over already.
        NasError: it does not answer, and *must_know* is true.
    """
    keep = Keep(work.plan.token, work.plan.term)
    try:
        await ask(services, group, handover.KEEP, keep, Kept)
    except RefusedByPeer as exc:
        raise Refused(str(exc), hint=exc.hint) from exc
    except NasError:
        if must_know:
            raise
        return "the partner goes on as the primary, by itself if it was not told, within minutes"
    return "the partner goes on as the primary"
