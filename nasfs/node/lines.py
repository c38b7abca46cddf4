"""An answer of any length: a JSON object on each line, made while it is read.

The last line is the only one with the key "end": whoever does not see it has not seen all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LINES = 500
"""So many are made, and held in memory, at once."""

TYPE = "application/x-ndjson"


class LinesResponse(Response):
    """Streams what *make* gives, and closes *source* when all is sent or nobody reads on."""

    def __init__(
        self,
        source: AbstractContextManager[object],
        make: Callable[[], Iterator[object]],
        end: Callable[[], object],
    ) -> None:
        super().__init__(media_type=TYPE)
        del self.headers["content-length"]
        self._source = source
        self._make = make
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._source:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            objects = self._make()
            while body := await trio.to_thread.run_sync(self._encode, objects):
                await send({"type": "http.response.body", "body": body, "more_body": True})
            last = msgspec.json.encode({"end": self._end()}) + b"\n"
            await send({"type": "http.response.body", "body": last})

    @staticmethod
    def _encode(objects: Iterator[object]) -> bytes:
        return b"".join(msgspec.json.encode(value) + b"\n" for value in islice(objects, LINES))
