"""The scheduler: one task for each policy, which takes its snapshots when they are due (`runner`).

Each policy waits for its own hooks and disks only.  Policies come and go, the wall clock may be
set, and somebody may want a run now: the tasks are told.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Set

import trio

from ..context import Node
from .runner import Common, Outcome, Request, Runner

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often it is looked whether the wall clock was set (seconds)."""
JUMP_NS = 500_000_000
"""A wall clock that differs so much from the other clock was set, or the machine slept."""
AGAIN_S = 60.0
"""A runner that failed where none should begins again so much later."""


class Scheduler:
    """Owns one runner for each policy.  Its arguments are those of `Common`."""

    def __init__(
        self,
        node: Node,
        *,
        settled: Callable[[str], Awaitable[object]],
        taken: Callable[[str], None],
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._common = Common(node, settled, taken, wall)
        self._runners: dict[str, Runner] = {}
        self._requests: defaultdict[str, deque[Request]] = defaultdict(deque)
        self._wake = trio.Event()
        self._life = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Until cancelled, or `stop`."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_clock)
                    await self._keep_runners(nursery)
        finally:
            self._refuse(set(self._requests), "the scheduler was ended")
            self._ended.set()

    async def stop(self) -> None:
        """Begin no run any more; wait until those under way have ended, hooks included."""
        self._life.cancel()
        await self._ended.wait()

    def poke(self) -> None:
        """Policies were made, changed or removed, or the clock was set."""
        self._wake.set()
        for runner in self._runners.values():
            runner.wake()

    def is_running(self, policy_uuid: str) -> bool:
        runner = self._runners.get(policy_uuid)
        return runner is not None and runner.is_running

    async def run_now(self, policy_uuid: str) -> Outcome:
        """A run beside its schedule; returns when it has ended."""
        request = Request()
        if self._ended.is_set():
            return request.outcome
        self._requests[policy_uuid].append(request)
        self.poke()
        await request.ended.wait()
        return request.outcome

    def scope(self, uuid: str) -> trio.Lock:
        """Held while snapshots of a group, or of a volume in none, are taken or destroyed."""
        return self._common.scope(uuid)

    async def _keep_runners(self, nursery: trio.Nursery) -> None:
        while True:
            self._wake = trio.Event()
            rows = await self._common.in_thread(self._common.node.policies.all)
            for row in rows:
                if row.uuid not in self._runners:
                    runner = Runner(self._common, row.uuid, self._requests[row.uuid])
                    self._runners[row.uuid] = runner
                    nursery.start_soon(self._serve, runner)
            for gone in self._runners.keys() - {row.uuid for row in rows}:
                self._runners[gone].life.cancel()
            self._refuse(self._requests.keys() - self._runners.keys(), "the policy is gone")
            await self._wake.wait()

    def _refuse(self, policies: Set[str], why: str) -> None:
        for uuid in policies:
            for request in self._requests.pop(uuid):
                request.outcome = Outcome("failed", why)
                request.ended.set()

    async def _serve(self, runner: Runner) -> None:
        try:
            with runner.life:
                while True:
                    try:
                        await runner.run()
                        return
                    except Exception:  # a bug of ours shall not keep the others from running
                        log.exception("policy %s", runner.uuid)
                        await trio.sleep(AGAIN_S)
        finally:
            del self._runners[runner.uuid]
            self._wake.set()

    async def _watch_clock(self) -> None:
        offset = self._common.wall() - time.monotonic_ns()
        while True:
            await trio.sleep(LOOK_S)
            now = self._common.wall() - time.monotonic_ns()
            if abs(now - offset) > JUMP_NS:
                log.info("the wall clock was set by %.1f s", (now - offset) / 1e9)
                self.poke()
                offset = now
