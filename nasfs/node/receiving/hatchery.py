"""The process that forks a receive process for each connection, as the daemon sees it."""

from __future__ import annotations

import socket
import sys

import trio

from ..children import Child, command, environment
from ..places import Places
from .receive import NUMBER_BYTES
from .receivers import MODULE

ANSWER_S = 30.0
"""So long it may take to fork (seconds)."""
END_S = 10.0
"""So long it may take to end by itself (seconds)."""


class Hatchery:
    """Started with the first connection, and again if it was killed; ends with the daemon."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = trio.Lock()
        self._line: trio.socket.SocketType | None = None
        self._parent: Child | None = None

    async def hatch(self, connection: trio.socket.SocketType) -> Child | None:
        """A process that serves the connection; None: it has ended already.

        Raises:
            OSError: a new process cannot be started, or was killed at once.
        """
        async with self._lock:
            if self._line is not None:
                try:
                    return await self._ask(self._line, connection)
                except OSError:  # it was killed
                    await self.close()
            try:
                return await self._ask(await self._start(), connection)
            except OSError:
                await self.close()
                raise

    async def _start(self) -> trio.socket.SocketType:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line = trio.socket.from_stdlib_socket(ours)
        with theirs:
            process = await trio.lowlevel.open_process(
                command(MODULE, self._places),
                stdin=theirs,
                env=environment(),
                cwd="/",
                start_new_session=True,
            )
        self._parent = Child(process.pid, process)
        return self._line

    async def _ask(
        self, line: trio.socket.SocketType, connection: trio.socket.SocketType
    ) -> Child | None:
        """Raises OSError if nobody is there any more, or whoever is hangs."""
        answer = b""
        # Shielded: else an answer would be taken for the next one's.
        with trio.move_on_after(ANSWER_S, shield=True):
            await line.sendmsg([b"\0"], [_descriptor(connection.fileno())])
            answer, extra, _, _ = await line.recvmsg(
                NUMBER_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        if not answer:
            raise ConnectionResetError
        for level, kind, data in extra:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                return Child(int.from_bytes(answer), None, int.from_bytes(data, sys.byteorder))
        return None

    async def close(self) -> None:
        """It ends, and with it all that it forked."""
        line, self._line = self._line, None
        parent, self._parent = self._parent, None
        if line is not None:
            line.close()
        if parent is not None:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(END_S):
                    await parent.wait()
                    return
                await parent.end(grace_s=0.0)


def _descriptor(number: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, number.to_bytes(4, sys.byteorder)
