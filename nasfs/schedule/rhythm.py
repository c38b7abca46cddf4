"""When a policy is due: every so often, or at times of the day in a named zone.  Pure.

A rhythm is an endless, ascending row of *occurrences*: instants, in nanoseconds since 1970 UTC.
`Every` counts in UTC, so no change of a zone's clocks disturbs it.  `At` is what a wall clock in
its zone shows.  When those clocks go forward, a time that they do not show has its occurrence at
the instant of the change; when they go back, a time that they show twice has it the first time.
So every time of every day has exactly one, and two that fall together count once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nasfs.errors import ConfigError

from .spans import parse_span, render_span

SECOND_NS = 1_000_000_000
ANCHOR_S = 4 * 86_400
"""Monday 1970-01-05 00:00 UTC: from here intervals are counted, so that weeks begin on Mondays."""

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LAST = 0
"""The last day of a month, among days of the month."""

SEARCH_DAYS = 400
"""Every rhythm that can be written has an occurrence in so many days."""

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Every:
    """Each *interval_s* seconds, counted in UTC from `ANCHOR_S`."""

    interval_s: int

    @property
    def tolerance_ns(self) -> int:
        """A clock that is set back by more than this has been wrong: waiting would be too long."""
        return self.interval_s * SECOND_NS

    def after(self, instant_ns: int) -> int:
        """The first occurrence after an instant."""
        step, anchor = self.interval_s * SECOND_NS, ANCHOR_S * SECOND_NS
        return anchor + ((instant_ns - anchor) // step + 1) * step

    def upto(self, instant_ns: int) -> int:
        """The last occurrence at or before an instant."""
        return self.after(instant_ns) - self.interval_s * SECOND_NS

    def count(self, after_ns: int, upto_ns: int) -> int:
        """How many there are in (after, upto]."""
        return max(0, (self.upto(upto_ns) - self.upto(after_ns)) // (self.interval_s * SECOND_NS))

    def __str__(self) -> str:
        return f"every {render_span(self.interval_s)}"


@dataclass(frozen=True)
class At:
    """At times of the day in a zone, on some weekdays or days of the month (none: every day)."""

    times: tuple[time, ...]
    zone: str
    weekdays: tuple[int, ...] = ()
    """0 is Monday."""
    month_days: tuple[int, ...] = ()
    """1 to 31, or `LAST`."""

    @property
    def tolerance_ns(self) -> int:
        return 86_400 * SECOND_NS

    @cached_property
    def _info(self) -> ZoneInfo:
        return find_zone(self.zone)

    def after(self, instant_ns: int) -> int:
        """The first occurrence after an instant.

        Raises:
            ConfigError: this system does not know the zone (any more).
        """
        day = self._day(instant_ns)
        for number in range(-2, SEARCH_DAYS):
            for found in self._on(day, number):
                if found > instant_ns:
                    return found
        raise AssertionError(f"{self} has no occurrence after {instant_ns}")

    def upto(self, instant_ns: int) -> int:
        """The last occurrence at or before an instant."""
        day = self._day(instant_ns)
        for number in range(2, -SEARCH_DAYS, -1):
            for found in reversed(list(self._on(day, number))):
                if found <= instant_ns:
                    return found
        raise AssertionError(f"{self} has no occurrence before {instant_ns}")

    def count(self, after_ns: int, upto_ns: int) -> int:
        """How many there are in (after, upto]."""
        if upto_ns <= after_ns:
            return 0
        found: set[int] = set()
        first, last = self._day(after_ns), self._day(upto_ns)
        for number in range(-2, (last - first).days + 3):
            found.update(ns for ns in self._on(first, number) if after_ns < ns <= upto_ns)
        return len(found)

    def _day(self, instant_ns: int) -> date:
        return datetime.fromtimestamp(instant_ns // SECOND_NS, self._info).date()

    def _on(self, day: date, number: int) -> Iterator[int]:
        """The occurrences of the day that is *number* days later, ascending."""
        day += number * _DAY
        if self._is_meant(day):
            for moment in self.times:
                yield first_instant(datetime.combine(day, moment), self._info)

    def _is_meant(self, day: date) -> bool:
        if self.weekdays:
            return day.weekday() in self.weekdays
        if self.month_days:
            last = (day + _DAY).month != day.month
            return day.day in self.month_days or (last and LAST in self.month_days)
        return True

    def __str__(self) -> str:
        days = [WEEKDAYS[number] for number in self.weekdays]
        days += ["last" if number == LAST else str(number) for number in self.month_days]
        on = f" on {','.join(days)}" if days else ""
        return f"at {','.join(map(render_time, self.times))}{on} {self.zone}"


Rhythm = Every | At


def first_instant(wall: datetime, zone: ZoneInfo) -> int:
    """When the clocks of *zone* first show *wall* (without a zone), in ns since 1970 UTC.

    If they jump over it: the instant of the jump.
    """
    earlier = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if earlier.astimezone(zone).replace(tzinfo=None) == wall:
        return _ns(earlier)
    # By the offset after the jump *wall* would be before it, by the one before it after it.
    low = int(wall.replace(tzinfo=zone, fold=1).timestamp())
    high = int(earlier.timestamp())
    jump = bisect_right(range(low, high), 0, key=lambda s: _shows(s, zone) >= wall) + low
    return jump * SECOND_NS


def _shows(second: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(second, zone).replace(tzinfo=None)


def _ns(instant: datetime) -> int:
    return int(instant.timestamp()) * SECOND_NS


def find_zone(name: str) -> ZoneInfo:
    """Raises ConfigError if this system knows no such zone."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ConfigError(
            f"{name!r} is no time zone that this system knows",
            hint="write for instance Europe/Berlin or UTC; timedatectl list-timezones shows them",
        ) from exc


