"""The thread that waits for the disk, and how long the loop waits for it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nasfs.fuse import loop
from nasfs.fuse import worker as module
from nasfs.fuse.worker import Worker


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends at all is waited for."""
    monkeypatch.setattr(module, "PATIENCE_S", 30.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)


@asynccontextmanager
async def open_worker() -> AsyncIterator[Worker]:
    worker = Worker()
    try:
        yield worker
    finally:
        worker.close()


@pytest.mark.usefixtures("patient")
async def test_what_is_done_soon_takes_no_turn_of_the_loop() -> None:
    turns: list[str] = []

    async def other() -> None:
        turns.append("other")

    async with open_worker() as worker, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        threads: list[threading.Thread] = []
        await worker.run(lambda: threads.append(threading.current_thread()))
        assert threads != [threading.current_thread()]
        assert turns == []
    assert turns == ["other"]


@pytest.mark.usefixtures("impatient")
async def test_while_it_takes_longer_others_have_their_turn_and_nobody_polls() -> None:
    go_on, done = threading.Event(), trio.Event()

    async def wait_for_it(worker: Worker) -> None:
        await worker.run(lambda: go_on.wait(30))
        done.set()

    async with open_worker() as worker, trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_it, worker)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        assert loop._threads
        go_on.set()
    assert done.is_set()
    assert not loop._threads


async def test_what_was_in_vain_is_tried_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    class Slow(module.Work):
        def is_over(self, patience_s: float) -> bool:
            asked.append(patience_s)
            return False

    monkeypatch.setattr(module, "Work", Slow)
    async with open_worker() as worker:
        for _ in range(200):
            await worker.run(lambda: None)
    tried = [number for number, patience in enumerate(asked) if patience]
    assert tried == [0, 2, 6, 14, 30, 62, 126, 190]


@pytest.mark.usefixtures("impatient")
async def test_it_is_awaited_even_when_cancelled() -> None:
    go_on, events = threading.Event(), list[str]()

    def work() -> None:
        assert go_on.wait(30)
        events.append("done")

    async def give_up(worker: Worker) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await worker.run(work)
        events.append("went on")

    async with open_worker() as worker, trio.open_nursery() as nursery:
        nursery.start_soon(give_up, worker)
        await trio.testing.wait_all_tasks_blocked()
        assert events == []
        go_on.set()
    assert events == ["done", "went on"]


async def test_what_ends_just_before_it_is_awaited_is_not_missed() -> None:
    work, seen = module.Work(lambda: None), trio.Event()

    async def wait_for_it() -> None:
        await work.until_over()
        seen.set()

    assert not work.is_over(0)
    work.run()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_it)
        await trio.testing.wait_all_tasks_blocked()
        was_seen = seen.is_set()
        if work._tell is not None and not was_seen:
            work._tell()  # else this test would not end
    assert was_seen


@pytest.mark.parametrize("patience", ["patient", "impatient"])
async def test_errors_are_raised_and_the_work_is_over_first(
    patience: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(patience)
    over: list[str] = []

    def work() -> None:
        over.append("work")
        raise OSError("disk")

    def fail() -> None:
        raise KeyError("loop")

    async with open_worker() as worker:
        with pytest.raises(OSError, match="disk"):
            await worker.run(work)
        with pytest.raises(OSError, match="disk") as both:
            await worker.run(work, meanwhile=fail)
        assert isinstance(both.value.__context__, KeyError)
        with pytest.raises(KeyError):
            await worker.run(lambda: over.append("well"), meanwhile=fail)
    assert over == ["work", "work", "well"]


@pytest.mark.usefixtures("patient")
async def test_its_thread_ends_and_another_one_can_begin() -> None:
    worker, threads = Worker(), list[threading.Thread]()
    for _ in range(2):
        await worker.run(lambda: threads.append(threading.current_thread()))
        worker.close()
    first, second = threads
    assert first is not second
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
