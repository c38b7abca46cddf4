"""The API of test failovers.  Who starts or stops one holds the group's lock, like a failover."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..messages import Nothing
from ..services import Services
from . import drills
from .drill_messages import DrillStart, DrillView

Params = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DrillRoute:
    """Method, path, type of the body, and what to do."""

    method: str
    path: str
    body: type[msgspec.Struct]
    handler: Callable[[Services, Any, Params], Awaitable[Any]]


async def _start(services: Services, body: DrillStart, params: Params) -> DrillView:
    group = services.node.state.group(params["group"])
    async with services.lock(group.uuid):
        return await services.run(drills.start, group.name, body)


async def _stop(services: Services, body: Nothing, params: Params) -> DrillView:
    group = services.node.state.group(params["group"])
    async with services.lock(group.uuid):
        return await services.run(drills.stop, group.name)


async def _show(services: Services, body: Nothing, params: Params) -> DrillView:
    return await services.run(drills.show, params["group"])


async def _list(services: Services, body: Nothing, params: Params) -> list[DrillView]:
    return await services.run(drills.list_drills)


DRILLS = (
    DrillRoute("GET", "/v1/test-failovers", Nothing, _list),
    DrillRoute("GET", "/v1/test-failovers/{group}", Nothing, _show),
    DrillRoute("POST", "/v1/test-failovers/{group}/start", DrillStart, _start),
    DrillRoute("POST", "/v1/test-failovers/{group}/stop", Nothing, _stop),
)
