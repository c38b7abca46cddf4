"""Witnesses for `verify`: of a volume on this node, and of the partner's, asked over a connection.

The partner's are prepared by a thread while this node reads its own disk, a few seconds' worth at
most.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from nasfs.volume import Access, Run, open_volume
from nasfs.volume.digest import ZERO, Digests
from nasfs.volume.digest import Facts as EngineFacts

from .digests import (
    ANSWER_BYTES,
    DIGEST,
    GROUP_BLOCKS,
    Answer,
    AskBlocks,
    AskEntries,
    AskFacts,
    AskParts,
    AskPath,
    BlocksAnswer,
    EntriesAnswer,
    EntryFact,
    Facts,
    FactsAnswer,
    InodeFact,
    Part,
    PartsAnswer,
    PathAnswer,
    Question,
    XattrFact,
)
from .errors import RemoteProtocolError

T = TypeVar("T")
A = TypeVar("A", bound=Answer)

STEP_S = 1.0
"""About so long a question after parts is worked on."""
PARTS = 8192
"""The most that one answer has."""
AHEAD = 4
"""Answers that wait to be compared."""


class LocalWitness:
    """A sealed snapshot of a volume on this node; nobody destroys it before `close`."""

    def __init__(self, path: Path, snapshot: str) -> None:
        self.on_part: Callable[[], None] = lambda: None
        """Called after each part that was read."""
        self.volume = open_volume(path, Access.READ_ONLY)
        try:
            self.snapshot, self._lease = self.volume.lease(snapshot)
            self._digests = Digests(self.volume, self.snapshot.epoch)
        except BaseException:
            self.volume.close()
            raise

    def close(self) -> None:
        self._lease.release()
        self.volume.close()

    @property
    def read_bytes(self) -> int:
        """Bytes of file data read from the disk so far."""
        return self._digests.read_bytes

    def parts(self, after: tuple[int, int, int] | None = None) -> Iterator[Part]:
        for part in self._digests.parts(after):
            self.on_part()
            yield Part(*part)

    def facts(self, page: int, after: int = -1) -> Iterator[Facts]:
        return map(_facts, self._digests.facts(page, after))

    def entries(self, ino: int, after: bytes = b"") -> Iterator[EntryFact]:
        return (EntryFact(*entry) for entry in self._digests.entries(ino, after))

    def blocks(self, ino: int, first: int, stop: int) -> bytes:
        return self._digests.blocks(ino, first, stop)

    def path(self, ino: int) -> bytes | None:
        return self._digests.path(ino)

    def mapped(self, ino: int) -> Iterator[Run]:
        """Where the blocks of a file are, without holes."""
        return self._digests.mapped(ino)

    # for the partner

    def answer(self, question: Question) -> bytes:
        """What it asks, for `RemoteWitness`."""
        return msgspec.msgpack.encode(self._answer(question))

    def _answer(self, question: Question) -> Answer:
        match question.ask:
            case AskParts(after=after):
                return self._answer_parts(after)
            case AskFacts(page=page, after=last):
                facts, end = _up_to(self.facts(page, last), _size_of_facts)
                return FactsAnswer(tuple(facts), end)
            case AskEntries(ino=ino, after=name):
                entries, end = _up_to(self.entries(ino, name), lambda entry: 24 + len(entry.name))
                return EntriesAnswer(tuple(entries), end)
            case AskBlocks(ino=ino, first=first, stop=stop):
                return BlocksAnswer(self.blocks(ino, first, min(stop, first + GROUP_BLOCKS)))
            case AskPath(ino=ino):
                return PathAnswer(self.path(ino))

    def _answer_parts(self, after: tuple[int, int, int] | None) -> PartsAnswer:
        ends = time.monotonic() + STEP_S
        parts: list[Part] = []
        left = PARTS
        for part in islice(self.parts(after), PARTS):
            left -= 1
            # The last one tells where to go on, whatever it says.
            if parts and parts[-1].digest == ZERO:
                parts.pop()
            parts.append(part)
            if time.monotonic() > ends:
                return PartsAnswer(tuple(parts), end=False)
        return PartsAnswer(tuple(parts), end=left > 0)


def _facts(facts: EngineFacts) -> Facts:
    inode = None if facts.inode is None else InodeFact(facts.inode[:-1], facts.inode[-1])
    xattrs = tuple(XattrFact(*xattr) for xattr in facts.xattrs)
    return Facts(facts.ino, inode, xattrs, facts.entries, facts.data)


def _size_of_facts(facts: Facts) -> int:
    return 256 + sum(DIGEST + 4 + len(xattr.name) for xattr in facts.xattrs)


def _up_to(items: Iterator[T], size: Callable[[T], int]) -> tuple[list[T], bool]:
    """As many as fit into an answer, one at least; whether these are all."""
    room, found = ANSWER_BYTES, list[T]()
    for item in items:
        found.append(item)
        room -= size(item)
        if room <= 0:
            return found, False
    return found, True


class RemoteWitness:
    """The partner's snapshot.

    Args:
        ask: has the partner answer a question; may be called in any thread, one at a time.
    """

    def __init__(self, ask: Callable[[bytes], bytes], volume: str, snapshot: str) -> None:
        self._ask_partner = ask
        self._turn = threading.Lock()
        self._volume = volume
        self._snapshot = snapshot

    def parts(self) -> Iterator[Part]:
        answers: queue.Queue[PartsAnswer | BaseException] = queue.Queue(AHEAD)
        over = threading.Event()
        thread = threading.Thread(
            target=self._fetch, args=(answers, over), name="partner", daemon=True
        )
        thread.start()
        try:
            while True:
                answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield from answer.parts
                if answer.end:
                    return
        finally:
            over.set()
            while thread.is_alive():  # it may wait for room
                with_room = not answers.empty()
                if with_room:
                    answers.get_nowait()
                thread.join(0.05)

    def _fetch(
        self, answers: queue.Queue[PartsAnswer | BaseException], over: threading.Event
    ) -> None:
        after: tuple[int, int, int] | None = None
        try:
            while not over.is_set():
                answer = self._ask(AskParts(after), PartsAnswer)
                if not answer.parts and not answer.end:
                    raise RemoteProtocolError("it tells no parts, though there are more")
                answers.put(answer)
                if answer.end:
                    return
                if after is not None and answer.parts[-1].key <= after:
                    raise RemoteProtocolError("its parts are not in their order")
                after = answer.parts[-1].key
        except BaseException as exc:  # carried to the thread that compares, and raised there
            answers.put(exc)

    def facts(self, page: int) -> Iterator[Facts]:
        after, end = -1, False
        while not end:
            answer = self._ask(AskFacts(page, after), FactsAnswer)
            yield from answer.facts
            end = answer.end or not answer.facts
            after = answer.facts[-1].ino if answer.facts else after

    def entries(self, ino: int) -> Iterator[EntryFact]:
        after, end = b"", False
        while not end:
            answer = self._ask(AskEntries(ino, after), EntriesAnswer)
            yield from answer.entries
            end = answer.end or not answer.entries
            after = answer.entries[-1].name if answer.entries else after

    def blocks(self, ino: int, first: int, stop: int) -> bytes:
        return self._ask(AskBlocks(ino, first, stop), BlocksAnswer).digests

    def path(self, ino: int) -> bytes | None:
        return self._ask(AskPath(ino), PathAnswer).path

    def _ask(
        self, ask: AskParts | AskFacts | AskEntries | AskBlocks | AskPath, answer: type[A]
    ) -> A:
        question = Question(self._volume, self._snapshot, ask)
        with self._turn:
            body = self._ask_partner(msgspec.msgpack.encode(question))
        try:
            return msgspec.msgpack.decode(body, type=answer)
        except msgspec.MsgspecError as exc:
            raise RemoteProtocolError(f"its answer is none: {exc}") from exc


def read_question(body: bytes) -> Question:
    """Raises RemoteProtocolError."""
    try:
        return msgspec.msgpack.decode(body, type=Question)
    except msgspec.MsgspecError as exc:
        raise RemoteProtocolError(f"its question is none: {exc}") from exc
