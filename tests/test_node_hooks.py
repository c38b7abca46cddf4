"""Hooks: real processes, their ends, their output, their time-outs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from nasfs.node.policy import hooks
from nasfs.node.policy.hooks import OUTPUT_MAX, HookEnd, run_hook
from nasfs.schedule.policy import Hook


async def shell(line: str, timeout_s: int = 30, **variables: str) -> HookEnd:
    return await run_hook(Hook(line, timeout_s), variables)


async def test_how_it_ends_and_what_it_says() -> None:
    assert await shell("echo fine; echo too >&2") == HookEnd("", "fine\ntoo")
    assert await shell("echo no; exit 3") == HookEnd("ended with code 3", "no")
    assert await shell("kill -9 $$") == HookEnd("was killed by SIGKILL", "")
    assert await run_hook(Hook(("printf", "%s-%s", "a b", "$HOME"), 30), {}) == HookEnd(
        "", "a b-$HOME"
    )
    end = await run_hook(Hook(("/nowhere/to/be found",), 30), {})
    assert "No such file" in end.problem


async def test_its_surroundings() -> None:
    os.environ["NASFS_SECRET"] = "x"
    try:
        end = await shell("pwd; env | cut -d= -f1 | sort | tr '\\n' ' '; cat", NASFS_POLICY="p")
    finally:
        del os.environ["NASFS_SECRET"]
    assert end.output.split() == ["/", "HOME", "LANG", "NASFS_POLICY", "PATH", "PWD"]


async def test_long_output_does_not_stop_it_and_its_end_is_kept() -> None:
    end = await shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end")
    assert end.problem == ""
    assert end.output.endswith("x\nthe end")
    assert len(end.output) <= OUTPUT_MAX + 4


async def test_bytes_that_are_no_text() -> None:
    assert (await shell("printf 'a\\377b'")).output == "a\N{REPLACEMENT CHARACTER}b"


async def test_at_its_time_out_the_whole_group_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a child that ignores being asked."""
    monkeypatch.setattr(hooks, "GRACE_S", 0.2)
    line = (
        f"echo begun; (trap '' TERM; echo $BASHPID; exec sleep 1000) & echo $! > {tmp_path}/pid;"
        " sleep 1000"
    )
    end = await shell(line, 1)
    assert end.problem == "did not end within 1 s and was killed"
    assert end.output.startswith("begun")
    await until_gone(int((tmp_path / "pid").read_text()))


async def test_what_goes_on_in_the_background_is_left_alone(tmp_path: Path) -> None:
    end = await shell(f"sleep 1000 & echo $! > {tmp_path}/pid; echo done")
    child = int((tmp_path / "pid").read_text())
    try:
        assert end == HookEnd("", "done")
        os.kill(child, 0)
    finally:
        os.kill(child, 9)


async def test_a_cancelled_hook_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "GRACE_S", 0.2)
    pid = tmp_path / "pid"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell, f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 1000")
        await until(pid.exists)
        nursery.cancel_scope.cancel()
    await until_gone(int(pid.read_text()))


async def until_gone(pid: int) -> None:
    await until(lambda: _state(pid) == "Z")


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
