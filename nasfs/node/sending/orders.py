"""What the daemon tells a send process: one JSON object per line on its stdin.

The end of that stream says that the daemon is gone: the process ends, too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading

import msgspec
from msgspec.structs import replace

from .governor import Governor

EDGE_S = 0.7
"""So long a sender that shall stop has to come to the edge of a chunk (seconds)."""


class Order(msgspec.Struct, frozen=True):
    """How it may use the link from now on."""

    rate: int = 0
    """Bytes a second; 0: no limit."""
    percent: int = 100
    """Of the time."""
    priority: int = 100
    """How it stands back for others in the use of processors and disks (per cent)."""
    stop: str = ""
    """Not empty: not at all any more, and why."""
    begin: bool = False
    """Send again: for a process that has sent all and waits."""
    rebase: bool = False
    """Send the newest snap group by what differs in the contents, whatever both sides have."""


_decoder = msgspec.json.Decoder(Order)


def read_order(line: bytes | str) -> Order:
    """Raises msgspec.ValidationError or DecodeError: a bug on our side."""
    return _decoder.decode(line)


def write_order(order: Order, *, begin: bool = False) -> bytes:
    """*begin*: the order to send again, in this way."""
    return msgspec.json.encode(replace(order, begin=begin)) + b"\n"


def obey(governor: Governor, order: Order) -> None:
    """Take one order."""
    _stand_back(order.priority)
    governor.set(order.rate, order.percent)
    if order.stop:
        governor.close(order.stop)


class Orders:
    """The daemon's orders, taken as they come until it is gone; then the process ends.

    It ends as well some time after an order to stop.
    """

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._begun: queue.SimpleQueue[Order] = queue.SimpleQueue()
        threading.Thread(target=self._follow, name="orders", daemon=True).start()

    def wait_to_begin(self, seconds: float) -> Order | None:
        """The order to send again; None: there was none within so many seconds."""
        try:
            return self._begun.get(timeout=seconds)
        except queue.Empty:
            return None

    def _follow(self) -> None:
        buffer = b""
        while piece := os.read(0, 4096):  # no buffered reader: a thread in one can't be left
            *lines, buffer = (buffer + piece).split(b"\n")
            for order in map(read_order, lines):
                self._take(order)
        os.kill(os.getpid(), signal.SIGTERM)

    def _take(self, order: Order) -> None:
        obey(self._governor, order)
        if order.begin:
            self._begun.put(order)
        if order.stop:
            end = threading.Timer(EDGE_S, os.kill, (os.getpid(), signal.SIGTERM))
            end.daemon = True
            end.start()


def _stand_back(priority: int) -> None:
    """Niceness (19 at 1 %); the kernel's disk scheduler goes by it, too (ioprio_set(2))."""
    niceness = (100 - priority) * 19 // 99
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended; or only root may become less nice
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)
