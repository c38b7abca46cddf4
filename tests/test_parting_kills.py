"""Daemons that are killed behind every step of the end of a replication, and of the pair.

The steps are counted while they happen: behind every durable change of node.db, and behind every
part of the work on volumes and with the partner.  Each is tried until the command comes through.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dying_node import arm
from tests.node_world import NodeWorld, wait_until
from tests.role_world import Pair, made_pair
from tests.step_world import Site, Walk
from tests.test_parting import holds

pytestmark = pytest.mark.mount

POINTS = ("parting", "written")
MOST = 40
"""So many steps no end has."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home", "mail", daemon="tests.dying_node") as made:
        (made.a.mountpoint("tank/home") / "f").write_text("first")
        made.replicate("one")
        yield made


def is_ended(pair: Pair) -> None:
    """Both have what they had, as ordinary volumes."""
    a, b = pair.a, pair.b
    assert a.json("replication", "list") == []
    assert a.json("group", "show", "office")["role"] == "active"
    assert b.json("group", "list") == []
    assert holds(a) == holds(b) == []
    # (not exists(): a mount whose process was killed is an error until it is mounted anew)
    wait_until(lambda: os.access(a.mountpoint("tank/home") / "f", os.R_OK), "it is mounted")
    for volume in ("safe/home", "safe/mail"):
        b.run("volume", "check", volume)
    b.run("volume", "mount", "safe/home")
    assert (b.mountpoint("safe/home") / "f").read_text() == "first"
    b.run("volume", "unmount", "safe/home")


def dies(dying: NodeWorld, point: str, count: int, asked: NodeWorld, *words: str) -> bool:
    """The command is given, and *dying* dies there; False: it came through without that."""
    arm(dying.root, point, count)
    done = asked.nasfs(*words)
    assert done.returncode in (0, 1, 3, 4), done.stderr
    assert "Traceback" not in done.stderr
    armed = dying.root / "die-at"
    if armed.exists():
        armed.unlink()
        assert done.returncode == 0, done.stderr
        return False
    assert dying.daemon is not None
    dying.daemon.wait(60)
    dying.daemon = None
    dying.start()
    return True


def end(asked: NodeWorld) -> None:
    """The same command again; a crash behind its last step leaves nothing to do."""
    done = asked.nasfs("replication", "delete", "office")
    assert done.returncode == 0 or "is not replicated" in done.stderr, done.stderr
    assert done.returncode == 0 or "there is no group" not in done.stderr


@pytest.mark.parametrize("who", ["a", "b"])
def test_an_end_goes_on_from_wherever_it_was_killed(pair: Pair, who: str) -> None:
    dying: NodeWorld = getattr(pair, who)
    died = 0
    for point in POINTS:
        for count in range(1, MOST):
            words = ("replication", "delete", "office")
            if not pair.a.json("replication", "list"):
                break
            if not dies(dying, point, count, pair.a, *words):
                break
            died += 1
    assert died > 1
    end(pair.a)
    is_ended(pair)


@pytest.mark.parametrize("what", ["mounts", "command"])
def test_mount_processes_and_commands_die(pair: Pair, what: str) -> None:
    a = Site(pair.a, ("tank/home", "tank/mail"))
    walk = Walk(a, Site(pair.b, ("safe/home", "safe/mail")), ("replication", "delete", "office"))

    def act(command: subprocess.Popen[str]) -> None:
        a.kill_mounts() if what == "mounts" else command.kill()

    walk.run(
        act,
        done=lambda: not pair.a.json("replication", "list") and not holds(pair.a),
        points=itertools.repeat("parting"),
    )
    assert walk.pauses >= 2
    end(pair.a)
    is_ended(pair)
    assert walk.written <= a.records()


@pytest.mark.soak
@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("point", POINTS)
def test_every_step_of_an_end_from_the_beginning(pair: Pair, who: str, point: str) -> None:
    dying: NodeWorld = getattr(pair, who)
    for count in range(1, MOST):
        died = dies(dying, point, count, pair.a, "replication", "delete", "office")
        end(pair.a)
        is_ended(pair)
        if not died:
            break
        again(pair, count)
    assert 2 < count < MOST - 1


def again(pair: Pair, count: int) -> None:
    """Replicated anew: what was written on the copies since goes back first."""
    for volume in ("safe/home", "safe/mail"):
        pair.b.run("snapshot", "rollback", f"{volume}@{'one' if count == 1 else f'n{count - 1}'}")
    pair.a.run("replication", "create", "office", "--to-pool", "safe")
    pair.replicate(f"n{count}")


def test_the_end_of_a_pair_goes_on_from_wherever_it_was_killed(pair: Pair) -> None:
    for who in (pair.a, pair.b):
        for point in POINTS:
            for count in range(1, MOST):
                if pair.a.json("pair", "show")["peer"] is None:
                    break
                if not dies(who, point, count, pair.a, "pair", "remove", "--force"):
                    break
    for node in (pair.a, pair.b):
        if node.json("pair", "show")["peer"] is not None:
            node.run("pair", "remove", "--force")
        assert node.json("pair", "show")["peer"] is None
    is_ended(pair)
    assert os.path.ismount(pair.a.mountpoint("tank/home"))
