"""One policy of the scheduler: it waits until a run is due, runs, and tells how that ended.

A run is: is there anything to do, hook `before`, the snapshot, hook `after` (whatever happened),
retention, and a line about it all in node.db.

What a kill leaves: before a run begins it is noted, and before the snapshot its name.  The next
daemon looks whether that snapshot is there, and runs the `after` hook in any case.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from nasfs.errors import ConfigError, Failed, NasError, Unreachable
from nasfs.schedule.clock import PassOver, Run, StartOver, Timing, Wait, plan_turn
from nasfs.schedule.policy import Hook, Policy, Unchanged, parse_policy
from nasfs.schedule.retention import Verdict
from nasfs.schedule.rhythm import Every
from nasfs.volume import VolumeBusy

from ..context import Node
from .hooks import run_hook
from .policies import PolicyRow, RunRow
from .taking import Taken, Target, newest_if_unchanged, prune, settle_claims, take, target_of
from .tally import Tally, writes_often

log = logging.getLogger(__name__)

T = TypeVar("T")

ACTOR = "scheduler"
THREADS = 64
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
class Request:
    """Somebody wants a run now, and waits for its end."""

    ended: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome = Outcome("failed", "the scheduler was ended")


class Common:
    """What the runners of all policies share.

    Args:
        settled: returns when no mount of that volume (UUID) begins or ends just now.
        taken: called with a group's UUID when a snap group of it was taken.
        wall: the wall clock, in ns since 1970 UTC.
    """

    def __init__(
        self,
        node: Node,
        settled: Callable[[str], Awaitable[object]],
        taken: Callable[[str], None],
        wall: Callable[[], int],
    ) -> None:
        self.node = node
        self.settled = settled
        self.taken = taken
        self.wall = wall
        self._scopes: dict[str, trio.Lock] = {}
        self._threads = trio.CapacityLimiter(THREADS)

    async def in_thread(self, work: Callable[..., T], *values: object) -> T:
        """Never abandoned."""
        return await trio.to_thread.run_sync(work, *values, limiter=self._threads)

    def scope(self, uuid: str) -> trio.Lock:
        """Held while snapshots of a group, or of a volume in none, are taken or destroyed."""
        return self._scopes.setdefault(uuid, trio.Lock())


class Runner:
    """One policy: waits, runs, waits.

    Args:
        requests: who wants a run beside the schedule; `wake` tells of new ones.
    """

    def __init__(self, common: Common, uuid: str, requests: deque[Request]) -> None:
        self._common = common
        self._node = common.node
        self._requests = requests
        self.uuid = uuid
        self.life = trio.CancelScope()
        self.is_running = False
        self._wake = trio.Event()
        self._passed_ns = 0
        """Occurrences up to this one passed while the target was not active here."""
        self._tally = Tally()

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
                if self._requests:
                    await self._serve_request(row, self._requests.popleft())
                    continue
                with trio.move_on_after(await self._turn(row)):
                    await self._wake.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._tell_tally()

    async def _look(self) -> PolicyRow | None:
        return await self._common.in_thread(self._node.policies.get, self.uuid)

    async def _serve_request(self, row: PolicyRow, request: Request) -> None:
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
        now = self._common.wall()
        match plan_turn(timing, max(row.last_ns, self._passed_ns), now):
            case Wait(due_ns=due):
                return max(0.0, (due - now) / 1e9)
            case StartOver():
                self._passed_ns = 0
                await self._common.in_thread(self._node.policies.set_last, row.uuid, now)
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
            return bool((await self._common.in_thread(target_of, self._node, row)).obstacle)
        except Failed:
            return False  # the run tells what is wrong

    async def _recover(self) -> None:
        """Put an end to a run that a kill of the daemon has cut off."""
        row = await self._look()
        run = await self._common.in_thread(self._node.policies.under_way, self.uuid)
        if row is None or run is None:
            return
        detail, found = "the daemon was ended during the run", list[str]()
        try:
            await self._settled(row)
            found = await self._common.in_thread(settle_claims, self._acting(row), row)
        except (NasError, OSError) as exc:
            detail += f"; {exc}"
        done = run.snapshot in found
        outcome = Outcome("done" if done else "failed", "" if done else detail, run.snapshot)
        try:
            hook = parse_policy(row.written).after
            target = await self._common.in_thread(target_of, self._node, row)
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
        in_thread = self._common.in_thread
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
        began = RunRow(row.uuid, occurrence_ns, self._common.wall(), "")
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
            self._common.taken(row.group)
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
                async with self._common.scope(target.scope):
                    taken = await self._common.in_thread(
                        take, self._acting(row), row, self._common.wall()
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
        if end.output and not writes_often(row):
            await self._note(row, f"hook {which}", _line(end.output))
        return ""

    async def _prune(self, row: PolicyRow, target: Target, outcome: Outcome) -> Outcome:
        try:
            async with self._common.scope(target.scope):
                decisions = await self._common.in_thread(prune, self._acting(row), row)
        except (NasError, OSError) as exc:
            before = outcome.detail or f"snapshot {outcome.snapshot} was taken"
            return Outcome("failed", f"{before}; retention: {exc}", outcome.snapshot)
        self._tally.destroyed += sum(d.verdict is Verdict.DESTROY for d in decisions)
        return outcome

    async def _settled(self, row: PolicyRow) -> None:
        """A mount that begins or ends just now has the volume in a moment, or has let it go."""
        target = await self._common.in_thread(target_of, self._node, row)
        for volume in target.rows:
            with trio.move_on_after(60):
                await self._common.settled(volume.uuid)

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
            often = writes_often(row)
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
        await self._common.in_thread(remember)
        if writes_often(row) and self._tally.is_due(self._common.wall()):
            await self._tell_tally()

    async def _tell_tally(self) -> None:
        row = await self._look()
        text = self._tally.take(self._common.wall())
        if row is not None and text and writes_often(row):
            await self._note(row, "snapshots taken", text)

    async def _note(self, row: PolicyRow, kind: str, detail: str) -> None:
        await self._common.in_thread(self._write, row, kind, detail)

    def _write(self, row: PolicyRow, kind: str, detail: str) -> None:
        try:
            label = target_of(self._node, row).label
        except Failed:
            label = "-"
        self._node.state.note(ACTOR, kind, f"{label} {row.name}", detail)

    def _acting(self, row: PolicyRow) -> Node:
        """The node as seen by who takes and destroys: its notes would be too many, if often."""
        return self._node.acting("" if writes_often(row) else ACTOR)


def _line(output: str) -> str:
    """Lists and events have one line for each thing."""
    return " | ".join(line.rstrip() for line in output.splitlines() if line.strip())


def _missed(count: int) -> str:
    return "1 run was missed" if count == 1 else f"{count} runs were missed"
