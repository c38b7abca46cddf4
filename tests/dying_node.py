"""The `nasfs` command of a node that can be told to die: by SIGKILL, behind a step of its choice.

The file `die-at` below its root names a point and a number: the daemon kills itself when that
function has ended for the n-th time since the file was written.  While the file `wait-at` names a
point, it waits there.  In the environment, `LEASE` shortens how long it stays drained unasked.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nasfs.cli.main import run
from nasfs.node.roles import agreeing, failover, rejoining, yielding

LEASE = "NASFS_TEST_LEASE_S"

POINTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "step": ((failover, "_agree"), (failover, "_execute")),
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
}


def arm(root: Path, point: str, count: int) -> None:
    """Have the daemon below *root* die when it comes there for the *count*-th time."""
    (root / "die-at").write_text(f"{point}:{count}")


def _come_by(root: Path, point: str) -> None:
    path = root / "die-at"
    try:
        wanted, _, count = path.read_text().rpartition(":")
    except OSError:
        return
    if wanted != point:
        return
    if int(count) > 1:
        arm(root, point, int(count) - 1)
        return
    path.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


async def _wait_there(root: Path, point: str) -> None:
    path = root / "wait-at"
    if path.exists() and path.read_text() == point:
        (root / "waits").touch()
        while path.exists():  # noqa: ASYNC110  (another process removes it)
            await trio.sleep(0.02)


def _dying(function: Callable[..., Any], root: Path, point: str) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wait(*values: Any, **named: Any) -> Any:
            result = await function(*values, **named)
            _come_by(root, point)
            await _wait_there(root, point)
            return result

        return wait

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        result = function(*values, **named)
        _come_by(root, point)
        return result

    return call


def main() -> None:
    root = Path(sys.argv[sys.argv.index("--root") + 1])
    for point, places in POINTS.items():
        for module, name in places:
            setattr(module, name, _dying(getattr(module, name), root, point))
    if LEASE in os.environ:
        yielding.LEASE_S, yielding.LOOK_S = float(os.environ[LEASE]), 0.2
    run()


if __name__ == "__main__":
    main()
