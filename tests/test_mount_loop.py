"""Taking requests from the kernel: nobody starves, and nobody waits for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
import trio.testing

from nasfs.fuse.loop import (
    MAX_SKIPPED,
    MAX_STREAK,
    POLL_NS,
    RequestDescriptor,
    UnfairLock,
    in_thread,
)


class Clock:
    """Each look at it takes a hundredth of the time that polling lasts."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.looks * (POLL_NS // 100)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def descriptor(fd: int, ready: Callable[[], object], clock: Clock) -> RequestDescriptor:
    return RequestDescriptor(fd, ready, can_poll=True, now_ns=clock)


async def test_a_request_that_is_there_is_taken_at_once(pipe: tuple[int, int]) -> None:
    clock = Clock()
    waiting = descriptor(pipe[0], lambda: True, clock)
    with trio.move_on_after(0) as scope:  # a checkpoint would be cancelled
        await waiting.wait_readable()
    assert not scope.cancelled_caught
    assert clock.looks == 0


async def test_an_endless_stream_of_requests_lets_other_tasks_run(pipe: tuple[int, int]) -> None:
    waiting = descriptor(pipe[0], lambda: True, Clock())
    other_ran = trio.Event()

    async def other() -> None:
        other_ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(MAX_STREAK - 1):
            await waiting.wait_readable()
        assert not other_ran.is_set()
        for _ in range(MAX_STREAK + 1):  # the one who waits may go first, once
            await waiting.wait_readable()
        assert other_ran.is_set()


async def test_a_request_that_comes_soon_is_polled_for(pipe: tuple[int, int]) -> None:
    answers = iter([False] * 5 + [True])
    clock = Clock()
    await descriptor(pipe[0], lambda: next(answers), clock).wait_readable()
    assert clock.looks == 1 + 5


async def test_polling_in_vain_becomes_rare_and_success_brings_it_back(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    os.write(writing, b"x")  # trio's wait finds it; polling finds what `answers` says
    answers: list[bool] = []
    clock = Clock()
    waiting = descriptor(reading, lambda: bool(answers) and answers.pop(), clock)

    async def polled() -> bool:
        before = clock.looks
        await waiting.wait_readable()
        return clock.looks > before

    tries = [number for number in range(1000) if await polled()]
    assert tries[:4] == [0, 2, 6, 14]
    assert tries[-1] - tries[-2] == MAX_SKIPPED + 1

    answers = [True, False]  # the last one is asked first
    while not await polled():
        answers = [True, False]
    assert await polled()


async def test_nobody_polls_while_a_thread_works(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    clock = Clock()
    waiting = descriptor(reading, lambda: False, clock)
    may_end, limiter = threading.Event(), trio.CapacityLimiter(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(in_thread, may_end.wait, limiter=limiter))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(waiting.wait_readable)
        await trio.testing.wait_all_tasks_blocked()
        looks_meanwhile = clock.looks
        os.write(writing, b"x")
        may_end.set()
    assert looks_meanwhile == 0
    await waiting.wait_readable()
    assert clock.looks > 0


@pytest.mark.parametrize("polls", [True, False])
async def test_closing_ends_the_wait_wherever_it_is(pipe: tuple[int, int], polls: bool) -> None:
    waiting = RequestDescriptor(pipe[0], lambda: False, can_poll=polls, now_ns=Clock())
    ended = trio.Event()

    async def worker() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await waiting.wait_readable()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker)
        if not polls:
            await trio.testing.wait_all_tasks_blocked()
        waiting.close()
        trio.lowlevel.notify_closing(pipe[0])
    assert ended.is_set()


async def test_the_owner_may_take_the_lock_again_and_others_take_over_when_it_waits() -> None:
    lock = UnfairLock()
    turns: list[str] = []
    everybody_asked = trio.Event()

    async def worker(name: str, waits: trio.Event) -> None:
        for _ in range(2):
            async with lock:
                turns.append(name)
                if name == "a" and not everybody_asked.is_set():
                    await everybody_asked.wait()
        await waits.wait()
        async with lock:
            turns.append(name)

    a_may, b_may = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker, "a", a_may)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(worker, "b", b_may)
        await trio.testing.wait_all_tasks_blocked()
        everybody_asked.set()
        await trio.testing.wait_all_tasks_blocked()
        assert turns == ["a", "a", "b", "b"]  # never handed over, but taken over
        b_may.set()
        a_may.set()
    assert sorted(turns[4:]) == ["a", "b"]


async def test_every_waiter_of_the_lock_gets_it() -> None:
    lock = UnfairLock()
    done: list[int] = []

    async def worker(number: int) -> None:
        async with lock:
            await trio.lowlevel.checkpoint()
            done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(worker, number)
    assert sorted(done) == list(range(20))
