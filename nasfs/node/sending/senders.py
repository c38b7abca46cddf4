"""Send processes: started, given orders, kept warm for a while when all is sent, ended.

A process that has sent everything stays with its connection for some minutes and takes the next
order of its group, because starting it anew would take longer than most deltas do.
"""

from __future__ import annotations

import logging
import signal
import subprocess
from dataclasses import dataclass, field

import trio

from nasfs.errors import Failed

from ..children import Child, command, environment
from ..context import Node
from ..records import Group
from .orders import Order, write_order

log = logging.getLogger(__name__)

MODULE = "nasfs.node.sending.send"
END_S = 10.0
"""So long a send process may take to end when it is asked to, and when it is killed (seconds)."""
KEEP_S = 180.0
"""So long a process that has sent everything waits for more (seconds)."""
MAX_KEPT = 4
"""So many wait at most; one more, and the one that has waited longest ends."""


@dataclass(eq=False)
class Sender:
    """One send process."""

    child: Child
    process: trio.Process
    kept: bool = False
    """It has sent before: if it is silent, it may have ended while nobody looked."""
    _buffer: bytes = b""

    @property
    def orders(self) -> trio.abc.SendStream:
        assert self.process.stdin is not None
        return self.process.stdin

    async def lines(self) -> list[bytes] | None:
        """The lines that come next, perhaps none; None: there will be no more."""
        assert self.process.stdout is not None
        piece = await self.process.stdout.receive_some()
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        return lines if lines or piece else None


@dataclass(frozen=True, eq=False)
class _Kept:
    """A process that waits."""

    sender: Sender
    waits: trio.CancelScope = field(default_factory=trio.CancelScope)


class Senders:
    """All send processes of a node.

    Args:
        nursery: for those that wait, and for those that not even a kill ends.
    """

    def __init__(self, node: Node, nursery: trio.Nursery) -> None:
        self._node = node
        self._nursery = nursery
        self._kept: dict[str, _Kept] = {}
        """By group (UUID), in the order in which they began to wait."""

    async def begin(self, group: Group, order: Order) -> Sender:
        """A process that sends that group: the one that waits for it, else a new one.

        Raises:
            Failed: none can be started now.
        """
        kept = self._kept.pop(group.uuid, None)
        if kept is not None:
            kept.waits.cancel()
            if await self._go_on(kept.sender, order):
                return kept.sender
        return await self._start(group, order)

    async def _go_on(self, sender: Sender, order: Order) -> bool:
        """Have a process that waited send again; False if it has ended."""
        try:
            await sender.orders.send_all(write_order(order, begin=True))
        except BaseException as exc:
            await self.end(sender)
            if not isinstance(exc, trio.BrokenResourceError | trio.ClosedResourceError):
                raise
            return False
        sender.kept = True
        return True

    async def _start(self, group: Group, order: Order) -> Sender:
        try:
            process = await trio.lowlevel.open_process(
                command(MODULE, self._node.places, group.name, write_order(order).decode()),
                stdin=subprocess.PIPE,  # its orders; its end tells the child that we are gone
                stdout=subprocess.PIPE,
                env=environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as exc:  # memory, processes or descriptors are short
            raise Failed(f"no send process can be started: {exc.strerror}") from exc
        return Sender(Child(process.pid, process), process)

    def keep(self, group_uuid: str, sender: Sender) -> None:
        """It has sent everything: it waits for more."""
        kept = self._kept[group_uuid] = _Kept(sender)
        self._nursery.start_soon(self._wait, group_uuid, kept)
        # Those that were told to end may be here still: several are kept at a time.
        waiting = [one for one in self._kept.values() if not one.waits.cancel_called]
        for one in waiting[:-MAX_KEPT]:
            one.waits.cancel()

    async def _wait(self, group_uuid: str, kept: _Kept) -> None:
        try:
            with kept.waits, trio.move_on_after(KEEP_S):
                await kept.sender.child.wait()
        finally:
            if self._kept.get(group_uuid) is kept:  # nobody has taken it
                del self._kept[group_uuid]
                await self.end(kept.sender)

    async def end(self, sender: Sender, *, patient: bool = True) -> None:
        """Whatever it does; one that not even a kill ends is left to a task of its own.

        Args:
            patient: it may end by itself; else it is killed.
        """
        child, process = sender.child, sender.process
        assert process.stdout is not None
        with trio.CancelScope(shield=True):
            await sender.orders.aclose()  # tells it that we are gone
            for number in (None, signal.SIGTERM, signal.SIGKILL)[0 if patient else 2 :]:
                if number is not None:
                    child.send(number)
                with trio.move_on_after(END_S):
                    await child.wait()
                    break
            else:
                log.error("process %d does not end; it waits for a disk", child.pid)
                self._nursery.start_soon(child.wait)
            await process.stdout.aclose()
