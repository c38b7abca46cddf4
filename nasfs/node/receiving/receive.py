"""``python -m nasfs.node.receiving.receive``: serves the partner's connections, a process for each.

Started by the daemon's listener, with a socket to it as standard input.  Each message that comes
there brings the socket of a connection, before any TLS.  This process imports everything once and
then only forks: the child serves the connection and ends with it.  The answer to each message is
the child's number and a descriptor of it (pidfd_open(2)).  All end when the daemon does.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import NoReturn

from nasfs.errors import NasError
from replication.receiver import serve_connection

from ..buffers import keep_buffers
from ..context import Node
from ..pairing import credentials
from ..places import Places
from .site import NodeSite

log = logging.getLogger(__name__)

NUMBER_BYTES = 8
"""Of an answer: the child's number; big-endian."""


def main() -> int:
    """Until the daemon is gone."""
    parser = argparse.ArgumentParser(prog="nasfs.node.receiving.receive")
    parser.add_argument("--root", default="")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGCHLD, _reap)
    places = Places.find(options.root)
    line = socket.socket(fileno=os.dup(0))
    daemon = os.pidfd_open(os.getppid())
    gc.freeze()  # what is imported stays shared with the children
    while True:
        message, received, _, _ = socket.recv_fds(line, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return 0
        if received:
            with socket.socket(fileno=received[0]) as connection:
                _fork(line, daemon, connection, places)


def _fork(line: socket.socket, daemon: int, connection: socket.socket, places: Places) -> None:
    """A child that serves the connection; the daemon is told."""
    pid = os.fork()
    if not pid:
        _be_child(line, daemon, connection, places)
    answer = pid.to_bytes(NUMBER_BYTES)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended already
        line.send(answer)
        return
    try:
        socket.send_fds(line, [answer], [descriptor])
    finally:
        os.close(descriptor)


def _reap(number: int, frame: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _be_child(
    line: socket.socket, daemon: int, connection: socket.socket, places: Places
) -> NoReturn:
    """Never returns into the frames of the process that was forked."""
    code = 1
    try:
        line.close()  # the daemon has to notice when the one that forks is killed
        os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end)
        os.setsid()
        keep_buffers()
        threading.Thread(target=_end_with_daemon, args=(daemon,), daemon=True).start()
        code = _serve(connection, places)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        log.exception("a connection ended by a mistake of ours")
    finally:
        os._exit(code)


def _serve(connection: socket.socket, places: Places) -> int:
    """The exit code: 0, or the one of the error that ended the connection."""
    connection.setblocking(True)
    try:
        with Node.open(places) as node:
            serve_connection(connection, NodeSite(node), credentials(node))
    except NasError as exc:
        log.info("a connection ended: %s", exc)
        return exc.exit_code
    return 0


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _end_with_daemon(daemon: int) -> None:
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
