"""``nasfs node run``: API, mounts, the partner's way in, and replication, in one nursery."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from typing import cast

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from hypercorn.typing import Framework

from .api import make_app
from .coming_back import look_back
from .context import Node
from .daemon_lock import only_daemon
from .drills.drill_keeper import clear_leftovers, keep_drills, stop_drills
from .inventory import adopt_volumes, sweep_pools
from .places import Places
from .policy.following import follow_all
from .policy.scheduler import Scheduler
from .receiving.listener import listen
from .roles.loss import hear_partner
from .roles.watch import step_down_of, watch_partner
from .roles.yielding import take_back_leftovers, take_back_unheard
from .sending.replications import ask_if_wanted
from .sending.replicator import Replicator
from .sending.traffic import Traffic
from .services import Services
from .shares.share_keeper import keep_shares
from .snap_groups import settle_leftovers
from .sockets import bind_unix
from .supervisor import Supervisor

log = logging.getLogger(__name__)

SETTLE_EVERY_S = 5.0
"""How often volumes are tried that could not be reached when a snap group ended (seconds)."""

END_S = 120.0
"""So long the mounts may take to unmount when the daemon ends (seconds)."""
HOOKS_S = 30.0
"""So long they wait for the hooks of a snapshot that is under way."""


def run_daemon(places: Places) -> None:
    """Serve until SIGTERM or SIGINT; then unmount everything cleanly.

    Raises:
        Failed: there is no node here, another daemon runs, or the address is taken.
    """
    with only_daemon(places), Node.open(places) as node:
        trio.run(_main, node, strict_exception_groups=True)


async def _main(node: Node) -> None:
    await trio.to_thread.run_sync(look_back, node, os.getpid())
    await trio.to_thread.run_sync(sweep_pools, node)
    await trio.to_thread.run_sync(adopt_volumes, node)
    await trio.to_thread.run_sync(settle_leftovers, node)
    await trio.to_thread.run_sync(clear_leftovers, node)
    await trio.to_thread.run_sync(take_back_leftovers, node)
    await trio.to_thread.run_sync(follow_all, node)
    fenced_in, fenced_out = trio.open_memory_channel[str](8)
    supervisor = Supervisor(node)
    replicator = Replicator(node, Traffic(node), fenced_in)
    scheduler = Scheduler(
        node, settled=supervisor.settled, taken=lambda group: ask_if_wanted(node, replicator, group)
    )
    services = Services(node, supervisor, replicator, scheduler)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(listen, node)
            await nursery.start(_serve_api, services)
            nursery.start_soon(step_down_of, services, fenced_out)
            await nursery.start(watch_partner, services)
            nursery.start_soon(supervisor.run)
            nursery.start_soon(replicator.run)
            nursery.start_soon(_settle_leftovers, node)
            nursery.start_soon(scheduler.run)
            nursery.start_soon(keep_shares, node, partial(ask_if_wanted, node, replicator))
            nursery.start_soon(keep_drills, node)
            nursery.start_soon(hear_partner, node)
            nursery.start_soon(take_back_unheard, services)
            node.state.note("daemon", "started", node.config.name, f"process {os.getpid()}")
            log.info("node %s is up", node.config.name)
            async for number in signals:
                log.info("ending: signal %d", number)
                break
            with trio.move_on_after(HOOKS_S):
                await scheduler.stop()
            await trio.to_thread.run_sync(stop_drills, node)
            with trio.move_on_after(END_S):
                await supervisor.stop_all()
            nursery.cancel_scope.cancel()
    node.state.note("daemon", "ended", node.config.name)


async def _settle_leftovers(node: Node) -> None:
    while True:
        await trio.sleep(SETTLE_EVERY_S)
        await trio.to_thread.run_sync(settle_leftovers, node)


async def _serve_api(
    services: Services, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    path = services.node.places.api_socket
    sock = bind_unix(path)
    config = HypercornConfig()
    config.bind = [f"fd://{sock.detach()}"]
    config.graceful_timeout = 5
    config.keep_alive_timeout = 10
    config.accesslog = None
    config.errorlog = logging.getLogger("nasfs.api")
    config.errorlog.setLevel(logging.WARNING)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, cast(Framework, make_app(services)), config))
            task_status.started()
    finally:
        path.unlink(missing_ok=True)
