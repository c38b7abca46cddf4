"""Policies follow their group: where it is passive, they are those of its active node.

They come with the shares (`share_travel`), wait like all policies of a passive group, and go on
by themselves once the group is active here.  Each keeps its UUID on its way, so one that was made
here is never taken for the partner's.  Hooks are commands of one machine: they stay where they
were given.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, NasError
from nasfs.schedule.policy import PolicySpec, check_policy_name, parse_policy
from sharecfg.payload import Following

from ..context import Node
from ..messages import PartnerAnswer, PartnerQuestion
from ..records import Group
from ..services import Services
from ..shares import staging
from .policies import MAX_POLICIES, PolicyRow, new_policy

log = logging.getLogger(__name__)

OPERATION = "policies"


def policies_of(node: Node, group: Group) -> tuple[Following, ...]:
    """What the partner is told of."""
    return tuple(
        Following(
            uuid=row.uuid,
            name=row.name,
            spec=_bare(row.written),
            paused=bool(row.paused),
            hooks=bool(row.written.before or row.written.after),
        )
        for row in node.policies.of_group(group.uuid)
    )


def _bare(spec: PolicySpec) -> str:
    return msgspec.json.encode(replace(spec, before="", after="")).decode()


def lacking_hooks(node: Node, group: Group) -> list[str]:
    """Names of the policies that have hooks on the partner, and none here."""
    told = {one.uuid for one in _told(node, group) if one.hooks}
    return [
        row.name
        for row in node.policies.of_group(group.uuid)
        if row.uuid in told and not (row.written.before or row.written.after)
    ]


# the passive side, in the daemon


async def asked_to_follow(services: Services, group: Group, body: bytes) -> bytes:
    """Answers ``policies``: something new was staged."""
    if await services.run(follow, group):
        services.scheduler.poke()
    return b""


def tell_daemon(node: Node, group: Group) -> None:
    """From the process that staged something; one that is missed is made up for at its start."""
    from ..client import Client, partner_url  # slow to import, and rarely needed

    with suppress(NasError):
        url = partner_url(group.uuid, OPERATION)
        Client(node.places).post(url, PartnerAnswer, PartnerQuestion(b""))


def follow_all(node: Node) -> None:
    """At the start of the daemon."""
    for group in node.state.groups():
        follow(node, group)


def follow(node: Node, group: Group) -> bool:
    """Make this node's policies of a passive group what the partner told last.

    Returns:
        Whether anything was changed.
    """
    if group.role != "passive":
        return False
    try:
        told = {one.uuid: one for one in _told(node, group)}
        formerly = _formerly(node, group)
    except Failed as exc:
        log.warning("policies of %s: %s", group.name, exc)
        return False  # it is sent again
    here = {row.uuid: row for row in node.policies.of_group(group.uuid)}
    changed = False
    with node.database.change():
        for uuid in (here.keys() & formerly) - told.keys():
            node.policies.forget(uuid)
            _note(node, group, "schedule removed", here[uuid].name, "the partner has removed it")
            changed = True
        for uuid, one in told.items():
            try:
                changed |= _take(node, group, one, here.get(uuid))
            except (Failed, ConfigError) as exc:
                _note(node, group, "schedule not taken", one.name, str(exc))
    return changed


def _take(node: Node, group: Group, one: Following, own: PolicyRow | None) -> bool:
    try:
        spec = msgspec.json.decode(one.spec, type=PolicySpec)
    except msgspec.DecodeError as exc:
        raise Failed(f"it is not understood: {exc}") from exc
    if own is not None:
        spec = replace(
            spec,
            before=own.written.before, before_timeout=own.written.before_timeout,
            after=own.written.after, after_timeout=own.written.after_timeout,
        )  # fmt: skip
        if (spec, one.paused) == (own.written, bool(own.paused)):
            return False
    check_policy_name(one.name)
    parse_policy(spec)
    text = msgspec.json.encode(spec).decode()
    if own is None:
        if len(node.policies.of_group(group.uuid)) >= MAX_POLICIES:
            raise Failed(f"the group has {MAX_POLICIES} policies here")
        row = new_policy(one.name, group=group.uuid, spec=text, uuid=one.uuid)
        node.policies.add(replace(row, paused=int(one.paused)))
        _note(node, group, "schedule created", one.name, "as on the partner")
        return True
    node.policies.set_spec(own.uuid, text)
    if bool(own.paused) != one.paused:
        node.policies.set_paused(own.uuid, one.paused, time.time_ns())
    _note(node, group, "schedule changed", own.name, "as on the partner")
    return True


def _told(node: Node, group: Group) -> tuple[Following, ...]:
    newest = staging.newest(node, group)
    return newest[1].policies if newest else ()


def _formerly(node: Node, group: Group) -> set[str]:
    """UUIDs of what the partner had, as far back as its payloads are kept."""
    found = set()
    for staged in staging.history(node, group):
        with suppress(Failed):
            found |= {one.uuid for one in staging.payload_of(node, group, staged).policies}
    return found


def _note(node: Node, group: Group, what: str, name: str, detail: str) -> None:
    node.note(what, f"{group.name} {name}", detail)
