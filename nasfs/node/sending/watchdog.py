"""Whether a transfer gets on: each stage may be without progress for so long.  Pure."""

from __future__ import annotations

from .reports import Running

STALL_S = {"connecting": 60.0, "comparing": 1800.0, "sending": 120.0, "sealing": 900.0}
"""Seconds without any progress in each stage; comparing and sealing can be long work."""
OTHER_S = 120.0


class Watchdog:
    """Told every report, it knows when too long nothing was new."""

    def __init__(self, now: float) -> None:
        self._latest: tuple[object, ...] = ()
        self._since = now
        self._phase = "connecting"

    def note(self, running: Running, now: float) -> None:
        """What was reported; the same again is no progress."""
        state = (
            running.phase, running.snapshot, running.rows_done, running.bytes_done,
            running.wire_bytes,
        )  # fmt: skip
        if state != self._latest:
            self._latest, self._since, self._phase = state, now, running.phase

    @property
    def patience_s(self) -> float:
        return STALL_S.get(self._phase, OTHER_S)

    @property
    def deadline(self) -> float:
        """Then it counts as hung, if nothing new is reported before."""
        return self._since + self.patience_s

    def __str__(self) -> str:
        return f"no progress for {self.patience_s:.0f} s while {self._phase}"
