"""How far the partner is behind, when it will have caught up, and what that means.  Pure."""

from __future__ import annotations

from replication.link import SECOND_NS, Calendar

SOON = 0.8
"""A copy that has reached so much of the age that it may reach is told, if nothing is under way."""


def arrival(calendar: Calendar, now_ns: int, size: int, ratio: float, rate: float) -> int | None:
    """When *size* bytes (before compression) will be there; None: not known.

    Args:
        rate: bytes on the wire in a second, as it was lately; 0: not known.
    """
    if not rate:
        return None
    return calendar.forecast(now_ns, int(size / max(ratio, 0.01)), rate)


def judge_rpo(
    rpo_s: int, now_ns: int, common_ns: int | None, newest_ns: int | None, arrival_ns: int | None
) -> str:
    """``met``, ``missed soon`` or ``missed``; empty if there is no *rpo_s*.

    Args:
        common_ns: the time of the newest snap group that both sides have; None: there is none.
        newest_ns: that of the newest one here, if the partner lacks it.
        arrival_ns: when that will be there, as far as known.
    """
    if not rpo_s:
        return ""
    if common_ns is None:
        return "missed"
    limit_ns = common_ns + rpo_s * SECOND_NS
    if now_ns > limit_ns:
        return "missed"
    if newest_ns is not None and arrival_ns is not None:
        return "missed soon" if arrival_ns > limit_ns else "met"
    age = now_ns - common_ns
    return "missed soon" if age > SOON * rpo_s * SECOND_NS else "met"
