"""What a policy does now: wait, run, or pass over what was missed.  Pure.

A policy remembers one number: the occurrence that it dealt with last.  What lies between that and
the present was missed; all of it together is made up for by one run, or by none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from .rhythm import SECOND_NS, Rhythm

GRACE_NS = 60 * SECOND_NS
"""Who comes so much later than due is still in time."""


class Missed(Enum):
    """What becomes of occurrences that passed while nobody could act on them."""

    RUN = "run"
    """One run makes up for all of them."""
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Timing:
    """When a policy is due, exactly.

    *seed* (the policy's UUID) decides, with the occurrence, on the delay up to *jitter_s*
    seconds: a restart does not change it, and two policies seldom share it.
    """

    rhythm: Rhythm
    missed: Missed = Missed.RUN
    jitter_s: int = 0
    seed: str = ""

    def due(self, occurrence_ns: int) -> int:
        """When that occurrence is acted on."""
        if not self.jitter_s:
            return occurrence_ns
        text = f"{self.seed} {occurrence_ns}".encode()
        drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        return occurrence_ns + drawn % (self.jitter_s * SECOND_NS)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until *due_ns*."""

    occurrence_ns: int
    due_ns: int


@dataclass(frozen=True, slots=True)
class Run:
    """Take a snapshot now, for this occurrence and the *missed* ones before it."""

    occurrence_ns: int
    missed: int
    late: bool
    """It makes up for what was missed: nobody could act when it was due."""


@dataclass(frozen=True, slots=True)
class PassOver:
    """Leave out *missed* occurrences, up to this one."""

    occurrence_ns: int
    missed: int


@dataclass(frozen=True, slots=True)
class StartOver:
    """The clock was set back so far that occurrences are counted anew, from now."""

    now_ns: int


Turn = Wait | Run | PassOver | StartOver


def plan_turn(timing: Timing, last_ns: int, now_ns: int) -> Turn:
    """What to do now.

    Args:
        last_ns: the occurrence that was dealt with last, or when the policy was made.
        now_ns: what the wall clock says, which may have been set forward or back.
    """
    rhythm = timing.rhythm
    if last_ns - now_ns > rhythm.tolerance_ns:
        return StartOver(now_ns)
    latest = rhythm.upto(now_ns)
    if latest <= last_ns:
        following = rhythm.after(last_ns)
        return Wait(following, timing.due(following))
    due = timing.due(latest)
    if due > now_ns:
        return Wait(latest, due)
    late = now_ns - due > GRACE_NS
    count = rhythm.count(last_ns, latest)
    if late and timing.missed is Missed.SKIP:
        return PassOver(latest, count)
    return Run(latest, count - 1, late)
