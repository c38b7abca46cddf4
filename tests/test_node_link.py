"""Two nodes: windows, rates, shares and turns of the link, as people set them; and what is told."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nasfs.node.client import ApiError, Client, replication_url
from nasfs.node.messages import ReplicationView
from nasfs.node.places import Places
from nasfs.node.sending.replications import LOOK_S
from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair, picture
from tests.test_node_failover import pair as pair  # the fixture

pytestmark = pytest.mark.mount

MIB = 1 << 20


def show(node: NodeWorld, group: str = "office") -> Any:
    return node.json("replication", "show", group)


def write(path: Path, size: int) -> None:
    """Bytes that no compression makes smaller."""
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))


def hours_from_now(hours: int) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%H:%M")


CLOSED = ("--from", hours_from_now(6), "--to", hours_from_now(8))


def has(node: NodeWorld, group: str, snapshot: str) -> bool:
    """Both sites have it, and nothing is under way."""
    view = show(node, group)
    return bool(view["common"] == snapshot and view["state"] == "idle")


def explained(node: NodeWorld, group: str = "office") -> str:
    return " / ".join(view["reason"] for view in node.json("replication", "explain", group))


def test_windows_close_a_running_transfer_and_open_it_again(pair: Pair) -> None:
    a, b = pair.a, pair.b
    write(a.mountpoint("tank/home") / "large", 24 * MIB)
    a.run("replication", "set", "office", "--rate", "2M")
    a.run("snapshot", "create", "office@one")
    wait_until(lambda: show(a)["bytes_done"] > 4 * MIB, "some of it is durable there")
    a.run("replication", "window", "add", "office", *CLOSED)
    wait_until(lambda: show(a)["state"] == "waiting", "it stops", deadline_s=10)
    view = show(a)
    assert view["reason"].startswith("it is outside its windows; the next opens ")
    assert view["eta"] is not None
    assert view["eta"] > (datetime.now(UTC) + timedelta(hours=5)).isoformat()
    assert "outside its windows" in explained(a)
    (window,) = a.json("replication", "window", "list", "office")
    assert (window["number"], window["open"]) == (1, False)
    sent = a.json("replication", "history", "office")[0]
    assert (sent["result"], sent["detail"]) == ("held", "its window has closed")
    a.run("replication", "set", "office", "--rate", "off")
    a.run("replication", "window", "add", "office", "--from", "00:00", "--to", "24:00")
    wait_until(partial(has, a, "office", "one"), "it goes on")
    done = a.json("replication", "history", "office")[0]
    assert (done["result"], done["snapshot"]) == ("done", "one")
    assert done["bytes"] < 22 * MIB  # what had arrived was not sent again
    a.run("replication", "window", "remove", "office", "--all")
    assert a.json("replication", "window", "list", "office") == []
    assert b.json("replication", "reception", "office")["newest"] == "one"
    assert show(a)["reason"] == ""


def test_a_rate_holds_and_can_be_changed_under_way(pair: Pair) -> None:
    a = pair.a
    size = 9 * MIB
    write(a.mountpoint("tank/home") / "large", size)
    a.run("replication", "set", "office", "--rate", "512K", "--compression", "off")
    a.run("snapshot", "create", "office@one")
    wait_until(lambda: show(a)["wire_bytes"] > MIB // 2, "it has begun")
    assert any("524288 bytes a second" in view["reason"]
               for view in a.json("replication", "explain", "office"))  # fmt: skip
    began, before = time.monotonic(), show(a)["wire_bytes"]
    time.sleep(4)
    passed, seconds = show(a)["wire_bytes"] - before, time.monotonic() - began
    assert passed <= 524_288 * (seconds + 1.5)  # reports come once a second
    a.run("replication", "set", "office", "--rate", "64M")
    wait_until(partial(has, a, "office", "one"), "it goes faster at once", deadline_s=9)


def test_groups_share_the_link_and_take_turns(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.volume("tank/more")
    a.run("group", "create", "second", "tank/more")
    a.run("replication", "create", "second", "--to-pool", "safe", "--priority", "25")
    a.run("replication", "link", "--rate", "1M", "--transfers", "2")
    for volume, group in (("tank/home", "office"), ("tank/more", "second")):
        write(a.mountpoint(volume) / "large", 6 * MIB)
        a.run("snapshot", "create", f"{group}@one")

    def orders() -> dict[str, str]:
        return {group: explained(a, group) for group in ("office", "second")}

    wait_until(lambda: "838860 bytes a second" in orders()["office"], "four fifths")
    wait_until(lambda: "209715 bytes a second" in orders()["second"], "a fifth")
    assert sorted(a.json("replication", "link")["sending"]) == ["office", "second"]
    a.run("replication", "pause", "office")
    wait_until(lambda: "262144 bytes a second" in orders()["second"], "a quarter: its priority")
    a.run("replication", "link", "--transfers", "1")
    a.run("replication", "resume", "office")
    wait_until(lambda: "other groups have their turn" in orders()["office"], "it waits")
    a.run("replication", "link", "--rate", "off")
    for group in ("office", "second"):
        wait_until(partial(has, a, group, "one"), f"{group} arrives")
        assert b.json("replication", "reception", group)["newest"] == "one"


def test_who_waits_for_an_attempt_is_answered_when_it_ends(pair: Pair) -> None:
    a = pair.a
    client, url = Client(Places(a.root)), replication_url("office")
    asked = client.post(f"{url}/run", ReplicationView).asked_attempt
    wait_until(
        lambda: client.get(url, ReplicationView, finished=str(asked)).finished_attempts >= asked,
        "it ends",
    )
    began = time.monotonic()
    assert client.get(url, ReplicationView, finished=str(asked + 1)).finished_attempts == asked
    assert time.monotonic() - began >= LOOK_S  # that one has not even begun
    with pytest.raises(ApiError) as refused:
        client.get(url, ReplicationView, finished="soon")
    assert refused.value.exit_code == 2


def test_sites_are_split_and_joined_by_hand(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    a.run("replication", "split", "office")
    assert "is split" in a.fails(3, "replication", "run", "office")
    for name in ("two", "three"):
        (a.mountpoint("tank/home") / name).write_text(name)
        a.run("snapshot", "create", f"office@{name}")
    view = show(a)
    assert (view["split"], view["waiting_snapshots"], view["lag_s"] > 0) == (True, 2, True)
    assert "split by hand" in explained(a)
    assert any("is split" in sentence for sentence in a.json("status")["attention"])
    a.run("snapshot", "destroy", "tank/home@two")  # nothing of it is held
    assert "held" in a.fails(3, "snapshot", "destroy", "tank/home@one")  # both have it
    a.stop()
    a.start()  # it is durable
    assert show(a)["split"]
    a.run("replication", "join", "office")
    wait_until(partial(has, a, "office", "three"), "it catches up")
    assert b.json("replication", "reception", "office")["snapshots"] == 2


def test_a_lag_leaves_snap_groups_out_but_what_somebody_wants(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    a.run("replication", "pause", "office")
    a.run("replication", "set", "office", "--max-lag", "1s")
    for name in ("two", "three", "four", "five"):
        (a.mountpoint("tank/home") / name).write_text(name)
        a.run("snapshot", "create", f"office@{name}")
    a.run("snapshot", "hold", "tank/home@three", "--owner", "auditor")
    wait_until(lambda: show(a)["lag_s"] > 1, "it is late")
    dry = a.json("replication", "run", "office", "--dry-run")
    assert [(view["base"], view["target"]) for view in dry] == [("one", "three"), ("three", "five")]
    a.run("replication", "resume", "office")
    wait_until(partial(has, a, "office", "five"), "it has caught up")
    names = [view["name"] for view in b.json("snapshot", "list", "safe/home")]
    assert names == ["safe/home@one", "safe/home@three", "safe/home@five"]
    done = a.json("replication", "history", "office")[0]
    assert (done["detail"], done["snapshots"]) == ("2 snap groups left out", 2)
    a.run("volume", "check", "tank/home")
    b.run("volume", "check", "safe/home")


def test_the_secondary_keeps_by_its_own_rules(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    a.run("replication", "set", "office", "--max-snapshots", "1")
    b.run("replication", "reception", "office", "--keep-at-least", "2")
    for name in ("two", "three"):
        pair.replicate(name)

    def kept() -> list[str]:
        return [view["name"].partition("@")[2] for view in b.json("snapshot", "list", "safe/home")]

    wait_until(lambda: kept() == ["two", "three"], "two, whatever the sender asks")
    view = b.json("replication", "reception", "office")
    assert (view["asked"], view["keep_least"], view["keeps"]) == (1, 2, 2)
    (hold,) = b.json("snapshot", "show", "safe/home@three")["holds"]
    assert (hold["owner"], "next delta" in hold["reason"]) == ("replication", True)
    assert b.json("snapshot", "show", "safe/home@two")["holds"] == []
    b.run("replication", "reception", "office", "--keep-at-least", "0", "--keep-at-most", "1")
    pair.replicate("four")
    wait_until(lambda: kept() == ["four"], "the sender's or less")
    assert "do not go together" in b.fails(
        2, "replication", "reception", "office", "--keep-at-least", "2"
    )
    assert "not received" in a.fails(1, "replication", "reception", "office")


def test_what_a_run_would_send_is_told_exactly(pair: Pair) -> None:
    a = pair.a
    here = a.mountpoint("tank/home")
    pair.replicate("one")
    write(here / "noise", MIB)
    (here / "text").write_text("the same line again\n" * 100_000)
    (here / "directory").mkdir()
    a.run("replication", "pause", "office")
    a.run("snapshot", "create", "office@two")
    (dry,) = a.json("replication", "run", "office", "--dry-run")
    assert (dry["base"], dry["target"], dry["files"]) == ("one", "two", 2)
    assert 1.2 < dry["ratio"] < 20
    a.run("replication", "set", "office", "--rate", "1M", "--rpo", "1s")
    assert a.json("replication", "run", "office", "--dry-run")[0]["seconds"] is not None
    wait_until(lambda: show(a)["rpo"] == "missed", "the copy is old")
    assert any("RPO of 1 s is missed" in said for said in a.json("status")["attention"])
    assert "RPO of 1 s is missed" in explained(a)
    a.run("replication", "set", "office", "--rate", "off", "--rpo", "1d")
    a.run("replication", "resume", "office")
    wait_until(partial(has, a, "office", "two"), "it is sent")
    done = a.json("replication", "history", "office")[0]
    assert (done["rows"], done["bytes"]) == (dry["rows"], dry["bytes"])
    view = show(a)
    assert (view["rpo"], view["lag_s"], view["lag_bytes"]) == ("met", 0, 0)
    assert a.run("replication", "explain", "office") == "nothing waits: the partner is up to date\n"


def test_bad_settings_change_nothing(pair: Pair) -> None:
    a = pair.a

    def settings(node: NodeWorld) -> list[Any]:
        view = show(node)
        return [
            *(node.json("replication", "link")[name] for name in ("rate", "transfers")),
            *(view[name] for name in ("rate", "priority", "windows", "max_lag_s", "rpo_s")),
            *(view[name] for name in ("compression", "max_snapshots", "split")),
        ]

    before = settings(a)
    for words in (
        ("set", "office", "--rate", "fast"),
        ("set", "office", "--rate", "1K"),
        ("set", "office", "--priority", "0"),
        ("set", "office", "--priority", "101"),
        ("set", "office", "--max-lag", "soon"),
        ("set", "office", "--rpo", "-1s"),
        ("set", "office", "--compression", "10"),
        ("set", "office", "--max-snapshots", "0"),
        ("set", "office", "--rate", "1M", "--priority", "900"),
        ("set", "office"),
        ("window", "add", "office", "--from", "25:00", "--to", "06:00"),
        ("window", "add", "office", "--from", "20:00", "--to", "06:00", "--timezone", "Mars"),
        ("window", "remove", "office", "1"),
        ("window", "remove", "office"),
        ("link", "--transfers", "0"),
        ("link", "--rate", "3"),
    ):
        a.fails(2, "replication", *words)
    for words in (("set", "none", "--rate", "1M"), ("window", "list", "none"), ("split", "none")):
        a.fails(1, "replication", *words)
    assert settings(a) == before


def test_what_the_link_was_told_outlives_the_daemon(pair: Pair) -> None:
    a = pair.a
    a.run("replication", "window", "add", "office", *CLOSED, "--rate", "5M")
    a.run("replication", "set", "office", "--priority", "40", "--max-lag", "15m", "--rpo", "1h")
    a.run("replication", "link", "--rate", "100Mbit")
    (a.mountpoint("tank/home") / "f").write_text("x")
    a.kill()
    a.start()
    a.run("snapshot", "create", "office@one")
    wait_until(lambda: "outside" in show(a)["reason"], "it waits for its window")
    view = show(a)
    assert (view["priority"], view["max_lag_s"], view["rpo_s"]) == (40, 900, 3600)
    assert a.json("replication", "link")["rate"] == 12_500_000
    expected = picture(a.mountpoint("tank/home") / ".snapshots/one")
    a.run("replication", "window", "remove", "office", "1")
    wait_until(partial(has, a, "office", "one"), "it is sent")
    pair.a.kill_all()
    pair.b.run("failover", "office", "--force", "--lose-unreplicated")
    assert picture(pair.b.mountpoint("safe/home")) == expected
