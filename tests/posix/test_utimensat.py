"""utimensat(2)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.mounts import TestMount
from tests.posix.calls import (
    CLOCK_REALTIME_COARSE,
    KINDS,
    NOT_LINKS,
    UTIME_NOW,
    UTIME_OMIT,
    errno_of,
    make,
    times_changed,
    utimensat,
)
from tests.posix.users import ALICE, BOB, User, acting_as

pytestmark = pytest.mark.mount

NOW = (0, UTIME_NOW)
OMIT = (0, UTIME_OMIT)

YEAR_2200 = 7_258_118_400


def times(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


@pytest.mark.parametrize("kind", KINDS)
def test_both_times_are_set_to_the_nanosecond(work: Path, kind: str) -> None:
    path = make(kind, work / "x")

    def change() -> None:
        utimensat(path, (1_900_000_000, 123_456_789), (2_000_000_000, 1), follow=False)

    assert times_changed(path, change) == {"atime", "mtime", "ctime"}
    assert times(path) == (1_900_000_000_123_456_789, 2_000_000_000_000_000_001)


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_symlinks_are_followed_or_not(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    link = work / "link"
    link.symlink_to("x")
    utimensat(link, (1, 1), (2, 2))
    assert times(path) == (1_000_000_001, 2_000_000_002)
    assert times(link) != times(path)
    utimensat(link, (3, 3), (4, 4), follow=False)
    assert times(link) == (3_000_000_003, 4_000_000_004)
    assert times(path) == (1_000_000_001, 2_000_000_002)


def test_now_is_now(work: Path) -> None:
    path = make("file", work / "x")
    for atime, mtime in ((NOW, NOW), (NOW, (5, 5)), ((5, 5), NOW)):
        utimensat(path, (1, 0), (1, 0))
        before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        utimensat(path, atime, mtime)
        after = time.time_ns()
        for asked, found in zip((atime, mtime), times(path), strict=True):
            if asked == NOW:
                assert before <= found <= after
            else:
                assert found == 5_000_000_005


def test_time_does_not_run_backwards_when_different_clocks_stamp_it(work: Path) -> None:
    path = make("file", work / "x")
    last = 0
    for _ in range(100):
        for change in (
            lambda: utimensat(path, NOW, NOW),
            lambda: path.write_bytes(b"x"),
            lambda: os.truncate(path, 0),
            lambda: os.utime(path),
        ):
            change()
            now = path.stat()
            assert last <= now.st_mtime_ns <= now.st_ctime_ns
            last = now.st_mtime_ns


@pytest.mark.usefixtures("mount")
def test_reading_leaves_atime(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"content")
    utimensat(path, (1, 0), (2, 0))
    assert times_changed(path, path.read_bytes) == set()
    assert times_changed(work, lambda: os.listdir(work)) == set()


def test_omit_leaves_a_time_as_it_is(work: Path) -> None:
    path = make("file", work / "x")
    utimensat(path, (1, 1), (2, 2))
    utimensat(path, OMIT, (3, 3))
    assert times(path) == (1_000_000_001, 3_000_000_003)
    utimensat(path, (4, 4), OMIT)
    assert times(path) == (4_000_000_004, 3_000_000_003)
    utimensat(path, OMIT, OMIT)
    assert times(path) == (4_000_000_004, 3_000_000_003)


@pytest.mark.parametrize(
    ("atime", "mtime"), [(NOW, NOW), (NOW, OMIT), (OMIT, NOW), ((1, 0), (1, 0)), (OMIT, (1, 0))]
)
def test_it_moves_ctime_whatever_it_sets(
    work: Path, atime: tuple[int, int], mtime: tuple[int, int]
) -> None:
    path = make("file", work / "x")
    utimensat(path, (0, 0), (0, 0))
    assert "ctime" in times_changed(path, lambda: utimensat(path, atime, mtime))


@pytest.mark.parametrize(
    ("user", "mode", "now", "given"),
    [
        (ALICE, 0o444, "ok", "ok"),
        (BOB, 0o644, "EACCES", "EPERM"),
        (BOB, 0o666, "ok", "EPERM"),
        (BOB, 0o000, "EACCES", "EPERM"),
    ],
)
def test_the_owner_sets_them_and_who_may_write_sets_them_to_now(
    work: Path, user: User, mode: int, now: str, given: str
) -> None:
    path = make("file", work / "x", ALICE, mode)
    with acting_as(user):
        assert errno_of(utimensat, path, NOW, NOW) == now
        assert errno_of(utimensat, path, (1, 0), (1, 0)) == given
        assert errno_of(utimensat, path, NOW, OMIT) == given
        assert errno_of(utimensat, path, OMIT, (1, 0)) == given
        assert errno_of(utimensat, path, OMIT, OMIT) == "ok"


def test_nanoseconds_end_at_a_billion(work: Path) -> None:
    path = make("file", work / "x")
    assert errno_of(utimensat, path, (0, 1_000_000_000), (0, 0)) == "EINVAL"
    assert errno_of(utimensat, path, (0, -1), (0, 0)) == "EINVAL"


@pytest.mark.parametrize("seconds", [1 << 31, 1 << 32, YEAR_2200])
def test_the_year_2038_is_no_end(work: Path, seconds: int) -> None:
    path = make("file", work / "x")
    utimensat(path, (seconds, 7), (seconds + 1, 8))
    assert times(path) == (seconds * 10**9 + 7, (seconds + 1) * 10**9 + 8)


@pytest.mark.parametrize("ns", [-1, -1_500_000_000, -(1 << 31) * 10**9, 0])
def test_neither_is_1970_a_beginning(work: Path, ns: int) -> None:
    path = make("file", work / "x")
    os.utime(path, ns=(ns, ns - 1 if ns > -(1 << 31) * 10**9 else ns))
    assert times(path) == (ns, ns - 1 if ns > -(1 << 31) * 10**9 else ns)


def test_all_times_of_64_bits_survive_a_new_mount(mount: TestMount, work: Path) -> None:
    cases = [-(1 << 33) * 10**9 - 1, -1, 0, YEAR_2200 * 10**9 + 999_999_999, (1 << 63) - 1]
    for number, ns in enumerate(cases):
        os.utime(make("file", work / str(number)), ns=(ns, ns))
    mount.unmount()
    mount.mount()
    assert [times(work / str(number)) for number in range(len(cases))] == [(n, n) for n in cases]


@pytest.mark.usefixtures("mount")
@pytest.mark.parametrize(("seconds", "told"), [(1 << 40, (1 << 63) - 1), (-(1 << 40), -(1 << 63))])
def test_times_further_away_become_the_last_that_can_be_told(
    work: Path, seconds: int, told: int
) -> None:
    path = make("file", work / "x")
    utimensat(path, (seconds, 0), (seconds, 0))
    assert times(path) == (told, told)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_a_descriptor_will_do(work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDONLY)
    os.utime(fd, ns=(11, 12))
    assert times(path) == (11, 12)
    os.close(fd)
