"""``python -m nasfs.node.receive --fd N``: serves one connection of the partner, then ends.

Started by the daemon's listener, with the socket inherited before any TLS.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys

from nasfs.errors import NasError
from replication.receiver import serve_connection

from .children import end_with_daemon
from .context import Node
from .pairing import credentials
from .places import Places
from .site import NodeSite

log = logging.getLogger(__name__)


def main() -> int:
    """The exit code: 0, or the one of the error that ended the connection."""
    parser = argparse.ArgumentParser(prog="nasfs.node.receive")
    parser.add_argument("--root", default="")
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    end_with_daemon()
    sock = socket.socket(fileno=options.fd)
    sock.setblocking(True)
    try:
        with Node.open(Places.find(options.root)) as node:
            serve_connection(sock, NodeSite(node), credentials(node))
    except NasError as exc:
        log.info("a connection ended: %s", exc)
        return exc.exit_code
    return 0


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
