"""The one place where our exceptions become error numbers for the kernel.

An exception other than `pyfuse3.FUSEError` in a handler ends the whole mount, so every handler
is decorated with `handler`.  It also does the waiting for the disk: what is not in memory is
fetched in a thread, while other requests go on, and then the request begins anew.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio

from nasfs.fuse.loop import in_thread
from nasfs.volume import CorruptionError, FsError, MediaError, WouldWait

log = logging.getLogger(__name__)


class _Operations(Protocol):
    def distrust(self, reason: str) -> None:
        """The volume contradicts itself: let nobody change it any more."""
        ...


_Self = TypeVar("_Self", bound=_Operations)
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def handler(
    function: Callable[Concatenate[_Self, _Args], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Self, _Args], Coroutine[Any, Any, _Result]]:
    """Let nothing but `FUSEError` (and cancellation) out of a handler.

    The handler may run several times: where it raises `WouldWait` it has changed nothing.
    """
    name = function.__name__

    async def translated(self: _Self, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        try:
            while True:
                try:
                    return await function(self, *args, **kwargs)
                except WouldWait as exc:
                    fetch = exc.fetch
                await in_thread(fetch, limiter=trio.to_thread.current_default_thread_limiter())
        except FsError as exc:
            raise pyfuse3.FUSEError(exc.errno) from exc
        except pyfuse3.FUSEError:
            raise
        except MediaError as exc:
            log.error("%s: %s", name, exc)
            raise pyfuse3.FUSEError(exc.errno) from exc
        except CorruptionError as exc:
            log.critical("%s: %s", name, exc)
            self.distrust(str(exc))
            raise pyfuse3.FUSEError(errno.EIO) from exc
        except Exception as exc:
            # A bug, and perhaps half a change: better the last commit than that.
            log.exception("%s failed", name)
            self.distrust(f"internal error in {name}: {exc!r}")
            raise pyfuse3.FUSEError(errno.EIO) from exc

    functools.update_wrapper(translated, function)
    return translated
