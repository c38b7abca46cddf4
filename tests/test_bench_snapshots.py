"""The measurements of snapshots and failovers, in short: they run through, and leave nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_bench import SCRIPTS, part

continuous = part("continuous")


def run(home: Path, name: str, *arguments: str) -> Any:
    """The figures that a measurement saves."""
    place, saved = home / "place", home / "figures.json"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), "--dir", str(place), "--json", str(saved),
         *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(place.iterdir()) == []
    assert str(place) not in Path("/proc/self/mounts").read_text()
    return json.loads(saved.read_text())


@pytest.mark.mount
def test_all_that_is_done_with_snapshots_is_measured(tmp_path: Path) -> None:
    few, more, many = run(tmp_path, "snapshots", "--files", "10000", "--snapshots", "50")
    assert (few["files"], more["files"], many["files"]) == (1000, 10000, 1000)
    assert (few["snapshots"], more["snapshots"], many["snapshots"]) == (50, 50, 500)
    for figures in (few, more, many):
        assert all(value > 0 for value in figures.values())
    assert {"seal", "browse an old directory", "delta of neighbours", "destroy"} <= few.keys()


@pytest.mark.mount
def test_writes_are_measured_beside_each_other(tmp_path: Path) -> None:
    figures = run(tmp_path, "kept", "--snapshots", "0,3", "--rounds", "2", "--scale", "0.005")
    assert len(figures) == 2 * 6
    assert {figure["kept"] for figure in figures} == {0, 3}
    assert all(len(figure["us"]) == 2 and min(figure["us"]) > 0 for figure in figures)
    assert all(figure["ratio"] == 1 for figure in figures if figure["kept"] == 0)


@pytest.mark.mount
def test_snapshots_are_taken_and_thinned_under_load(tmp_path: Path) -> None:
    lines = run(tmp_path, "continuous", "--seconds", "4", "--every", "0.1", "--report", "1")
    assert lines[-1]["taken"] > 5
    assert lines[-1]["kept"] < lines[-1]["taken"]
    assert all(line["writes_a_second"] > 0 for line in lines)


@pytest.mark.mount
@pytest.mark.skipif(shutil.which("smbd") is None, reason="Samba is not installed")
def test_a_failover_is_measured_by_stages(tmp_path: Path) -> None:
    options = ("--files", "20", "--volumes", "2", "--users", "2")
    (figures,) = run(tmp_path, "failover", *options).values()
    assert list(figures) == ["failover", "failback", "by force"]
    for stages in figures.values():
        assert {"roll back", "take over", "mount", "serve"} <= stages.keys()
        assert stages["mount"] < stages["the operation"] < stages["the command"]
    assert "hand over" not in figures["by force"]


def test_thinning_leaves_one_of_each_stretch() -> None:
    tiers = [(1, 10), (5, 30)]
    times = [float(second) for second in range(41)]
    gone = continuous.doomed(times, 40.0, tiers)
    assert [taken for taken in times if taken not in gone] == [
        *(10.0, 15.0, 20.0, 25.0),
        *(float(second) for second in range(30, 41)),
    ]
    left = [taken for taken in times if taken not in gone]
    assert continuous.doomed(left, 40.0, tiers) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("kept", "--snapshots", "a"),
        ("kept", "--snapshots", "1,1"),
        ("kept", "--only", "nothing"),
        ("continuous", "--seconds", "0"),
        ("failover", "--files", "x"),
        ("failover", "--files", "5", "--volumes", "10"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{arguments[0]}.py"), *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "error: " in done.stderr
