"""What the partner may ask of this node about a group, beyond sending it, and who answers.

A question comes over a connection of the partner, so to the process of that connection.  What
needs no more than node.db and the disks, it answers by itself (`HERE`); everything else, for which
the mounts, the scheduler or the replicator are needed, it hands to the daemon (`partner_daemon`).
Every answer is durable when it is given, and the same question asked again, because an answer was
lost, ends in the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nasfs.errors import Failed, Refused

from ..comparing import witnesses
from ..context import Node
from ..messages import PartnerAnswer, PartnerQuestion
from ..records import Group
from ..roles import loss
from ..shares import identities, share_travel

Here = Callable[[Node, Group, bytes], bytes]

HERE: Mapping[str, Here] = {
    share_travel.OPERATION: share_travel.take,
    identities.OPERATION: identities.answer,
    loss.OPERATION: loss.answer,
    **witnesses.ANSWERS,
}
"""By operation."""

DAEMON_S = 280.0
"""So long the daemon may work on one question (seconds)."""


def answer(node: Node, group: Group, operation: str, body: bytes) -> bytes:
    """In the process of a connection.

    Raises:
        Refused: there is no such operation, or it refuses.
        NasError: it failed.
    """
    if operation in HERE:
        return HERE[operation](node, group, body)
    from ..client import ApiError, Client, partner_url  # slow to import, and rarely needed

    url = partner_url(group.uuid, operation)
    try:
        question = PartnerQuestion(body)
        return Client(node.places).post(url, PartnerAnswer, question, timeout_s=DAEMON_S).body
    except ApiError as exc:
        refused = exc.exit_code == Refused.exit_code
        raise (Refused if refused else Failed)(exc.message, hint=exc.hint) from exc
