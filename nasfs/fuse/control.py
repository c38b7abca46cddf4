"""The control socket of a mount: snapshots and statistics for the daemon and the command.

One JSON object per line: a request `{"op": NAME, ...}`, an answer `{"ok": true, "result": ...}`
or `{"ok": false, "error": {"message", "hint", "exit_code"}}`.  Requests are typed; each type has
its own function.  The socket belongs to the owner of the mount process alone (mode 0600).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgspec
import trio

from nasfs.errors import ConfigError, Failed, NasError, Refused, Unreachable
from nasfs.volume import Summary

log = logging.getLogger(__name__)

MAX_LINE = 1 << 20
"""Bytes of the longest request that is read."""


class Request(msgspec.Struct, tag_field="op", forbid_unknown_fields=True, frozen=True):
    """Root of the requests; the field "op" tells which one it is."""


class Ping(Request, tag="ping", frozen=True):
    """Who serves this mount."""


class Stats(Request, tag="stats", frozen=True):
    """What the volume holds, and what the mount has done."""


class Changed(Request, tag="changed", frozen=True):
    """Whether anything was changed after a snapshot."""

    snapshot: str
    """Its name or GUID."""


class Commit(Request, tag="commit", frozen=True):
    """Make everything durable."""


class TakeSnapshot(Request, tag="snapshot", frozen=True):
    """Seal; the answer is the durable snapshot."""

    name: str
    guid: str | None = None
    time_ns: int | None = None
    snap_group: str = ""


class HoldChanges(Request, tag="changes_hold", frozen=True):
    """Let nothing change, for *limit_s* seconds at most; the answer is a token to end it with."""

    limit_s: float


class SealHeld(Request, tag="changes_seal", frozen=True):
    """Seal what is held, as a pending snapshot; then changes go on.  Durable when answered."""

    token: str
    name: str
    time_ns: int
    snap_group: str


class LetChange(Request, tag="changes_release", frozen=True):
    """Changes go on; a token that is over already is fine."""

    token: str


class SettleSnapshot(Request, tag="snapshot_settle", frozen=True):
    """Offer the pending snapshot of a snap group, or drop it; durable when answered."""

    snap_group: str
    keep: bool


class RenameSnapshot(Request, tag="snapshot_rename", frozen=True):
    name: str
    new_name: str


class DestroySnapshots(Request, tag="snapshot_destroy", frozen=True):
    """All of them or, if one is missing or held, none."""

    names: list[str]


class Hold(Request, tag="hold", frozen=True):
    name: str
    owner: str
    reason: str = ""


class Release(Request, tag="release", frozen=True):
    name: str
    owner: str


class RollBack(Request, tag="rollback", frozen=True):
    """The live view becomes that snapshot; the answer is the one that keeps what it was."""

    name: str
    keep_as: str
    kept: str = ""
    """A snapshot that keeps it already, unless something was changed since; empty: none does."""


class RestorePath(Request, tag="restore", frozen=True):
    """A file or tree of a snapshot comes back; the answer is a `Restored`."""

    name: str
    source: list[bytes]
    """The names on the way from the root; bytes are base 64 in JSON."""
    target: list[bytes]
    replace: bool = False
    keep_as: str = ""
    """The snapshot that is taken if something is replaced; none if empty."""


class Restored(msgspec.Struct, frozen=True):
    summary: Summary
    kept: bool
    """Whether the snapshot was taken."""


class ListSnapshots(Request, tag="list_snapshots", frozen=True):
    """Whether the root lists `.snapshots`, from now on and after the next mount."""

    on: bool


class Resize(Request, tag="resize", frozen=True):
    """Another size, in bytes; durable when it is answered."""

    size: int


class Stop(Request, tag="stop", frozen=True):
    """Make everything durable, answer, unmount and end."""


AnyRequest = (
    Ping
    | Stats
    | Changed
    | Commit
    | TakeSnapshot
    | HoldChanges
    | SealHeld
    | LetChange
    | SettleSnapshot
    | RenameSnapshot
    | DestroySnapshots
    | Hold
    | Release
    | RollBack
    | RestorePath
    | ListSnapshots
    | Resize
    | Stop
)

Handlers = Mapping[type[Any], Callable[[Any], Awaitable[object]]]
"""For each request type the function that answers it, with JSON or a msgspec struct."""


class ControlSocket:
    """A listening UNIX socket and its file; one that a killed process left is replaced.

    Raises:
        Failed: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(self.socket.fileno(), 0o600)  # bind gives it to the file
            with _directory(path) as directory:
                fresh = f"{directory}/.{os.getpid()}.new"
                self.socket.bind(fresh)
                self.socket.listen(64)
                self._stat = os.stat(fresh)
                os.rename(fresh, f"{directory}/{path.name}")
        except OSError as exc:
            self.socket.close()
            raise Failed(f"the control socket {path} cannot be made: {exc.strerror}") from exc

    def close(self) -> None:
        """Stop listening and remove the file, unless another process has replaced it."""
        self.socket.close()
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), self._stat):
                self._path.unlink()


