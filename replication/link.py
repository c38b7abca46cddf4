"""When the link may be used, and how fast: weekly windows in a named zone, rates.  Pure.

A `Calendar` without windows is always open.  With some, it is open where at least one of them is;
where several are, the fastest counts.  A window belongs to the day on which it begins, and times
are what a wall clock in its zone shows: a time that the clocks jump over is the instant of the
jump, one that they show twice is the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nasfs.errors import ConfigError

from .errors import ReplicationError

SECOND_NS = 1_000_000_000
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
RATE_MIN = 16 * 1024
"""The slowest rate that can be asked for (bytes a second): below it a peer would time out."""
RATE_MAX = 1 << 40
SPANS_MAX = 20_000
"""So many spans of open or closed time a forecast looks at before it says: never."""

_TIME = re.compile(r"([0-9]{2}):([0-9]{2})")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:(bit)|i?B)?(?:/s)?", re.IGNORECASE)
_DAY = timedelta(days=1)


@dataclass(eq=False)
class LinkClosed(ReplicationError):
    """This side may not send now; what the peer has durably is kept."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Window:
    """On *days* (0 is Monday) from *start* to *stop*, minutes of the day; the next day's if it is
    not later.  *rate*: bytes a second, 0 for no limit."""

    days: tuple[int, ...]
    start: int
    stop: int
    rate: int
    zone: str

    def spans(self, first: date, days: int) -> Iterator[tuple[int, int]]:
        """[begin, end) in ns since 1970 UTC, of those that begin on that day or the next ones."""
        zone = find_zone(self.zone)
        over = self.stop <= self.start
        for number in range(days):
            day = first + number * _DAY
            if day.weekday() in self.days:
                begin = _instant(day, self.start, zone)
                end = _instant(day + _DAY if over else day, self.stop, zone)
                if begin < end:
                    yield begin, end

    def __str__(self) -> str:
        words = [] if len(self.days) == 7 else [render_days(self.days)]
        words.append(f"{_render_minute(self.start)}-{_render_minute(self.stop)}")
        if self.rate:
            words.append(f"rate={render_rate(self.rate)}")
        return " ".join([*words, f"zone={self.zone}"])


@dataclass(frozen=True, slots=True)
class Opening:
    """How the link stands at an instant: *until_ns* is when that may change; None: never."""

    open: bool
    rate: int
    """Bytes a second; 0: no limit."""
    until_ns: int | None


