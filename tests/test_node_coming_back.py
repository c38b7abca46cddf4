"""A primary that comes back serves nothing before it has heard that it still is the primary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nasfs.errors import Refused
from nasfs.fuse.mountpoint import find_mount, fusermount
from nasfs.node.mount_source import find_source
from nasfs.node.places import Places
from tests.dying_node import arm
from tests.node_world import NodeWorld, wait_until
from tests.role_world import LOSE, Pair, made_pair

pytestmark = pytest.mark.mount


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home", "work") as made:
        (made.a.mountpoint("tank/home") / "f").write_text("first")
        made.replicate("one")
        yield made


def state(node: NodeWorld, volume: str = "tank/home") -> str:
    return str(node.json("volume", "show", volume)["mount_state"])


def role(node: NodeWorld) -> str:
    return str(node.json("group", "show", "office")["role"])


def is_served(node: NodeWorld, volume: str = "tank/home") -> bool:
    return find_mount(node.mountpoint(volume)) is not None


def happened(node: NodeWorld, kind: str) -> bool:
    return any(event["kind"] == kind for event in node.json("events"))


def power_cut(node: NodeWorld) -> None:
    """And what is dead is taken away, as a boot does."""

    def settles() -> bool:  # else a mount process that is starting would survive
        return all(view["mount_state"] != "starting" for view in node.json("volume", "list"))

    wait_until(settles, "nothing is about to be mounted")
    node.kill_all()
    for volume in ("home", "work"):
        for pool in ("tank", "safe"):
            if find_mount(node.mountpoint(f"{pool}/{volume}")):
                fusermount("-u", "-z", path=node.mountpoint(f"{pool}/{volume}"))


def test_it_waits_until_the_partner_answers(pair: Pair, tmp_path: Path) -> None:
    a, b = pair.a, pair.b
    a.run("share", "add", "office", "tank/home")
    assert a.json("share", "show", "office")["state"] == "served"
    b.kill()
    a.kill()
    a.start()  # its mounts have served all the time: that is no coming back
    wait_until(lambda: state(a) == "mounted", "taken over from the daemon before")
    assert not happened(a, "waits for the partner")

    power_cut(a)
    a.start()
    assert state(a) == state(a, "tank/work") == "waiting"
    (attention,) = [said for said in a.json("status")["attention"] if said.startswith("group")]
    assert "has come back, and b, which may have taken over" in attention
    assert "nasfs failover office --without-partner" in attention
    assert "--without-partner" in a.run("explain", "office")
    assert "has come back" in a.run("explain", "tank/home")
    assert "waiting" in a.run("volume", "list")
    assert a.json("group", "show", "office")["waits_since"]
    assert happened(a, "waits for the partner")
    assert "has come back" in a.json("share", "show", "office")["state"]
    for refused in (
        ("volume", "mount", "tank/home"),
        ("mount", "tank/home", str(tmp_path / "elsewhere")),
        ("snapshot", "create", "office@no"),
        ("snapshot", "create", "tank/home@no"),
        ("rollback", "office@one"),
    ):
        said = a.fails(3, *refused)
        assert "nasfs failover office --without-partner" in said, refused
    with pytest.raises(Refused, match="has come back"):  # as a line of fstab does
        find_source(Places(a.root), "tank/home")
    a.stop()
    a.start()
    assert state(a) == "waiting"
    with pytest.raises(Refused, match="has come back"):
        find_source(Places(a.root), "tank/home")
    assert not is_served(a)

    b.start()
    wait_until(lambda: state(a) == state(a, "tank/work") == "mounted", "by itself")
    assert (a.mountpoint("tank/home") / "f").read_text() == "first"
    assert happened(a, "goes on as the primary")
    wait_until(lambda: a.json("share", "show", "office")["state"] == "served", "shared")
    assert a.json("status")["attention"] == []
    assert "does not wait" in a.fails(3, "failover", "office", "--without-partner")

    power_cut(a)
    power_cut(b)
    a.start()
    b.start()  # both at once
    wait_until(lambda: state(a) == "mounted", "both come up")


def test_a_primary_that_was_replaced_meanwhile_never_serves(pair: Pair) -> None:
    a, b = pair.a, pair.b
    power_cut(a)
    b.run("failover", "office", *LOSE)
    b.kill()  # it serves on, and nobody answers
    a.start()
    assert state(a) == "waiting"
    b.start()
    wait_until(lambda: role(a) == "stale", "it hears of the higher term")
    assert not is_served(a)
    assert not happened(a, "goes on as the primary")

    power_cut(a)
    power_cut(b)
    b.start()  # it has taken over alone: nobody can have taken over from it
    wait_until(lambda: state(b, "safe/home") == "mounted", "it does not wait")
    a.start()
    b.run("failback-join", "office")
    power_cut(a)
    power_cut(b)
    b.start()  # now somebody can
    assert state(b, "safe/home") == "waiting"
    a.start()
    wait_until(lambda: state(b, "safe/home") == "mounted", "a has not")
    assert role(a) == "passive"


def test_a_person_says_that_it_shall_go_on(pair: Pair, tmp_path: Path) -> None:
    a, b = pair.a, pair.b
    power_cut(b)
    power_cut(a)
    a.start()
    a.run("volume", "mount", "tank/home", "--without-partner")
    assert is_served(a)
    wait_until(lambda: state(a, "tank/work") == "mounted", "the group goes on as a whole")
    a.run("snapshot", "create", "office@alone")

    power_cut(a)
    by_hand = tmp_path / "by hand"
    assert "has come back" in a.fails(3, "mount", "tank/home", str(by_hand))
    with pytest.raises(Refused, match="has come back"):
        find_source(Places(a.root), "tank/home")
    b.start()
    a.run("mount", "tank/home", str(by_hand))  # the partner has answered
    assert (by_hand / "f").read_text() == "first"
    a.run("mount", "tank/work", str(tmp_path / "work"))
    for where in (by_hand, tmp_path / "work"):
        a.run("unmount", str(where))
    b.kill()
    a.run("mount", "tank/home", str(by_hand), "--without-partner")
    a.run("unmount", str(by_hand))

    a.start()
    assert state(a) == "waiting"
    a.run("failover", "office", "--without-partner")
    wait_until(lambda: state(a) == "mounted", "it goes on")
    a.fails(2, "failover", "office", "--without-partner", "--force")
    b.start()
    a.run("replication", "run", "office", "--wait")
    assert (role(a), role(b)) == ("active", "passive")

    # The person was wrong: what both have written is kept, and the lower term ends.
    power_cut(a)
    b.run("failover", "office", *LOSE)
    b.kill()
    a.start()
    a.run("volume", "mount", "tank/home", "--without-partner")
    b.start()
    wait_until(lambda: role(a) == "stale", "it hears of the higher term")
    wait_until(lambda: not is_served(a), "and serves nothing any more")


def test_what_was_handed_over_waits_although_it_is_not_replicated_yet(tmp_path: Path) -> None:
    with made_pair(tmp_path, "home", daemon="tests.dying_node") as pair:
        a, b = pair.a, pair.b
        pair.replicate("one")
        steps = b.json("failover", "office", "--dry-run")["steps"]
        taking_over = next(n for n, step in enumerate(steps) if "raise the term" in step["text"])
        arm(b.root, "step", taking_over + 1)
        assert b.nasfs("failover", "office").returncode == 4
        assert b.daemon is not None
        b.daemon.wait(60)
        b.daemon = None
        a.kill()  # it could be the primary by now, if somebody had used force
        b.start()
        assert role(b) == "active"
        assert b.json("replication", "list") == []
        assert "has come back" in b.fails(3, "failover", "office")
        assert not is_served(b, "safe/home")
        a.start()
        wait_until(lambda: not b.json("group", "show", "office")["waits"], "it hears")
        b.run("failover", "office")
        assert is_served(b, "safe/home")


def test_the_configuration_may_say_that_it_does_not_wait(pair: Pair) -> None:
    a, b = pair.a, pair.b
    power_cut(b)
    power_cut(a)
    config = a.root / "etc/nasfs/nasfs.yaml"
    known = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(known | {"failover": {"without_partner": "perhaps"}}))
    assert "without_partner" in a.fails(2, "node", "run")
    config.write_text(yaml.safe_dump(known | {"failover": {"without_partner": "mount"}}))
    a.start()
    wait_until(lambda: state(a) == "mounted", "it goes on")
    (event,) = [e for e in a.json("events") if e["kind"] == "goes on as the primary"]
    assert "configuration" in event["detail"]
