"""The group commit, against a volume that only notes what it is asked."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from nasfs.errors import Failed, NasError
from nasfs.fuse.commit import REST, Committer, Gate
from nasfs.volume import MediaError, SnapshotExists, Volume


class Sync:
    def __init__(self, volume: FakeVolume, keys: set[str]) -> None:
        self.count = len(keys)
        self.keys = keys
        self.lost = False
        self._volume = volume

    def run(self) -> None:
        try:
            self._volume.step("data")
        except MediaError as exc:
            self.lost = exc.errno != errno.ENOSPC
            raise
        self._volume.synced |= self.keys


class FakeVolume:
    """Keeps what is dirty, synced, committed and durable apart, and checks their order."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.writable = True
        self.dirty: set[str] = set()
        self.synced: set[str] = set()
        self.uncommitted: set[str] = set()
        self.committed: set[str] = set()
        self.durable: set[str] = set()
        self.log: list[str] = []
        self.before: dict[str, Callable[[], None]] = {}
        self.reclaimable = 0
        self.given_back = trio.Event()

    def step(self, name: str) -> None:
        self.log.append(name)
        if name in self.before:
            self.before.pop(name)()

    def write(self, key: str) -> None:
        assert not self.gate.is_closed
        self.dirty.add(key)
        self.uncommitted.add(key)

    @property
    def changed(self) -> bool:
        return bool(self.uncommitted)

    def dirty_data(self) -> Sync:
        keys, self.dirty = self.dirty, set()
        return Sync(self, keys)

    def flush_rows(self) -> None:
        pass

    def commit_nowait(self) -> None:
        assert self.gate.is_closed
        if not self.uncommitted:  # a seal was the commit
            return
        self.step("commit")
        assert not self.dirty
        assert self.uncommitted <= self.synced, "metadata before its data"
        self.committed |= self.uncommitted
        self.uncommitted = set()

    def seal_nowait(self, name: str) -> str:
        if name == "taken":
            raise SnapshotExists("taken")
        self.commit_nowait()
        return f"sealed {name}"

    def checkpoint_needed(self) -> bool:
        return False

    def sync_log(self) -> None:
        committed = set(self.committed)
        self.step("log")
        self.durable |= committed

    def go_read_only(self, reason: str) -> None:
        self.writable = False
        self.uncommitted = set()

    def data_refused(self, work: Sync, error: MediaError) -> None:
        if work.lost:
            self.go_read_only(str(error))
        else:
            self.dirty |= work.keys

    def reclaim_step(self, limit: int) -> bool:
        assert not self.gate.is_closed
        self.log.append("reclaim")
        self.reclaimable -= 1
        if self.reclaimable == 0:
            self.given_back.set()
        return self.reclaimable > 0

    def reclaim_slowly(self, clock: trio.testing.MockClock) -> None:
        """From now on a step takes 2 ms."""
        step = self.reclaim_step

        def slow(limit: int) -> bool:
            clock.jump(0.002)
            return step(limit)

        self.reclaim_step = slow  # type: ignore[method-assign]


