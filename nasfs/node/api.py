"""The API: HTTP and JSON on a UNIX socket.  One table of routes; bodies and answers are typed.

An error is ``{"message", "hint", "exit_code"}`` with a status that follows from the exit code.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from nasfs.errors import ConfigError, NasError
from replication.errors import ReplicationError

from . import groups, inventory, orphans, pairing, snapshots, status, versions
from .comparing import verifying
from .comparing.verify_messages import VerifyRequest
from .drills.drill_routes import DRILLS
from .lines import LinesResponse
from .messages import (
    DiffCounts,
    ErrorView,
    FailoverRequest,
    GroupCreate,
    GroupMembers,
    GroupRollback,
    Nothing,
    PairJoin,
    PairRemove,
    PartnerQuestion,
    PoolCreate,
    ReplicationCreate,
    RoleRequest,
    ScheduleCreate,
    ScheduleExplain,
    ScheduleName,
    SchedulePrune,
    ScheduleSet,
    SnapshotCreate,
    SnapshotDestroy,
    SnapshotHold,
    SnapshotName,
    SnapshotOrphans,
    SnapshotRelease,
    SnapshotRename,
    SnapshotRestore,
    SnapshotRollback,
    VolumeCreate,
    VolumeDestroy,
    VolumeMount,
    VolumeRename,
    VolumeResize,
    VolumeSet,
)
from .part_messages import ReplicationDelete
from .policy import schedules
from .receiving import partner_daemon, receptions
from .roles import failover, parting, readiness, watch
from .sending import links, replication_views, replications
from .sending.replication_messages import (
    LinkSet,
    ReceptionSet,
    ReplicationRun,
    ReplicationSet,
    WindowAdd,
    WindowRemove,
)
from .services import Services, mount_volume, unmount_volume
from .shares.share_routes import SHARES
from .words import VolumeName, check_name

log = logging.getLogger(__name__)

BODY_MAX = 2 << 20
"""Bytes; a question of the partner has up to 1 MiB, in base64."""
STATUS = {1: 409, 2: 400, 3: 403, 4: 503}
"""HTTP status for each exit code."""

Params = Mapping[str, str]
Handler = Callable[[Services, Any, Params], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """Method, path, type of the body, and what to do."""

    method: str
    path: str
    body: type[msgspec.Struct]
    handler: Handler


def _plain(operation: Callable[..., Any], *names: str) -> Handler:
    """An operation of the node that takes path or query parameters, then the body if it has any."""

    async def handler(services: Services, body: Any, params: Params) -> Any:
        values: list[object] = [params.get(name, "") for name in names]
        if not isinstance(body, Nothing):
            values.append(body)
        return await services.run(operation, *values)

    return handler


def _volume(params: Params) -> VolumeName:
    return VolumeName(check_name(params["pool"], "pool"), check_name(params["volume"], "volume"))


async def _show_volume(services: Services, body: Nothing, params: Params) -> object:
    row = services.node.state.volume(_volume(params))
    return await services.run(inventory.volume_view, row)


async def _set_volume(services: Services, body: VolumeSet, params: Params) -> object:
    return await services.run(versions.set_volume, _volume(params), body)


async def _mount(services: Services, body: VolumeMount, params: Params) -> object:
    name = _volume(params)
    if body.without_partner:
        await watch.insist_of(services, name)
    return await mount_volume(services, name)


async def _unmount(services: Services, body: Nothing, params: Params) -> object:
    return await unmount_volume(services, _volume(params))


async def _rename_volume(services: Services, body: VolumeRename, params: Params) -> object:
    return await services.run(inventory.rename_volume, _volume(params), body.new_name)


async def _resize_volume(services: Services, body: VolumeResize, params: Params) -> object:
    return await services.run(inventory.resize_volume, _volume(params), body.size)


async def _destroy_volume(services: Services, body: VolumeDestroy, params: Params) -> object:
    await services.run(
        lambda node: inventory.destroy_volume(node, _volume(params), lose_data=body.lose_data)
    )
    return None


async def _show_pool(services: Services, body: Nothing, params: Params) -> object:
    return await services.run(inventory.pool_view, services.node.state.pool(params["pool"]))


async def _take_snapshot(services: Services, body: SnapshotCreate, params: Params) -> object:
    views = await services.run(snapshots.take_snapshot, body.target)
    if "/" not in body.target:
        replications.ask_if_replicated(services, body.target.partition("@")[0])
    return views


async def _show_snapshot(services: Services, body: SnapshotName, params: Params) -> object:
    return await services.run(snapshots.show_snapshot, body.snapshot)


async def _rename_snapshot(services: Services, body: SnapshotRename, params: Params) -> object:
    return await services.run(snapshots.rename_snapshot, body.snapshot, body.new_name)


async def _hold(services: Services, body: SnapshotHold, params: Params) -> object:
    return await services.run(snapshots.hold_snapshot, body.snapshot, body.owner, body.reason)


async def _release(services: Services, body: SnapshotRelease, params: Params) -> object:
    return await services.run(snapshots.release_snapshot, body.snapshot, body.owner)


async def _destroy_snapshots(services: Services, body: SnapshotDestroy, params: Params) -> object:
    return await services.run(
        lambda node: snapshots.destroy_snapshots(node, body.snapshots, dry_run=body.dry_run)
    )


async def _diff(services: Services, body: Nothing, params: Params) -> object:
    diff = await services.run(versions.open_diff, params.get("old", ""), params.get("new", ""))
    return LinesResponse(
        diff, lambda: map(versions.diff_view, diff.entries()), lambda: DiffCounts(**diff.counts)
    )


async def _restore(services: Services, body: SnapshotRestore, params: Params) -> object:
    return await services.run(versions.restore, body)


async def _bring_orphans(services: Services, body: SnapshotOrphans, params: Params) -> object:
    return await services.run(orphans.bring_orphans, body)


async def _roll_back(services: Services, body: SnapshotRollback, params: Params) -> object:
    return await services.run(
        lambda node: versions.roll_back(node, body.snapshot, dry_run=body.dry_run)
    )


async def _make_group(services: Services, body: GroupCreate, params: Params) -> object:
    return await services.run(groups.make_group, body.name, body.volumes)


async def _show_group(services: Services, body: Nothing, params: Params) -> object:
    return await services.run(groups.group_view, services.node.state.group(params["group"]))


async def _add_members(services: Services, body: GroupMembers, params: Params) -> object:
    return await services.run(groups.add_members, params["group"], body.volumes)


async def _remove_members(services: Services, body: GroupMembers, params: Params) -> object:
    return await services.run(groups.remove_members, params["group"], body.volumes)


async def _failover(services: Services, body: FailoverRequest, params: Params) -> object:
    return await failover.fail_over(services, params["group"], body)


async def _failback(services: Services, body: RoleRequest, params: Params) -> object:
    return await failover.fail_back(services, params["group"], body)


async def _join(services: Services, body: RoleRequest, params: Params) -> object:
    return await failover.join(services, params["group"], body)


async def _delete_replication(
    services: Services, body: ReplicationDelete, params: Params
) -> object:
    return await parting.delete(services, params["group"], body)


async def _remove_pair(services: Services, body: PairRemove, params: Params) -> object:
    return await parting.remove_pair(services, body)


async def _roll_back_group(services: Services, body: GroupRollback, params: Params) -> object:
    return await failover.roll_back(services, params["group"], body)


async def _events(services: Services, body: Nothing, params: Params) -> object:
    try:
        after, limit = int(params.get("after", "0")), int(params.get("limit", "200"))
    except ValueError as exc:
        raise ConfigError("after and limit are numbers") from exc
    return await services.run(status.event_views, after, limit)


async def _status(services: Services, body: Nothing, params: Params) -> object:
    return await services.run(status.status_view, services.replicator, services.scheduler)


async def _list_replications(services: Services, body: Nothing, params: Params) -> object:
    return await services.run(replication_views.replication_views, services.replicator)


ROUTES = (
    Route("GET", "/v1/status", Nothing, _status),
    Route("GET", "/v1/events", Nothing, _events),
    Route("GET", "/v1/pools", Nothing, _plain(inventory.pool_views)),
    Route("POST", "/v1/pools", PoolCreate, _plain(inventory.make_pool)),
    Route("GET", "/v1/pools/{pool}", Nothing, _show_pool),
    Route("GET", "/v1/volumes", Nothing, _plain(inventory.volume_views)),
    Route("POST", "/v1/volumes", VolumeCreate, _plain(inventory.make_volume)),
    Route("GET", "/v1/volumes/{pool}/{volume}", Nothing, _show_volume),
    Route("PATCH", "/v1/volumes/{pool}/{volume}", VolumeSet, _set_volume),
    Route("POST", "/v1/volumes/{pool}/{volume}/mount", VolumeMount, _mount),
    Route("POST", "/v1/volumes/{pool}/{volume}/unmount", Nothing, _unmount),
    Route("POST", "/v1/volumes/{pool}/{volume}/rename", VolumeRename, _rename_volume),
    Route("POST", "/v1/volumes/{pool}/{volume}/resize", VolumeResize, _resize_volume),
    Route("POST", "/v1/volumes/{pool}/{volume}/destroy", VolumeDestroy, _destroy_volume),
    Route("GET", "/v1/snapshots", Nothing, _plain(snapshots.list_snapshots, "target")),
    Route("POST", "/v1/snapshots", SnapshotCreate, _take_snapshot),
    Route("POST", "/v1/snapshots/show", SnapshotName, _show_snapshot),
    Route("POST", "/v1/snapshots/rename", SnapshotRename, _rename_snapshot),
    Route("POST", "/v1/snapshots/hold", SnapshotHold, _hold),
    Route("POST", "/v1/snapshots/release", SnapshotRelease, _release),
    Route("POST", "/v1/snapshots/destroy", SnapshotDestroy, _destroy_snapshots),
    Route("GET", "/v1/schedules", Nothing, schedules.show_all),
    Route("POST", "/v1/schedules", ScheduleCreate, schedules.create),
    Route("POST", "/v1/schedules/show", ScheduleName, schedules.show),
    Route("POST", "/v1/schedules/set", ScheduleSet, schedules.change),
    Route("POST", "/v1/schedules/remove", ScheduleName, schedules.remove),
    Route("POST", "/v1/schedules/pause", ScheduleName, schedules.pause),
    Route("POST", "/v1/schedules/resume", ScheduleName, schedules.resume),
    Route("POST", "/v1/schedules/run", ScheduleName, schedules.run_now),
    Route("POST", "/v1/schedules/prune", SchedulePrune, schedules.prune),
    Route("POST", "/v1/schedules/explain", ScheduleExplain, schedules.explain),
    Route("GET", "/v1/snapshots/diff", Nothing, _diff),
    Route("POST", "/v1/snapshots/restore", SnapshotRestore, _restore),
    Route("POST", "/v1/snapshots/orphans", SnapshotOrphans, _bring_orphans),
    Route("POST", "/v1/snapshots/rollback", SnapshotRollback, _roll_back),
    Route("GET", "/v1/groups", Nothing, _plain(groups.group_views)),
    Route("POST", "/v1/groups", GroupCreate, _make_group),
    Route("GET", "/v1/groups/{group}", Nothing, _show_group),
    Route("POST", "/v1/groups/{group}/add", GroupMembers, _add_members),
    Route("POST", "/v1/groups/{group}/remove", GroupMembers, _remove_members),
    Route("POST", "/v1/groups/{group}/destroy", Nothing, _plain(groups.destroy_group, "group")),
    Route("POST", "/v1/groups/{group}/failover", FailoverRequest, _failover),
    Route("POST", "/v1/groups/{group}/failback", RoleRequest, _failback),
    Route("POST", "/v1/groups/{group}/failback-join", RoleRequest, _join),
    Route("POST", "/v1/groups/{group}/rollback", GroupRollback, _roll_back_group),
    Route("GET", "/v1/groups/{group}/readiness", Nothing, _plain(readiness.readiness, "group")),
    Route("GET", "/v1/pair", Nothing, _plain(pairing.pair_view)),
    Route("POST", "/v1/pair/invite", Nothing, _plain(pairing.invite)),
    Route("POST", "/v1/pair/join", PairJoin, _plain(pairing.join)),
    Route("POST", "/v1/pair/remove", PairRemove, _remove_pair),
    Route("GET", "/v1/replications", Nothing, _list_replications),
    Route("POST", "/v1/replications", ReplicationCreate, replications.create),
    Route("GET", "/v1/replications/{group}", Nothing, replications.show),
    Route("PATCH", "/v1/replications/{group}", ReplicationSet, replications.change),
    Route("GET", "/v1/replications/{group}/delta", Nothing, links.delta),
    Route("GET", "/v1/replications/{group}/history", Nothing, links.history),
    Route("GET", "/v1/replications/{group}/reasons", Nothing, links.reasons),
    Route("GET", "/v1/replications/{group}/windows", Nothing, links.windows),
    Route("POST", "/v1/replications/{group}/windows", WindowAdd, replications.add_window),
    Route(
        "POST", "/v1/replications/{group}/windows/remove", WindowRemove, replications.remove_window
    ),
    Route("POST", "/v1/replications/{group}/split", Nothing, replications.split),
    Route("POST", "/v1/replications/{group}/join", Nothing, replications.join),
    Route("POST", "/v1/replications/{group}/verify", VerifyRequest, verifying.verify),
    Route("POST", "/v1/replications/{group}/repair", Nothing, verifying.repair),
    Route("GET", "/v1/link", Nothing, links.show_link),
    Route("PATCH", "/v1/link", LinkSet, links.set_link),
    Route("GET", "/v1/receptions/{group}", Nothing, _plain(receptions.show, "group")),
    Route("PATCH", "/v1/receptions/{group}", ReceptionSet, _plain(receptions.change, "group")),
    Route("POST", "/v1/replications/{group}/run", ReplicationRun, replications.run_now),
    Route("POST", "/v1/replications/{group}/pause", Nothing, replications.pause),
    Route("POST", "/v1/replications/{group}/resume", Nothing, replications.resume),
    Route("POST", "/v1/replications/{group}/delete", ReplicationDelete, _delete_replication),
    Route("POST", "/v1/partner/{group}/{operation}", PartnerQuestion, partner_daemon.answer),
    *(Route(one.method, one.path, one.body, _plain(one.does, *one.names)) for one in SHARES),
    *(Route(one.method, one.path, one.body, one.handler) for one in DRILLS),
)


def make_app(services: Services) -> Starlette:
    """The application; it owns nothing."""
    return Starlette(
        routes=[
            HttpRoute(route.path, _endpoint(services, route), methods=[route.method])
            for route in ROUTES
        ],
        exception_handlers={404: _not_found, 405: _not_found},
    )


def _endpoint(services: Services, route: Route) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def endpoint(http: HttpRequest) -> Response:
        try:
            body = await _read_body(http, route.body)
            params = {**http.query_params, **http.path_params}
            answer = await route.handler(services, body, params)
            return answer if isinstance(answer, Response) else _json(200, answer)
        except NasError as exc:
            return _error(exc)
        except Exception as exc:
            log.exception("%s %s", route.method, http.url.path)
            return _json(
                500, ErrorView(f"internal error: {exc!r}", "the daemon's log has the details", 1)
            )

    return endpoint


async def _read_body(http: HttpRequest, body: type[msgspec.Struct]) -> msgspec.Struct:
    raw = bytearray()
    async for piece in http.stream():
        raw += piece
        if len(raw) > BODY_MAX:
            raise ConfigError("the request is too large")
    try:
        return msgspec.json.decode(bytes(raw) or b"{}", type=body)
    except msgspec.DecodeError as exc:
        raise ConfigError(f"bad request: {exc}") from exc


def _json(status_code: int, value: object) -> Response:
    return Response(msgspec.json.encode(value), status_code, media_type="application/json")


def _error(exc: NasError) -> Response:
    transient = isinstance(exc, ReplicationError) and exc.transient
    code = STATUS.get(exc.exit_code, 409)
    return _json(503 if transient else code, ErrorView(str(exc), exc.hint, exc.exit_code))


async def _not_found(http: HttpRequest, exc: Exception) -> Response:
    return _json(404, ErrorView(f"no such thing: {http.method} {http.url.path}", "", 2))
