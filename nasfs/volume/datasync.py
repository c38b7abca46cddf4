"""Making what was written to layers durable, in a thread."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, overload

from nasfs.volume.behind import LayerKey, WriteLog
from nasfs.volume.errors import MediaError

if TYPE_CHECKING:
    from nasfs.volume.layers import Layers


class DataSync:
    """A piece of work: make the data written so far durable.  `run` may be called in a thread.

    Args:
        keys: layers that were written or punched.
        directories: those in which names came or went, by their number.
        logs: what waits to be written, by layer.
    """

    def __init__(
        self,
        layers: Layers,
        keys: frozenset[LayerKey],
        directories: frozenset[int],
        logs: dict[LayerKey, WriteLog],
    ) -> None:
        self._layers = layers
        self.keys = keys
        self.directories = directories
        self.logs = logs
        self.lost = False
        """After a failure: some of the data may be gone.  Otherwise it waits as before."""
        self._writing = threading.Lock()
        self._is_written = not logs
        self._refusal: MediaError | None = None

    @property
    def count(self) -> int:
        """Files and directories to sync."""
        return len(self.keys) + len(self.directories)

    def run(self) -> None:
        layers = self._layers
        try:
            self.write()
            self.lost = True  # unless the sync says that it is there
            layers.media.sync_files(
                _Paths(layers, sorted(self.keys)),
                [layers.directory(index) for index in sorted(self.directories)],
            )
        except BaseException:
            layers.sync_ended(self, failed=True)
            raise
        self.lost = False
        layers.sync_ended(self, failed=False)

    def write(self) -> None:
        """The host has all that waited, on return; who comes second waits for the first.

        Raises:
            MediaError: it refused; nothing is lost, see `Layers.take_back`.
        """
        if self._is_written:
            return
        with self._writing:
            if self._refusal is not None:
                raise MediaError(self._refusal.errno, self._refusal.where, self._refusal.hint)
            if self._is_written:
                return
            try:
                self._write_all()
            except MediaError as exc:
                self._refusal = exc
                # A full disk may have room again, and all is here still.
                self.lost = exc.errno != errno.ENOSPC
                raise
            self._is_written = True
            self._layers.landed(self)

    def _write_all(self) -> None:
        media = self._layers.media
        for key, log in self.logs.items():
            fd = media.open(self._layers.path(*key), write=True)
            try:
                log.write(media, fd)
            finally:
                media.close(fd)

    def wait_written(self) -> None:
        """Until the host has taken what waited, or refused.  May be called in a thread."""
        with suppress(MediaError):
            self.write()


class _Paths(Sequence[Path]):
    """The paths of layers, each made when it is asked for: of many only the first one is."""

    def __init__(self, layers: Layers, keys: list[LayerKey]) -> None:
        self._layers = layers
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, slice):
            return _Paths(self._layers, self._keys[index])
        return self._layers.path(*self._keys[index])
