"""The stress script: its verdict is worth what it would notice."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
MODULES = ("blocks", "mirror", "world", "tools", "stress")


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The modules of the script."""
    sys.path.insert(0, str(SCRIPTS / "stressing"))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(SCRIPTS / "stressing"))
        for name in MODULES:
            sys.modules.pop(name, None)


def write_block(blocks: ModuleType, path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place * blocks.SIZE)
        file.write(content)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda b, p: write_block(b, p, 3, b.content(3, 1)), "block 3 has version 1"),
        (lambda b, p: write_block(b, p, 3, b.content(3, 5)), "block 3 has version 5"),
        (lambda b, p: write_block(b, p, 3, b.content(4, 2)), "block 3 is none"),
        (lambda b, p: write_block(b, p, 3, bytes(b.SIZE)), "block 3 is none"),
        (lambda b, p: write_block(b, p, 3, b.content(3, 3)[: b.SIZE // 2]), "block 3 is none"),
        (lambda b, p: os.truncate(p, b.SIZE), "bytes instead of"),
    ],
)
def test_a_block_that_no_snapshot_may_hold_is_noticed(
    parts: SimpleNamespace,
    tmp_path: Path,
    damage: Callable[[ModuleType, Path], object],
    sentence: str,
) -> None:
    blocks = parts.blocks
    path = tmp_path / "blocks"
    path.write_bytes(b"".join(blocks.content(place, 2) for place in range(blocks.COUNT)))
    write_block(blocks, path, 7, blocks.content(7, 4))
    oldest, newest = [2] * blocks.COUNT, [4] * blocks.COUNT
    assert blocks.check(path, oldest, newest) == []
    damage(blocks, path)
    (problem,) = blocks.check(path, oldest, newest)
    assert sentence in problem


@pytest.mark.parametrize(
    "damage",
    [
        lambda top: (top / "file").write_bytes(b"other content"),
        lambda top: (top / "file").unlink(),
        lambda top: (top / "new").mkdir(),
        lambda top: (top / "file").chmod(0o600),
        lambda top: os.chown(top / "file", 5, 6),
        lambda top: os.link(top / "file", top / "dir/link"),
        lambda top: os.setxattr(top / "file", "user.k", b"w"),
        lambda top: os.setxattr(top / "dir", "user.k", b"w"),
        lambda top: os.rename(top / "link", top / "other"),
    ],
)
def test_a_tree_that_differs_is_noticed(
    parts: SimpleNamespace, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "dir").mkdir(parents=True)
    (one / "file").write_bytes(b"first content")
    (one / "link").symlink_to("somewhere")
    shutil.copytree(one, other, symlinks=True)
    pictures = parts.mirror.picture
    assert parts.mirror.differences(pictures(one), pictures(other)) == []
    damage(other)
    assert parts.mirror.differences(pictures(one), pictures(other)) != []


def step_often(mirror: Any) -> None:
    for _ in range(500):
        mirror.step()


def test_an_operation_with_another_outcome_is_noticed(
    parts: SimpleNamespace, tmp_path: Path
) -> None:
    mirror = parts.mirror.Mirror(tmp_path / "one", tmp_path / "other", random.Random(1))
    step_often(mirror)
    assert mirror.differences() == []
    assert len(parts.mirror.picture(tmp_path / "one")) > 5
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "one").mkdir()
    with pytest.raises(AssertionError):
        step_often(mirror)


def test_every_stressor_is_known_or_left_out_for_a_reason(parts: SimpleNamespace) -> None:
    tools = parts.tools
    assert set(tools.MORE_STRESSORS) & set(tools.STRESSORS_LEFT_OUT) == set()
    assert all(tools.STRESSORS_LEFT_OUT.values())


@pytest.mark.mount
def test_a_sound_volume_has_no_problems(
    parts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with parts.world.mounted_world(tmp_path, tmp_path / "disk", size=1 << 30) as world:
        chance = random.Random(4)
        blocks = parts.blocks.Blocks(world.root / "blocks", chance)
        mirror = parts.mirror.Mirror(world.root / "mirror", world.reference / "mirror", chance)
        snapshots = parts.stress.Snapshots(world, blocks, mirror, chance, keep=3)
        report = parts.stress.Report(world)
        for _ in range(5):
            for _ in range(50):
                blocks.step()
            snapshots.take()
            snapshots.step_mirror()
        parts.stress.compare(world, report, blocks, mirror, snapshots, "")
        blocks.close()
        world.unmount()
        world.check()
        world.mount()
        parts.stress.compare(world, report, blocks, mirror, snapshots, "again")
        assert world.problems == []
        assert len(snapshots.names()) == 6

        (mirror.reference / "more").touch()
        for _ in range(4):  # at least one of these snapshots is kept
            snapshots.step_mirror()
        snapshots.check()
        assert any("more: " in problem for problem in world.problems)
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.mount
def test_the_tools_of_debian_find_nothing(parts: SimpleNamespace) -> None:
    if lacking := parts.tools.missing():
        pytest.skip(f"not installed: {', '.join(lacking)} (scripts/stress --install)")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "stressing/stress.py", "--seconds", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "FAILED" in done.stdout) == (0, False), done.stdout + done.stderr
