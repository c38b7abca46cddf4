"""Commands of the administrator around a snapshot: with a time-out, and what they said.

A hook runs in a session of its own, as the daemon's user, in ``/``, with few variables.  Its two
outputs come into one pipe; the end of it is kept.  A hook is over when its process is: what it
leaves running in the background may go on, and may keep the pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from nasfs.schedule.policy import Hook

OUTPUT_MAX = 4096
"""Bytes of output that are kept: the last ones."""
GRACE_S = 2.0
"""After its time-out a hook is asked to end; so much later it is killed."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class HookEnd:
    """How a hook ended."""

    problem: str
    """Empty: it ended with code 0."""
    output: str


async def run_hook(hook: Hook, variables: Mapping[str, str]) -> HookEnd:
    """Run it to its end, or until its time is over.  If cancelled, it is killed."""
    argv = ["/bin/sh", "-c", hook.command] if isinstance(hook.command, str) else [*hook.command]
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    output = bytearray()
    try:
        try:
            os.set_blocking(writing, True)  # the hook shall wait when the pipe is full
            process = await trio.lowlevel.open_process(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **variables},
                cwd="/",
                start_new_session=True,
            )
        except OSError as exc:
            return HookEnd(f"cannot be run: {exc.strerror} ({argv[0]})", "")
        finally:
            os.close(writing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_collect, reading, output)
            timed_out = await _wait(process, hook.timeout_s)
            nursery.cancel_scope.cancel()
        _drain(reading, output)
    finally:
        os.close(reading)
    return HookEnd(_problem(process, hook, timed_out), _text(output))


async def _wait(process: trio.Process, timeout_s: float) -> bool:
    """Until it has ended; True if its time was over before."""
    try:
        with trio.move_on_after(timeout_s):
            await process.wait()
            return False
        return True
    finally:
        if process.returncode is None:
            await _end_group(process)


async def _end_group(process: trio.Process) -> None:
    """Everything in its session: asked, then killed."""
    with trio.CancelScope(shield=True):
        _signal_group(process.pid, signal.SIGTERM)
        with trio.move_on_after(GRACE_S):
            await process.wait()
        # Also if the leader has ended: others of its group may have ignored SIGTERM.
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


async def _collect(reading: int, output: bytearray) -> None:
    while True:
        await trio.lowlevel.wait_readable(reading)
        if not _read(reading, output):
            return


def _drain(reading: int, output: bytearray) -> None:
    """What the pipe still holds."""
    with suppress(BlockingIOError):
        for _ in range(64):
            if not _read(reading, output):
                return


def _read(reading: int, output: bytearray) -> bool:
    piece = os.read(reading, 65_536)
    output += piece
    del output[:-OUTPUT_MAX]
    return bool(piece)


def _problem(process: trio.Process, hook: Hook, timed_out: bool) -> str:
    code = process.returncode
    if timed_out:
        return f"did not end within {hook.timeout_s} s and was killed"
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}" if code else ""


def _text(output: bytearray) -> str:
    text = output.decode(errors="replace").strip()
    return f"... {text}" if len(output) >= OUTPUT_MAX else text
