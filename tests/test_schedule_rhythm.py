"""When policies are due: intervals, wall clocks of real zones over their changes, missed runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import ConfigError
from nasfs.schedule.clock import (
    GRACE_NS,
    Missed,
    PassOver,
    Run,
    StartOver,
    Timing,
    Wait,
    plan_turn,
)
from nasfs.schedule.naming import snapshot_name
from nasfs.schedule.rhythm import SECOND_NS, At, Every, Rhythm, first_instant, parse_at, parse_every
from nasfs.schedule.spans import parse_span, render_span

ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "Europe/Dublin", "America/New_York",
    "America/St_Johns", "America/Santiago", "America/Havana", "Australia/Lord_Howe",
    "Pacific/Apia", "Pacific/Kwajalein", "Asia/Kathmandu", "Asia/Tehran", "Africa/Cairo",
    "Africa/Casablanca", "Antarctica/Troll", "America/Caracas", "Asia/Pyongyang",
)  # fmt: skip


def ns(text: str) -> int:
    """An instant, written in UTC: ``2026-03-29 01:00``."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def utc(instant_ns: int) -> str:
    return datetime.fromtimestamp(instant_ns // SECOND_NS, UTC).strftime("%m-%d %H:%M")


def runs(rhythm: Rhythm, after: str, upto: str) -> list[str]:
    found, instant = [], ns(after)
    while (instant := rhythm.after(instant)) <= ns(upto):
        found.append(utc(instant))
    return found


# the days on which clocks change, in both directions


@pytest.mark.parametrize(
    ("zone", "times", "after", "upto", "expected"),
    [
        # forward 2026-03-29 01:00 UTC, 02:00 to 03:00: 02:00 and 02:30 do not exist
        ("Europe/Berlin", "02:00", "2026-03-28 00:00", "2026-03-30 12:00",
         ["03-28 01:00", "03-29 01:00", "03-30 00:00"]),
        ("Europe/Berlin", "02:30", "2026-03-28 00:00", "2026-03-30 12:00",
         ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("Europe/Berlin", "01:59,02:15,02:45,03:00", "2026-03-29 00:00", "2026-03-29 12:00",
         ["03-29 00:59", "03-29 01:00"]),
        # back 2026-10-25 01:00 UTC, 03:00 to 02:00: 02:00 to 02:59 come twice
        ("Europe/Berlin", "02:00", "2026-10-24 12:00", "2026-10-26 12:00",
         ["10-25 00:00", "10-26 01:00"]),
        ("Europe/Berlin", "02:30", "2026-10-24 12:00", "2026-10-26 12:00",
         ["10-25 00:30", "10-26 01:30"]),
        ("Europe/Berlin", "01:59,02:59,03:00", "2026-10-24 12:00", "2026-10-25 12:00",
         ["10-24 23:59", "10-25 00:59", "10-25 02:00"]),
        # forward 2026-03-08 07:00 UTC; back 2026-11-01 06:00 UTC
        ("America/New_York", "02:30", "2026-03-07 12:00", "2026-03-09 12:00",
         ["03-08 07:00", "03-09 06:30"]),
        ("America/New_York", "01:30", "2026-10-31 12:00", "2026-11-02 12:00",
         ["11-01 05:30", "11-02 06:30"]),
        # by half an hour: back 2026-04-04 15:00 UTC, 02:00 to 01:30; forward 2026-10-03 15:30 UTC
        ("Australia/Lord_Howe", "01:45", "2026-04-03 15:30", "2026-04-05 16:00",
         ["04-04 14:45", "04-05 15:15"]),
        ("Australia/Lord_Howe", "02:15", "2026-10-02 16:30", "2026-10-04 16:00",
         ["10-03 15:30", "10-04 15:15"]),
        # at midnight: forward 2026-03-08 05:00 UTC, 00:00 to 01:00
        ("America/Havana", "00:00", "2026-03-07 12:00", "2026-03-09 12:00",
         ["03-08 05:00", "03-09 04:00"]),
        # Friday 2011-12-30 was left out: 10:00 UTC was the end of Thursday and Saturday's begin
        ("Pacific/Apia", "02:00", "2011-12-29 00:00", "2012-01-01 00:00",
         ["12-29 12:00", "12-30 10:00", "12-30 12:00", "12-31 12:00"]),
        # Saturday 1993-08-21 was left out
        ("Pacific/Kwajalein", "12:00", "1993-08-20 00:00", "1993-08-22 12:00",
         ["08-21 00:00", "08-21 12:00", "08-22 00:00"]),
    ],
)  # fmt: skip
def test_each_time_of_each_day_once_over_clock_changes(
    zone: str, times: str, after: str, upto: str, expected: list[str]
) -> None:
    rhythm = parse_at(times, "", zone)
    assert runs(rhythm, after, upto) == expected
    assert rhythm.count(ns(after), ns(upto)) == len(expected)


def test_a_weekday_that_was_left_out_has_its_run() -> None:
    rhythm = parse_at("02:00", "fri", "Pacific/Apia")
    assert runs(rhythm, "2011-12-20 00:00", "2012-01-06 12:00") == [
        "12-23 12:00", "12-30 10:00", "01-05 12:00",
    ]  # fmt: skip


def test_an_interval_does_not_mind_the_zones() -> None:
    assert runs(parse_every("30m"), "2026-03-29 00:00", "2026-03-29 02:00") == [
        "03-29 00:30", "03-29 01:00", "03-29 01:30", "03-29 02:00",
    ]  # fmt: skip
    assert runs(parse_every("1w"), "2026-10-20 00:00", "2026-11-03 00:00") == [
        "10-26 00:00", "11-02 00:00",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ("mon,wed", ["01-28 02:00", "02-02 02:00", "02-04 02:00"]),
        ("tue-thu", ["01-27 02:00", "01-28 02:00", "01-29 02:00", "02-03 02:00"]),
        ("sat-mon", ["01-31 02:00", "02-01 02:00", "02-02 02:00"]),
        ("1,15", ["02-01 02:00"]),
        ("31", ["01-31 02:00"]),
        ("last", ["01-31 02:00"]),
        ("", [f"{d} 02:00" for d in ("01-27", "01-28", "01-29", "01-30", "01-31", "02-01")]),
    ],
)
def test_days(days: str, expected: list[str]) -> None:
    rhythm = parse_at("02:00", days, "UTC")
    assert runs(rhythm, "2026-01-27 00:00", "2026-02-04 03:00")[: len(expected)] == expected


def test_the_last_day_of_each_month() -> None:
    rhythm = parse_at("23:00", "last", "Europe/Berlin")
    assert runs(rhythm, "2028-01-01 00:00", "2028-05-01 00:00") == [
        "01-31 22:00", "02-29 22:00", "03-31 21:00", "04-30 21:00",
    ]  # fmt: skip


# properties

instants = st.integers(ns("1990-01-01 00:00") // SECOND_NS, ns("2037-01-01 00:00") // SECOND_NS)
walls = st.builds(
    lambda minutes: datetime(1990, 1, 1) + timedelta(minutes=minutes),
    st.integers(0, 47 * 365 * 1440),
)
moments = st.lists(st.times().map(lambda t: t.replace(microsecond=0)), min_size=1, max_size=4)
rhythms = st.one_of(
    st.builds(Every, st.integers(1, 40 * 86_400)),
    st.builds(
        lambda times, zone, days: At(tuple(sorted(set(times))), zone, tuple(sorted(days))),
        moments,
        st.sampled_from(ZONES),
        st.sets(st.integers(0, 6), max_size=3),
    ),
    st.builds(
        lambda times, zone, days: At(tuple(sorted(set(times))), zone, (), tuple(sorted(days))),
        moments,
        st.sampled_from(ZONES),
        st.sets(st.integers(0, 31), min_size=1, max_size=3).filter(lambda d: min(d) < 29),
    ),
)


@given(rhythms, instants, st.integers(0, 10 * 86_400))
def test_before_and_after_agree(rhythm: Rhythm, second: int, later: int) -> None:
    start = second * SECOND_NS
    following = rhythm.after(start)
    assert following > start
    assert rhythm.upto(following) == following
    assert rhythm.upto(following - 1) <= start
    assert rhythm.after(rhythm.upto(start) - 1) == rhythm.upto(start)
    end, found, instant = start + later * SECOND_NS, 0, start
    while found < 50 and (instant := rhythm.after(instant)) <= end:
        found += 1
    if found < 50:
        assert rhythm.count(start, end) == found


@given(st.sampled_from(ZONES), walls)
def test_the_first_instant_is_the_first(zone: str, wall: datetime) -> None:
    """Against a walk over the clock, minute by minute, as somebody who watches it sees it."""
    info = ZoneInfo(zone)
    found = first_instant(wall, info) // SECOND_NS
    shown = datetime.fromtimestamp(found, info).replace(tzinfo=None)
    assert shown >= wall
    before = datetime.fromtimestamp(found - 1, info).replace(tzinfo=None)
    assert before < wall
    for minutes in range(1, 150):
        earlier = datetime.fromtimestamp(found - 60 * minutes, info).replace(tzinfo=None)
        assert earlier != wall


@given(st.sampled_from(ZONES), walls, st.integers(0, 100))
def test_later_times_have_no_earlier_instants(zone: str, wall: datetime, minutes: int) -> None:
    info = ZoneInfo(zone)
    assert first_instant(wall, info) <= first_instant(wall + timedelta(minutes=minutes), info)


@given(st.integers(1, 10**8))
def test_spans_round_trip(seconds: int) -> None:
    assert parse_span(render_span(seconds), "x") == seconds


@pytest.mark.parametrize("text", ["", "0s", "15", "m", "-1s", "1.5h", "500ms", "1M", "99999999w"])
def test_bad_spans(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_every(text)


@pytest.mark.parametrize(
    ("times", "days", "zone"),
    [
        ("24:00", "", "UTC"), ("2:00", "", "UTC"), ("02", "", "UTC"), ("", "", "UTC"),
        ("02:00", "someday", "UTC"), ("02:00", "mon-", "UTC"), ("02:00", "-fri", "UTC"),
        ("02:00", "1-5", "UTC"), ("02:00", "32", "UTC"), ("02:00", "0", "UTC"),
        ("02:00", "mon,15", "UTC"), ("02:00", "", "Europe/Nowhere"), ("02:00", "", "../etc/passwd"),
        ("02:00", "", ""), ("02:00:00:00", "", "UTC"), ("aa:bb", "", "UTC"), ("-1:00", "", "UTC"),
    ],
)  # fmt: skip
def test_bad_times(times: str, days: str, zone: str) -> None:
    with pytest.raises(ConfigError):
        parse_at(times, days, zone)


# what to do now

HOURLY = Timing(Every(3600))
NIGHTLY = Timing(parse_at("02:00", "", "Europe/Berlin"))


def test_in_time_there_is_one_run_for_each_occurrence() -> None:
    last = ns("2026-11-22 16:00")
    assert plan_turn(HOURLY, last, ns("2026-11-22 16:10")) == Wait(*[ns("2026-11-22 17:00")] * 2)
    assert plan_turn(HOURLY, last, ns("2026-11-22 17:00")) == Run(ns("2026-11-22 17:00"), 0, False)
    late = ns("2026-11-22 17:00") + GRACE_NS
    assert plan_turn(HOURLY, last, late) == Run(ns("2026-11-22 17:00"), 0, False)


def test_missed_occurrences_are_made_up_for_by_one_run_or_none() -> None:
    last, now = ns("2026-11-22 16:00"), ns("2026-11-23 03:30")
    assert plan_turn(HOURLY, last, now) == Run(ns("2026-11-23 03:00"), 10, True)
    skipping = Timing(Every(3600), Missed.SKIP)
    assert plan_turn(skipping, last, now) == PassOver(ns("2026-11-23 03:00"), 11)


def test_a_clock_that_is_set_back_makes_no_run_twice() -> None:
    last = ns("2026-11-22 17:00")
    for minutes in range(1, 60):
        back = last - minutes * 60 * SECOND_NS
        assert plan_turn(HOURLY, last, back) == Wait(*[ns("2026-11-22 18:00")] * 2)
    nightly = ns("2026-11-22 01:00")
    for hours in range(1, 24):
        back = nightly - hours * 3600 * SECOND_NS
        assert plan_turn(NIGHTLY, nightly, back) == Wait(*[ns("2026-11-23 01:00")] * 2)


def test_a_clock_that_was_wrong_by_more_than_an_interval_does_not_stop_a_policy() -> None:
    now = ns("2026-11-22 17:30")
    assert plan_turn(HOURLY, ns("2031-01-01 00:00"), now) == StartOver(now)
    assert plan_turn(HOURLY, now, now) == Wait(*[ns("2026-11-22 18:00")] * 2)
    assert plan_turn(NIGHTLY, now + 90_000 * SECOND_NS, now) == StartOver(now)


def test_a_delay_is_the_same_after_a_restart_and_differs_between_occurrences() -> None:
    timing = Timing(Every(3600), jitter_s=600, seed="u-1")
    other = Timing(Every(3600), jitter_s=600, seed="u-2")
    hours = [ns("2026-11-22 00:00") + n * 3600 * SECOND_NS for n in range(24)]
    delays = [timing.due(hour) - hour for hour in hours]
    assert all(0 <= delay < 600 * SECOND_NS for delay in delays)
    assert len(set(delays)) == 24
    assert delays == [Timing(Every(3600), jitter_s=600, seed="u-1").due(h) - h for h in hours]
    assert delays != [other.due(hour) - hour for hour in hours]
    assert plan_turn(timing, hours[0], hours[1]) == Wait(hours[1], hours[1] + delays[1])
    assert plan_turn(timing, hours[0], hours[1] + delays[1]) == Run(hours[1], 0, False)


@given(
    rhythms,
    instants,
    st.lists(st.integers(-200_000, 400_000), min_size=1, max_size=30),
    st.sampled_from(Missed),
    st.integers(0, 1),
)
def test_whatever_the_clock_does_no_occurrence_is_run_twice_and_none_is_lost(
    rhythm: Rhythm, second: int, jumps: list[int], missed: Missed, jitter_s: int
) -> None:
    """The clock jumps about; an occurrence repeats only after the clock was found to be wrong."""
    timing = Timing(rhythm, missed, jitter_s, "u")
    now = last = second * SECOND_NS
    done: list[int] = []
    for jump in jumps:
        now += jump * SECOND_NS
        for _ in range(3):
            turn = plan_turn(timing, last, now)
            if isinstance(turn, Wait):
                assert turn.occurrence_ns > last
                assert turn.due_ns > now
                break
            if isinstance(turn, StartOver):
                assert last - now > rhythm.tolerance_ns
                last, done = now, []
                continue
            assert last < turn.occurrence_ns <= now
            assert turn.occurrence_ns not in done
            if isinstance(turn, Run):
                assert turn.missed == rhythm.count(last, turn.occurrence_ns) - 1
                assert missed is Missed.RUN or not turn.late
            done.append(turn.occurrence_ns)
            last = turn.occurrence_ns
        else:
            pytest.fail("no end of turns at one instant")


def test_names_tell_the_second_in_utc_and_are_never_taken() -> None:
    moment = ns("2026-11-22 16:00") + 999_999_999
    assert snapshot_name("hourly", moment) == "hourly-2026.11.22-16.00.00"
    taken = {"hourly-2026.11.22-16.00.00", "hourly-2026.11.22-16.00.00-2"}
    assert snapshot_name("hourly", moment, taken) == "hourly-2026.11.22-16.00.00-3"