@dataclass(frozen=True, slots=True)
class Calendar:
    """All windows of a group, and the rate that holds in each of them (0: no limit)."""

    windows: tuple[Window, ...] = ()
    rate: int = 0

    def at(self, now_ns: int) -> Opening:
        """What holds at that instant.  Raises ConfigError if a zone is unknown here."""
        if not self.windows:
            return Opening(True, self.rate, None)
        today = datetime.fromtimestamp(now_ns // SECOND_NS, UTC).date()
        rates, changes = [], []
        for window in self.windows:
            for begin, end in window.spans(today - 3 * _DAY, 12):
                if begin <= now_ns < end:
                    rates.append(window.rate)
                    changes.append(end)
                elif begin > now_ns:
                    changes.append(begin)
        fastest = 0 if 0 in rates else max(rates, default=0)
        return Opening(bool(rates), slower(fastest, self.rate), min(changes, default=None))

    def opens(self, now_ns: int) -> int | None:
        """The first instant, now or later, at which it is open; None: never."""
        instant: int | None = now_ns
        for _ in range(SPANS_MAX):
            if instant is None:
                return None
            opening = self.at(instant)
            if opening.open:
                return instant
            instant = opening.until_ns
        return None

    def forecast(self, now_ns: int, size: int, rate: float) -> int | None:
        """When *size* bytes will have passed at *rate* bytes a second, as far as it is allowed.

        None: not to be foreseen.
        """
        left, instant = float(size), now_ns
        for _ in range(SPANS_MAX):
            opening = self.at(instant)
            speed = min(rate, opening.rate or rate) if opening.open else 0.0
            if left <= 0:
                return instant
            needed = left / speed * SECOND_NS if speed > 0 else float("inf")
            if opening.until_ns is None or instant + needed <= opening.until_ns:
                return None if needed == float("inf") else instant + int(needed)
            left -= speed * (opening.until_ns - instant) / SECOND_NS
            instant = opening.until_ns
        return None


def slower(one: int, other: int) -> int:
    """The lower of two rates, of which 0 means no limit."""
    return min(one or other, other or one)


def find_zone(name: str) -> ZoneInfo:
    """Raises ConfigError if this system knows no such zone."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ConfigError(
            f"{name!r} is no time zone that this system knows",
            hint="write for instance Europe/Berlin or UTC; timedatectl list-timezones shows them",
        ) from exc


@lru_cache(maxsize=4096)
def _instant(day: date, minute: int, zone: ZoneInfo) -> int:
    """When the clocks of *zone* first show that minute of the day, in ns since 1970 UTC."""
    wall = datetime.combine(day, time()) + timedelta(minutes=minute)
    found = wall.replace(tzinfo=zone).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) != wall:  # jumped over: halve to the jump
        low, high = int(wall.replace(tzinfo=zone, fold=1).timestamp()), int(found.timestamp())
        while low < high:
            middle = (low + high) // 2
            if datetime.fromtimestamp(middle, zone).replace(tzinfo=None) >= wall:
                high = middle
            else:
                low = middle + 1
        return low * SECOND_NS
    return int(found.timestamp()) * SECOND_NS


# what people write


def parse_window(text: str) -> Window:
    """``mon-fri 20:00-06:00 rate=50M zone=Europe/Berlin``; all but the times may be left out.

    Raises:
        ConfigError: it is none.
    """
    days, times, rate, zone = "", "", "", ""
    for word in text.split():
        key, equals, value = word.partition("=")
        if equals and key == "rate" and not rate:
            rate = value
        elif equals and key in ("zone", "timezone") and not zone:
            zone = value
        elif not equals and word[:1].isdigit() and not times:
            times = word
        elif not equals and word[:1].isalpha() and not days:
            days = word
        else:
            raise ConfigError(f"{word!r} has no meaning in a window", hint=_WINDOW_HINT)
    start, dash, stop = times.partition("-")
    if not dash:
        raise ConfigError(f"{text!r} is no window", hint=_WINDOW_HINT)
    return make_window(days, start, stop, rate, zone)


_WINDOW_HINT = "write for instance: mon-fri 20:00-06:00 rate=50M zone=Europe/Berlin"


def make_window(days: str, start: str, stop: str, rate: str, zone: str) -> Window:
    """From its parts as people write them; no days: each; no rate: no limit; no zone: UTC.

    Raises:
        ConfigError: one of them is wrong.
    """
    find_zone(zone or "UTC")
    begin, end = _parse_minute(start), _parse_minute(stop)
    if begin == DAY_MINUTES:
        raise ConfigError("a window can't begin at 24:00", hint="write 00:00 of the next day")
    if begin == end % DAY_MINUTES and (begin, end) != (0, DAY_MINUTES):
        raise ConfigError(
            f"the window {start}-{stop} has no length", hint="the whole day is 00:00-24:00"
        )
    return Window(_parse_days(days), begin, end, parse_rate(rate) if rate else 0, zone or "UTC")


def _parse_minute(text: str) -> int:
    match = _TIME.fullmatch(text.strip())
    minute = int(match[1]) * 60 + int(match[2]) if match else -1
    if not 0 <= minute <= DAY_MINUTES or (match and int(match[2]) > 59):
        raise ConfigError(
            f"{text!r} is not a time of the day", hint="write 06:00; 24:00 is the end"
        )
    return minute


def _parse_days(text: str) -> tuple[int, ...]:
    found = set()
    for word in filter(None, (part.strip().lower() for part in text.split(","))):
        first, dash, last = word.partition("-")
        if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
            raise ConfigError(f"{word!r} is no weekday", hint="write mon-fri or sat,sun")
        number = WEEKDAYS.index(first)
        found.add(number)
        while dash and WEEKDAYS[number] != last:
            number = (number + 1) % 7
            found.add(number)
    return tuple(sorted(found)) or tuple(range(7))


def render_days(days: tuple[int, ...]) -> str:
    """``mon-fri,sun``."""
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    names = []
    for run in runs:
        if len(run) > 2:
            names.append(f"{WEEKDAYS[run[0]]}-{WEEKDAYS[run[-1]]}")
        else:
            names += [WEEKDAYS[day] for day in run]
    return ",".join(names)


def _render_minute(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def parse_rate(text: str) -> int:
    """Bytes a second: ``50M`` and ``50MiB/s`` in powers of 1024, ``100Mbit`` of 1000; ``off``: 0.

    Raises:
        ConfigError: it is none, too slow or too fast.
    """
    if text.strip().lower() in ("off", "0"):
        return 0
    match = _RATE.fullmatch(text.strip())
    rate = 0.0
    if match:
        power = " KMGT".index(match[2].upper() or " ")
        rate = float(match[1]) * (1000**power / 8 if match[3] else 1024**power)
    if not RATE_MIN <= rate <= RATE_MAX:
        raise ConfigError(
            f"{text!r} is not a rate",
            hint="bytes a second like 512K or 50M, or bits: 100Mbit; at least 16K; off: none",
        )
    return int(rate)


def render_rate(rate: int) -> str:
    """So that `parse_rate` reads the same: ``50M``; no limit: ``off``."""
    if not rate:
        return "off"
    for power in (4, 3, 2, 1):
        if rate % 1024**power == 0:
            return f"{rate // 1024**power}{' KMGT'[power]}"
    return str(rate)
