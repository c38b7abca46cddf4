"""A client that writes numbered records without end and notes which were acknowledged.

    recording.py smb ACKNOWLEDGED SHARE USER PASSWORD ADDRESS...
    recording.py nfs ACKNOWLEDGED HANDLE ADDRESS,OWN-ADDRESS...

It stays with a server as long as that serves, then tries the next address with the same record.
A record counts once the server has said that it is on stable storage: by SMB it is a file of its
own (in a share that syncs always), by NFSv4 a line of one file, whose handle must outlive whatever
happens.  Run by the system's Python, which has Samba's client.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import TextIO

SIZE = 16
"""Bytes of a record by NFS: its number, and a newline."""
PATIENCE_S = 5
"""So long a server may take for a record before the next is tried."""

Write = Callable[[int], None]


def record(number: int) -> bytes:
    return b"%*d\n" % (SIZE - 1, number)


@contextmanager
def by_smb(address: str, share: str, user: str, password: str) -> Iterator[Write]:
    from samba import (  # type: ignore[import-not-found,unused-ignore]
        NTSTATUSError,
        credentials,
    )
    from samba.samba3 import (  # type: ignore[import-not-found,unused-ignore]
        libsmb_samba_internal,
        param,
    )

    config = param.get_context()
    config.load("/dev/null")  # the defaults, whatever this machine's smb.conf says
    who = credentials.Credentials()
    who.set_domain("WORKGROUP")
    who.set_workstation("client")
    who.set_username(user)
    who.set_password(password)
    try:
        connection = libsmb_samba_internal.Conn(address, share, lp=config, creds=who)
        connection.settimeout(PATIENCE_S * 1000)
        yield lambda number: connection.savefile(f"smb-{number}", record(number))
    except NTSTATUSError as exc:
        raise OSError(str(exc)) from exc


@contextmanager
def by_nfs(address: str, handle: str) -> Iterator[Write]:
    import nfs4  # type: ignore[import-not-found]  # beside this program

    with nfs4.connect(address) as connection:
        connection.settimeout(PATIENCE_S)
        where = nfs4.operation(nfs4.PUTFH, nfs4.opaque(bytes.fromhex(handle)))

        def write(number: int) -> None:
            place = struct.pack(">QI", (number - 1) * SIZE, 2)  # 2: on stable storage
            what = nfs4.ANYBODY + place + nfs4.opaque(record(number))
            answer = nfs4.call(connection, [where, nfs4.operation(nfs4.WRITE, what)])
            (status,) = struct.unpack_from(">I", answer)
            if status:
                raise OSError(f"NFS error {status}")

        yield write


def main(kind: str, acknowledged: str, *words: str) -> None:
    kinds: dict[str, Callable[..., AbstractContextManager[Write]]] = {"smb": by_smb, "nfs": by_nfs}
    open_session = kinds[kind]
    split = {"smb": 3, "nfs": 1}[kind]
    with Path(acknowledged).open("a", buffering=1) as told:
        write_on(told, cycle(words[split:]), lambda address: open_session(address, *words[:split]))


def write_on(
    told: TextIO,
    addresses: Iterator[str],
    open_session: Callable[[str], AbstractContextManager[Write]],
) -> None:
    number = 1
    for address in addresses:
        try:
            with open_session(address) as write:
                while True:
                    write(number)
                    told.write(f"{number} {address} {time.monotonic_ns()}\n")
                    number += 1
        except (OSError, EOFError) as exc:
            print(address, number, exc, file=sys.stderr, flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
