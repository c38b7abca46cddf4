"""Policies of a group on its partner: they come, wait, change, go, and take over with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nasfs.node.context import Node
from nasfs.node.places import Places
from nasfs.node.policy.following import follow
from nasfs.node.shares.staging import newest, stage
from sharecfg.payload import Following, Payload, encode_payload
from tests.node_world import NodeWorld, wait_until
from tests.role_world import Pair, made_pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home") as made:
        yield made


def policies(node: NodeWorld) -> dict[str, dict[str, Any]]:
    return {view["policy"]: view for view in node.json("schedule", "list", "office")}


def add(node: NodeWorld, name: str, *words: str) -> None:
    node.run("schedule", "add", "office", name, *words)


def hooks_warning(node: NodeWorld) -> list[str]:
    return [text for text in node.json("readiness", "office")["warnings"] if "hooks" in text]


def test_the_partner_has_them_without_their_hooks(pair: Pair) -> None:
    a, b = pair.a, pair.b
    add(a, "hourly", "--every", "1h", "--keep", "24")
    add(a, "nightly", "--at", "02:00", "--timezone", "Asia/Tokyo", "--keep", "3",
        "--before", "touch /nowhere/at/all")  # fmt: skip
    add(b, "mine", "--every", "1w", "--keep", "2")
    pair.replicate("one")
    there, here = policies(a), policies(b)
    assert here.keys() == {"hourly", "nightly", "mine"}
    for name in ("hourly", "nightly"):
        assert here[name]["state"] == "inactive"
        assert here[name]["rhythm"] == there[name]["rhythm"]
        assert here[name]["retention"] == there[name]["retention"]
    assert here["nightly"]["spec"]["before"] == ""
    assert "nightly" in hooks_warning(b)[0]

    b.run("schedule", "set", "office", "nightly", "--before", "true")
    assert not hooks_warning(b)
    a.run("schedule", "set", "office", "nightly", "--keep", "5")
    a.run("schedule", "pause", "office", "nightly")
    a.run("schedule", "remove", "office", "hourly")
    pair.replicate("two")
    here = policies(b)
    assert here.keys() == {"nightly", "mine"}, "what the partner never had stays"
    assert here["nightly"]["retention"] == "newest 5"
    assert here["nightly"]["spec"]["before"] == "true", "hooks are each node's own"
    assert here["nightly"]["state"] == "paused"
    told = [(event["kind"], event["subject"]) for event in b.json("events")]
    for what, name in (("created", "hourly"), ("changed", "nightly"), ("removed", "hourly")):
        assert (f"schedule {what}", f"office {name}") in told


def test_they_go_on_after_a_failover_and_come_home(pair: Pair) -> None:
    a, b = pair.a, pair.b
    add(a, "near", "--every", "1s", "--keep", "3")
    wait_until(lambda: policies(a)["near"]["snapshots"] >= 1, "a snapshot on A")
    a.run("schedule", "pause", "office", "near")
    pair.replicate("one")
    a.run("schedule", "resume", "office", "near")
    pair.replicate("two")
    b.run("failover", "office")
    wait_until(lambda: policies(b)["near"]["snapshots"] >= 2, "snapshots of the policy on B")
    assert "missed" not in policies(b)["near"]["result"]
    events = b.json("events")
    assert not [one for one in events if one["kind"] == "runs missed"], "it waited, no more"

    b.run("schedule", "set", "office", "near", "--keep", "7", "--every", "1h")
    a.run("failback", "office")
    assert policies(a)["near"]["rhythm"] == "every 1h", "what was changed there holds here"
    assert policies(a)["near"]["retention"] == "newest 7"
    assert policies(a)["near"]["state"] == "waiting"
    assert policies(b)["near"]["state"] == "inactive"
    assert policies(a)["near"]["uuid"] == policies(b)["near"]["uuid"]


def test_what_came_while_no_daemon_ran_is_made_up_for(pair: Pair) -> None:
    b = pair.b
    pair.replicate("one")
    b.kill()
    good = Following("11111111-0000-4000-8000-000000000001", "hourly", '{"every":"1h","keep":2}')
    bad = (
        Following("11111111-0000-4000-8000-000000000002", "odd", '{"every":"often","keep":2}'),
        Following("11111111-0000-4000-8000-000000000003", "odder", '{"whenever":1}'),
        Following("11111111-0000-4000-8000-000000000004", "../odd", '{"every":"1h","keep":2}'),
    )
    with Node.open(Places(b.root)) as node:
        group = node.state.group("office")
        stage(node, group, encode_payload(Payload(policies=(*bad, good))), "one")
    b.start()
    assert policies(b).keys() == {"hourly"}
    refused = [one["subject"] for one in b.json("events") if one["kind"] == "schedule not taken"]
    assert refused == ["office odd", "office odder", "office ../odd"]


def test_a_name_that_is_taken_stays_whose_it_is(pair: Pair) -> None:
    a, b = pair.a, pair.b
    add(a, "hourly", "--every", "1h", "--keep", "24")
    add(b, "hourly", "--every", "2h", "--keep", "2")
    pair.replicate("one")
    assert policies(b)["hourly"]["retention"] == "newest 2"
    (event,) = (one for one in b.json("events") if one["kind"] == "schedule not taken")
    assert "hourly" in event["detail"]


def test_only_a_passive_group_follows(pair: Pair) -> None:
    a = pair.a
    add(a, "hourly", "--every", "1h", "--keep", "24")
    with Node.open(Places(a.root)) as node:
        group = node.state.group("office")
        stage(node, group, encode_payload(Payload()), "")
        assert not follow(node, group)
    assert policies(a).keys() == {"hourly"}


def test_what_is_told_has_no_hooks(pair: Pair) -> None:
    add(pair.a, "hourly", "--every", "1h", "--keep", "24", "--after", "echo secret")
    pair.replicate("one")
    with Node.open(Places(pair.b.root)) as node:
        found = newest(node, node.state.group("office"))
        assert found is not None
        (one,) = found[1].policies
        assert one.hooks
        assert b"secret" not in msgspec.json.encode(found[1])
