"""Windows, rates and shares of the link, as pure functions of the time that is given to them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import ConfigError
from replication.link import (
    SECOND_NS,
    Calendar,
    Window,
    make_window,
    parse_rate,
    parse_window,
    render_rate,
)
from replication.pacing import BURST_S, Claim, TokenBucket, rest, share


def instant(text: str, zone: str = "UTC") -> int:
    """``2026-11-23 20:00`` in a zone, as ns since 1970 UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * SECOND_NS


def shown(instant_ns: int | None) -> str:
    """``mon 20:00`` in UTC."""
    assert instant_ns is not None
    return f"{datetime.fromtimestamp(instant_ns / SECOND_NS, UTC):%a %H:%M}".lower()


NIGHTS = Calendar((parse_window("mon-fri 20:00-06:00 rate=1M"),))


@pytest.mark.parametrize(
    ("now", "open_", "until"),
    [
        ("2026-11-23 19:59", False, "mon 20:00"),  # a Monday
        ("2026-11-23 20:00", True, "tue 06:00"),
        ("2026-11-24 05:59", True, "tue 06:00"),
        ("2026-11-24 06:00", False, "tue 20:00"),
        ("2026-11-28 05:00", True, "sat 06:00"),  # it belongs to the Friday
        ("2026-11-28 12:00", False, "mon 20:00"),
        ("2026-11-29 23:00", False, "mon 20:00"),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(
    now: str, open_: bool, until: str
) -> None:
    opening = NIGHTS.at(instant(now))
    assert (opening.open, shown(opening.until_ns)) == (open_, until)
    assert opening.rate == (1 << 20 if open_ else 0)


def test_without_windows_it_is_always_open_at_the_groups_own_rate() -> None:
    opening = Calendar(rate=5000).at(0)
    assert (opening.open, opening.rate, opening.until_ns) == (True, 5000, None)


def test_where_windows_overlap_the_fastest_counts_and_the_groups_rate_bounds_all() -> None:
    slow, fast, free = (parse_window(f"10:00-20:00 {rate}") for rate in ("rate=1M", "rate=2M", ""))
    noon = instant("2026-11-23 12:00")
    assert Calendar((slow, fast)).at(noon).rate == 2 << 20
    assert Calendar((slow, free)).at(noon).rate == 0
    assert Calendar((slow, free), rate=3 << 20).at(noon).rate == 3 << 20
    assert Calendar((fast,), rate=1 << 20).at(noon).rate == 1 << 20


@pytest.mark.parametrize(
    ("day", "hours"),
    [("2026-03-29", 2), ("2026-10-25", 4), ("2026-06-07", 3)],  # forward, back, an ordinary Sunday
)
def test_windows_follow_the_clocks_of_their_zone(day: str, hours: int) -> None:
    calendar = Calendar((parse_window("sun 01:00-04:00 zone=Europe/Berlin"),))
    begin = calendar.opens(instant(f"{day} 00:30", "Europe/Berlin"))
    assert begin == instant(f"{day} 01:00", "Europe/Berlin")
    end = calendar.at(begin).until_ns
    assert end is not None
    assert end - begin == hours * 3600 * SECOND_NS


def test_a_time_that_the_clocks_jump_over_is_the_instant_of_the_jump() -> None:
    calendar = Calendar((parse_window("sun 02:30-04:00 zone=Europe/Berlin"),))
    assert calendar.opens(instant("2026-03-29 00:00")) == instant("2026-03-29 01:00")


def test_a_forecast_knows_windows_and_rates() -> None:
    hour = 3600 * SECOND_NS
    evening = instant("2026-11-23 19:00")
    begin, end = evening + hour, evening + 11 * hour
    an_hours_work = 3600 << 20
    assert NIGHTS.forecast(evening, an_hours_work, 10 << 20) == begin + hour  # the limit counts
    assert NIGHTS.forecast(evening, an_hours_work, 1 << 19) == begin + 2 * hour  # the real rate
    assert NIGHTS.forecast(evening, 11 * an_hours_work, 1 << 20) == end + 15 * hour  # next night
    assert NIGHTS.forecast(evening, an_hours_work, 0.0) is None
    assert Calendar().forecast(evening, 0, 0.0) == evening


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("20:00-06:00", "20:00-06:00 zone=UTC"),
        ("MON-fri 00:00-24:00", "mon-fri 00:00-24:00 zone=UTC"),
        ("sat-mon 06:00-08:30 rate=50MiB", "mon,sat,sun 06:00-08:30 rate=50M zone=UTC"),
        (
            "zone=Europe/Berlin mon,wed 01:00-02:00 rate=8Mbit",
            "mon,wed 01:00-02:00 rate=1000000 zone=Europe/Berlin",
        ),
    ],
)
def test_windows_are_read_and_shown_again(text: str, rendered: str) -> None:
    assert str(parse_window(text)) == rendered
    assert parse_window(rendered) == parse_window(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "mon", "20:00", "20-21", "25:00-26:00", "20:00-20:00", "24:00-06:00", "01:60-02:00",
        "mun 20:00-21:00", "20:00-21:00 rate=1", "20:00-21:00 rate=fast", "20:00-21:00 zone=Mars",
        "20:00-21:00 22:00-23:00", "20:00-21:00 speed=1M", "00:00-00:00", "-5:00-06:00",
    ],
)  # fmt: skip
def test_what_is_no_window_is_told(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_window(text)
    assert told.value.hint


@given(
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.integers(0, 4 * 7 * 1440),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"]),
)
def test_it_is_open_where_a_wall_clock_in_the_zone_says_so(
    days: set[int], start: int, stop: int, minute: int, zone: str
) -> None:
    """Away from the changes of clocks: June has none."""
    if start == stop % 1440:
        return
    window = Window(tuple(sorted(days)), start, stop, 0, zone)
    now = instant("2026-06-01 00:00", zone) + minute * 60 * SECOND_NS
    day, at = (minute // 1440) % 7, minute % 1440
    if start < stop:
        expected = day in days and start <= at < stop
    else:
        expected = (day in days and at >= start) or ((day - 1) % 7 in days and at < stop)
    opening = Calendar((window,)).at(now)
    assert opening.open == expected
    assert opening.until_ns is not None
    assert opening.until_ns > now


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50M", 50 << 20), ("50MiB/s", 50 << 20), ("16K", 16384), ("100Mbit", 12_500_000), ("off", 0)],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(render_rate(rate)) == rate


@pytest.mark.parametrize("text", ["", "1", "fast", "-5M", "15K", "9999T", "5 apples", "1Kbit"])
def test_what_is_no_rate_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_rate(text)


def run_bucket(bucket: TokenBucket, sizes: list[int], now: float) -> float:
    """When the last of those bytes has gone, if whoever sends waits as told."""
    for size in sizes:
        position = bucket.take(size, now)
        now += bucket.wait(position, now)
    return now


@given(
    st.integers(16 * 1024, 1 << 30),
    st.lists(st.integers(1, 16 * 1024), min_size=1, max_size=200),
)
def test_a_token_bucket_is_exact(rate: int, sizes: list[int]) -> None:
    now = run_bucket(TokenBucket(rate, 0.0), sizes, 0.0)
    assert now * rate == pytest.approx(sum(sizes), rel=1e-6)


def test_what_was_not_used_is_soon_lost() -> None:
    bucket = TokenBucket(100_000, 0.0)
    run_bucket(bucket, [100_000], 0.0)
    ends = run_bucket(bucket, [1000] * 100, 50.0)  # after a long pause
    assert ends - 50.0 == pytest.approx(1.0 - BURST_S)


def test_a_rate_that_changes_counts_at_once_for_who_waits_already() -> None:
    bucket = TokenBucket(16 * 1024, 0.0)
    position = bucket.take(160 * 1024, 0.0)
    assert bucket.wait(position, 5.0) == pytest.approx(5.0)
    bucket.set_rate(160 * 1024, 5.0)
    assert bucket.wait(position, 5.0) == pytest.approx(0.5)
    bucket.set_rate(0, 5.1)
    assert bucket.wait(position, 5.1) == 0.0


def test_several_lanes_share_one_bucket_in_order() -> None:
    bucket = TokenBucket(1000, 0.0)
    first, second = bucket.take(500, 0.0), bucket.take(500, 0.0)
    assert (bucket.wait(first, 0.0), bucket.wait(second, 0.0)) == (0.5, 1.0)


@pytest.mark.parametrize("percent", [1, 30, 100])
def test_a_share_of_the_time(percent: int) -> None:
    free = sum(rest(percent, number / 10_000 + 0.00001) == 0.0 for number in range(10_000))
    assert free == pytest.approx(percent * 100, abs=20)


@pytest.mark.parametrize(
    ("budget", "claims", "rates"),
    [
        (0, {"a": (50, 0), "b": (100, 7)}, {"a": 0, "b": 7}),
        (1000, {"a": (50, 0)}, {"a": 500}),  # half of the link is left to others
        (1000, {"a": (100, 0)}, {"a": 1000}),
        (1000, {"a": (30, 0), "b": (60, 0)}, {"a": 300, "b": 600}),
        (1000, {"a": (100, 0), "b": (100, 0)}, {"a": 500, "b": 500}),
        (1000, {"a": (100, 0), "b": (25, 0)}, {"a": 800, "b": 200}),
        (1000, {"a": (100, 100), "b": (100, 0)}, {"a": 100, "b": 900}),
    ],
)
def test_shares_of_a_link(
    budget: int, claims: dict[str, tuple[int, int]], rates: dict[str, int]
) -> None:
    found = share(budget, {name: Claim(*claim) for name, claim in claims.items()})
    assert found == rates


@given(
    st.integers(100_000, 1 << 34),
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=2),
        st.builds(Claim, st.integers(1, 100), st.integers(0, 1 << 34)),
        max_size=64,
    ),
)
def test_shares_never_exceed_the_link_and_nobody_starves(
    budget: int, claims: dict[str, Claim]
) -> None:
    rates = share(budget, claims)
    assert rates.keys() == claims.keys()
    assert sum(rates.values()) <= budget
    for name, claim in claims.items():
        assert rates[name] >= 1
        assert not claim.limit or rates[name] <= claim.limit
        assert rates[name] <= max(1, budget * claim.priority // 100)


def test_a_window_of_parts_is_the_same() -> None:
    whole = parse_window("mon-fri 22:00-06:00 rate=50M zone=Europe/Berlin")
    assert make_window("mon-fri", "22:00", "06:00", "50M", "Europe/Berlin") == whole
