"""The scheduler with a clock of the test's, and what a kill between two steps leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from nasfs.node.context import Node
from nasfs.node.database import _SCHEMA, APPLICATION_ID, VERSION, Database
from nasfs.node.groups import make_group
from nasfs.node.inventory import make_pool, make_volume
from nasfs.node.messages import PoolCreate, VolumeCreate
from nasfs.node.places import Places
from nasfs.node.policy import taking
from nasfs.node.policy.policies import PolicyRow
from nasfs.node.policy.scheduler import Scheduler
from nasfs.node.setup import init_node
from nasfs.node.snapshots import (
    destroy_snapshots,
    hold_snapshot,
    list_snapshots,
    take_snapshot,
)
from nasfs.schedule.policy import PolicySpec
from nasfs.schedule.retention import Decision, plan_retention
from nasfs.volume import SnapshotExists, VolumeBusy
from tests.test_node_hooks import until

HOUR_NS = 3600 * 1_000_000_000


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


class Clock:
    """A wall clock that is set by hand."""

    def __init__(self, text: str) -> None:
        self.now_ns = ns(text)
        self.reads = 0

    def __call__(self) -> int:
        self.reads += 1
        return self.now_ns


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    places = Places.find(tmp_path / "n")
    init_node(places, name="n", listen="")
    with Node.open(places) as opened:
        make_pool(opened, PoolCreate("tank", str(tmp_path / "pool")))
        for name in ("home", "mail"):
            make_volume(opened, VolumeCreate(f"tank/{name}", 10 << 20))
        yield opened


def policy(node: Node, spec: PolicySpec, last_ns: int, *, group: str = "") -> PolicyRow:
    rows = {row.name: row for row in node.state.volumes()}
    volume = "" if group else rows["home"].uuid
    text = msgspec.json.encode(spec).decode()
    row = PolicyRow("u-1", "p", volume, group, text, 0, last_ns, "none", "", 0, 0, 0)
    node.policies.add(row)
    return row


def names(node: Node, target: str = "tank/home") -> list[str]:
    return [view.name.partition("@")[2] for view in list_snapshots(node, target)]


async def nobody_mounts(volume_uuid: str) -> None:
    return None


@asynccontextmanager
async def scheduling(node: Node, clock: Callable[[], int]) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(node, settled=nobody_mounts, taken=lambda group: None, wall=clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        try:
            yield scheduler
        finally:
            with trio.CancelScope(shield=True):
                await scheduler.stop()


async def test_a_clock_that_goes_forth_and_back(node: Node) -> None:
    clock = Clock("2026-11-22 15:30")
    policy(node, PolicySpec(every="1h", keep=50), clock.now_ns)
    async with scheduling(node, clock) as scheduler:

        async def at(text: str, expected: list[str]) -> None:
            clock.now_ns = ns(text)
            scheduler.poke()
            await until(lambda: names(node) == expected)

        first = ["p-2026.11.22-16.00.00"]
        await at("2026-11-22 15:59:59", [])
        await at("2026-11-22 16:00", first)
        await at("2026-11-22 15:10", first)
        await at("2026-11-22 16:00:30", first)
        two = [*first, "p-2026.11.22-17.00.01"]
        await at("2026-11-22 17:00:01", two)
        # a clock that was wrong by days: runs go on, and the same label is told apart
        await at("2026-11-25 09:00", [*two, "p-2026.11.25-09.00.00"])
        clock.now_ns = ns("2026-11-22 15:20")
        scheduler.poke()
        await until(lambda: node.policies.all()[0].last_ns == clock.now_ns)
        again = [*two, "p-2026.11.25-09.00.00", "p-2026.11.22-16.00.00-2"]
        await at("2026-11-22 16:00", again)
    kinds = [event.kind for event in node.state.events()]
    assert kinds.count("clock set back") == 1
    assert kinds.count("runs missed") == 0  # 09:00 of the 25th was in time
    assert len(node.policies.made("u-1")) == 4


async def test_a_clock_that_is_set_is_noticed(node: Node) -> None:
    """Though the policy sleeps for half an hour."""
    clock = Clock("2026-11-22 15:30")
    policy(node, PolicySpec(every="1h", keep=50), clock.now_ns)
    async with scheduling(node, clock):
        await until(lambda: clock.reads > 1)
        clock.now_ns = ns("2026-11-22 16:00")
        await until(lambda: names(node) == ["p-2026.11.22-16.00.00"])


async def test_runs_at_times_of_the_day_on_the_days_of_clock_changes(node: Node) -> None:
    clock = Clock("2026-03-28 12:00")
    spec = PolicySpec(at="02:30", zone="Europe/Berlin", keep=50)
    policy(node, spec, clock.now_ns)
    async with scheduling(node, clock) as scheduler:
        for text, count in (
            ("2026-03-29 00:59:59", 0), ("2026-03-29 01:00", 1), ("2026-03-29 01:30", 1),
            ("2026-03-30 00:29:59", 1), ("2026-03-30 00:30", 2),
            ("2026-10-25 00:30", 3), ("2026-10-25 01:30", 3), ("2026-10-26 01:29:59", 3),
            ("2026-10-26 01:30", 4),
        ):  # fmt: skip
            clock.now_ns = ns(text)
            scheduler.poke()
            await until(lambda count=count: len(names(node)) == count)  # type: ignore[misc]
    assert names(node) == [
        "p-2026.03.29-01.00.00", "p-2026.03.30-00.30.00",
        "p-2026.10.25-00.30.00", "p-2026.10.26-01.30.00",
    ]  # fmt: skip


async def test_a_policy_that_makes_no_sense_any_more_is_told_and_harms_nobody(node: Node) -> None:
    clock = Clock("2026-11-22 15:30")
    row = policy(node, PolicySpec(every="1h", keep=5), clock.now_ns)
    broken = msgspec.json.encode(PolicySpec(at="02:00", zone="Gone/Away", keep=5)).decode()
    other = msgspec.structs.replace(row, uuid="u-2", name="q", spec=broken)
    node.policies.add(other)
    async with scheduling(node, clock) as scheduler:
        clock.now_ns = ns("2026-11-22 16:00")
        scheduler.poke()
        await until(lambda: len(names(node)) == 1)
        await until(lambda: "Gone/Away" in (found(node, "u-2").detail))
        assert (await scheduler.run_now("u-2")).result == "failed"
        assert (await scheduler.run_now("none")).result == "failed"
    assert found(node, "u-1").result == "done"


def found(node: Node, uuid: str) -> PolicyRow:
    row = node.policies.get(uuid)
    assert row is not None
    return row


async def test_a_volume_that_somebody_has_for_a_moment_is_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock("2026-11-22 15:30")
    policy(node, PolicySpec(every="1h", keep=5), clock.now_ns)
    refusals = iter([VolumeBusy("another process has it")])

    def busy_once(node: Node, text: str) -> object:
        for refusal in refusals:
            raise refusal
        return take_snapshot(node, text)

    monkeypatch.setattr(taking, "take_snapshot", busy_once)
    async with scheduling(node, clock) as scheduler:
        assert (await scheduler.run_now("u-1")).result == "done"
    assert len(names(node)) == 1
    assert next(refusals, None) is None


# kills between two steps


class Killed(BaseException):
    """Nobody handles it."""


def test_a_snapshot_that_was_sealed_when_the_daemon_was_killed_is_still_ours(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = policy(node, PolicySpec(every="1h", keep=1), 0)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(node.policies, "remember", killed)
        with pytest.raises(Killed):
            taking.take(node, row, ns("2026-11-22 16:00"))
    assert node.policies.made(row.uuid) == []
    assert taking.settle_claims(node, row) == ["p-2026.11.22-16.00.00"]
    assert [made.guid for made in node.policies.made(row.uuid)] == [
        view.guid for view in list_snapshots(node, "tank/home")
    ]
    assert node.policies.claims(row.uuid) == []
    taking.take(node, row, ns("2026-11-22 17:00"))
    taking.prune(node, row)
    assert names(node) == ["p-2026.11.22-17.00.00"]


def test_a_snapshot_that_was_there_before_is_never_ours(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = policy(node, PolicySpec(every="1h", keep=1), 0)
    take_snapshot(node, "tank/home@p-2026.11.22-16.00.00")
    uuid = node.state.volumes()[0].uuid
    before = list_snapshots(node, "tank/home")[0]
    now = int(datetime.fromisoformat(before.time or "").timestamp() + 1) * 1_000_000_000
    node.policies.claim(row.uuid, "p-2026.11.22-16.00.00", now, [uuid])
    assert taking.settle_claims(node, row) == []
    assert node.policies.made(row.uuid) == []
    assert taking.take(node, row, ns("2026-11-22 16:00")).name == "p-2026.11.22-16.00.00-2"


def test_half_a_snap_group_that_a_kill_has_left_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = make_group(node, "office", ("tank/home", "tank/mail"))
    row = policy(node, PolicySpec(every="1h", keep=5), 0, group=view.uuid)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(node.policies, "remember", killed)
        with pytest.raises(Killed):
            taking.take(node, row, ns("2026-11-22 16:00"))
    destroy_snapshots(node, ("tank/mail@p-2026.11.22-16.00.00",), dry_run=False)
    assert taking.settle_claims(node, row) == []  # the other may still come
    assert names(node, "office") == ["p-2026.11.22-16.00.00"]
    monkeypatch.setattr(taking, "PARTIAL_S", 0.0)
    taking.settle_claims(node, row)
    assert names(node, "office") == []
    assert node.policies.claims(row.uuid) == []


def test_a_failed_snapshot_leaves_no_claim(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    row = policy(node, PolicySpec(every="1h", keep=5), 0)

    def taken(node: Node, text: str) -> None:
        raise SnapshotExists("a person was quicker")

    monkeypatch.setattr(taking, "take_snapshot", taken)
    with pytest.raises(SnapshotExists):
        taking.take(node, row, ns("2026-11-22 16:00"))
    assert node.policies.claims(row.uuid) == []


def test_a_hold_that_comes_in_between_keeps_its_snapshot_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = policy(node, PolicySpec(every="1h", keep=1), 0)
    for hour in range(4):
        taking.take(node, row, ns(f"2026-11-22 1{hour}:00"))

    def then_held(*facts: Any) -> list[Decision]:
        decisions = plan_retention(*facts)
        hold_snapshot(node, "tank/home@p-2026.11.22-11.00.00", "audit", "")
        return decisions

    monkeypatch.setattr(taking, "plan_retention", then_held)
    taking.prune(node, row)
    assert names(node) == ["p-2026.11.22-11.00.00", "p-2026.11.22-13.00.00"]
    assert len(node.policies.made(row.uuid)) == 2


# node.db


def test_a_database_of_version_1_is_upgraded_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old = sqlite3.connect(path)
    old.executescript(_SCHEMA)
    old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.execute("PRAGMA user_version = 1")
    old.execute("INSERT INTO pool VALUES ('p-1', 'tank', '/tank')")
    old.commit()
    old.close()
    upgraded, fresh = Database(path), Database(tmp_path / "new.db")
    try:
        assert upgraded.row("PRAGMA user_version") == (VERSION,)
        assert upgraded.rows("SELECT name FROM pool") == [("tank",)]
        schema = "SELECT name, sql FROM sqlite_schema ORDER BY name"
        assert upgraded.rows(schema) == fresh.rows(schema)
    finally:
        upgraded.close()
        fresh.close()


def test_policies_go_with_what_they_are_of(node: Node) -> None:
    row = policy(node, PolicySpec(every="1h", keep=1), 0)
    taking.take(node, row, ns("2026-11-22 16:00"))
    node.state.forget_volume(row.volume)
    assert node.policies.all() == []
    assert node.policies.made(row.uuid) == []


async def test_what_passes_while_the_other_side_is_active_is_not_missed(node: Node) -> None:
    view = make_group(node, "office", ("tank/home", "tank/mail"))
    passive = node.state.group("office")
    node.state.change_role(passive, role="passive", term=2)
    clock = Clock("2026-11-22 15:30")
    policy(node, PolicySpec(every="1h", keep=5), ns("2026-11-20 00:00"), group=view.uuid)
    told = len(node.state.events())
    async with scheduling(node, clock) as scheduler:
        await until(lambda: clock.reads > 5)  # it has looked more than once what there is to do
        clock.now_ns = ns("2026-11-22 16:30")
        assert (await scheduler.run_now("u-1")).detail == "group office is passive here"
        assert (await scheduler.run_now("u-1")).result == "skipped"
        node.state.change_role(node.state.group("office"), role="active", term=3)
        clock.now_ns = ns("2026-11-22 17:00")
        scheduler.poke()
        await until(lambda: names(node, "office") == ["p-2026.11.22-17.00.00"] * 2)
    assert [event.kind for event in node.state.events()][told:] == ["snapshot taken"]
