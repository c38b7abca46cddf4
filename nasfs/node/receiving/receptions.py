"""Groups that this node receives: what it keeps of them, as it says itself."""

from __future__ import annotations

from nasfs.errors import ConfigError, Failed

from ..context import Node
from ..engine import info
from ..messages import when
from ..records import Group, Reception
from ..sending.outgoing import complete, grouped
from ..sending.replication_messages import ReceptionSet, ReceptionView

MAX_SNAPSHOTS = 1000


def show(node: Node, name: str) -> ReceptionView:
    """Raises Failed if this node does not receive the group."""
    return _view(node, *_received(node, name))


def change(node: Node, name: str, body: ReceptionSet) -> ReceptionView:
    """What this node keeps, whatever the sender asks for.  It counts when something arrives next.

    Raises:
        ConfigError: more than can be kept, or at least more than at most.
    """
    group, before = _received(node, name)
    least = before.keep_least if body.keep_least is None else body.keep_least
    most = before.keep_most if body.keep_most is None else body.keep_most
    if not (0 <= least <= MAX_SNAPSHOTS and 0 <= most <= MAX_SNAPSHOTS):
        raise ConfigError(f"1 to {MAX_SNAPSHOTS} snapshots of a volume can be kept; 0: no rule")
    if most and least > most:
        raise ConfigError(f"at least {least} and at most {most} do not go together")
    node.bond.set_own_retention(group.uuid, least, most)
    node.note("retention changed", name, f"at least {least}, at most {most}")
    return show(node, name)


def _received(node: Node, name: str) -> tuple[Group, Reception]:
    group = node.state.group(name)
    reception = node.bond.reception(group.uuid)
    if reception is None:
        raise Failed(
            f"group {name} is not received by this node",
            hint="the node that sends it says what it asks for: nasfs replication set GROUP"
            " --max-snapshots N",
        )
    return group, reception


def _view(node: Node, group: Group, reception: Reception) -> ReceptionView:
    volumes = [grouped(info(node, row).snapshots) for row in node.state.members(group.uuid)]
    names = complete(volumes)
    newest = volumes[0][names[-1]] if names else None
    return ReceptionView(
        group=group.name,
        role=group.role,
        asked=reception.max_snapshots,
        keep_least=reception.keep_least,
        keep_most=reception.keep_most,
        keeps=reception.keeps,
        snapshots=len(names),
        newest=newest.name if newest else None,
        newest_time=when(newest.time_ns) if newest else None,
    )
