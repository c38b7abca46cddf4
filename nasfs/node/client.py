"""The API's client: HTTP over the daemon's UNIX socket."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from nasfs.errors import Failed, NasError, Unreachable

from .messages import ErrorView, Request
from .places import Places
from .sockets import short_path

T = TypeVar("T")

TIMEOUT_S = 300.0
"""Operations wait for mounts and disks; whether the daemon is there shows at once."""


class ApiError(NasError):
    """What the daemon answered instead of a result."""

    def __init__(self, view: ErrorView) -> None:
        super().__init__(view)
        self.message = view.message
        self.hint = view.hint
        self.exit_code = view.exit_code  # type: ignore[misc]  # the daemon knows the class

    def __str__(self) -> str:
        return self.message


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
        try:
            with short_path(self._places.api_socket) as socket_path:
                self._knock(socket_path)
                transport = httpx.HTTPTransport(uds=socket_path)
                with (
                    httpx.Client(transport=transport, timeout=TIMEOUT_S) as http,
                    http.stream(
                        "GET" if body is None else "POST",
                        f"http://node{path}",
                        params=query,
                        content=b"" if body is None else msgspec.json.encode(body),
                    ) as response,
                ):
                    if not response.is_success:
                        raise ApiError(msgspec.json.decode(response.read(), type=ErrorView))
                    for line in _split_lines(response.iter_bytes()):
                        if line.startswith(b'{"end":'):
                            return
                        yield msgspec.json.decode(line, type=item)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
            raise self._no_daemon() from exc
        except (httpx.HTTPError, OSError) as exc:
            raise Unreachable(f"the daemon went away: {exc}", hint="look at its log") from exc
        except msgspec.MsgspecError as exc:
            raise Failed(f"the daemon answered what we do not understand: {exc}") from exc
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
        content = msgspec.json.encode(body) if body is not None else b""
        try:
            with short_path(self._places.api_socket) as socket_path:
                self._knock(socket_path)
                transport = httpx.HTTPTransport(uds=socket_path)
                with httpx.Client(transport=transport, timeout=timeout_s) as http:
                    response = http.request(
                        method,
                        f"http://node{path}",
                        content=content,
                        params=query,
                        headers={"connection": "close"},
                    )
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
            raise self._no_daemon() from exc
        except (httpx.HTTPError, OSError) as exc:
            raise Unreachable(f"the daemon went away: {exc}", hint="look at its log") from exc
        try:
            if response.is_success:
                return msgspec.json.decode(response.content, type=answer)
            raise ApiError(msgspec.json.decode(response.content, type=ErrorView))
        except msgspec.MsgspecError as exc:
            raise Failed(f"the daemon answered what we do not understand: {exc}") from exc

    @staticmethod
    def _knock(socket_path: str) -> None:
        """Raises OSError if nobody listens there (httpx would lose a descriptor on that)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(socket_path)

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


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, without their ends.  (An httpx response splits at other characters, too.)"""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def volume_url(pool: str, volume: str) -> str:
    return f"/v1/volumes/{quote(pool, safe='')}/{quote(volume, safe='')}"


def group_url(group: str) -> str:
    return f"/v1/groups/{quote(group, safe='')}"


def replication_url(group: str) -> str:
    return f"/v1/replications/{quote(group, safe='')}"


def partner_url(group_uuid: str, operation: str) -> str:
    return f"/v1/partner/{quote(group_uuid, safe='')}/{quote(operation, safe='')}"
