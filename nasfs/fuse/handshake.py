"""The first request of a session, and the abilities that libfuse does not ask for.

The kernel offers its abilities with the request INIT, and those in the reply are in force.  pyfuse3
lets us ask for a few of them only, and libfuse answers by itself.  So libfuse first gets a socket
in place of the device, with the kernel's request in it.  Its reply goes to the kernel with our
flags added, and then the device takes the socket's place.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from enum import IntFlag

_REQUEST_BYTES = 1 << 21
"""The kernel refuses a read into less than it might send."""

_REQUEST_FLAGS = struct.Struct("<52xI")
_REPLY_FLAGS = struct.Struct("<I")
_REPLY_FLAGS_AT = 28


class Ability(IntFlag):
    """FUSE_INIT flags, as in linux/fuse.h."""

    DONT_MASK = 1 << 6
    """The umask is ours to apply: where a directory has a default ACL it does not count."""
    CACHE_SYMLINKS = 1 << 23
    """A symlink is read once."""
    HANDLE_KILLPRIV_V2 = 1 << 28
    """We take SUID and SGID bits with a change; the kernel asks no more before every write."""


WANTED = Ability.DONT_MASK | Ability.CACHE_SYMLINKS | Ability.HANDLE_KILLPRIV_V2


class Handshake:
    """Between the kernel and libfuse until `finish` has returned True.

    Args:
        device: of a new mount; belongs to this object from now on.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = theirs.detach()
        """What libfuse is given and keeps."""
        request = os.read(device, _REQUEST_BYTES)
        (offered,) = _REQUEST_FLAGS.unpack_from(request)
        self.agreed = WANTED & offered
        self._ours.setblocking(False)
        self._ours.send(request)

    def finish(self) -> bool:
        """Pass libfuse's reply on; False if there is none yet.  To be called before each wait."""
        try:
            reply = self._ours.recv(_REQUEST_BYTES)
        except BlockingIOError:
            return False
        try:
            os.write(self._device, with_abilities(reply, self.agreed))
            os.dup2(self._device, self.fd, inheritable=False)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV):  # unmounted already: libfuse sees it
                raise
        self.close()
        return True

    def close(self) -> None:
        """Let go of all but `fd`."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
            self._ours.close()


def with_abilities(reply: bytes, abilities: Ability) -> bytes:
    """A reply to INIT that agrees on more; one that tells an error stays as it is."""
    if len(reply) < _REPLY_FLAGS_AT + _REPLY_FLAGS.size:
        return reply
    changed = bytearray(reply)
    (flags,) = _REPLY_FLAGS.unpack_from(changed, _REPLY_FLAGS_AT)
    _REPLY_FLAGS.pack_into(changed, _REPLY_FLAGS_AT, flags | abilities)
    return bytes(changed)
