"""What a policy that runs often has done: told once a minute instead of each time."""

from __future__ import annotations

from dataclasses import dataclass

from nasfs.errors import ConfigError
from nasfs.schedule.policy import parse_policy
from nasfs.schedule.rhythm import Every

from .policies import PolicyRow

OFTEN_S = 60
"""Policies that run more often than this tell of their snapshots once a minute."""


@dataclass
class Tally:
    """What a policy that runs often has done since it was told last."""

    taken: int = 0
    destroyed: int = 0
    skipped: int = 0
    failed: int = 0
    since_ns: int = 0

    def is_due(self, now_ns: int) -> bool:
        return not 0 <= now_ns - self.since_ns < OFTEN_S * 1_000_000_000

    def take(self, now_ns: int) -> str:
        counts = (
            (self.taken, "taken"),
            (self.destroyed, "destroyed"),
            (self.skipped, "skipped: nothing had changed"),
            (self.failed, "failed"),
        )
        self.taken = self.destroyed = self.skipped = self.failed = 0
        self.since_ns = now_ns
        return ", ".join(f"{number} {what}" for number, what in counts if number)


def writes_often(row: PolicyRow) -> bool:
    """Whether a line for each of its runs would be too many."""
    try:
        rhythm = parse_policy(row.written).rhythm
    except ConfigError:
        return False
    return isinstance(rhythm, Every) and rhythm.interval_s < OFTEN_S
