"""Operations on the link: what all transfers share, windows, history and reasons of a group."""

from __future__ import annotations

from collections.abc import Mapping

from nasfs.errors import ConfigError
from replication.link import parse_rate

from ..context import Node
from ..messages import DeltaView, Nothing
from ..records import Link
from ..services import Services
from .dry_run import delta_views
from .replication_messages import LinkSet, LinkView, PastView, ReasonView, WindowView
from .replication_views import explain, past_views, window_views
from .replications import made_replication

MAX_TRANSFERS = 64

Params = Mapping[str, str]


async def show_link(services: Services, body: Nothing, params: Params) -> LinkView:
    return await services.run(_link_view, services.replicator.traffic.sending())


async def set_link(services: Services, body: LinkSet, params: Params) -> LinkView:
    """What is given counts from now on, for transfers under way, too."""
    await services.run(_set_link, body)
    services.replicator.poke()
    return await show_link(services, Nothing(), params)


def _set_link(node: Node, body: LinkSet) -> None:
    before = node.traffic.link()
    rate = before.rate if body.rate is None else parse_rate(body.rate)
    transfers = before.transfers if body.transfers is None else body.transfers
    if not 1 <= transfers <= MAX_TRANSFERS:
        raise ConfigError(f"1 to {MAX_TRANSFERS} groups can be sent at a time")
    node.traffic.set_link(Link(rate, transfers))
    node.note("link changed", "link", f"rate {rate}, {transfers} transfers at a time")


def _link_view(node: Node, sending: list[str]) -> LinkView:
    link = node.traffic.link()
    groups = filter(None, map(node.state.find_group, sending))
    return LinkView(link.rate, link.transfers, tuple(sorted(group.name for group in groups)))


async def windows(services: Services, body: Nothing, params: Params) -> list[WindowView]:
    _, made = await services.run(made_replication, params["group"])
    return window_views(made)


async def history(services: Services, body: Nothing, params: Params) -> list[PastView]:
    group, _ = await services.run(made_replication, params["group"])
    try:
        limit = int(params.get("limit", "50"))
    except ValueError as exc:
        raise ConfigError("limit is a number") from exc
    return await services.run(past_views, group, max(0, min(limit, 10_000)))


async def reasons(services: Services, body: Nothing, params: Params) -> list[ReasonView]:
    group, made = await services.run(made_replication, params["group"])
    return await services.run(explain, services.replicator, group, made)


async def delta(services: Services, body: Nothing, params: Params) -> list[DeltaView]:
    """What a run would send now, from the deltas alone."""
    group, made = await services.run(made_replication, params["group"])
    rate = services.replicator.of(group.uuid).rate
    return await services.run(delta_views, group, made, rate)
