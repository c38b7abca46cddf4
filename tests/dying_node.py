"""The `nasfs` command of a node that can be told to die: by SIGKILL, behind a step of its choice.

The file `die-at` below its root names a point and a number: the daemon kills itself when that
function has ended for the n-th time since the file was written.  With the file `pause-at` it makes
the file `paused` there, and waits until that is gone.  In the environment, `LEASE` shortens how
long it stays drained unasked.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from nasfs.cli.main import run
from nasfs.node.database import Database
from nasfs.node.roles import (
    agreeing,
    failover,
    parting,
    rejoining,
    releasing,
    yielding,
)
from nasfs.node.shares import staging

LEASE = "NASFS_TEST_LEASE_S"

PAUSE = "pause-at"
PAUSED = "paused"

POINTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "step": ((failover, "_agree"), (failover, "execute")),
    "begun": ((failover, "_begin"),),
    "asked": ((agreeing, "ask"),),
    "drain begun": ((yielding, "_check_sends"),),
    "shares and mounts ended": ((yielding, "_stop_serving"),),
    "last snap group": ((yielding, "_last_snap_group"),),
    "granted": ((yielding, "_grant"),),
    "rejoin begun": ((rejoining, "_begin"),),
    "stopped": ((rejoining, "_stop"),),
    "gone back": ((rejoining, "_go_back"),),
    "rejoined": ((rejoining, "_end"),),
    "parting": (
        (parting, "_tell"),
        (parting, "_leave"),
        (releasing, "stop_if_any"),
        (releasing, "take_over"),
        (releasing, "_settle"),
        (releasing, "_release_all"),
        (releasing, "release_but"),
        (staging, "forget"),
    ),
}


def arm(root: Path, point: str, count: int) -> None:
    """Have the daemon below *root* die when it comes there for the *count*-th time."""
    (root / "die-at").write_text(f"{point}:{count}")


def pause(root: Path, point: str, count: int = 1) -> None:
    """Have it wait there instead."""
    (root / PAUSE).write_text(f"{point}:{count}")


def _is_there(path: Path, point: str) -> bool:
    """Whether this is the time that the file names; then the file is gone."""
    try:
        wanted, _, count = path.read_text().rpartition(":")
    except OSError:
        return False
    if wanted != point:
        return False
    if int(count) > 1:
        path.write_text(f"{point}:{int(count) - 1}")
        return False
    path.unlink()
    return True


def _come_by(root: Path, point: str) -> None:
    if _is_there(root / "die-at", point):
        os.kill(os.getpid(), signal.SIGKILL)
    if _is_there(root / PAUSE, point):
        (root / PAUSED).touch()


async def _wait_there(root: Path) -> None:
    while (root / PAUSED).exists():  # noqa: ASYNC110  (another process removes it)
        await trio.sleep(0.02)


def _dying(function: Callable[..., Any], root: Path, point: str) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wait(*values: Any, **named: Any) -> Any:
            result = await function(*values, **named)
            _come_by(root, point)
            await _wait_there(root)
            return result

        return wait

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        result = function(*values, **named)
        _come_by(root, point)
        while (root / PAUSED).exists():
            time.sleep(0.02)
        return result

    return call


def _die_behind_writes(root: Path) -> None:
    """The point ``written`` is behind every transaction of node.db that has changed something."""
    change, do = Database.change, Database.do

    @contextlib.contextmanager
    def changed(self: Database) -> Iterator[None]:
        outer = not self._sql.in_transaction
        before = self._sql.total_changes
        with change(self):
            yield
        if outer and self._sql.total_changes != before:
            _come_by(root, "written")

    def done(self: Database, sql: str, *values: Any) -> int:
        rows = do(self, sql, *values)
        if rows > 0 and not self._sql.in_transaction:
            _come_by(root, "written")
        return rows

    Database.change, Database.do = changed, done  # type: ignore[method-assign]


def main() -> None:
    root = Path(sys.argv[sys.argv.index("--root") + 1])
    for point, places in POINTS.items():
        for module, name in places:
            setattr(module, name, _dying(getattr(module, name), root, point))
    _die_behind_writes(root)
    if LEASE in os.environ:
        yielding.LEASE_S, yielding.LOOK_S = float(os.environ[LEASE]), 0.2
        agreeing.UNHEARD_S = yielding.LEASE_S / 2
    run()


if __name__ == "__main__":
    main()
