"""Processes and connections that stay for the next transfer; and what happens when they do not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from nasfs.errors import Failed
from nasfs.node.context import Node
from nasfs.node.places import Places
from nasfs.node.receiving import hatchery, listener
from nasfs.node.records import Group
from nasfs.node.sending import senders
from nasfs.node.sending.orders import Order
from nasfs.node.sending.senders import Sender, Senders
from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair, picture
from tests.test_node_failover import pair as pair  # the fixture
from tests.test_soak_nodes import processes_of

SEND, RECEIVE = "nasfs.node.sending.send", "nasfs.node.receiving.receive"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def serving(node: NodeWorld) -> list[int]:
    """The receive processes that serve a connection: all but the one that forks them."""
    found = processes_of(node, RECEIVE)
    return [pid for pid in found if parent_of(pid) in found]


def sends(pair: Pair, name: str) -> None:
    """A snapshot arrives and is equal."""
    (pair.a.mountpoint("tank/home") / name).write_text(name)
    pair.replicate(name)
    assert pair.b.json("replication", "reception", "office")["newest"] == name


@pytest.mark.mount
def test_the_next_transfer_finds_processes_and_connection_warm(pair: Pair) -> None:
    a, b = pair.a, pair.b
    sends(pair, "one")
    (sender,), receivers = processes_of(a, SEND), serving(b)
    assert receivers
    sends(pair, "two")
    assert processes_of(a, SEND) == [sender]
    assert set(receivers) & set(serving(b))
    wait_until(lambda: not list(b.root.glob("run/nasfs/*.receiver")), "the volume is closed")


@pytest.mark.mount
def test_what_was_kept_warm_may_be_killed(pair: Pair) -> None:
    a, b = pair.a, pair.b
    sends(pair, "one")
    victims: list[Callable[[], list[int]]] = [
        lambda: processes_of(a, SEND),
        lambda: serving(b),
        lambda: [pid for pid in processes_of(b, RECEIVE) if pid not in serving(b)],
        lambda: processes_of(b, RECEIVE),
    ]
    for number, chosen in enumerate(victims):
        doomed = chosen()
        assert doomed
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        sends(pair, f"after-{number}")
    expected = picture(a.mountpoint("tank/home") / ".snapshots/after-3")
    a.kill_all()
    b.run("failover", "office", "--force", "--lose-unreplicated")
    assert picture(b.mountpoint("safe/home")) == expected


@pytest.mark.mount
def test_a_daemon_that_is_killed_takes_its_processes_along(pair: Pair) -> None:
    sends(pair, "one")
    for node, word in ((pair.b, RECEIVE), (pair.a, SEND)):
        assert processes_of(node, word)
        node.kill()
        wait_until(partial(lambda n, w: not processes_of(n, w), node, word), f"{word} ends")


@pytest.mark.mount
def test_a_connection_of_a_former_partner_is_good_for_nothing(pair: Pair) -> None:
    a, b = pair.a, pair.b
    sends(pair, "one")
    assert serving(b)
    b.run("pair", "remove", "--force")
    a.run("snapshot", "create", "office@two")
    done = a.nasfs("replication", "run", "office", "--wait")
    assert done.returncode != 0
    assert [v["name"] for v in b.json("snapshot", "list", "safe/home")] == ["safe/home@one"]


# which processes wait


class Processes:
    """Send processes that only take orders."""

    def __init__(self, senders: Senders) -> None:
        self.senders = senders

    async def once(self, name: str) -> int:
        """One attempt of a group that sends everything; the number of its process."""
        sender: Sender = await self.senders.begin(Group(name, name, "active", 1), Order())
        self.senders.keep(name, sender)
        return sender.child.pid


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    monkeypatch.setattr(
        senders, "command", lambda *words: ["/bin/sh", "-c", "while read line; do :; done"]
    )
    node = object.__new__(Node)
    node.places = Places(tmp_path)
    return node


async def is_gone(pid: int) -> None:
    """Until that process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def test_few_processes_wait_and_none_for_ever(
    idle: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        processes = Processes(Senders(idle, nursery))
        first = await processes.once("first")
        assert await processes.once("first") == first
        others = [await processes.once(str(n)) for n in range(senders.MAX_KEPT)]
        with trio.fail_after(30):
            await is_gone(first)
        assert await processes.once("3") == others[3]
        monkeypatch.setattr(senders, "KEEP_S", 0.0)
        assert await processes.once("3") == others[3]
        with trio.fail_after(30):
            await is_gone(others[3])
        assert await processes.once("3") != others[3]
        nursery.cancel_scope.cancel()
    with trio.fail_after(30):
        for pid in others:
            await is_gone(pid)


async def test_few_processes_wait_although_many_are_through_at_once(idle: Node) -> None:
    async with trio.open_nursery() as nursery:
        waiting = Senders(idle, nursery)
        groups = [Group(str(n), str(n), "active", 1) for n in range(senders.MAX_KEPT + 3)]
        begun = [await waiting.begin(group, Order()) for group in groups]
        for group, sender in zip(groups, begun, strict=True):  # nobody else has a turn meanwhile
            waiting.keep(group.uuid, sender)
        with trio.fail_after(30):
            for sender in begun[:3]:
                await is_gone(sender.child.pid)
        assert await waiting.begin(groups[-1], Order()) is begun[-1]
        waiting.keep(groups[-1].uuid, begun[-1])
        nursery.cancel_scope.cancel()


async def test_a_process_that_ended_while_it_waited_is_replaced(idle: Node) -> None:
    async with trio.open_nursery() as nursery:
        processes = Processes(Senders(idle, nursery))
        pid = await processes.once("g")
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(30):
            await is_gone(pid)
        assert await processes.once("g") != pid
        nursery.cancel_scope.cancel()


async def test_a_process_that_cannot_be_started_is_told(
    idle: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "command", lambda *words: ["/no/such/program"])
    async with trio.open_nursery() as nursery:
        processes = Processes(Senders(idle, nursery))
        with pytest.raises(Failed, match="no send process can be started: No such file"):
            await processes.once("g")


@pytest.mark.parametrize("words", [["false"], ["/no/such/program"], ["sleep", "1000"]])
async def test_a_connection_that_nobody_can_serve_is_closed_and_the_next_one_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    nest, limiter = hatchery.Hatchery(Places(tmp_path)), trio.CapacityLimiter(1)
    with monkeypatch.context() as patch:  # as if it were killed or hung as soon as it is there
        patch.setattr(hatchery, "command", lambda *_: words)
        patch.setattr(hatchery, "ANSWER_S", 0.2)
        patch.setattr(hatchery, "END_S", 0.2)
        for _ in range(2):
            ours, theirs = trio.socket.socketpair()
            with ours, trio.fail_after(30):
                await listener._serve(nest, limiter, trio.SocketStream(theirs))
                assert await ours.recv(1) == b""
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        child = await nest.hatch(theirs)
        assert child is not None
        await child.wait()
        child.close()
    await nest.close()