@asynccontextmanager
async def running(
    fake: FakeVolume, *, interval_s: float = 3600, reclaim: bool = False
) -> AsyncIterator[Committer]:
    committer = Committer(cast(Volume, fake), fake.gate, interval_s=interval_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        if reclaim:
            nursery.start_soon(committer.run_reclaim)
        yield committer
        nursery.cancel_scope.cancel()


class Hold:
    """Stops a thread of the volume until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go_on.wait(30)

    async def wait_reached(self) -> None:
        await trio.to_thread.run_sync(self.reached.wait, 30)


async def test_a_commit_makes_durable_what_was_written_before_it() -> None:
    fake = FakeVolume()
    async with running(fake) as committer:
        fake.write("a")
        await committer.commit()
        assert fake.durable == {"a"}
        assert fake.log == ["data", "commit", "log"]
        await committer.commit()  # nothing to do
        assert fake.log == ["data", "commit", "log"]


async def test_who_asks_first_runs_the_round_and_waits_for_no_other_task() -> None:
    fake = FakeVolume()
    committer = Committer(cast(Volume, fake), fake.gate, interval_s=3600)
    fake.write("a")
    with trio.fail_after(30):  # there is no task that runs rounds
        await committer.commit()
    assert fake.durable == {"a"}


async def test_those_who_ask_together_share_one_round() -> None:
    fake = FakeVolume()
    async with running(fake) as committer:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                fake.write(str(number))
                nursery.start_soon(committer.commit)
        assert fake.log.count("commit") == 1
        assert len(fake.durable) == 50


async def test_who_asks_while_data_is_synced_is_in_the_same_round() -> None:
    fake = FakeVolume()
    hold = fake.before["data"] = Hold()
    async with running(fake) as committer, trio.open_nursery() as nursery:
        fake.write("early")
        nursery.start_soon(committer.commit)
        await hold.wait_reached()
        fake.write("late")
        nursery.start_soon(committer.commit)
        await trio.testing.wait_all_tasks_blocked()
        hold.go_on.set()
    assert fake.log == ["data", "data", "commit", "log"]
    assert fake.durable == {"early", "late"}


async def test_who_asks_after_the_instant_of_a_commit_waits_for_the_next() -> None:
    fake = FakeVolume()
    hold = fake.before["log"] = Hold()
    async with running(fake) as committer, trio.open_nursery() as nursery:
        fake.write("early")
        nursery.start_soon(committer.commit)
        await hold.wait_reached()
        fake.write("late")
        done = trio.Event()

        async def commit_late() -> None:
            await committer.commit()
            assert fake.durable == {"early", "late"}
            done.set()

        nursery.start_soon(commit_late)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        hold.go_on.set()
    assert done.is_set()
    assert fake.log.count("commit") == 2


async def test_nothing_new_still_waits_for_the_log_of_a_round_under_way() -> None:
    fake = FakeVolume()
    hold = fake.before["log"] = Hold()
    async with running(fake) as committer, trio.open_nursery() as nursery:
        fake.write("a")
        nursery.start_soon(committer.commit)
        await hold.wait_reached()
        done = trio.Event()

        async def commit_again() -> None:
            await committer.commit()
            assert fake.durable == {"a"}
            done.set()

        nursery.start_soon(commit_again)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        hold.go_on.set()
    assert done.is_set()


async def test_changes_wait_while_the_gate_is_closed_and_go_on_behind_it() -> None:
    fake = FakeVolume()
    first, second = Hold(), Hold()

    async def change() -> None:
        await fake.gate.wait_open()
        fake.write("waited")

    async with running(fake) as committer, trio.open_nursery() as nursery:
        fake.before["data"] = first
        fake.write("a")
        nursery.start_soon(committer.commit)
        await first.wait_reached()
        assert not fake.gate.is_closed
        fake.write("b")
        fake.before["data"] = second
        first.go_on.set()
        await second.wait_reached()
        assert fake.gate.is_closed
        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        assert fake.uncommitted == {"a", "b"}
        second.go_on.set()
    assert fake.durable == {"a", "b"}
    assert fake.uncommitted == {"waited"}


async def test_nothing_changed_nothing_committed(autojump_clock: trio.testing.MockClock) -> None:
    fake = FakeVolume()
    async with running(fake, interval_s=5):
        await trio.sleep(100)
        assert fake.log == []


async def test_a_seal_is_a_commit_and_its_failure_is_nobody_elses() -> None:
    fake = FakeVolume()
    outcomes: list[Any] = []

    async def seal(committer: Committer, name: str) -> None:
        try:
            outcomes.append(await committer.at_commit(lambda: fake.seal_nowait(name)))
        except SnapshotExists as exc:
            outcomes.append(type(exc))
        assert fake.durable == {"a"}

    hold = fake.before["data"] = Hold()
    async with running(fake) as committer:
        fake.write("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seal, committer, "taken")
            nursery.start_soon(seal, committer, "free")
            await hold.wait_reached()
            nursery.start_soon(committer.commit)
            await trio.testing.wait_all_tasks_blocked()
            hold.go_on.set()
    assert sorted(outcomes, key=str) == [SnapshotExists, "sealed free"]
    assert fake.log == ["data", "commit", "log"]


def failing(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise MediaError(number, "disk")

    return fail


async def test_data_for_which_the_disk_is_full_is_tried_again_with_the_next_commit() -> None:
    fake = FakeVolume()
    fake.before["data"] = failing(errno.ENOSPC)
    async with running(fake) as committer:
        fake.write("a")
        with pytest.raises(MediaError):
            await committer.commit()
        assert fake.writable
        assert fake.durable == set()
        await committer.commit()
        assert fake.durable == {"a"}


@pytest.mark.parametrize("step", ["data", "log"])
async def test_a_failed_sync_is_told_to_all_and_to_those_who_ask_later(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeVolume()
    fake.before[step] = failing(errno.EIO)
    async with running(fake) as committer:
        fake.write("a")
        for _ in range(2):  # a second fsync would say that all is well: the host has forgotten
            with pytest.raises(MediaError):
                await committer.commit()
    assert not fake.writable
    assert fake.durable == set()
    assert "commit failed" in caplog.text


async def test_a_full_disk_at_the_commit_can_be_got_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeVolume()
    fake.before["commit"] = failing(errno.ENOSPC)
    async with running(fake) as committer:
        fake.write("a")
        with pytest.raises(MediaError) as full:
            await committer.commit()
        assert full.value.errno == errno.ENOSPC
        assert fake.writable
        assert not fake.gate.is_closed
        await committer.commit()
    assert fake.durable == {"a"}


async def test_a_bug_makes_the_volume_read_only_and_leaves_the_gate_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeVolume()

    def bug() -> None:
        raise KeyError("oops")

    fake.before["commit"] = bug
    async with running(fake) as committer:
        fake.write("a")
        with pytest.raises(Failed):
            await committer.commit()
        assert not fake.gate.is_closed
    assert not fake.writable
    assert "KeyError" in caplog.text


async def test_others_have_their_turn_while_space_is_given_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fake = FakeVolume()
    fake.reclaim_slowly(autojump_clock)
    async with running(fake, reclaim=True) as committer:
        await trio.testing.wait_all_tasks_blocked()
        fake.reclaimable = 300
        fake.write("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.commit)
            while fake.reclaimable > 0:
                fake.log.append("other")
                await trio.sleep(0.001)
    turns = "".join("r" if word == "reclaim" else " " for word in fake.log).split()
    assert max(map(len, turns)) <= 6  # of 2 ms each; two turns may come one after the other


@pytest.mark.parametrize(
    ("busy", "longest", "seconds"),
    [(True, 60, 300 * 0.002 * REST), (True, 0, 300 * 0.002), (False, 60, 0.0)],
)
async def test_giving_space_back_stands_back_for_requests(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    busy: bool,
    longest: float,
    seconds: float,
) -> None:
    monkeypatch.setattr("nasfs.fuse.commit.LONG_S", longest)
    numbers = itertools.count() if busy else itertools.repeat(0)
    monkeypatch.setattr("nasfs.fuse.commit.requests", lambda: next(numbers))
    fake = FakeVolume()
    fake.reclaim_slowly(autojump_clock)
    async with running(fake, reclaim=True) as committer:
        await trio.testing.wait_all_tasks_blocked()
        fake.reclaimable = 300
        fake.write("a")
        await committer.commit()
        began = trio.current_time()
        await fake.given_back.wait()
        passed = trio.current_time() - began
    assert passed - 300 * 0.002 == pytest.approx(seconds, rel=0.1, abs=0.02)


async def test_reclaim_runs_in_steps_after_each_commit() -> None:
    fake = FakeVolume()
    async with running(fake, reclaim=True) as committer:
        await trio.testing.wait_all_tasks_blocked()
        assert fake.log == ["reclaim"]
        fake.reclaimable = 3
        fake.write("a")
        await committer.commit()
        await trio.testing.wait_all_tasks_blocked()
    assert fake.log == ["reclaim", "data", "commit", "log", "reclaim", "reclaim", "reclaim"]


async def test_nothing_is_acknowledged_when_even_giving_up_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVolume()
    committer = Committer(cast(Volume, fake), fake.gate, interval_s=3600)
    outcomes: list[str] = []

    def fail(*_: object) -> None:
        raise ValueError("the disk is gone, and a bug comes on top")

    async def ask() -> None:
        try:
            await committer.commit()
            outcomes.append("acknowledged")
        except NasError:
            outcomes.append("refused")

    hold = fake.before["data"] = Hold()
    fake.before["commit"] = fail
    monkeypatch.setattr(fake, "go_read_only", fail)
    fake.write("a")

    async def ask_while_it_runs() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            nursery.start_soon(committer.commit)  # runs the round itself, and meets the bug
            await hold.wait_reached()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            hold.go_on.set()

    with pytest.raises(ExceptionGroup):
        await ask_while_it_runs()
    assert outcomes == ["refused"]
