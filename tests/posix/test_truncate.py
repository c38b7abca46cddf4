"""truncate(2) and ftruncate(2): each case by the path and by a descriptor."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.posix.calls import errno_of, make, times_changed
from tests.posix.users import ALICE, BOB, acting_as

pytestmark = pytest.mark.mount

Truncate = Callable[[Path, int], None]


def by_path(path: Path, size: int) -> None:
    os.truncate(path, size)


def by_descriptor(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


@pytest.fixture(params=[by_path, by_descriptor], ids=["truncate", "ftruncate"])
def truncate(request: pytest.FixtureRequest) -> object:
    return request.param


def test_it_cuts_and_extends_with_zeros(work: Path, truncate: Truncate) -> None:
    path = work / "x"
    content = os.urandom(20_000)
    path.write_bytes(content)
    for size in (12_345, 4_096, 4_095, 1, 30_000, 0, 5):
        truncate(path, size)
        content = content[:size].ljust(size, b"\0")
        assert path.read_bytes() == content
        assert path.stat().st_size == size


def test_it_moves_mtime_and_ctime(work: Path, truncate: Truncate) -> None:
    path = make("file", work / "x")
    assert times_changed(path, lambda: truncate(path, 123)) == {"mtime", "ctime"}
    assert times_changed(path, lambda: truncate(path, 5)) == {"mtime", "ctime"}
    assert times_changed(work, lambda: truncate(path, 6)) == set()


def test_one_that_fails_moves_nothing(work: Path) -> None:
    path = make("file", work / "x")
    with acting_as(ALICE):
        assert times_changed(path, lambda: errno_of(os.truncate, path, 9)) == set()
    assert path.stat().st_size == 0


def test_who_may_write_may(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o644)
    with acting_as(ALICE):
        os.truncate(path, 10)
    with acting_as(BOB):
        assert errno_of(os.truncate, path, 20) == "EACCES"
    path.chmod(0o666)
    with acting_as(BOB):
        os.truncate(path, 20)
    path.chmod(0o444)
    with acting_as(ALICE):
        assert errno_of(os.truncate, path, 30) == "EACCES"
    assert path.stat().st_size == 20


def test_a_descriptor_counts_as_it_was_opened(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o600)
    with acting_as(ALICE):
        writing, reading = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
        path.chmod(0)
        os.ftruncate(writing, 5)
        assert errno_of(os.ftruncate, reading, 6) == "EINVAL"
    assert path.stat().st_size == 5
    os.close(writing)
    os.close(reading)


def test_negative_sizes_are_einval(work: Path, truncate: Truncate) -> None:
    path = make("file", work / "x")
    assert errno_of(truncate, path, -1) == "EINVAL"


@pytest.mark.parametrize(
    ("kind", "error"), [("directory", "EISDIR"), ("fifo", "EINVAL"), ("socket", "EINVAL")]
)
def test_only_files_have_a_size(work: Path, kind: str, error: str) -> None:
    path = make(kind, work / "x")
    assert errno_of(os.truncate, path, 0) == error


def test_a_program_that_runs_is_etxtbsy(work: Path) -> None:
    path = work / "program"
    shutil.copy("/bin/sleep", path)
    path.chmod(0o755)
    with subprocess.Popen([path, "1000"]) as running:
        try:
            assert errno_of(os.truncate, path, 0) == "ETXTBSY"
        finally:
            running.kill()


def test_enormous_sizes_cost_nothing_or_are_efbig(work: Path, truncate: Truncate) -> None:
    path = make("file", work / "x")
    for size in (10**15, (1 << 63) - 1):
        with suppress(OSError):
            truncate(path, size)
            assert path.stat().st_size == size
            assert path.stat().st_blocks == 0
    truncate(path, 0)
    assert path.stat().st_size == 0


@pytest.mark.usefixtures("mount")
def test_the_largest_size_is_told_by_efbig(work: Path, truncate: Truncate) -> None:
    path = make("file", work / "x")
    assert errno_of(truncate, path, 8 << 40) == "ok"
    assert errno_of(truncate, path, (1 << 63) - 1) == "EFBIG"


def test_the_limit_of_the_process_is_efbig(work: Path) -> None:
    path = make("file", work / "x")
    script = "import os,resource,signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
    script += f"os.truncate({str(path)!r}, 1001)"
    done = subprocess.run(["python3", "-c", script], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert path.stat().st_size == 0


def test_what_others_have_open_sees_the_new_size(work: Path, truncate: Truncate) -> None:
    path = work / "x"
    path.write_bytes(b"0123456789")
    with path.open("rb", buffering=0) as reading:
        assert reading.read(4) == b"0123"
        truncate(path, 6)
        assert reading.read(100) == b"45"
        truncate(path, 8)
        assert reading.read(100) == b"\0\0"
