"""The page for people in need: its commands work as they are written, in their order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_world import wait_until
from tests.role_world import Pair, made_pair

pytestmark = pytest.mark.mount

PAGE = Path(__file__).parents[1] / "docs" / "failover.md"
COMMAND = re.compile(r"(?P<node>[ab])# nasfs (?P<words>.*?)(?:\s+\(\w+: (?P<code>\d)\))?")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home") as made:
        made.replicate("first")
        yield made


def lines() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def diverged(pair: Pair) -> str:
    names: list[str] = [view["name"] for view in pair.a.json("snapshot", "list", "tank/home")]
    return next(n.partition("@")[2] for n in reversed(names) if "@diverged-" in n)


def a_is_lost(pair: Pair) -> None:
    with (pair.a.mountpoint("tank/home") / "lost-file").open("w") as file:
        file.write("written after the last replication")
        file.flush()
        os.fsync(file)
    pair.a.kill_all()


def test_every_command_of_the_page(pair: Pair) -> None:
    for line in lines():
        if line == "(a is lost)":
            a_is_lost(pair)
            continue
        if line == "(a comes back)":
            pair.a.start()
            wait_until(lambda: pair.a.json("group", "show", "office")["role"] == "stale", "it is")
            continue
        found = COMMAND.fullmatch(line)
        assert found, line
        words = found["words"]
        if "DIVERGED" in words:
            words = words.replace("DIVERGED", diverged(pair))
        done = getattr(pair, found["node"]).nasfs(*words.split())
        assert done.returncode == int(found["code"] or 0), f"{line}\n{done.stderr}"
        if "restore" in words:
            assert (pair.a.mountpoint("tank/home") / "lost-file").exists()
    assert pair.a.json("group", "show", "office")["role"] == "active"
    assert pair.b.json("group", "show", "office")["role"] == "passive"
