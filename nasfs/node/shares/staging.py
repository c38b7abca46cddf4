"""The staging area: what the partner's shares and accounts are, as it told last, and before.

One file for each time something new came, below the state directory, of mode 0600: the first
line tells of it, the rest is the payload to the byte.  Nothing here touches what is served.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nasfs.errors import Failed
from sharecfg.payload import Payload, decode_payload, digest

from ..context import Node
from ..records import Group
from .share_files import replace_file

log = logging.getLogger(__name__)

KEPT = 5
"""So many of a group are kept."""
_FILE = re.compile(r"(\d{20})\.staged")


class Staged(msgspec.Struct, frozen=True):
    """What came at one time."""

    number: int
    time_ns: int
    digest: str
    snapshot: str
    """The newest snap group of the group that was complete here then."""
    term: int
    """In which the partner was active."""


def staged_directory(node: Node, group: Group) -> Path:
    return node.places.state / "staging" / group.uuid


def stage(node: Node, group: Group, data: bytes, snapshot: str) -> Staged:
    """Keep a payload: the newest from now on, durable.

    Raises:
        Failed: it cannot be read, or not be written.
    """
    decode_payload(data)
    before = history(node, group)
    number = max((staged.number for staged in before), default=0) + 1
    staged = Staged(number, time.time_ns(), digest(data), snapshot, group.term)
    directory = staged_directory(node, group)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    body = msgspec.json.encode(staged) + b"\n" + data
    replace_file(_path(directory, number), body, mode=0o600)
    for old in before[KEPT - 1 :]:
        _path(directory, old.number).unlink(missing_ok=True)
    return staged


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:020}.staged"


def history(node: Node, group: Group) -> list[Staged]:
    """What came, newest first; what is damaged is left out."""
    return [told for told, _ in _staged(node, group)]


def _staged(node: Node, group: Group) -> Iterator[tuple[Staged, bytes]]:
    """With the payloads, as they are on the disk."""
    directory = staged_directory(node, group)
    try:
        names = sorted((path.name for path in directory.iterdir()), reverse=True)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Failed(f"cannot read {directory}: {exc.strerror}") from exc
    for name in filter(_FILE.fullmatch, names):
        try:
            yield _read(directory / name)
        except Failed as exc:
            log.warning("%s", exc)


def newest(node: Node, group: Group) -> tuple[Staged, Payload] | None:
    """What counts; None: nothing ever came.

    Raises:
        Failed: it is there and cannot be read.
    """
    found = history(node, group)
    return (found[0], payload_of(node, group, found[0])) if found else None


def newest_digest(node: Node, group: Group) -> str:
    """Of what counts, if it is whole and came in this term; empty: nothing did.

    What an earlier primary told is over, even if this one tells the same.

    Raises:
        Failed: it is there and cannot be read, or is damaged.
    """
    found = next(_staged(node, group), None)
    if found is None:
        return ""
    told, data = found
    if told.term != group.term:
        return ""
    if digest(data) != told.digest:
        raise Failed(f"what is staged of group {group.name} is damaged")
    return told.digest


def payload_of(node: Node, group: Group, staged: Staged) -> Payload:
    """Raises Failed if it is damaged or gone."""
    path = _path(staged_directory(node, group), staged.number)
    told, data = _read(path)
    if digest(data) != told.digest:
        raise Failed(f"{path} is damaged", hint="the next replication brings it anew")
    return decode_payload(data)


def forget(node: Node, group_uuid: str) -> None:
    """Of a group that is no longer here."""
    directory = node.places.state / "staging" / group_uuid
    if directory.is_dir():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def _read(path: Path) -> tuple[Staged, bytes]:
    try:
        line, _, data = path.read_bytes().partition(b"\n")
        return msgspec.json.decode(line, type=Staged), data
    except OSError as exc:
        raise Failed(f"cannot read {path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise Failed(f"{path} is damaged", hint="the next replication brings it anew") from exc
