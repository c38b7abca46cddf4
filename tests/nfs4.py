"""A client of NFSv4 that keeps file handles, run as a program where a server is to be found.

    nfs4.py ADDRESS handle PATH       prints the handle of a file, in hexadecimal
    nfs4.py ADDRESS read HANDLE       prints what is in the file, by its handle alone
    nfs4.py ADDRESS write HANDLE TEXT

ADDRESS is the server's, and this client's own, or both with a comma between; the server's may have
a :PORT.  Exit code 1: the number of an NFS error.  It asks as root, or as the UID in NFS4_USER.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import socket
import struct
import sys

PUTROOTFH, LOOKUP, GETFH, PUTFH, READ, WRITE = 24, 15, 10, 22, 25, 38
ANYBODY = bytes(16)
"""The stateid of who has not opened the file."""
PORT = 2049


def opaque(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


class Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self) -> int:
        (found,) = struct.unpack_from(">I", self._data, self._at)
        self._at += 4
        return int(found)

    def opaque(self) -> bytes:
        size = self.number()
        found = self._data[self._at : self._at + size]
        self._at += size + -size % 4
        return found


def connect(address: str) -> socket.socket:
    """From a port that only root has."""
    server, _, own = address.partition(",")
    server, _, at = server.partition(":")
    for port in range(1000, 600, -1):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((own or server, port))
            sock.connect((server, int(at or PORT)))
        except OSError as exc:
            sock.close()
            if exc.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            continue
        return sock
    raise OSError("no port is free")


def call(sock: socket.socket, operations: list[bytes]) -> bytes:
    """One COMPOUND; what was answered behind the RPC header.

    Its number is new: a server answers what it takes for a repetition from its memory.
    """
    user = int(os.environ.get("NFS4_USER", "0"))
    caller = struct.pack(">I", 1) + opaque(b"test") + struct.pack(">III", user, user, 0)
    credentials = struct.pack(">I", 1) + opaque(caller) + struct.pack(">II", 0, 0)
    body = struct.pack(">IIIIII", secrets.randbits(32), 0, 2, 100003, 4, 1) + credentials
    body += opaque(b"") + struct.pack(">II", 0, len(operations)) + b"".join(operations)
    sock.sendall(struct.pack(">I", 1 << 31 | len(body)) + body)
    answer = b""
    while True:
        (head,) = struct.unpack(">I", exactly(sock, 4))
        answer += exactly(sock, head & 0x7FFFFFFF)
        if head >> 31:
            return answer[24:]


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def ask(address: str, operations: list[bytes]) -> Reader:
    """The answer to the last operation; exits with 1 if one of them failed."""
    with connect(address) as sock:
        answer = Reader(call(sock, operations))
    status = answer.number()
    if status:
        print(status)
        sys.exit(1)
    answer.opaque()
    for number in itertools.count(1):
        answer_to, _ = (answer.number(), answer.number()) if number > 1 else _first(answer)
        if number == len(operations):
            return answer
        assert answer_to in (PUTROOTFH, LOOKUP, PUTFH), "only these are without a result"
    raise AssertionError


def _first(answer: Reader) -> tuple[int, int]:
    answer.number()  # how many there are
    return answer.number(), answer.number()


def operation(number: int, arguments: bytes = b"") -> bytes:
    return struct.pack(">I", number) + arguments


def main(address: str, what: str, *words: str) -> None:
    if what == "handle":
        names = [operation(LOOKUP, opaque(name.encode())) for name in words[0].split("/")]
        found = ask(address, [operation(PUTROOTFH), *names, operation(GETFH)])
        print(found.opaque().hex())
        return
    handle = operation(PUTFH, opaque(bytes.fromhex(words[0])))
    if what == "read":
        reading = operation(READ, ANYBODY + struct.pack(">QI", 0, 4096))
        found = ask(address, [handle, reading])
        found.number()
        print(found.opaque().decode())
    else:
        data = opaque(words[1].encode())
        ask(address, [handle, operation(WRITE, ANYBODY + struct.pack(">QI", 0, 2) + data)])


if __name__ == "__main__":
    main(*sys.argv[1:])
