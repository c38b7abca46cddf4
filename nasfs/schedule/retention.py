"""Which snapshots stay.  Pure: the same facts give the same decisions, each with its reason.

A policy decides about the snapshots that it made, and no others: those of people, of other
policies and of the partner stay.  Of its own it keeps the newest N, or one for each step of time
that widens with age (*thinning*), or both.  The newest always stays, held ones stay, and so do
those that something else stands on.

Ages are counted back from the newest one, not from the present: while no snapshots are made (the
daemon is down, the policy is paused, the other side is active) none goes.  The order is that in
which they were made; a time that is later than that of a younger one is taken for that one's, so
a clock that was wrong and set back disturbs no ages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nasfs.errors import ConfigError

from .rhythm import SECOND_NS
from .spans import parse_span, render_span

KEEP_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Tier:
    """Up to the age of *span_s* seconds (None: for ever) one of each *step_s* seconds stays."""

    step_s: int
    span_s: int | None

    def __str__(self) -> str:
        span = "forever" if self.span_s is None else render_span(self.span_s)
        return f"{render_span(self.step_s)}:{span}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What stays: the newest *keep* (0: no such number) and what the tiers keep."""

    keep: int
    tiers: tuple[Tier, ...] = ()


class Verdict(Enum):
    """What becomes of a snapshot."""

    KEEP = "keep"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot, or a snap group, as retention sees it."""

    key: str
    """Its GUID, or the snap group's."""
    name: str
    time_ns: int
    policy: str = ""
    """The UUID of the policy that made it; empty: somebody else did."""
    obstacles: tuple[str, ...] = ()
    """Why it can't go, in words: who holds it, what stands on it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Of one snapshot, and why."""

    snapshot: Candidate
    verdict: Verdict
    reason: str


def plan_retention(snapshots: Sequence[Candidate], policy: str, rule: Rule) -> list[Decision]:
    """What *policy* does with each of *snapshots*, in their order.

    Args:
        snapshots: in the order in which they were made, oldest first.
        policy: its UUID.
    """
    own = [snapshot for snapshot in snapshots if snapshot.policy == policy]
    wanted = _newest(own, rule.keep) | _thinned(own, rule.tiers)
    if own:
        wanted.setdefault(own[-1].key, "the newest of its policy always stays")
    decisions = []
    for snapshot in snapshots:
        if snapshot.policy != policy:
            reason = "another policy made it" if snapshot.policy else "no policy made it"
            decisions.append(Decision(snapshot, Verdict.KEEP, reason))
        elif snapshot.key in wanted:
            decisions.append(Decision(snapshot, Verdict.KEEP, wanted[snapshot.key]))
        elif snapshot.obstacles:
            decisions.append(Decision(snapshot, Verdict.KEEP, "; ".join(snapshot.obstacles)))
        else:
            decisions.append(Decision(snapshot, Verdict.DESTROY, _too_many(rule)))
    return decisions


def _newest(own: Sequence[Candidate], keep: int) -> dict[str, str]:
    kept = own[len(own) - keep :] if keep < len(own) else own
    if not keep:
        return {}
    return {
        snapshot.key: f"number {place} of the newest {keep}"
        for place, snapshot in enumerate(reversed(kept), 1)
    }


def _thinned(own: Sequence[Candidate], tiers: tuple[Tier, ...]) -> dict[str, str]:
    """The first of each step stays: as steps are multiples of finer ones, it always was kept."""
    if not tiers or not own:
        return {}
    times = _ascending([snapshot.time_ns for snapshot in own])
    newest = times[-1]
    first: dict[tuple[int, int], int] = {}
    for place, time_ns in enumerate(times):
        for tier in tiers:
            first.setdefault((tier.step_s, time_ns // (tier.step_s * SECOND_NS)), place)
    kept = {}
    for place, (snapshot, time_ns) in enumerate(zip(own, times, strict=True)):
        at_age = _tier_at(tiers, newest - time_ns)
        if at_age is None:
            continue
        if first[at_age.step_s, time_ns // (at_age.step_s * SECOND_NS)] == place:
            ends = at_age.span_s
            until = "for ever" if ends is None else f"up to the age of {render_span(ends)}"
            kept[snapshot.key] = f"the first of its {render_span(at_age.step_s)}, {until}"
    return kept


def _ascending(times: list[int]) -> list[int]:
    """No time later than that of a younger snapshot."""
    for place in range(len(times) - 2, -1, -1):
        times[place] = min(times[place], times[place + 1])
    return times


def _tier_at(tiers: tuple[Tier, ...], age_ns: int) -> Tier | None:
    for tier in tiers:
        if tier.span_s is None or age_ns < tier.span_s * SECOND_NS:
            return tier
    return None


def _too_many(rule: Rule) -> str:
    tiers = ",".join(map(str, rule.tiers))
    if rule.keep and rule.tiers:
        return f"not among the newest {rule.keep}, nor what {tiers} keeps"
    return f"not what {tiers} keeps" if rule.tiers else f"older than the newest {rule.keep}"


def parse_tiers(text: str) -> tuple[Tier, ...]:
    """``1s:10m,10s:1h,1h:forever``: steps and ages rise.  Raises ConfigError."""
    tiers: list[Tier] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        step, colon, span = word.partition(":")
        if not colon:
            raise ConfigError(f"--thin: {word!r} is not STEP:AGE", hint="like 1s:10m,10s:1h,1h:30d")
        ends = None if span == "forever" else parse_span(span, "--thin")
        tier = Tier(parse_span(step, "--thin"), ends)
        if tiers:
            _check_follows(tiers[-1], tier)
        reached = (tiers[-1].span_s or 0) if tiers else 0
        if tier.span_s is not None and tier.span_s < reached + tier.step_s:
            raise ConfigError(
                f"--thin: {tier} has no room for one step of {render_span(tier.step_s)}",
                hint=f"let it reach at least {render_span(reached + tier.step_s)} back",
            )
        tiers.append(tier)
    return tuple(tiers)


def _check_follows(before: Tier, tier: Tier) -> None:
    if before.span_s is None or (tier.span_s is not None and tier.span_s <= before.span_s):
        raise ConfigError(f"--thin: {tier} does not reach further back than {before}")
    if tier.step_s <= before.step_s or tier.step_s % before.step_s:
        raise ConfigError(
            f"--thin: the step of {tier} is not a multiple of that of {before}",
            hint="each step is a multiple of the one before: 1s, 10s, 1m, 1h",
        )
