"""``nasfs explain``: why a thing is there, is kept, waits or stands as it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from nasfs.errors import Failed
from nasfs.node.words import parse_target

from .session import Json, client, print_json

if TYPE_CHECKING:
    from nasfs.node.messages import DecisionView


class Explanation(NamedTuple):
    """One sentence about one thing, and what can be done about it."""

    about: str
    reason: str
    hint: str = ""


def explain(
    thing: Annotated[str, typer.Argument(metavar="POOL/VOLUME[@SNAPSHOT]|GROUP[@SNAPSHOT]")],
    as_json: Json = False,
) -> None:
    """Why it stands as it does: holds, policies, waits, roles, and what ends them."""
    target = parse_target(thing)
    if target.snapshot:
        found = list(_of_snapshot(thing))
    elif target.volume:
        found = list(_of_volume(thing))
    else:
        found = list(_of_group(thing))
    if as_json:
        print_json([one._asdict() for one in found])
        return
    for one in found:
        typer.echo(f"{one.about}: {one.reason}" + (f"\n  {one.hint}" if one.hint else ""))


def _decisions(target: str) -> list[DecisionView]:
    from nasfs.node.messages import DecisionView, ScheduleExplain

    return client().post("/v1/schedules/explain", list[DecisionView], ScheduleExplain(target, ""))


def _decision(view: DecisionView) -> Explanation:
    stays = "stays" if view.verdict == "keep" else "goes with the next run"
    return Explanation(view.snapshot, f"{stays}: {view.reason}")


def _of_snapshot(thing: str) -> Iterator[Explanation]:
    from nasfs.node.messages import SnapshotName, SnapshotView

    of, _, name = thing.partition("@")
    members = [
        snapshot
        for snapshot in client().get("/v1/snapshots", list[SnapshotView], target=of)
        if snapshot.name.partition("@")[2] == name
    ]
    if not members:
        raise Failed(f"there is no {thing}", hint=f"nasfs snapshot list {of} shows what is")
    for member in members:
        shown = client().post("/v1/snapshots/show", SnapshotView, SnapshotName(member.name))
        for hold in shown.holds:
            yield Explanation(
                member.name,
                f"held by {hold.owner}: {hold.reason or 'no reason was given'}",
                "what nasfs holds it releases by itself; else:"
                f" nasfs snapshot release {member.name} --owner {hold.owner}",
            )
    # A policy's decision is one for the whole snap group, under the name of its target.
    yield from (
        _decision(view) for view in _decisions(of) if view.snapshot.partition("@")[2] == name
    )


def _of_volume(thing: str) -> Iterator[Explanation]:
    from nasfs.node.client import volume_url
    from nasfs.node.messages import VolumeView
    from nasfs.node.words import parse_volume

    name = parse_volume(thing)
    view = client().get(volume_url(name.pool, name.volume), VolumeView)
    yield Explanation(thing, f"{view.mount_state} at {view.mountpoint}", view.problem)
    if view.group:
        yield Explanation(thing, f"in group {view.group}: snapped and rolled back only with it")
    yield from map(_decision, _decisions(thing))


def _of_group(thing: str) -> Iterator[Explanation]:
    from nasfs.node.client import group_url, replication_url
    from nasfs.node.messages import GroupView, ReplicationView
    from nasfs.node.sending.replication_messages import ReasonView

    view = client().get(group_url(thing), GroupView)
    yield Explanation(thing, f"{view.role} on this node, in term {view.term}")
    if view.waits:
        yield Explanation(thing, f"not served: {view.waits}", view.to_go_on)
    sent = {one.group for one in client().get("/v1/replications", list[ReplicationView])}
    if thing in sent:
        reasons = client().get(f"{replication_url(thing)}/reasons", list[ReasonView])
        for one in reasons:
            yield Explanation(thing, one.reason, one.hint)
        if not reasons:
            yield Explanation(thing, "nothing waits: the partner is up to date")
    yield from map(_decision, _decisions(thing))