def parse_every(text: str) -> Every:
    """``15m``.  Raises ConfigError."""
    return Every(parse_span(text, "--every"))


def parse_at(times: str, days: str, zone: str) -> At:
    """``02:00,14:00``, ``mon,wed`` or ``1,15,last`` or nothing, and a zone.  Raises ConfigError."""
    find_zone(zone)
    weekdays, month_days = _parse_days(days)
    return At(_parse_times(times), zone, weekdays, month_days)


def _parse_times(text: str) -> tuple[time, ...]:
    found = set()
    for word in text.split(","):
        parts = word.strip().split(":")
        whole = all(part.isascii() and part.isdigit() and len(part) == 2 for part in parts)
        try:
            if not whole or len(parts) not in (2, 3):
                raise ValueError
            hour, minute, second = map(int, [*parts, "0"][:3])
            found.add(time(hour, minute, second))
        except ValueError as exc:
            raise ConfigError(
                f"--at: {word.strip()!r} is not a time of the day",
                hint="write 02:00, 02:00:30, or several: 09:00,21:00",
            ) from exc
    return tuple(sorted(found))


def _parse_days(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    weekdays, month_days = set(), set()
    for word in filter(None, (part.strip().lower() for part in text.split(","))):
        first, dash, end = word.partition("-")
        if first in WEEKDAYS and (end in WEEKDAYS or not dash):
            number = WEEKDAYS.index(first)
            weekdays.add(number)
            while dash and WEEKDAYS[number] != end:
                number = (number + 1) % 7
                weekdays.add(number)
        elif word == "last":
            month_days.add(LAST)
        elif word.isascii() and word.isdigit() and 1 <= int(word) <= 31:
            month_days.add(int(word))
        else:
            raise ConfigError(
                f"--days: {word!r} is no day",
                hint="weekdays: mon-fri or sat,sun; or days of the month: 1,15,last",
            )
    if weekdays and month_days:
        raise ConfigError(
            "--days: weekdays and days of the month do not go together",
            hint="make two policies",
        )
    return tuple(sorted(weekdays)), tuple(sorted(month_days))


def render_time(moment: time) -> str:
    return moment.isoformat("seconds" if moment.second else "minutes")
