"""How fast: a token bucket, shares of a link, a share of the time.  Pure: the time comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BURST_S = 0.1
"""What was not used in so many seconds may be used later; older than that it is lost."""
PERIOD_S = 0.1
"""A share of the time is a share of each of these periods (seconds)."""


class TokenBucket:
    """Lets *rate* bytes pass in a second (0: any number), to the byte in the long run.

    Who wants to send takes a position in the row of all bytes, and waits until the row has got
    there.  So a rate that changes meanwhile counts at once, for those who wait already, too.
    Not for two threads at once.
    """

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._granted = 0.0
        self._taken = 0
        self._at = now

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, size: int, now: float) -> int:
        """The position behind *size* bytes more."""
        self._advance(now)
        self._taken += size
        return self._taken

    def wait(self, position: int, now: float) -> float:
        """Seconds until the bytes before that position may go, if the rate stays as it is."""
        self._advance(now)
        return max(0.0, (position - self._granted) / self.rate) if self.rate else 0.0

    def set_rate(self, rate: int, now: float) -> None:
        self._advance(now)
        self.rate = rate

    def _advance(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), now
        if not self.rate:
            self._granted = self._taken
            return
        granted = self._granted + self.rate * passed
        self._granted = min(granted, self._taken + self.rate * BURST_S)


def rest(percent: int, now: float) -> float:
    """Seconds to stay away from the link now, to use it for *percent* of the time."""
    phase = now % PERIOD_S
    return 0.0 if percent >= 100 or phase < PERIOD_S * percent / 100 else PERIOD_S - phase


@dataclass(frozen=True, slots=True)
class Claim:
    """At most *priority* per cent of the link, and *limit* bytes a second (0: no limit)."""

    priority: int
    limit: int = 0


def share(budget: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """The rate of each (bytes a second; 0: no limit), in all at most *budget* (0: no limit).

    Nobody gets more than its percentage of the budget or its own limit.  If the percentages
    come to more than 100 they are proportions; what one can't use because of its limit the
    others get.
    """
    if not budget:
        return {name: claim.limit for name, claim in claims.items()}
    most = {
        name: min(claim.limit or budget, budget * claim.priority // 100)
        for name, claim in claims.items()
    }
    found: dict[str, int] = {}
    left = budget
    open_ = dict(claims)
    while open_:
        weight = sum(claim.priority for claim in open_.values())
        fair = {name: left * claim.priority // weight for name, claim in open_.items()}
        full = [name for name in open_ if most[name] <= fair[name]]
        for name in full or open_:
            found[name] = max(1, min(most[name], fair[name]))
        left -= sum(found[name] for name in full)
        open_ = {name: claim for name, claim in open_.items() if name not in found}
    return {name: found[name] for name in claims}
