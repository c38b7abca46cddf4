"""Snap groups: the snapshots of all volumes of a group at one instant, all of them or none.

Theory of operation.  The daemon asks all volumes at once, step by step:

1. *prepare*: each makes what it has durable, while requests go on, so that little is left
2. *hold*: changes wait in every volume.  When the last one has said so, nothing changes in any of
   them: this is the instant.  Whoever saw a change of one volume acknowledged before he made one
   in another has both in, or the first alone
3. *seal*: each seals what it holds as a *pending* snapshot, which nobody is offered, and lets
   changes go on
4. *decide*: with all pending ones durable, node.db notes the snap group: it exists from here on
5. *settle*: each offers its snapshot; then the note goes

Before (4) every end means none: a volume that fails, dies or is too slow (it lets changes go on
by itself after `HOLD_S`) has the others drop their pending snapshots.  After a crash the same rule
tells what to do with pending snapshots that are found (`settle_leftovers`): those of a noted snap
group are offered, others are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from nasfs.errors import Failed, NasError, Unreachable
from nasfs.fuse.control import Conversation
from nasfs.volume import NoSuchSnapshot, Volume, open_volume

from .context import Node
from .engine import change, info
from .records import Group, VolumeRow
from .state import new_uuid

PREPARE_S = 60.0
"""A volume may take so long to make durable what it has (seconds)."""

HOLD_S = 5.0
"""Changes wait no longer than this, whatever happens to the others, or to the daemon (seconds)."""

SETTLE_S = 20.0
"""A mount process that died meanwhile may take so long to come back (seconds)."""

AGAIN_S = 0.2


class _Member(Protocol):
    """One volume in the conversation: each question is asked of all before an answer is awaited."""

    def ask(self, op: str, **args: object) -> None: ...

    def answer(self, deadline: float) -> Any:
        """Raises NasError."""
        ...


def take_snap_group(node: Node, group: Group, rows: Sequence[VolumeRow], name: str) -> float:
    """Durable and complete in all volumes when it returns.  How long changes waited, in seconds.

    Raises:
        Failed: one of them could not; there is no snapshot of that name in any.
    """
    snap_group = new_uuid()
    node.snap_groups.under_way.add(snap_group)
    try:
        try:
            held_s = _seal_all(node, rows, name, snap_group)
            node.state.decide_snap_group(snap_group, group.uuid)
        except BaseException:
            _give_up(node, rows, snap_group)
            raise
        _offer(node, rows, snap_group)
        node.state.forget_snap_group(snap_group)
        return held_s
    finally:
        node.snap_groups.under_way.discard(snap_group)


def _seal_all(node: Node, rows: Sequence[VolumeRow], name: str, snap_group: str) -> float:
    with ExitStack() as stack:
        members: list[tuple[str, _Member]] = []
        for row in rows:
            label = str(node.state.volume_name(row))
            with _told(name, label):
                members.append((label, stack.enter_context(_member(node, row))))

        def each(limit_s: float, op: str, arguments: Callable[[int], dict[str, Any]]) -> list[Any]:
            deadline = time.monotonic() + limit_s
            for number, (label, member) in enumerate(members):
                with _told(name, label):
                    member.ask(op, **arguments(number))
            answers = []
            for label, member in members:
                with _told(name, label):
                    answers.append(member.answer(deadline))
            return answers

        each(PREPARE_S, "commit", lambda _: {})
        began = time.monotonic()
        tokens: list[str] = each(HOLD_S, "changes_hold", lambda _: {"limit_s": HOLD_S})
        held_s = time.monotonic() - began
        seal = {"name": name, "time_ns": time.time_ns(), "snap_group": snap_group}
        each(HOLD_S + PREPARE_S, "changes_seal", lambda number: {"token": tokens[number], **seal})
        return held_s


@contextmanager
def _told(name: str, label: str) -> Iterator[None]:
    """Which volume it was."""
    try:
        yield
    except NasError as exc:
        raise Failed(
            f"no snapshot {name} was taken of any volume: {label}: {exc}", hint=exc.hint
        ) from exc


@contextmanager
def _member(node: Node, row: VolumeRow) -> Iterator[_Member]:
    """The mount process of a volume or, if it is not mounted, the volume itself."""
    try:
        conversation = Conversation(node.places.control_socket(row.uuid))
    except Unreachable:
        with open_volume(node.volume_path(row)) as volume:
            yield _Unmounted(volume)
        return
    with conversation:
        yield _Mounted(conversation)


class _Mounted:
    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def ask(self, op: str, **args: object) -> None:
        self._conversation.send(op, **args)

    def answer(self, deadline: float) -> Any:
        return self._conversation.receive(deadline)


class _Unmounted:
    """Nobody changes it while we have it open."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._ask: tuple[str, dict[str, Any]] = "", {}

    def ask(self, op: str, **args: object) -> None:
        self._ask = op, args

    def answer(self, deadline: float) -> Any:
        op, args = self._ask
        if op == "changes_seal":
            self._volume.commit()
            self._volume.seal_nowait(
                args["name"], time_ns=args["time_ns"], snap_group=args["snap_group"], pending=True
            )
            self._volume.commit()
        return ""


def _give_up(node: Node, rows: Sequence[VolumeRow], snap_group: str) -> None:
    """Before anything is dropped it is certain that node.db does not note it.

    A note that failed may be there all the same; then some volumes would drop and others offer.
    """
    try:
        node.state.forget_snap_group(snap_group)
    except NasError:
        node.snap_groups.unsettled = True  # node.db tells, as soon as it can be read
    else:
        _drop(node, rows, snap_group)


def _drop(node: Node, rows: Sequence[VolumeRow], snap_group: str) -> None:
    """What can't be reached now is dropped by `settle_leftovers`."""
    for row in rows:
        try:
            _settle(node, row, snap_group, keep=False)
        except NasError:
            node.snap_groups.unsettled = True


def _offer(node: Node, rows: Sequence[VolumeRow], snap_group: str) -> None:
    """Raises Failed for a volume that can't be reached: the snap group exists all the same."""
    deadline = time.monotonic() + SETTLE_S
    for row in rows:
        while True:
            try:
                _settle(node, row, snap_group, keep=True)
                break
            except NoSuchSnapshot:  # destroyed meanwhile
                break
            except NasError as exc:
                if time.monotonic() >= deadline:
                    node.snap_groups.unsettled = True
                    raise Failed(
                        f"the snap group is complete, but {node.state.volume_name(row)} does not"
                        f" show its snapshot yet: {exc}",
                        hint="it will as soon as its mount process answers again",
                    ) from exc
                time.sleep(AGAIN_S)


def _settle(node: Node, row: VolumeRow, snap_group: str, *, keep: bool) -> None:
    change(
        node,
        row,
        "snapshot_settle",
        {"snap_group": snap_group, "keep": keep},
        lambda volume: volume.settle(snap_group, keep=keep),
    )


def settle_leftovers(node: Node) -> None:
    """Offer or drop what a crash left pending, and what could not be reached before."""
    if not node.snap_groups.unsettled:
        return
    node.snap_groups.unsettled = False
    decided = node.state.decided_snap_groups() - node.snap_groups.under_way
    for row in node.state.volumes():
        try:
            for snap_group in set(info(node, row).pending) - node.snap_groups.under_way:
                _settle(node, row, snap_group, keep=snap_group in decided)
        except (NasError, OSError):  # it is told where the volume is shown
            node.snap_groups.unsettled = True
    if not node.snap_groups.unsettled:
        for snap_group in decided:
            node.state.forget_snap_group(snap_group)
