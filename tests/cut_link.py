"""A link between two real nodes that can be cut: each reaches the other through a proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from nasfs.node.context import Node
from nasfs.node.places import Places
from tests.node_world import NodeWorld
from tests.role_world import Pair


class Way:
    """One direction in which connections are made; both nodes talk over them."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._ended = False
        threading.Thread(target=self._serve, name="way", daemon=True).start()

    def cut(self) -> None:
        """Connections break, and new ones are not answered."""
        with self._lock:
            self._is_cut = True
            broken, self._open = self._open, set()
        for sock in broken:
            _end(sock)

    def restore(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self._ended = True
        self.cut()
        _end(self._listener)
        self._listener.close()

    def _serve(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._is_cut:
                    raise OSError("it is cut")
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            if self._is_cut:
                self.cut()
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _end(sink)
        with self._lock:
            self._open.discard(source)
        source.close()


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Link:
    """Both directions."""

    def __init__(self, pair: Pair) -> None:
        self.ways = [Way(node.address) for node in (pair.a, pair.b)]
        for node, way in zip((pair.b, pair.a), self.ways, strict=True):
            _reach(node, way.address)

    def cut(self) -> None:
        for way in self.ways:
            way.cut()

    def restore(self) -> None:
        for way in self.ways:
            way.restore()


def _reach(node: NodeWorld, address: str) -> None:
    """Have it know its partner at another address; its daemon reads that anew each time."""
    with Node.open(Places(node.root)) as opened:
        peer = opened.bond.peer()
        assert peer is not None
        opened.bond.set_peer(msgspec.structs.replace(peer, address=address))


@contextmanager
def linked(pair: Pair) -> Iterator[Link]:
    link = Link(pair)
    try:
        yield link
    finally:
        for way in link.ways:
            way.close()
