"""What only a snapshot has comes back beside what is there now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node_world import NodeWorld


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(tmp_path / "a", "a")
    try:
        world.start()
        world.run("pool", "create", "tank", str(tmp_path / "pool"))
        yield world
    finally:
        world.close()


def diverged(node: NodeWorld) -> tuple[Path, str]:
    """A volume that went back behind what somebody did; the snapshot that has it."""
    home = node.volume("tank/home")
    (home / "team").mkdir()
    for name in ("same", "edited", "moved", "owned", "gone", "team/plan"):
        (home / name).write_text(f"{name} before")
    node.run("snapshot", "create", "tank/home@older")
    node.run("snapshot", "create", "tank/home@common")
    (home / "edited").write_text("edited there")
    (home / "team/plan").write_text("another plan")
    (home / "moved").rename(home / "elsewhere")
    os.chmod(home / "owned", 0o600)
    (home / "gone").unlink()
    (home / "new").write_bytes(b"new there" * 1000)
    (home / "tree/deep").mkdir(parents=True)
    (home / "tree/deep/leaf").write_text("leaf")
    os.symlink("anywhere", home / "link")
    kept = node.json("snapshot", "rollback", "tank/home@common")["kept_as"]
    (home / "edited").write_text("edited here, afterwards")
    (home / "edited.orphan").write_text("mine")
    return home, str(kept)


def listed(view: Any) -> dict[str, str]:
    return {one["path"]: one["problem"] for one in view["orphans"]}


def test_files_and_trees_come_as_copies(node: NodeWorld) -> None:
    home, kept = diverged(node)
    before = sorted(os.listdir(home))
    plan = node.json("snapshot", "restore", kept, "/", "--orphans", "--dry-run")
    wanted = {"edited", "team/plan", "new", "tree", "link"}
    assert plan["since"] == "tank/home@common"
    assert listed(plan).keys() == wanted
    assert sorted(os.listdir(home)) == before, "a plan changes nothing"

    message = node.fails(1, "snapshot", "restore", kept, "/", "--orphans")
    assert "1 of 5 were left out" in message
    assert (home / "edited.orphan").read_text() == "mine", "nothing is replaced"
    assert (home / "edited").read_text() == "edited here, afterwards"
    assert (home / "team/plan.orphan").read_text() == "another plan"
    assert (home / "team/plan").read_text() == "team/plan before"
    assert (home / "new.orphan").read_bytes() == b"new there" * 1000
    assert (home / "tree.orphan/deep/leaf").read_text() == "leaf"
    assert (home / "link.orphan").readlink() == Path("anywhere")
    assert sorted(os.listdir(home)) == sorted([*before, "new.orphan", "tree.orphan", "link.orphan"])

    (home / "edited.orphan").unlink()
    again = node.nasfs("snapshot", "restore", kept, "/", "--orphans", "--json")
    assert again.returncode == 1
    assert (home / "edited.orphan").read_text() == "edited there", "what was left comes now"
    assert node.nasfs("volume", "check", "tank/home").returncode == 0


def test_below_a_path_and_since_another_snapshot(node: NodeWorld) -> None:
    home, kept = diverged(node)
    view = node.json("snapshot", "restore", kept, "team", "--orphans", "--since", "older")
    assert (listed(view), view["since"]) == ({"team/plan": ""}, "tank/home@older")
    assert (home / "team/plan.orphan").read_text() == "another plan"
    assert not (home / "new.orphan").exists()


def test_what_cannot_be(node: NodeWorld) -> None:
    home, kept = diverged(node)
    node.fails(2, "snapshot", "restore", kept, "/", "--orphans", "--to", "x")
    node.fails(2, "snapshot", "restore", kept, "/", "--since", "older")
    node.fails(1, "snapshot", "restore", "tank/home@nothing", "/", "--orphans")
    node.fails(1, "snapshot", "restore", kept, "/", "--orphans", "--since", "nothing")
    assert "older than older" in node.fails(
        1, "snapshot", "restore", "tank/home@older", "/", "--orphans"
    )
    (home / "team/plan").unlink()
    (home / "team").rmdir()
    done = node.nasfs("snapshot", "restore", kept, "team", "--orphans", "--json")
    assert done.returncode == 1
    assert not list(home.glob("**/plan.orphan"))
