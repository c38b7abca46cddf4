"""The API's client: HTTP over the daemon's UNIX socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from nasfs.errors import Failed, NasError, Unreachable

from .messages import ErrorView, Request
from .places import Places
from .sockets import short_path

T = TypeVar("T")

TIMEOUT_S = 300.0
"""Operations wait for mounts and disks; whether the daemon is there shows at once."""
_PIECE = 1 << 16


class ApiError(NasError):
    """What the daemon answered instead of a result."""

    def __init__(self, view: ErrorView) -> None:
        super().__init__(view)
        self.message = view.message
        self.hint = view.hint
        self.exit_code = view.exit_code  # type: ignore[misc]  # the daemon knows the class

    def __str__(self) -> str:
        return self.message


class _LocalConnection(HTTPConnection):
    """HTTP over a UNIX socket.  (A library for the web would take longer than most answers.)"""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("node", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Asks the daemon of one node."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def get(self, path: str, answer: type[T], **query: str) -> T:
        return self._ask("GET", path, answer, None, query)

    def post(
        self,
        path: str,
        answer: type[T],
        body: Request | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> T:
        return self._ask("POST", path, answer, body, {}, timeout_s)

    def patch(self, path: str, answer: type[T], body: Request) -> T:
        return self._ask("PATCH", path, answer, body, {})

    def lines(
        self, path: str, item: Any, body: Request | None = None, **query: str
    ) -> Iterator[Any]:
        """The objects of an answer of any length, as they come.

        Args:
            item: their type, or a union of types.
            body: asks by POST.

        Raises:
            Unreachable, ApiError: also in the middle.
        """
        method = "GET" if body is None else "POST"
        with self._answer(method, path, body, query, TIMEOUT_S) as response:
            if not _is_success(response):
                raise ApiError(_decoded(response.read(), ErrorView))
            for line in _split_lines(response):
                if line.startswith(b'{"end":'):
                    return
                yield _decoded(line, item)
        raise Unreachable("the daemon went away before it had told all", hint="look at its log")

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: Request | None,
        query: dict[str, str],
        timeout_s: float = TIMEOUT_S,
    ) -> T:
        """The typed answer.

        Raises:
            Unreachable: no daemon, or it went away.
            ApiError: it said no.
        """
        with self._answer(method, path, body, query, timeout_s) as response:
            said = response.read()
        if _is_success(response):
            found: T = _decoded(said, answer)
            return found
        raise ApiError(_decoded(said, ErrorView))

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Request | None, query: dict[str, str], timeout_s: float
    ) -> Iterator[HTTPResponse]:
        """While it is read; raises Unreachable."""
        content = msgspec.json.encode(body) if body is not None else None
        url = f"{path}?{urlencode(query)}" if query else path
        try:
            with short_path(self._places.api_socket) as socket_path:
                connection = _LocalConnection(socket_path, timeout_s)
                try:
                    connection.request(method, url, content, {"Connection": "close"})
                    yield connection.getresponse()
                finally:
                    connection.close()
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
            raise self._no_daemon() from exc
        except (HTTPException, OSError) as exc:
            raise Unreachable(f"the daemon went away: {exc}", hint="look at its log") from exc

    def _no_daemon(self) -> Unreachable:
        root = f"--root {self._places.root} " if self._places.root else ""
        if not self._places.database.exists():
            return Unreachable(
                "there is no node here yet, and no daemon",
                hint=f"make one: nasfs {root}node init; then start it: nasfs {root}node run",
            )
        return Unreachable(
            "the daemon of this node does not run", hint=f"start it: nasfs {root}node run"
        )


def _is_success(response: HTTPResponse) -> bool:
    return 200 <= response.status < 300


def _decoded(said: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(said, type=kind)
    except msgspec.MsgspecError as exc:
        raise Failed(f"the daemon answered what we do not understand: {exc}") from exc


def _split_lines(response: HTTPResponse) -> Iterator[bytes]:
    """Whole lines, without their ends, as they come."""
    rest = b""
    while piece := response.read1(_PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def volume_url(pool: str, volume: str) -> str:
    return f"/v1/volumes/{quote(pool, safe='')}/{quote(volume, safe='')}"


def group_url(group: str) -> str:
    return f"/v1/groups/{quote(group, safe='')}"


def replication_url(group: str) -> str:
    return f"/v1/replications/{quote(group, safe='')}"


def partner_url(group_uuid: str, operation: str) -> str:
    return f"/v1/partner/{quote(group_uuid, safe='')}/{quote(operation, safe='')}"
