"""open(2)."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, errno_of, make, mode_of, open_close, owner_of, times_changed
from tests.posix.users import ALICE, BOB, BOB_IN_TEAM, ROOT, TEAM, User, acting_as

pytestmark = pytest.mark.mount

NEW = os.O_CREAT | os.O_WRONLY


def outcome(path: Path, flags: int) -> str:
    return errno_of(open_close, path, flags)


@pytest.mark.parametrize(
    ("mode", "umask", "result"),
    [
        (0o755, 0, 0o755),
        (0o151, 0, 0o151),
        (0o151, 0o77, 0o100),
        (0o345, 0o70, 0o305),
        (0o345, 0o501, 0o244),
        (0o7777, 0o22, 0o7755),
    ],
)
def test_the_umask_is_taken_from_the_mode(work: Path, mode: int, umask: int, result: int) -> None:
    with acting_as(ALICE, umask):
        open_close(work / "x", NEW, mode)
    assert mode_of(work / "x") == result


def test_a_new_file_belongs_to_the_caller(work: Path) -> None:
    for name, user in (("a", ALICE), ("b", User(BOB.uid, TEAM)), ("r", ROOT)):
        with acting_as(user):
            open_close(work / name, NEW)
        assert owner_of(work / name) == (user.uid, user.gid)


def test_an_sgid_directory_passes_its_group_on_but_not_its_bit(work: Path) -> None:
    os.chown(work, 0, TEAM)
    work.chmod(0o2777)
    with acting_as(BOB):
        open_close(work / "x", NEW, 0o755)
    assert (owner_of(work / "x"), mode_of(work / "x")) == ((BOB.uid, TEAM), 0o755)


@pytest.mark.parametrize(("user", "result"), [(BOB, 0o775), (BOB_IN_TEAM, 0o2775)])
def test_the_sgid_bit_of_that_group_is_for_its_members(work: Path, user: User, result: int) -> None:
    os.chown(work, 0, TEAM)
    work.chmod(0o2777)
    with acting_as(user):
        open_close(work / "x", NEW, 0o2775)
    assert mode_of(work / "x") == result


def test_making_a_file_moves_the_times_of_the_directory(work: Path) -> None:
    path = work / "x"
    assert times_changed(work, lambda: open_close(path, NEW)) == {"mtime", "ctime"}
    found = path.stat()
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
    assert times_changed(work, lambda: open_close(path, NEW)) == set()
    assert times_changed(path, lambda: open_close(path, NEW)) == set()


def test_o_trunc_cuts_the_file_and_moves_its_times(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"content")
    cut = times_changed(path, lambda: open_close(path, os.O_WRONLY | os.O_TRUNC))
    assert cut == {"mtime", "ctime"}
    assert path.stat().st_size == 0
    again = times_changed(path, lambda: open_close(path, os.O_RDWR | os.O_TRUNC))
    assert again == {"mtime", "ctime"}


@pytest.mark.parametrize("kind", KINDS)
def test_o_excl_refuses_what_is_there(work: Path, kind: str) -> None:
    make(kind, work / "x")
    assert outcome(work / "x", NEW | os.O_EXCL) == "EEXIST"


ACCESS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize(
    ("user", "shift"), [(ALICE, 6), (BOB_IN_TEAM, 3), (BOB, 0)], ids=["owner", "group", "other"]
)
def test_the_mode_decides_who_reads_and_writes(
    work: Path, user: User, shift: int, bits: int
) -> None:
    path = make("file", work / "x", User(ALICE.uid, TEAM), bits << shift)
    with acting_as(user):
        found = {word: outcome(path, flags) for word, flags in ACCESS.items()}
        cut = outcome(path, os.O_RDONLY | os.O_TRUNC)
    assert found == {
        "read": "ok" if bits & 4 else "EACCES",
        "write": "ok" if bits & 2 else "EACCES",
        "both": "ok" if bits & 6 == 6 else "EACCES",
    }
    assert cut == ("ok" if bits & 6 == 6 else "EACCES")


def test_root_reads_and_writes_everything(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0)
    open_close(path, os.O_RDWR)


def test_an_unwritable_file_can_be_made_and_written(work: Path) -> None:
    with acting_as(ALICE):
        fd = os.open(work / "x", os.O_CREAT | os.O_RDWR, 0)
        os.write(fd, b"x")
        os.close(fd)
        assert outcome(work / "x", os.O_WRONLY) == "EACCES"


def test_directories_are_opened_for_reading_only(work: Path) -> None:
    path = make("directory", work / "x")
    assert outcome(path, os.O_RDONLY) == "ok"
    assert outcome(path, os.O_WRONLY) == "EISDIR"
    assert outcome(path, os.O_RDWR) == "EISDIR"
    assert outcome(path, os.O_RDONLY | os.O_TRUNC) == "EISDIR"
    assert outcome(path, os.O_RDONLY | os.O_CREAT) == "EISDIR"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("directory", "symlink")])
def test_o_directory_wants_one(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    assert outcome(path, os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"


def test_o_nofollow_refuses_a_symlink(work: Path) -> None:
    make("file", work / "x")
    (work / "link").symlink_to("x")
    assert outcome(work / "link", os.O_RDONLY | os.O_NOFOLLOW) == "ELOOP"
    assert outcome(work / "x", os.O_RDONLY | os.O_NOFOLLOW) == "ok"


def test_o_creat_makes_the_file_that_a_symlink_points_to(work: Path) -> None:
    (work / "link").symlink_to("x")
    open_close(work / "link", NEW)
    assert (work / "x").is_file()
    assert (work / "link").is_symlink()


def test_a_fifo_without_a_reader_is_enxio(work: Path) -> None:
    path = make("fifo", work / "x", mode=0o666)
    assert outcome(path, os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"
    assert outcome(path, os.O_RDONLY | os.O_NONBLOCK) == "ok"


def test_sockets_and_missing_devices_are_enxio(work: Path) -> None:
    assert outcome(make("socket", work / "s"), os.O_RDONLY) == "ENXIO"
    os.mknod(work / "c", 0o020_666, os.makedev(250, 250))
    assert outcome(work / "c", os.O_RDONLY) == "ENXIO"


def test_a_program_that_runs_is_etxtbsy(work: Path) -> None:
    path = work / "program"
    shutil.copy("/bin/sleep", path)
    path.chmod(0o755)
    with subprocess.Popen([path, "1000"]) as running:
        try:
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                assert outcome(path, flags) == "ETXTBSY"
        finally:
            running.kill()


def test_a_file_that_is_written_cannot_be_run(work: Path) -> None:
    path = work / "program"
    shutil.copy("/bin/true", path)
    path.chmod(0o755)
    with path.open("r+b"):
        assert errno_of(subprocess.run, [path], check=True) == "ETXTBSY"
    subprocess.run([path], check=True)


def test_o_append_writes_at_the_end_whoever_has_moved_it(work: Path) -> None:
    path = make("file", work / "x")
    one, two = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for fd in (one, two, one, two):
        os.write(fd, b"%d," % fd)
    assert path.read_bytes() == b"%d,%d,%d,%d," % (one, two, one, two)
    os.close(one)
    os.close(two)


def test_descriptors_of_one_file_have_offsets_of_their_own(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"0123456789")
    with path.open("rb", buffering=0) as one, path.open("rb", buffering=0) as two:
        assert one.read(5) == b"01234"
        assert two.read(3) == b"012"
        assert one.read(5) == b"56789"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writing_works(work: Path, flag: int) -> None:
    fd = os.open(work / "x", NEW | flag)
    assert os.write(fd, b"durable") == 7
    os.close(fd)
    assert (work / "x").read_bytes() == b"durable"


def test_direct_access_works(work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as page:
        page[:] = b"d" * 8192
        assert os.pwrite(fd, page, 4096) == 8192
        page[:] = bytes(8192)
        assert os.preadv(fd, [page], 8192) == 4096
        assert page[:4096] == b"d" * 4096
    os.close(fd)
    assert path.read_bytes() == bytes(4096) + b"d" * 8192
