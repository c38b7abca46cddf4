"""The file system measurements: they do what they say, everywhere, and leave nothing behind."""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts" / "benchmarks"


def part(name: str) -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


workloads = part("workloads")
report = part("report")
candidates = part("candidates")

SCALE = 0.004


def content(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a directory that does not depend on the time; not what git keeps."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if name != ".git"]
        for name in names + files:
            path = Path(directory, name)
            status = path.lstat()
            found[str(path.relative_to(top))] = (
                stat.S_IFMT(status.st_mode),
                stat.S_IMODE(status.st_mode),
                (status.st_nlink, status.st_size, path.read_bytes()) if path.is_file() else (),
            )
    return found


def done(workload: str, top: Path, scratch: Path) -> tuple[Any, dict[str, tuple[object, ...]]]:
    """The run of a workload in a directory, and what stands there afterwards."""
    home, kept = top / f"{workload}-run", top / f"{workload}-kept"
    home.mkdir()
    kept.mkdir()
    run = workloads.Run(home, kept, scratch, scale=SCALE)
    workloads.WORKLOADS[workload](run)
    return run, {**content(home), **content(kept)}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with ExitStack() as shared:
        home = tmp_path_factory.mktemp("floor")
        storage = candidates.Storage(home, "", 0, shared)
        with candidates.CANDIDATES["floor"](storage) as candidate:
            yield candidate.root


@pytest.mark.mount
@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_a_workload_leaves_the_same_on_the_floor_as_on_the_host(
    workload: str, tmp_path: Path, floor: Path, scratch: Path
) -> None:
    on_host, expected = done(workload, tmp_path, scratch)
    on_floor, found = done(workload, floor, scratch)
    assert found == expected
    assert on_host.operations == on_floor.operations > 0
    assert on_host.seconds > 0
    assert on_floor.seconds > 0


@pytest.mark.mount
def test_the_floor_keeps_content_however_it_is_written(floor: Path, tmp_path: Path) -> None:
    chunk = 1 << 20

    def write(top: Path) -> bytes:
        path = top / "content"
        with path.open("w+b", buffering=0) as file:
            for offset, size in [
                (0, chunk),  # as it came
                (chunk - 10, 20),  # over a border
                (3 * chunk + 5, 7),  # behind a hole
                (5, 3),
                (2 * chunk, 2 * chunk),
            ]:
                os.pwrite(file.fileno(), bytes([offset % 251 + 1]) * size, offset)
            file.truncate(2 * chunk + 17)
            file.truncate(3 * chunk + 1)
            os.pwrite(file.fileno(), b"end", 4 * chunk - 1)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return path.read_bytes()

    assert write(floor) == write(tmp_path)


@pytest.mark.mount
def test_the_floor_counts_links(floor: Path, tmp_path: Path) -> None:
    def counts(top: Path) -> list[int]:
        found = []
        one, other, directory = top / "one", top / "other", top / "directory"
        with one.open("wb") as file:
            other.hardlink_to(one)
            found.append(os.fstat(file.fileno()).st_nlink)
            one.unlink()
            found.append(os.fstat(file.fileno()).st_nlink)
            (top / "third").write_bytes(b"")
            (top / "third").rename(other)
            found.append(os.fstat(file.fileno()).st_nlink)
        for path in (directory, directory / "a", directory / "b"):
            path.mkdir()
        found.append(directory.stat().st_nlink)
        (directory / "a").rename(top / "a")
        (directory / "b").rmdir()
        return [*found, directory.stat().st_nlink, (top / "a").stat().st_nlink]

    assert counts(floor) == counts(tmp_path) == [2, 1, 0, 4, 2, 2]


@pytest.mark.mount
def test_the_serving_process_is_charged_for_what_it_does(tmp_path: Path) -> None:
    with ExitStack() as shared:
        storage = candidates.Storage(tmp_path, "", 0, shared)
        with candidates.CANDIDATES["floor"](storage) as candidate:
            before = candidate.cpu_seconds()
            for number in range(500):
                (candidate.root / str(number)).touch()
            after = candidate.cpu_seconds()
            assert after > before
            ours = time.process_time()
            while time.process_time() < ours + 0.1:
                pass
            assert candidate.cpu_seconds() < after + 0.1  # that was us


@pytest.mark.mount
@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_a_candidate_serves_a_directory_until_its_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SNAPSHOTS", 5)
    with ExitStack() as shared:
        storage = candidates.Storage(tmp_path, "xfs", 1 << 30, shared)
        try:
            with candidates.CANDIDATES[name](storage) as candidate:
                assert os.path.ismount(candidate.root)
                (candidate.root / "file").write_bytes(b"content")
                assert (candidate.root / "file").read_bytes() == b"content"
        except candidates.Missing as exc:
            pytest.skip(str(exc))
        assert not (candidate.root / "file").exists()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.mark.mount
def test_the_snapshots_are_kept_and_then_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SNAPSHOTS", 20)
    with ExitStack() as shared:
        storage = candidates.Storage(tmp_path, "", 0, shared)
        with candidates.CANDIDATES["nasfs+200"](storage) as candidate:
            candidate.snapshot()
            assert len(list((candidate.root / ".snapshots").iterdir())) == 20
        with candidates.CANDIDATES["nasfs+200+1"](storage) as candidate:
            snapshots = candidate.root / ".snapshots"
            assert len(list(snapshots.iterdir())) == 20
            (candidate.root / "file").write_bytes(b"old")
            candidate.snapshot()
            (candidate.root / "file").write_bytes(b"new")
            assert (snapshots / "s20" / "file").read_bytes() == b"old"
            assert not (snapshots / "s19" / "file").exists()


def test_set_up_is_not_measured(tmp_path: Path) -> None:
    seen: list[str] = []
    clock = iter([1.0, 1.0, 10.0, 12.5])

    run = workloads.Run(
        tmp_path,
        tmp_path,
        tmp_path,
        snapshot=lambda: seen.append("snapshot"),
        cpu=lambda: next(clock),
    )
    with run.timed(7):
        seen.append("body")
    assert seen == ["snapshot", "body"]
    assert (run.operations, run.cpu_seconds) == (7, 2.5)


def test_the_middle_round_counts_and_ratios_say_how_much_faster_ours_is() -> None:
    def rounds(name: str, *seconds: float) -> list[Any]:
        return [report.Figure("create", name, 10, each, each / 2) for each in seconds]

    lines: list[str] = []
    table = report.Table(["nasfs", "slow", "quick"], cpu=True, show=lines.append)
    table.head()
    pick: Callable[..., float] = sorted_middle
    for scale in (1, 4):
        table.add(
            "create",
            {
                "nasfs": report.cost(rounds("nasfs", 1e-3, 9.0, 2e-3), pick),
                "slow": report.cost(rounds("slow", 4e-3 * scale, 0.0, 5.0), pick),
                "quick": report.cost(rounds("quick", 1e-3, 1e-3, 1e-3), pick),
            },
        )
    table.foot()
    assert [line.split() for line in lines[1:]] == [
        ["create", "200.0", "100.0", "400.0", "200.0", "2.00", "100.0", "50.0", "0.50"],
        ["create", "200.0", "100.0", "1600.0", "800.0", "8.00", "100.0", "50.0", "0.50"],
        ["geometric", "mean", "4.00", "0.50"],
        ["we", "are", "faster", "in", "2/2", "0/2"],
    ]


def sorted_middle(values: Any) -> float:
    ordered = sorted(values)
    return float(ordered[len(ordered) // 2])


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "filesystems.py"), "--dir", str(home), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_nothing_is_left(home: Path) -> None:
    assert list(home.iterdir()) == []
    assert str(home) not in Path("/proc/self/mounts").read_text()
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    assert not [file for file in backing if str(home) in file.read_text()]


@pytest.mark.mount
def test_a_run_compares_candidates_and_takes_everything_down_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    saved = tmp_path / "figures.json"
    which = ["nasfs", "floor", "host"]
    bench = start(
        home,
        *("--candidates", ",".join(which), "--only", "create,overwrite-4k", "--rounds", "2"),
        *("--scale", "0.05", "--cpu", "--json", str(saved)),
    )
    output, _ = bench.communicate(timeout=120)
    assert bench.returncode == 0, output
    assert_nothing_is_left(home)
    figures = json.loads(saved.read_text())["figures"]
    count = {(f["workload"], f["candidate"]): 0 for f in figures}
    for figure in figures:
        count[figure["workload"], figure["candidate"]] += 1
    for name in which:
        used = sum(f["cpu_seconds"] for f in figures if f["candidate"] == name)
        assert (used > 0) == (name != "host")
    assert count == {(work, name): 2 for work in ("create", "overwrite-4k") for name in which}


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_everything_down(number: int, tmp_path: Path) -> None:
    bench = start(tmp_path, "--candidates", "nasfs,floor", "--rounds", "20", "--scale", "0.01")
    assert bench.stdout is not None
    lines = []
    with bench.stdout:
        for line in bench.stdout:  # to its end
            lines.append(line)
            if line.startswith("us per"):
                os.killpg(bench.pid, number)
    assert bench.wait(60) == 1, lines
    assert lines[-1] == "interrupted\n"
    assert_nothing_is_left(tmp_path)


def test_what_is_not_known_is_refused_with_what_is(tmp_path: Path) -> None:
    bench = start(tmp_path, "--only", "creat")
    output, _ = bench.communicate(timeout=60)
    assert bench.returncode == 2
    assert "creat; known are create, mkdir" in output
