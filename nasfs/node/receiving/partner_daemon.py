"""The daemon's answers to the partner's questions about a group (`partner` tells how they come)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from nasfs.errors import Refused
from replication import handover

from ..messages import PartnerAnswer, PartnerQuestion
from ..policy import following
from ..records import Group
from ..roles import parting, rejoining, yielding
from ..services import Services

Daemon = Callable[[Services, Group, bytes], Awaitable[bytes]]

DAEMON: Mapping[str, Daemon] = {
    handover.CATCH_UP: yielding.catch_up,
    handover.DRAIN: yielding.drain,
    handover.SENDING: yielding.sending,
    handover.HAND_OVER: yielding.hand_over,
    handover.KEEP: yielding.keep,
    handover.REJOIN: rejoining.rejoin,
    parting.END: parting.asked_to_end,
    following.OPERATION: following.asked_to_follow,
}
"""By operation."""


async def answer(
    services: Services, question: PartnerQuestion, params: Mapping[str, str]
) -> PartnerAnswer:
    """What the process of a connection handed on.

    Raises:
        Refused: there is no such group or operation, or it refuses.
        NasError: it failed.
    """
    group = services.node.state.find_group(params["group"])
    if group is None:
        raise Refused("the partner does not know that group")
    handler = DAEMON.get(params["operation"])
    if handler is None:
        raise Refused(
            f"the partner knows no operation {params['operation']}",
            hint="install the same release of nasfs on both nodes",
        )
    return PartnerAnswer(await handler(services, group, question.body))
