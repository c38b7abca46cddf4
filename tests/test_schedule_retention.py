"""Which snapshots stay: pure decisions, against naive models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import ConfigError
from nasfs.schedule.policy import PolicySpec, check_policy_name, parse_policy
from nasfs.schedule.retention import (
    Candidate,
    Decision,
    Rule,
    Tier,
    Verdict,
    parse_tiers,
    plan_retention,
)
from nasfs.schedule.rhythm import SECOND_NS, Every

NEAR = parse_tiers("1s:10m,10s:1h,1m:1d")


def made(words: str, policy: str = "p") -> list[Candidate]:
    """``a@0 b@1!held x@2?``: names with seconds, an obstacle, or (?) not made by a policy."""
    found = []
    for word in words.split():
        name, _, rest = word.partition("@")
        second, _, obstacle = rest.rstrip("?").partition("!")
        owner = "" if word.endswith("?") else policy
        hindered = (obstacle,) if obstacle else ()
        found.append(Candidate(name, name, int(second) * SECOND_NS, owner, hindered))
    return found


def stays(decisions: list[Decision]) -> str:
    return " ".join(d.snapshot.name for d in decisions if d.verdict is Verdict.KEEP)


@pytest.mark.parametrize(
    ("snapshots", "keep", "expected"),
    [
        ("", 2, ""),
        ("a@0", 1, "a"),
        ("a@0 b@1 c@2", 2, "b c"),
        ("a@0 b@1 c@2", 3, "a b c"),
        ("a@0 b@1 c@2", 9, "a b c"),
        ("a@0!held b@1 c@2 d@3", 2, "a c d"),  # what is held stays beside the newest two
        ("a@0? b@1 c@2 x@3? d@4", 1, "a x d"),
        ("x@0? y@1?", 1, "x y"),
        ("a@9 b@1 c@2", 2, "b c"),  # made in this order, whatever a wrong clock said
    ],
)
def test_the_newest_stay(snapshots: str, keep: int, expected: str) -> None:
    assert stays(plan_retention(made(snapshots), "p", Rule(keep))) == expected


def test_another_policys_snapshots_stay() -> None:
    mixed = [*made("a@0 b@1", "q"), *made("c@2 d@3")]
    decisions = plan_retention(mixed, "p", Rule(1))
    assert stays(decisions) == "a b d"
    assert [d.reason for d in decisions][:2] == ["another policy made it"] * 2


def test_every_decision_has_its_reason() -> None:
    decisions = plan_retention(made("a@0 b@1!held_by_audit x@2? c@3 d@4"), "p", Rule(1))
    assert [(d.snapshot.name, d.verdict.value, d.reason) for d in decisions] == [
        ("a", "destroy", "older than the newest 1"),
        ("b", "keep", "held_by_audit"),
        ("x", "keep", "no policy made it"),
        ("c", "destroy", "older than the newest 1"),
        ("d", "keep", "number 1 of the newest 1"),
    ]
    decisions = plan_retention(made("a@0 b@3599 c@3601"), "p", Rule(0, parse_tiers("1h:2h")))
    assert [d.reason for d in decisions] == [
        "the first of its 1h, up to the age of 2h",
        "not what 1h:2h keeps",
        "the first of its 1h, up to the age of 2h",
    ]


def test_thinning_by_tiers() -> None:
    tiers = parse_tiers("1s:10s,10s:1m")
    snapshots = made(" ".join(f"s{second}@{second}" for second in range(101)))
    kept = stays(plan_retention(snapshots, "p", Rule(0, tiers))).split()
    assert kept == ["s50", "s60", "s70", "s80", "s90", *[f"s{n}" for n in range(91, 101)]]


def test_near_continuous_thinning_second_by_second_for_hours() -> None:
    """A snapshot each second, retention after each: as if it had been decided once at the end."""
    alive: list[Candidate] = []
    for second in range(3 * 3600):
        alive.append(Candidate(str(second), str(second), second * SECOND_NS, "p"))
        if second % 7 == 0 or second > 3 * 3600 - 5:
            decisions = plan_retention(alive, "p", Rule(0, NEAR))
            alive = [d.snapshot for d in decisions if d.verdict is Verdict.KEEP]
    seconds = [int(snapshot.key) for snapshot in alive]
    now = 3 * 3600 - 1
    fine = [s for s in seconds if now - s < 600]
    middle = [s for s in seconds if 600 <= now - s < 3600]
    coarse = [s for s in seconds if now - s >= 3600]
    assert fine == list(range(now - 599, now + 1))
    assert middle == [s for s in range(now - 3599, now - 599) if s % 10 == 0]
    assert coarse == [s for s in range(now - 3599) if s % 60 == 0]


tier_lists = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 50)), min_size=1, max_size=4).map(
    lambda parts: tuple(
        Tier(step, span)
        for step, span in zip(
            _products([part[0] + 1 for part in parts]),
            _spans(_products([part[0] + 1 for part in parts]), [part[1] for part in parts]),
            strict=True,
        )
    )
)


def _products(factors: list[int]) -> list[int]:
    found, product = [], 1
    for factor in factors:
        product *= factor
        found.append(product)
    return found


def _spans(steps: list[int], more: list[int]) -> list[int]:
    """Each reaches at least one step further back than the one before."""
    found, reached = [], 0
    for step, rest in zip(steps, more, strict=True):
        reached += step + rest - 1
        found.append(reached)
    return found


snapshot_lists = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from(["p", "p", "p", "q", ""]), st.booleans()),
    max_size=60,
).map(
    lambda parts: [
        Candidate(str(n), str(n), second * SECOND_NS, policy, ("held",) if held else ())
        for n, (second, policy, held) in enumerate(parts)
    ]
)
rules = st.one_of(
    st.builds(Rule, st.integers(1, 10)),
    st.builds(Rule, st.integers(0, 10), tier_lists),
)


@given(snapshot_lists, rules)
def test_what_must_stay_stays(snapshots: list[Candidate], rule: Rule) -> None:
    decisions = plan_retention(snapshots, "p", rule)
    assert [decision.snapshot for decision in decisions] == snapshots
    assert all(decision.reason for decision in decisions)
    own = [snapshot for snapshot in snapshots if snapshot.policy == "p"]
    kept = {d.snapshot.key for d in decisions if d.verdict is Verdict.KEEP}
    for snapshot in snapshots:
        if snapshot.policy != "p" or snapshot.obstacles:
            assert snapshot.key in kept
    if own:
        assert own[-1].key in kept
    if rule.keep:
        assert {snapshot.key for snapshot in own[-rule.keep :]} <= kept


@given(snapshot_lists, rules)
def test_deciding_again_about_what_is_left_changes_nothing(
    snapshots: list[Candidate], rule: Rule
) -> None:
    """With a clock that was right all the time."""
    times = sorted(snapshot.time_ns for snapshot in snapshots)
    snapshots = [replace(s, time_ns=t) for s, t in zip(snapshots, times, strict=True)]
    kept = [
        d.snapshot
        for d in plan_retention(snapshots, "p", rule)
        if d.verdict is Verdict.KEEP
    ]  # fmt: skip
    again = plan_retention(kept, "p", rule)
    assert all(decision.verdict is Verdict.KEEP for decision in again)


@given(snapshot_lists, rules)
def test_others_do_not_matter(snapshots: list[Candidate], rule: Rule) -> None:
    own = [snapshot for snapshot in snapshots if snapshot.policy == "p"]
    mixed = {d.snapshot.key: d.verdict for d in plan_retention(snapshots, "p", rule)}
    assert {d.snapshot.key: d.verdict for d in plan_retention(own, "p", rule)} == {
        snapshot.key: mixed[snapshot.key] for snapshot in own
    }


@given(tier_lists, st.lists(st.integers(0, 200), min_size=1, max_size=80).map(sorted))
def test_thinning_now_and_then_is_thinning_once(
    tiers: tuple[Tier, ...], seconds: list[int]
) -> None:
    """However often it is done on the way, what stays is the first of each step at its age."""
    rule = Rule(0, tiers)
    alive: list[Candidate] = []
    for number, second in enumerate(seconds):
        alive.append(Candidate(str(number), "", second * SECOND_NS, "p"))
        decisions = plan_retention(alive, "p", rule)
        alive = [d.snapshot for d in decisions if d.verdict is Verdict.KEEP]
    expected = set()
    for number, second in enumerate(seconds):
        age = seconds[-1] - second
        tier = next((t for t in tiers if t.span_s is None or age < t.span_s), None)
        if tier and number == min(
            n for n, s in enumerate(seconds) if s // tier.step_s == second // tier.step_s
        ):
            expected.add(str(number))
    assert {snapshot.key for snapshot in alive} == expected | {str(len(seconds) - 1)}


@given(snapshot_lists, rules, st.integers(1, 10**9))
def test_a_clock_that_was_wrong_and_set_back_costs_no_snapshot(
    snapshots: list[Candidate], rule: Rule, ahead_s: int
) -> None:
    """Times that are too late count as those of the first snapshot with a right one."""
    own = sorted((s for s in snapshots if s.policy == "p"), key=lambda s: s.time_ns)
    if len(own) < 2:
        return
    half = len(own) // 2
    wrong = [replace(s, time_ns=s.time_ns + ahead_s * SECOND_NS) for s in own[:half]]
    limit = own[half].time_ns
    clamped = [replace(s, time_ns=min(s.time_ns, limit)) for s in wrong]
    assert stays(plan_retention(wrong + own[half:], "p", rule)) == stays(
        plan_retention(clamped + own[half:], "p", rule)
    )


@pytest.mark.parametrize(
    "text", ["1s", "1s:", ":1h", "1s:1h,10s:10m", "10s:1h,1s:2h", "7s:1m,10s:1h",
             "2s:1s", "1m:1h,1h:90m", "1s:forever,10s:1h", "1s:1h,1s:2h", "x:y"],
)  # fmt: skip
def test_bad_tiers(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_tiers(text)


def test_policies_are_checked_as_a_whole() -> None:
    policy = parse_policy(PolicySpec(every="15m", keep=8, jitter="30s", before=("fsync", "x")))
    assert policy.rhythm == Every(900)
    assert (policy.rule, policy.jitter_s) == (Rule(8), 30)
    assert policy.before.command == ("fsync", "x")
    for bad in (
        PolicySpec(keep=1),
        PolicySpec(every="1m", at="02:00", keep=1),
        PolicySpec(every="1m"),
        PolicySpec(every="1m", keep=-1),
        PolicySpec(every="1m", keep=10_001),
        PolicySpec(every="1m", keep=1, zone="UTC"),
        PolicySpec(every="1m", keep=1, days="mon"),
        PolicySpec(every="1m", keep=1, jitter="1m"),
        PolicySpec(every="1m", keep=1, missed="never"),
        PolicySpec(every="1m", keep=1, unchanged="maybe"),
        PolicySpec(every="1m", keep=1, before="  "),
        PolicySpec(every="1m", keep=1, before="true", before_timeout="2h"),
        PolicySpec(at="02:00", keep=1, zone="Mars/Olympus"),
    ):
        with pytest.raises(ConfigError):
            parse_policy(bad)
    for name in ("", "a b", "-a", "x" * 61, "a@b", "a/b", "a:b"):
        with pytest.raises(ConfigError):
            check_policy_name(name)
