"""Whatever goes wrong below, only an error number reaches pyfuse3."""

from __future__ import annotations

import errno
import inspect
from typing import Any, cast

import pyfuse3
import pytest
import trio

from nasfs.fuse.commit import Committer, Gate
from nasfs.fuse.operations import Operations, Writer, _Stream
from nasfs.fuse.snapdir import Trees
from nasfs.volume import CorruptionError, FsError, MediaError, Volume


class Broken:
    """A volume or a tree on which every call fails in one way."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.distrusted = ""

    def of(self, number: int) -> Broken:
        return self

    def go_read_only(self, reason: str) -> None:
        self.distrusted = reason

    def __getattr__(self, name: str) -> Any:
        def fail(*args: object, **kwargs: object) -> Any:
            raise self._error

        if name in ("changed", "writable"):
            raise self._error
        return fail


WITHOUT_ANSWER = {"forget"}
UNUSED = {"access", "poll", "stacktrace", "init"}  # default_permissions; not offered; plain
ALWAYS_ENOSYS = {"flush"}

HANDLERS = sorted(
    name
    for name, function in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)
    if name not in UNUSED | ALWAYS_ENOSYS
)

ARGUMENTS: dict[str, Any] = {
    "parent_inode": 300,
    "inode": 301,
    "fh": 301,
    "inode_list": [(301, 1)],
    "name": b"name",
    "mode": 0o644,
    "rdev": 0,
    "flags": 1,
    "target": b"target",
    "attr": pyfuse3.EntryAttributes(),
    "fields": pyfuse3.SetattrFields(),
    "parent_inode_old": 300,
    "name_old": b"old",
    "parent_inode_new": 300,
    "name_new": b"new",
    "new_parent_inode": 300,
    "new_name": b"new",
    "off": 0,
    "size": 1,
    "buf": b"x",
    "datasync": False,
    "start_id": 2,
    "token": None,
    "value": b"",
}


class Caller:
    uid = gid = pid = umask = 0


async def call(error: Exception, name: str) -> tuple[int | None, Broken]:
    """The error number that a handler ended with, None if it ended well."""
    broken = Broken(error)
    volume = cast(Volume, broken)
    gate = Gate()
    writer = Writer(gate, Committer(volume, gate))
    operations = Operations(volume, cast(Trees, broken), writer)
    operations._streams[ARGUMENTS["fh"]] = _Stream(ARGUMENTS["fh"], 0)  # as opendir leaves it
    handler = getattr(operations, name)
    wanted = inspect.signature(getattr(pyfuse3.Operations, name)).parameters
    arguments = [ARGUMENTS.get(each, Caller) for each in wanted if each != "self"]
    try:
        await handler(*arguments)
    except pyfuse3.FUSEError as exc:
        return exc.errno, broken
    return None, broken


@pytest.mark.parametrize("name", HANDLERS)
async def test_each_handler_turns_each_error_into_its_number(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for error, number in (
        (FsError(errno.EDQUOT), errno.EDQUOT),
        (MediaError(errno.ENOSPC, "disk"), errno.ENOSPC),
        (CorruptionError("leaf 7", "nonsense"), errno.EIO),
        (KeyError("a bug"), errno.EIO),
    ):
        found, broken = await call(error, name)
        assert found == (None if name in WITHOUT_ANSWER else number)
        if isinstance(error, CorruptionError) and name not in WITHOUT_ANSWER:
            assert broken.distrusted == "leaf 7: nonsense"
    if name not in WITHOUT_ANSWER:
        assert "KeyError" in caplog.text


async def test_flush_is_not_asked_again() -> None:
    number, _ = await call(KeyError(), "flush")
    assert number == errno.ENOSYS


async def test_cancellation_passes_through_a_handler() -> None:
    gate = Gate()
    volume = cast(Volume, Broken(KeyError()))
    operations = Operations(
        volume, cast(Trees, Broken(KeyError())), Writer(gate, Committer(volume, gate))
    )
    with gate.closed(), trio.move_on_after(0.01) as scope:
        await operations.write(pyfuse3.FileHandleT(300), 0, b"x")
    assert scope.cancelled_caught
