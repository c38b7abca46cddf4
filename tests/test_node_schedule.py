"""Policies on a real node: runs, hooks, retention, what a kill leaves."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair
from tests.test_node_failover import pair as pair  # the fixture

HOUR_NS = 3600 * 1_000_000_000


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(tmp_path / "a", "a")
    try:
        world.start()
        world.run("pool", "create", "tank", str(tmp_path / "pool"))
        yield world
    finally:
        world.close()


def names(node: NodeWorld, target: str) -> list[str]:
    """Snapshots of a volume or a group, without what they are of, oldest first."""
    return [view["name"].partition("@")[2] for view in node.json("snapshot", "list", target)]


def show(node: NodeWorld, target: str, policy: str) -> dict[str, Any]:
    found: dict[str, Any] = node.json("schedule", "show", target, policy)
    return found


def events(node: NodeWorld, kind: str) -> list[dict[str, Any]]:
    return [e for e in node.json("events", "--limit", "1000") if e["kind"] == kind]


def runs_ended(node: NodeWorld, target: str, policy: str, count: int) -> None:
    """Until *count* more snapshots were taken."""
    seen = set()

    def look() -> bool:
        seen.add(show(node, target, policy)["last_snapshot_time"])
        return len(seen) > count

    wait_until(look, f"{count} runs of {policy}")


@pytest.mark.mount
def test_a_snapshot_each_second_of_a_group_under_a_writer(node: NodeWorld) -> None:
    """Only what the policy made goes; a hold keeps, a new name does not, a like name does."""
    roots = [node.volume("tank/home"), node.volume("tank/mail", mount=True)]
    node.run("group", "create", "office", "tank/home", "tank/mail")
    node.run("schedule", "add", "office", "near", "--every", "1s", "--keep", "3")
    wait_until(lambda: names(node, "tank/home"), "the first snapshot")
    held = names(node, "tank/home")[0]
    node.run("snapshot", "hold", f"tank/mail@{held}", "--owner", "audit", "--reason", "case 7")
    node.run("snapshot", "create", "office@near-2026.11.22-16.00.00")  # by a person
    wait_until(lambda: names(node, "tank/home")[-1] > held, "the next")
    second = [name for name in names(node, "tank/home") if not name.startswith(held)][-1]
    node.run("snapshot", "rename", f"tank/home@{second}", "mine")
    for number in range(7):
        for root in roots:
            (root / "f").write_text(str(number))
        runs_ended(node, "office", "near", 1)
    node.run("schedule", "pause", "office", "near")
    wait_until(lambda: show(node, "office", "near")["state"] == "paused", "the pause")
    home, mail = names(node, "tank/home"), names(node, "tank/mail")
    assert home == mail
    assert home[0] == held
    assert "mine" not in home
    made = [name for name in home if name not in (held, "near-2026.11.22-16.00.00")]
    assert len(made) == 3
    assert "near-2026.11.22-16.00.00" in home
    groups = {v["snap_group"] for v in node.json("snapshot", "list", "office")}
    assert len(groups) == 5

    said = {v["snapshot"]: v for v in node.json("schedule", "explain", "office")}
    assert said[f"office@{held}"]["reason"] == "held by audit: case 7 (tank/mail)"
    assert said[f"office@{made[-1]}"]["reason"] == "number 1 of the newest 3"
    assert said["tank/home@near-2026.11.22-16.00.00"]["reason"] == "no policy made it"
    told = events(node, "snapshots taken")
    assert told[0]["actor"] == "scheduler"
    assert told[0]["subject"] == "office near"
    for volume in ("tank/home", "tank/mail"):
        node.run("volume", "unmount", volume)
        node.run("volume", "check", volume)


@pytest.mark.mount
def test_hooks_stand_around_the_snapshot(node: NodeWorld, tmp_path: Path) -> None:
    root = node.volume("tank/home")
    log = tmp_path / "log"
    ls = f'ls {root}/.snapshots/$(basename "$NASFS_SNAPSHOT" | cut -d@ -f2)'
    node.run(
        "schedule", "add", "tank/home", "db", "--every", "1d", "--keep", "2",
        "--before", f"echo quiet > {root}/state; echo was quieted",
        "--after", f"echo busy > {root}/state; ({ls}; env | sort) >> {log}",
    )  # fmt: skip
    snapshot = node.run("schedule", "run", "tank/home", "db").strip()
    name = snapshot.partition("@")[2]
    assert snapshot == f"tank/home@{name}"
    assert (root / ".snapshots" / name / "state").read_text() == "quiet\n"
    assert (root / "state").read_text() == "busy\n"
    said = log.read_text().splitlines()
    assert said[0] == "state"
    view = node.json("snapshot", "show", snapshot)
    for line in (
        "NASFS_POLICY=db", "NASFS_TARGET=tank/home", "NASFS_RESULT=done", "NASFS_HOOK=after",
        f"NASFS_SNAPSHOT={snapshot}", f"NASFS_GUID={view['guid']}",
    ):  # fmt: skip
        assert line in said
    assert events(node, "hook before")[0]["detail"] == "was quieted"
    assert events(node, "snapshot taken")[-1]["actor"] == "scheduler"


@pytest.mark.mount
def test_a_failing_hook_fails_the_snapshot_loudly(node: NodeWorld, tmp_path: Path) -> None:
    node.volume("tank/home")
    log = tmp_path / "log"
    create = ("schedule", "add", "tank/home")
    after = ("--after", f"echo $NASFS_RESULT $NASFS_ERROR > {log}")
    often = ("--every", "1d", "--keep", "2")
    node.run(*create, "code", *often, "--before", "echo why; exit 7", *after)
    error = node.fails(1, "schedule", "run", "tank/home", "code")
    assert "hook before ended with code 7: why" in error
    assert log.read_text() == "failed hook before ended with code 7: why\n"
    node.run(*create, "slow", *often, "--before", "sleep 999", "--before-timeout", "1s", *after)
    error = node.fails(1, "schedule", "run", "tank/home", "slow")
    assert "did not end within 1 s and was killed" in error
    assert "did not end" in log.read_text()
    assert names(node, "tank/home") == []
    node.run(*create, "bad", *often, "--after", '["/bin/false"]')
    error = node.fails(1, "schedule", "run", "tank/home", "bad")
    assert "was taken; hook after ended with code 1" in error
    assert len(names(node, "tank/home")) == 1
    view = show(node, "tank/home", "bad")
    assert (view["result"], view["failures"], view["snapshots"]) == ("failed", 1, 1)
    attention = node.json("status")["attention"]
    assert len([said for said in attention if "of tank/home failed" in said]) == 3
    assert len(events(node, "snapshot failed")) == 2
    assert len(events(node, "run failed")) == 1


@pytest.mark.mount
def test_nothing_is_taken_when_nothing_has_changed(node: NodeWorld) -> None:
    root = node.volume("tank/home")
    node.run("volume", "create", "tank/mail", "--size", "10M")
    node.run("group", "create", "office", "tank/home", "tank/mail")
    run = ("schedule", "run", "office", "h")
    node.run(
        "schedule", "add", "office", "h", "--every", "1h", "--keep", "9", "--unchanged", "skip"
    )
    assert node.json(*run)["result"] == "done"  # there was none before
    first = names(node, "tank/home")
    skipped = node.json(*run)
    assert skipped["result"] == "skipped"
    assert skipped["detail"] == f"nothing has changed since {first[0]}"
    node.run("snapshot", "create", "office@other")  # of somebody else: it may go at any time
    assert node.json(*run)["result"] == "skipped"
    (root / "f").write_text("x")
    assert node.json(*run)["result"] == "done"
    assert node.json(*run)["result"] == "skipped"
    node.run("snapshot", "destroy", f"tank/home@{names(node, 'tank/home')[-1]}")
    assert node.json(*run)["result"] == "done"
    assert len(events(node, "snapshot skipped")) == 3
    assert show(node, "office", "h")["result"] == "done"


@pytest.mark.mount
def test_a_failing_policy_disturbs_no_other(node: NodeWorld, tmp_path: Path) -> None:
    node.volume("tank/home", mount=False)
    node.volume("tank/other")
    node.run("schedule", "add", "tank/home", "s", "--every", "1s", "--keep", "2")
    node.run("schedule", "add", "tank/other", "s", "--every", "1s", "--keep", "2")
    node.run(
        "schedule", "add", "tank/other", "stuck", "--every", "1s", "--keep", "2",
        "--before", "sleep 999", "--before-timeout", "1h",
    )  # fmt: skip
    runs_ended(node, "tank/home", "s", 1)
    wait_until(lambda: show(node, "tank/other", "stuck")["state"] == "running", "the stuck one")
    damaged = tmp_path / "pool/home/meta.db"
    for log in damaged.parent.glob("meta.db-*"):
        log.unlink()
    damaged.write_bytes(b"\xff" * damaged.stat().st_size)
    wait_until(lambda: show(node, "tank/home", "s")["result"] == "failed", "the failure")
    runs_ended(node, "tank/other", "s", 3)
    assert show(node, "tank/other", "s")["failures"] == 0
    wait_until(lambda: show(node, "tank/home", "s")["failures"] > 2, "more failures")
    assert len(events(node, "snapshot failed")) < 3  # the same again is counted, not told
    node.run("schedule", "remove", "tank/other", "stuck")  # kills its hook
    node.stop()


@pytest.mark.mount
def test_mounting_and_unmounting_go_well_beside_a_policy(node: NodeWorld) -> None:
    """Who takes a snapshot of an unmounted volume owns it for that moment."""
    root = node.volume("tank/home", mount=False)
    node.run("schedule", "add", "tank/home", "s", "--every", "1s", "--keep", "3")
    for number in range(4):
        runs_ended(node, "tank/home", "s", 1)
        node.run("volume", "mount", "tank/home")
        (root / "f").write_text(str(number))
        runs_ended(node, "tank/home", "s", 1)
        node.run("volume", "unmount", "tank/home")
    node.run("schedule", "remove", "tank/home", "s")
    node.run("volume", "check", "tank/home")


@pytest.mark.mount
def test_a_kill_during_a_hook_is_made_good(node: NodeWorld, tmp_path: Path) -> None:
    """The hook after is run by the next daemon, and the run is made up for."""
    node.volume("tank/home")
    log, go = tmp_path / "log", tmp_path / "pid"
    node.run(
        "schedule", "add", "tank/home", "s", "--every", "1s", "--keep", "5",
        "--before", f"test -e {go} || (echo $$ > {go}.new; mv {go}.new {go}; exec sleep 999)",
        "--after", f"echo $NASFS_RESULT $NASFS_SNAPSHOT >> {log}",
    )  # fmt: skip
    wait_until(go.exists, "the hook before")
    node.kill()
    os.kill(int(go.read_text()), signal.SIGKILL)
    assert not log.exists()
    node.start()
    wait_until(lambda: names(node, "tank/home"), "the run that makes up for it")
    wait_until(lambda: len(log.read_text().splitlines()) > 1, "its hook")
    said = log.read_text().splitlines()
    assert said[0] == "cut-off"
    assert said[1].startswith("done tank/home@s-")
    assert "was ended during the run" in events(node, "snapshot failed")[0]["detail"]


def shift(node: NodeWorld, by_ns: int) -> None:
    """As if all policies had done their last work so much earlier.  The daemon does not run."""
    database = sqlite3.connect(node.root / "var/lib/nasfs/node.db")
    database.execute("UPDATE policy SET last_ns = last_ns - ?", (by_ns,))
    database.commit()
    database.close()


@pytest.mark.mount
def test_runs_that_were_missed_are_made_up_for_or_passed_over_by_choice(node: NodeWorld) -> None:
    node.volume("tank/home")
    for policy, more in (("up", ()), ("over", ("--missed", "skip"))):
        node.run("schedule", "add", "tank/home", policy, "--every", "1d", "--keep", "9", *more)
    node.run("schedule", "add", "tank/home", "rest", "--every", "1d", "--keep", "9")
    node.run("schedule", "pause", "tank/home", "rest")
    node.stop()
    now = time.time_ns()
    since_midnight = now % (24 * HOUR_NS)
    if since_midnight < 120 * 1_000_000_000:
        pytest.skip("a run would be in time just after midnight, UTC")
    shift(node, 3 * 24 * HOUR_NS)
    node.start()
    wait_until(lambda: show(node, "tank/home", "over")["result"] == "missed", "passing over")
    wait_until(lambda: show(node, "tank/home", "up")["result"] == "done", "making up")
    assert [name.partition("-")[0] for name in names(node, "tank/home")] == ["up"]
    assert sorted((e["subject"], e["detail"]) for e in events(node, "runs missed")) == [
        ("tank/home over", "3 runs were missed"),
        ("tank/home up", "3 runs were missed; one makes up"),
    ]
    node.run("schedule", "resume", "tank/home", "rest")
    node.stop()
    node.start()
    node.run("schedule", "run", "tank/home", "rest")
    assert [name.partition("-")[0] for name in names(node, "tank/home")] == ["up", "rest"]


def test_policies_by_command(node: NodeWorld) -> None:
    node.run("volume", "create", "tank/home", "--size", "10M")
    create = ("schedule", "add", "tank/home")
    ok = ("--every", "15m", "--keep", "8")
    assert "every 15m; the first at " in node.run(*create, "quarter", *ok)
    node.fails(1, *create, "quarter", *ok)
    node.fails(1, "schedule", "add", "tank/none", "q", *ok)
    node.fails(1, "schedule", "add", "nogroup", "q", *ok)
    node.fails(2, "schedule", "add", "tank/home@s", "q", *ok)
    for bad in (
        ("q", "--every", "15m"),
        ("q", "--keep", "8"),
        ("q", "--every", "0.5s", "--keep", "8"),
        ("q", "--every", "15m", "--keep", "some"),
        ("q", "--every", "15m", "--keep", "8", "--timezone", "UTC"),
        ("q", "--at", "25:00", "--keep", "8"),
        ("q", "--at", "02:00", "--keep", "8", "--timezone", "Mars/Olympus"),
        ("q", "--at", "02:00", "--keep", "8", "--days", "someday"),
        ("q", "--every", "1m", "--thin", "1h"),
        ("q", "--every", "1m", "--keep", "8", "--before", "[not json"),
        ("two words", *ok),
    ):
        assert "hint: " in node.fails(2, *create, *bad) or bad[4:5] == ("some",)
    assert [view["policy"] for view in node.json("schedule", "list")] == ["quarter"]

    node.run(
        "schedule", "add", "tank/home", "month", "--at", "23:30", "--days", "last", "--keep",
        "12", "--timezone", "Europe/Berlin", "--jitter", "5m", "--before", '["echo", "a b"]',
    )  # fmt: skip
    view = show(node, "tank/home", "month")
    assert view["rhythm"] == "at 23:30 on last Europe/Berlin, up to 5m later"
    assert view["spec"]["before"] == ["echo", "a b"]
    assert "  echo 'a b'  (at most 1m)\n" in node.run("schedule", "show", "tank/home", "month")
    node.run("schedule", "set", "tank/home", "month", "--keep", "0", "--thin", "1d:30d,7d:forever")
    assert show(node, "tank/home", "month")["retention"] == "1d:30d,1w:forever"
    node.run("schedule", "set", "tank/home", "month", "--every", "1d", "--before", "")
    view = show(node, "tank/home", "month")
    assert (view["rhythm"], view["spec"]["before"]) == ("every 1d, up to 5m later", "")
    node.fails(2, "schedule", "set", "tank/home", "month", "--thin", "")
    node.fails(2, "schedule", "set", "tank/home", "month")
    node.fails(1, "schedule", "set", "tank/home", "none", "--keep", "1")
    assert show(node, "tank/home", "month") == view

    node.run("schedule", "pause", "tank/home", "month")
    view = show(node, "tank/home", "month")
    assert (view["state"], view["next_run"]) == ("paused", None)
    assert "policy month of tank/home is paused" in node.run("status")
    node.run("schedule", "resume", "tank/home", "month")
    assert show(node, "tank/home", "month")["next_run"]
    assert "quarter" in node.run("schedule", "list", "tank/home")
    for word in ("show", "remove", "pause", "resume", "run", "prune", "explain"):
        node.fails(1, "schedule", word, "tank/home", "none")
        node.fails(2, "schedule", word, "tank/../home", "none")


def test_pruning_by_command_and_the_end_of_a_policy(node: NodeWorld) -> None:
    node.run("volume", "create", "tank/home", "--size", "10M")
    node.run("schedule", "add", "tank/home", "p", "--every", "1d", "--keep", "9")
    for _ in range(4):
        node.run("schedule", "run", "tank/home", "p")
    node.run("schedule", "set", "tank/home", "p", "--keep", "2")
    before = names(node, "tank/home")
    lines = node.run("schedule", "prune", "tank/home", "p", "--dry-run").splitlines()
    assert lines == [
        f"destroy tank/home@{before[0]}: older than the newest 2",
        f"destroy tank/home@{before[1]}: older than the newest 2",
        "2 would stay",
    ]
    assert names(node, "tank/home") == before
    verdicts = [v["verdict"] for v in node.json("schedule", "explain", "tank/home", "p")]
    assert verdicts == ["destroy", "destroy", "keep", "keep"]
    node.run("snapshot", "rename", f"tank/home@{before[0]}", "renamed")
    node.run("schedule", "prune", "tank/home", "p")
    assert names(node, "tank/home") == before[2:]
    node.run("schedule", "remove", "tank/home", "p")
    node.run("schedule", "add", "tank/home", "p", "--every", "1d", "--keep", "1")
    node.run("schedule", "run", "tank/home", "p")
    assert names(node, "tank/home")[:2] == before[2:]  # those of the policy that is gone
    node.run("volume", "destroy", "tank/home", "--lose-data")
    assert node.json("schedule", "list") == []


@pytest.mark.mount
def test_what_replication_stands_on_stays_and_a_passive_side_takes_none(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.run("schedule", "add", "office", "p", "--every", "1d", "--keep", "1")
    run = ("schedule", "run", "office", "p")
    a.run(*run)  # goes to the partner by itself
    wait_until(lambda: names(b, "safe/home"), "the first snapshot on the partner")
    wait_until(lambda: a.json("replication", "show", "office")["state"] == "idle", "its end")
    base = names(a, "tank/home")[0]
    a.run("replication", "pause", "office")
    for _ in range(3):
        a.run(*run)
    assert names(a, "tank/home")[0] == base
    assert len(names(a, "tank/home")) == 2
    said = {v["snapshot"]: v["reason"] for v in a.json("schedule", "explain", "office", "p")}
    assert "next delta to the partner" in said[f"office@{base}"]

    b.run("schedule", "add", "office", "theirs", "--every", "1s", "--keep", "1")
    assert b.json("schedule", "list")[0]["state"] == "inactive"
    assert "is passive here" in b.json("schedule", "list")[0]["reason"]
    b.fails(3, "schedule", "run", "office", "theirs")
    a.run("replication", "resume", "office")
    a.run("replication", "run", "office", "--wait")
    assert names(b, "safe/home") == names(a, "tank/home")
    a.run(*run)
    wait_until(lambda: base not in names(a, "tank/home"), "nobody needs it any more")
    assert show(b, "office", "theirs")["result"] == "none"
    a.kill_all()
    b.run("failover", "office", "--force", "--lose-unreplicated")
    received = [name for name in names(b, "safe/home") if name.startswith("p-")]
    assert len(received) >= 2  # the last one may have come before the end, too
    wait_until(lambda: show(b, "office", "theirs")["snapshots"], "a run on the new active side")
    runs_ended(b, "office", "theirs", 2)
    assert set(received) <= set(names(b, "safe/home"))


@pytest.mark.mount
def test_kills_at_any_moment_leave_no_snapshot_that_nobody_owns(node: NodeWorld) -> None:
    """What was under way is done or not done: no half snap group, none that stays for ever."""
    for volume in ("tank/home", "tank/mail"):
        node.volume(volume)
    node.run("group", "create", "office", "tank/home", "tank/mail")
    node.run("schedule", "add", "office", "s", "--every", "1s", "--keep", "500")
    chance = random.Random(7)
    for _ in range(6):
        runs_ended(node, "office", "s", 1)
        # The next run begins with the next second: the kill meets it somewhere.
        time.sleep(1 - time.time() % 1 + chance.uniform(0, 0.06))
        node.kill()
        node.start()
    node.run("schedule", "pause", "office", "s")
    node.stop()
    database = sqlite3.connect(node.root / "var/lib/nasfs/node.db")
    database.execute("UPDATE claim SET since_ns = since_ns - ?", (HOUR_NS // 2,))
    database.commit()
    database.close()
    node.start()
    node.run("schedule", "run", "office", "s")
    home, mail = (node.json("snapshot", "list", f"tank/{name}") for name in ("home", "mail"))
    assert [view["snap_group"] for view in home] == [view["snap_group"] for view in mail]
    said = node.json("schedule", "explain", "office")
    assert [view["policy"] for view in said] == ["s"] * len(home)
    assert show(node, "office", "s")["snapshots"] == len(home)
