"""A sender and a receiver of real volumes as processes of their own, to be killed at any moment.

``python -m tests.breaks_world receiver|sender CONFIG``: CONFIG is a JSON file (see `Config`).  The
sender prints the account after every batch as a JSON line, and ends when the peer has everything.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from replication.client import open_connection
from replication.endpoint import GroupSpec, GroupStatus, PeerIdentity, Sink
from replication.errors import PeerBusy, PeerUnreachable
from replication.local import VolumeSink, VolumeSource
from replication.receiver import serve_connection
from replication.sender import Account, replicate
from replication.transport import Credentials


@dataclass(frozen=True)
class Config:
    """Where the two sites are; addresses are HOST:PORT."""

    active: str
    passive: str
    keys_a: str
    keys_b: str
    listen: str
    through: str

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def credentials(directory: str) -> Credentials:
    return Credentials(Path(directory, "node.crt"), Path(directory, "node.key"))


def identity(name: str, address: str, directory: str) -> PeerIdentity:
    return PeerIdentity(f"uuid-{name}", name, address, Path(directory, "node.crt").read_text())


class Receiver:
    """The passive site: one volume, one group, term 1; a sender asks it for nothing else."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.identity = identity("b", config.listen, config.keys_b)

    def peer(self) -> PeerIdentity | None:
        return identity("a", "", self._config.keys_a)

    def accept_pairing(self, secret: str, candidate: PeerIdentity) -> None:
        raise AssertionError("a sender does not ask this")

    def create_replication(self, spec: GroupSpec) -> None:
        raise AssertionError("a sender does not ask this")

    def operate(self, group: str, operation: str, body: bytes) -> bytes:
        raise AssertionError("a sender does not ask this")

    def group_term(self, group_uuid: str) -> int:
        return 1

    def group_status(self, group_uuid: str) -> GroupStatus:
        raise AssertionError("a sender does not ask this")

    def open_sink(self, group_uuid: str, term: int, volume_uuid: str) -> Sink:
        return VolumeSink(Path(self._config.passive))

    def serve(self) -> None:
        host, _, port = self._config.listen.rpartition(":")
        with socket.create_server((host, int(port)), reuse_port=True) as listener:
            while True:
                sock, _ = listener.accept()
                try:
                    serve_connection(sock, self, credentials(self._config.keys_b))
                except (PeerUnreachable, PeerBusy) as exc:
                    print(f"receiver: {exc}", file=sys.stderr)


def send(config: Config) -> None:
    source = VolumeSource(Path(config.active))
    here = identity("a", "", config.keys_a)
    peer = identity("b", config.through, config.keys_b)

    def tell(account: Account) -> None:
        line = {
            "rows": account.done.rows,
            "bytes": account.done.bytes,
            "phase": account.phase.value,
        }
        print(json.dumps(line), flush=True)

    replicate(
        source,
        lambda: open_connection(here, credentials(config.keys_a), peer, level=1),
        "group",
        1,
        on_progress=tell,
        sleep=lambda seconds: None,
    )
    source.close()


if __name__ == "__main__":
    chosen = Config(**json.loads(Path(sys.argv[2]).read_text()))
    if sys.argv[1] == "receiver":
        Receiver(chosen).serve()
    else:
        send(chosen)
