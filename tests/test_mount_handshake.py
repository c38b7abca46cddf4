"""The first request of a session: what is added to libfuse's reply, and who talks to whom."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from nasfs.fuse.handshake import WANTED, Ability, Handshake, with_abilities

OTHERS = 1 << 20 | 1 << 13
"""Flags of no concern."""


def request(offered: int) -> bytes:
    """INIT as the kernel sends it: a header, the version, read-ahead, flags, and more."""
    return struct.pack("<40x4I44x", 7, 45, 131_072, offered)


def reply(flags: int) -> bytes:
    return struct.pack("<IiQ4I48x", 80, 0, 2, 7, 38, 131_072, flags)


class Kernel:
    """The other end of a device."""

    def __init__(self, offered: int) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.request = request(offered)
        self._ours.send(self.request)
        self.handshake = Handshake(theirs.detach())

    def receive(self) -> bytes:
        return self._ours.recv(4096)

    def send(self, message: bytes) -> None:
        self._ours.send(message)

    def close(self) -> None:
        self._ours.close()
        self.handshake.close()
        os.close(self.handshake.fd)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel(OTHERS | WANTED)
    yield made
    made.close()


def test_libfuse_reads_what_the_kernel_sent(kernel: Kernel) -> None:
    assert os.read(kernel.handshake.fd, 8192) == kernel.request
    assert not kernel.handshake.finish()


def test_the_reply_agrees_on_what_we_want_too(kernel: Kernel) -> None:
    os.write(kernel.handshake.fd, reply(OTHERS))
    assert kernel.handshake.finish()
    assert kernel.receive() == reply(OTHERS | WANTED)


def test_then_libfuse_has_the_device_itself(kernel: Kernel) -> None:
    fd = kernel.handshake.fd
    os.read(fd, 8192)
    os.write(fd, reply(OTHERS))
    kernel.handshake.finish()
    kernel.receive()
    kernel.send(b"request")
    assert os.read(fd, 8192) == b"request"
    os.write(fd, b"reply")
    assert kernel.receive() == b"reply"
    assert not os.get_inheritable(fd)


def test_nothing_is_agreed_on_that_the_kernel_does_not_offer() -> None:
    kernel = Kernel(OTHERS | Ability.DONT_MASK)
    os.write(kernel.handshake.fd, reply(OTHERS))
    kernel.handshake.finish()
    assert kernel.handshake.agreed == Ability.DONT_MASK
    assert kernel.receive() == reply(OTHERS | Ability.DONT_MASK)
    kernel.close()


def test_a_reply_that_tells_an_error_stays_as_it_is() -> None:
    error = struct.pack("<IiQ", 16, -71, 2)
    assert with_abilities(error, WANTED) == error
