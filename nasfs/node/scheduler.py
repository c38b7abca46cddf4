"""Takes the snapshots of all policies when they are due: one task for each policy.

A run is: is there anything to do, hook `before`, the snapshot, hook `after` (whatever happened),
retention, and a line about it all in node.db.  Each policy waits for its own hooks and disks only.

What a kill leaves: before a run begins it is noted, and before the snapshot its name.  The next
daemon looks whether that snapshot is there, and runs the `after` hook in any case.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from nasfs.errors import ConfigError, Failed, NasError, Unreachable
from nasfs.schedule.clock import PassOver, Run, StartOver, Timing, Wait, plan_turn
from nasfs.schedule.policy import Hook, Policy, Unchanged, parse_policy
from nasfs.schedule.retention import Verdict
from nasfs.schedule.rhythm import Every
from nasfs.volume import VolumeBusy

from .context import Node
from .hooks import run_hook
from .policies import PolicyRow, RunRow
from .taking import Taken, Target, newest_if_unchanged, prune, settle_claims, take, target_of

log = logging.getLogger(__name__)

T = TypeVar("T")

ACTOR = "scheduler"
THREADS = 64
LOOK_S = 1.0
"""How often it is looked whether the wall clock was set (seconds)."""
JUMP_NS = 500_000_000
"""A wall clock that differs so much from the other clock was set, or the machine slept."""
OFTEN_S = 60
"""Policies that run more often than this tell of their snapshots once a minute."""
AGAIN_S = 60.0
"""A runner that failed where none should begins again so much later."""
TRIES = 3
"""So often a volume that somebody else has for a moment is asked."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    result: str
    """``done``, ``failed`` or ``skipped``."""
    detail: str
    snapshot: str = ""


@dataclass
class _Request:
    """Somebody wants a run now, and waits for its end."""

    ended: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome = Outcome("failed", "the scheduler was ended")