class ControlServer:
    """Answers requests on a UNIX socket.

    Args:
        handlers: one for every type in `AnyRequest`.
        on_stopped: called when a `Stop` was carried out and answered.
        release: given the token of each `HoldChanges` of a connection that has ended.
    """

    def __init__(
        self,
        listening: ControlSocket,
        handlers: Handlers,
        *,
        on_stopped: Callable[[], None],
        release: Callable[[str], None],
    ) -> None:
        self._listening = listening
        self._handlers = handlers
        self._on_stopped = on_stopped
        self._release = release
        self._decoder = msgspec.json.Decoder(AnyRequest)

    async def serve(self) -> None:
        """Answer until cancelled."""
        sock = trio.socket.from_stdlib_socket(self._listening.socket.dup())
        await trio.serve_listeners(self._serve_one, [trio.SocketListener(sock)])

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        tokens: list[str] = []
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._converse(stream, tokens)
        finally:
            for token in tokens:  # whoever holds changes and dies must not stop the others
                self._release(token)

    async def _converse(self, stream: trio.SocketStream, tokens: list[str]) -> None:
        """Args: tokens: to which those of the changes that are held are added."""
        buffer = bytearray()
        while chunk := await stream.receive_some():
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                request, result, answer = await self._answer(line)
                if isinstance(request, HoldChanges):
                    tokens.append(str(result))
                await stream.send_all(answer + b"\n")
                if isinstance(request, Stop):
                    self._on_stopped()
            if len(buffer) > MAX_LINE:
                await stream.send_all(_error("the request is too long", exit_code=2) + b"\n")
                return

    async def _answer(self, line: bytes) -> tuple[Request | None, object, bytes]:
        """The request, if it was carried out, its result and the answer."""
        try:
            request = self._decoder.decode(line)
            result = await self._handlers[type(request)](request)
            return request, result, msgspec.json.encode({"ok": True, "result": result})
        except msgspec.MsgspecError as exc:
            return None, None, _error(f"bad request: {exc}", exit_code=2)
        except NasError as exc:
            return None, None, _error(str(exc), hint=exc.hint, exit_code=exc.exit_code)
        except Exception as exc:
            log.exception("control request failed")
            return None, None, _error(f"internal error: {exc!r}")


def _error(message: str, *, hint: str = "", exit_code: int = 1) -> bytes:
    error = {"message": message, "hint": hint, "exit_code": exit_code}
    return msgspec.json.encode({"ok": False, "error": error})


@contextmanager
def _directory(path: Path) -> Iterator[str]:
    """A short name for the directory of *path*: socket addresses end at 107 bytes."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


class Conversation:
    """Questions to a mount process and its answers, in order; for callers that may block.

    Raises:
        Unreachable: nobody listens.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._translated(), _directory(path) as directory:
                self._socket.connect(f"{directory}/{path.name}")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, op: str, **args: object) -> None:
        """Ask.  Raises Unreachable."""
        with self._translated():
            self._socket.settimeout(None)
            self._socket.sendall(msgspec.json.encode({"op": op, **args}) + b"\n")

    def receive(self, deadline: float) -> Any:
        """The result of the oldest question that has none yet.

        Args:
            deadline: by `time.monotonic`.

        Raises:
            Unreachable: it did not come in time, or the process has ended.
            Failed, Refused, ConfigError: what the mount process answered.
        """
        with self._translated():
            line = _receive_line(self._socket, deadline)
        return _result(line)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as exc:
            raise Unreachable(f"the mount did not answer in time ({self._path})") from exc
        except OSError as exc:
            raise Unreachable(
                f"no mount answers at {self._path}: {exc.strerror}",
                hint="is the volume mounted? see: nasfs volume show",
            ) from exc


class ControlClient:
    """Asks a mount process one thing at a time; for callers that may block.

    Args:
        timeout_s: how long one answer may take in all.
    """

    def __init__(self, path: Path, *, timeout_s: float = 60.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def call(self, op: str, **args: object) -> Any:
        """The result of one request.

        Raises:
            Unreachable: nobody listens, or no answer came in time.
            Failed, Refused, ConfigError: what the mount process answered.
        """
        deadline = time.monotonic() + self._timeout_s
        with Conversation(self._path) as conversation:
            conversation.send(op, **args)
            return conversation.receive(deadline)


def _receive_line(sock: socket.socket, deadline: float) -> bytes:
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        chunk = sock.recv(65_536)
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "it ended before it answered")
        buffer += chunk
    return bytes(buffer)


class _Error(msgspec.Struct):
    message: str
    hint: str
    exit_code: int


class _Answer(msgspec.Struct):
    ok: bool
    result: Any = None
    error: _Error | None = None


_ERRORS: Mapping[int, type[Failed | ConfigError | Refused | Unreachable]] = {
    2: ConfigError,
    3: Refused,
    4: Unreachable,
}


def _result(line: bytes) -> Any:
    try:
        answer = msgspec.json.decode(line, type=_Answer)
    except msgspec.MsgspecError as exc:
        raise Failed(f"the mount answered what we do not understand: {exc}") from exc
    if answer.ok:
        return answer.result
    error = answer.error or _Error("the mount did not say what failed", "", 1)
    raise _ERRORS.get(error.exit_code, Failed)(error.message, error.hint)