class Scheduler:
    """Owns one runner for each policy.

    Args:
        settled: returns when no mount of that volume (UUID) begins or ends just now.
        taken: called with a group's UUID when a snap group of it was taken.
        wall: the wall clock, in ns since 1970 UTC.
    """

    def __init__(
        self,
        node: Node,
        *,
        settled: Callable[[str], Awaitable[object]],
        taken: Callable[[str], None],
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._node = node
        self.settled = settled
        self.taken = taken
        self.wall = wall
        self._runners: dict[str, _Runner] = {}
        self.requests: defaultdict[str, deque[_Request]] = defaultdict(deque)
        self._scopes: dict[str, trio.Lock] = {}
        self._wake = trio.Event()
        self._life = trio.CancelScope()
        self._ended = trio.Event()
        self._threads = trio.CapacityLimiter(THREADS)

    async def run(self) -> None:
        """Until cancelled, or `stop`."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_clock)
                    await self._keep_runners(nursery)
        finally:
            self._refuse(set(self.requests), "the scheduler was ended")
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
        request = _Request()
        if self._ended.is_set():
            return request.outcome
        self.requests[policy_uuid].append(request)
        self.poke()
        await request.ended.wait()
        return request.outcome

    async def in_thread(self, work: Callable[..., T], *values: object) -> T:
        """Never abandoned."""
        return await trio.to_thread.run_sync(work, *values, limiter=self._threads)

    def scope(self, uuid: str) -> trio.Lock:
        """Held while snapshots of a group, or of a volume in none, are taken or destroyed."""
        return self._scopes.setdefault(uuid, trio.Lock())

    async def _keep_runners(self, nursery: trio.Nursery) -> None:
        while True:
            self._wake = trio.Event()
            rows = await self.in_thread(self._node.policies.all)
            for row in rows:
                if row.uuid not in self._runners:
                    runner = self._runners[row.uuid] = _Runner(self, self._node, row.uuid)
                    nursery.start_soon(self._serve, runner)
            for gone in self._runners.keys() - {row.uuid for row in rows}:
                self._runners[gone].life.cancel()
            self._refuse(self.requests.keys() - self._runners.keys(), "the policy is gone")
            await self._wake.wait()

    def _refuse(self, policies: Set[str], why: str) -> None:
        for uuid in policies:
            for request in self.requests.pop(uuid):
                request.outcome = Outcome("failed", why)
                request.ended.set()

    async def _serve(self, runner: _Runner) -> None:
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
        offset = self.wall() - time.monotonic_ns()
        while True:
            await trio.sleep(LOOK_S)
            now = self.wall() - time.monotonic_ns()
            if abs(now - offset) > JUMP_NS:
                log.info("the wall clock was set by %.1f s", (now - offset) / 1e9)
                self.poke()
                offset = now


class _Runner:
    """One policy: waits, runs, waits."""

    def __init__(self, scheduler: Scheduler, node: Node, uuid: str) -> None:
        self._scheduler = scheduler
        self._node = node
        self.uuid = uuid
        self.life = trio.CancelScope()
        self.is_running = False
        self._wake = trio.Event()
        self._passed_ns = 0
        """Occurrences up to this one passed while the target was not active here."""
        self._tally = _Tally()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled, or the policy is gone."""
        await self._recover()
        try:
            while True:
                self._wake = trio.Event()
                row = await self._look()
                if row is None:
                    return
                requests = self._scheduler.requests[self.uuid]
                if requests:
                    await self._serve_request(row, requests.popleft())
                    continue
                with trio.move_on_after(await self._turn(row)):
                    await self._wake.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._tell_tally()

    async def _look(self) -> PolicyRow | None:
        return await self._scheduler.in_thread(self._node.policies.get, self.uuid)

    async def _serve_request(self, row: PolicyRow, request: _Request) -> None:
        try:
            policy = parse_policy(row.written)
            request.outcome = await self._run(row, policy, 0)
        except ConfigError as exc:
            request.outcome = Outcome("failed", str(exc))
        finally:
            request.ended.set()

    async def _turn(self, row: PolicyRow) -> float:
        """Do what is due; how long to wait then (seconds)."""
        if row.paused:
            return float("inf")
        try:
            policy = parse_policy(row.written)
        except ConfigError as exc:  # a time zone that this system has lost, for instance
            await self._end(row, Outcome("failed", str(exc)), 0, done=False)
            return 3600.0
        timing = Timing(policy.rhythm, policy.missed, policy.jitter_s, row.uuid)
        now = self._scheduler.wall()
        match plan_turn(timing, max(row.last_ns, self._passed_ns), now):
            case Wait(due_ns=due):
                return max(0.0, (due - now) / 1e9)
            case StartOver():
                self._passed_ns = 0
                await self._scheduler.in_thread(self._node.policies.set_last, row.uuid, now)
                await self._note(row, "clock set back", "runs are counted anew from now")
            case Run(occurrence_ns=occurrence) | PassOver(occurrence_ns=occurrence) if (
                await self._is_elsewhere(row)
            ):
                self._passed_ns = occurrence
            case PassOver(occurrence_ns=occurrence, missed=missed):
                outcome = Outcome("missed", _missed(missed))
                await self._end(row, outcome, occurrence, done=False)
            case Run(occurrence_ns=occurrence, missed=missed, late=late):
                if late:
                    await self._note(row, "runs missed", f"{_missed(missed + 1)}; one makes up")
                await self._run(row, policy, occurrence)
        return 0.0

    async def _is_elsewhere(self, row: PolicyRow) -> bool:
        """Whether the target is not active here: what passes meanwhile is not missed."""
        try:
            return bool((await self._scheduler.in_thread(target_of, self._node, row)).obstacle)
        except Failed:
            return False  # the run tells what is wrong

    async def _recover(self) -> None:
        """Put an end to a run that a kill of the daemon has cut off."""
        row = await self._look()
        run = await self._scheduler.in_thread(self._node.policies.under_way, self.uuid)
        if row is None or run is None:
            return
        detail, found = "the daemon was ended during the run", list[str]()
        try:
            await self._settled(row)
            found = await self._scheduler.in_thread(settle_claims, self._acting(row), row)
        except (NasError, OSError) as exc:
            detail += f"; {exc}"
        done = run.snapshot in found
        outcome = Outcome("done" if done else "failed", "" if done else detail, run.snapshot)
        try:
            hook = parse_policy(row.written).after
            target = await self._scheduler.in_thread(target_of, self._node, row)
            outcome = await self._after(row, hook, outcome, target, result="cut-off")
        except NasError as exc:
            outcome = Outcome("failed", f"{detail}; {exc}")
        await self._end(row, outcome, run.occurrence_ns if done else 0, done=done)

    # one run

    async def _run(self, row: PolicyRow, policy: Policy, occurrence_ns: int) -> Outcome:
        self.is_running = True
        try:
            return await self._run_whole(row, policy, occurrence_ns)
        finally:
            self.is_running = False

    async def _run_whole(self, row: PolicyRow, policy: Policy, occurrence_ns: int) -> Outcome:
        in_thread = self._scheduler.in_thread
        try:
            target = await in_thread(target_of, self._node, row)
            if target.obstacle:
                return Outcome("skipped", target.obstacle)
            if policy.unchanged is Unchanged.SKIP:
                await self._settled(row)  # a mount that ends may not have committed all yet
                name = await in_thread(newest_if_unchanged, self._node, row)
                if name:
                    outcome = Outcome("skipped", f"nothing has changed since {name}")
                    await self._end(row, outcome, occurrence_ns, done=False)
                    return outcome
        except (NasError, OSError) as exc:
            outcome = Outcome("failed", str(exc))
            await self._end(row, outcome, occurrence_ns, done=False)
            return outcome
        began = RunRow(row.uuid, occurrence_ns, self._scheduler.wall(), "")
        await in_thread(self._node.policies.begin, began)
        outcome, taken, whole = Outcome("failed", "the daemon was ended"), Taken("", ""), False
        try:
            outcome, taken = await self._between_hooks(row, policy, target)
            if taken.name:
                outcome = await self._prune(row, target, outcome)
            whole = True
        finally:
            with trio.CancelScope(shield=True):
                done = bool(taken.name)
                ended = occurrence_ns if whole or done else 0
                await self._end(row, outcome, ended, done=done)
        if done and row.group:
            self._scheduler.taken(row.group)
        return outcome

    async def _between_hooks(
        self, row: PolicyRow, policy: Policy, target: Target
    ) -> tuple[Outcome, Taken]:
        """Hook, snapshot, hook; the second one whatever happens."""
        outcome, taken = Outcome("failed", "the daemon was ended"), Taken("", "")
        try:
            problem = await self._hook(row, target, "before", policy.before, {})
            if problem:
                outcome = Outcome("failed", problem)
            else:
                taken = await self._take(row, policy, target)
                outcome = Outcome("done", "", taken.name)
        except (NasError, OSError) as exc:
            outcome = Outcome("failed", str(exc))
        finally:
            with trio.CancelScope(shield=True):
                outcome = await self._after(row, policy.after, outcome, target, guid=taken.guid)
        return outcome, taken

    async def _take(self, row: PolicyRow, policy: Policy, target: Target) -> Taken:
        rhythm = policy.rhythm
        pause_s = min(1.0, rhythm.interval_s / 4) if isinstance(rhythm, Every) else 1.0
        for left in reversed(range(TRIES)):
            try:
                await self._settled(row)
                async with self._scheduler.scope(target.scope):
                    taken = await self._scheduler.in_thread(
                        take, self._acting(row), row, self._scheduler.wall()
                    )
                self._tally.taken += 1
                return taken
            except (VolumeBusy, Unreachable):
                if not left:
                    raise
            await trio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def _after(
        self,
        row: PolicyRow,
        hook: Hook,
        outcome: Outcome,
        target: Target,
        *,
        guid: str = "",
        result: str = "",
    ) -> Outcome:
        variables = {"NASFS_RESULT": result or outcome.result}
        if outcome.snapshot:
            variables["NASFS_SNAPSHOT"] = f"{target.label}@{outcome.snapshot}"
        if guid:
            variables["NASFS_GUID"] = guid
        if outcome.detail:
            variables["NASFS_ERROR"] = outcome.detail
        problem = await self._hook(row, target, "after", hook, variables)
        if not problem:
            return outcome
        before = outcome.detail or f"snapshot {outcome.snapshot} was taken"
        return Outcome("failed", f"{before}; {problem}", outcome.snapshot)

    async def _hook(
        self, row: PolicyRow, target: Target, which: str, hook: Hook, more: dict[str, str]
    ) -> str:
        """What was wrong with it; empty for nothing."""
        if not hook.command:
            return ""
        variables = {"NASFS_POLICY": row.name, "NASFS_TARGET": target.label, "NASFS_HOOK": which}
        end = await run_hook(hook, variables | more)
        if end.problem:
            said = f": {_line(end.output)}" if end.output else ""
            return f"hook {which} {end.problem}{said}"
        if end.output and not _writes_often(row):
            await self._note(row, f"hook {which}", _line(end.output))
        return ""

    async def _prune(self, row: PolicyRow, target: Target, outcome: Outcome) -> Outcome:
        try:
            async with self._scheduler.scope(target.scope):
                decisions = await self._scheduler.in_thread(prune, self._acting(row), row)
        except (NasError, OSError) as exc:
            before = outcome.detail or f"snapshot {outcome.snapshot} was taken"
            return Outcome("failed", f"{before}; retention: {exc}", outcome.snapshot)
        self._tally.destroyed += sum(d.verdict is Verdict.DESTROY for d in decisions)
        return outcome

    async def _settled(self, row: PolicyRow) -> None:
        """A mount that begins or ends just now has the volume in a moment, or has let it go."""
        target = await self._scheduler.in_thread(target_of, self._node, row)
        for volume in target.rows:
            with trio.move_on_after(60):
                await self._scheduler.settled(volume.uuid)

    # what is told

    async def _end(
        self, row: PolicyRow, outcome: Outcome, occurrence_ns: int, *, done: bool
    ) -> None:
        def remember() -> None:
            before = self._node.policies.get(row.uuid)
            self._node.policies.end(
                row.uuid,
                result=outcome.result,
                detail=outcome.detail,
                last_ns=occurrence_ns,
                done=done,
            )
            new = before is None or (before.result, before.detail) != (
                outcome.result,
                outcome.detail,
            )
            often = _writes_often(row)
            if outcome.result == "failed" and (new or not often):
                kind = "run failed" if outcome.snapshot else "snapshot failed"
                self._write(row, kind, outcome.detail)
            elif outcome.result == "missed":
                self._write(row, "runs missed", outcome.detail)
            elif outcome.result == "skipped" and not often:
                self._write(row, "snapshot skipped", outcome.detail)

        if outcome.result == "failed":
            log.warning("policy %s: %s", row.name, outcome.detail)
            self._tally.failed += 1
        self._tally.skipped += outcome.result == "skipped"
        await self._scheduler.in_thread(remember)
        if _writes_often(row) and self._tally.is_due(self._scheduler.wall()):
            await self._tell_tally()

    async def _tell_tally(self) -> None:
        row = await self._look()
        text = self._tally.take(self._scheduler.wall())
        if row is not None and text and _writes_often(row):
            await self._note(row, "snapshots taken", text)

    async def _note(self, row: PolicyRow, kind: str, detail: str) -> None:
        await self._scheduler.in_thread(self._write, row, kind, detail)

    def _write(self, row: PolicyRow, kind: str, detail: str) -> None:
        try:
            label = target_of(self._node, row).label
        except Failed:
            label = "-"
        self._node.state.note(ACTOR, kind, f"{label} {row.name}", detail)

    def _acting(self, row: PolicyRow) -> Node:
        """The node as seen by who takes and destroys: its notes would be too many, if often."""
        return self._node.acting("" if _writes_often(row) else ACTOR)


@dataclass
class _Tally:
    """What a policy that runs often has done since it was told last."""

    taken: int = 0
    destroyed: int = 0
    skipped: int = 0
    failed: int = 0
    since_ns: int = 0

    def is_due(self, now_ns: int) -> bool:
        return not 0 <= now_ns - self.since_ns < OFTEN_S * 1_000_000_000

    def take(self, now_ns: int) -> str:
        counts = (
            (self.taken, "taken"),
            (self.destroyed, "destroyed"),
            (self.skipped, "skipped: nothing had changed"),
            (self.failed, "failed"),
        )
        self.taken = self.destroyed = self.skipped = self.failed = 0
        self.since_ns = now_ns
        return ", ".join(f"{number} {what}" for number, what in counts if number)


def _is_often(policy: Policy) -> bool:
    return isinstance(policy.rhythm, Every) and policy.rhythm.interval_s < OFTEN_S


def _writes_often(row: PolicyRow) -> bool:
    try:
        return _is_often(parse_policy(row.written))
    except ConfigError:
        return False


def _line(output: str) -> str:
    """Lists and events have one line for each thing."""
    return " | ".join(line.rstrip() for line in output.splitlines() if line.strip())


def _missed(count: int) -> str:
    return "1 run was missed" if count == 1 else f"{count} runs were missed"
