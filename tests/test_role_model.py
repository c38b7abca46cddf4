"""Every way in which two nodes can change roles, explored exhaustively in a small model.

The rules by which a node answers are the product's own (``replication.handover``); around them
the model has two nodes, a network that loses, delays and repeats questions and loses answers,
and people who call off and use force at the worst moment.  A crash is no step of its own: what a
node does next follows from what it remembers, at any time, and whatever is under way may be asked
again or never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from nasfs.errors import NasError
from replication.handover import (
    HandOver,
    Keep,
    Rejoin,
    Seat,
    check_drain,
    check_hand_over,
    check_keep,
    check_rejoin,
    is_handed_over,
)
from replication.roles import Role

Content = tuple[int, ...]
"""The writes that a volume has, in their order."""

LAST_TERM = 4
WRITES = 2
RETURNS = 1
SERVING = (Role.ACTIVE, Role.FAILED_OVER)


class Site(NamedTuple):
    role: Role
    term: int
    live: Content
    whole: Content
    """The newest snap group that is complete here."""
    kept: frozenset[Content] = frozenset()
    token: int = 0
    """Of the change for which it is drained."""
    last: Content | None = None
    """The last snap group, taken for that."""
    plan: int = 0
    """The token of a switchover that this node carries out; 0: none."""
    step: str = ""
    """``drain``, ``hand over`` or ``take``: what is to be done next."""
    agreed: Content | None = None
    """The last snap group that the partner has named."""
    waits: bool = False
    """It has come back, and has not heard yet whether it is still the primary."""
    forgot: bool = False
    """It has taken over what was handed over, and did not know of that any more."""


class Question(NamedTuple):
    to: int
    what: str
    token: int
    term: int
    content: Content | None = None


class World(NamedTuple):
    sites: tuple[Site, Site]
    asked: frozenset[Question] = frozenset()
    """Whatever was once asked may arrive now, or again."""
    writes: int = 0
    tokens: int = 0
    acknowledged: Content = ()
    """The newest snap group that was complete on both sides."""
    force: bool = True
    """Whether people use force, and say that the partner has not taken over."""
    returns: int = 0
    """How often a primary came back."""


def seat(site: Site) -> Seat:
    token = str(site.token) if site.token else ""
    return Seat("g", site.role, site.term, token, "" if site.last is None else repr(site.last))


def grants(check: object, *values: object) -> bool:
    try:
        check(*values)  # type: ignore[operator]
    except NasError:
        return False
    return True


def answer(site: Site, question: Question) -> tuple[Site, str]:
    """What a node becomes by a question, and its answer: ``yes``, ``no``."""
    token, term = str(question.token), question.term
    match question.what:
        case "drain":
            if not grants(check_drain, seat(site), token, term):
                return site, "no"
            if not site.token:
                site = site._replace(token=question.token, last=site.live)
            return site, "yes"
        case "hand over":
            if is_handed_over(seat(site), term):
                return site, "yes"
            ask = HandOver(token, term, repr(question.content))
            if not grants(check_hand_over, seat(site), ask):
                return site, "no"
            return site._replace(
                role=Role.PASSIVE, term=term, whole=site.live, token=0, last=None
            ), "yes"
        case "keep":
            if not grants(check_keep, seat(site), Keep(token, term)):
                return site, "no"
            same = site.token == question.token
            return (site._replace(token=0, last=None) if same else site), "yes"
        case _:
            if not grants(check_rejoin, seat(site), Rejoin(term, {})):
                return site, "no"
            if site.term == term:
                return site, "yes"
            common = question.content or ()
            diverged = {c for c in (site.live, site.whole) if c != common[: len(c)]}
            return Site(Role.PASSIVE, term, common, common, site.kept | diverged), "yes"


def common_of(one: Content, other: Content) -> Content:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def put(world: World, number: int, site: Site, **changes: object) -> World:
    sites = list(world.sites)
    sites[number] = site
    return world._replace(sites=(sites[0], sites[1]), **changes)  # type: ignore[arg-type]


def steps(world: World) -> Iterator[World]:
    """Everything that can happen next."""
    for number in (0, 1):
        yield from own_steps(world, number)
    for question in world.asked:
        answered, said = answer(world.sites[question.to], question)
        after = put(world, question.to, answered)
        yield after  # the answer is lost
        yield from heard(after, question, said)


def own_steps(world: World, me: int) -> Iterator[World]:
    site, other = world.sites[me], world.sites[1 - me]
    if serves(site) and world.writes < WRITES:
        wrote = site._replace(live=(*site.live, world.writes + 1))
        yield put(world, me, wrote, writes=world.writes + 1)
    if site.role is Role.ACTIVE:
        yield from replicate(world, me)
    if site.token:  # nobody asks any more, or the daemon begins anew
        yield put(world, me, site._replace(token=0, last=None))
    if site.role in SERVING and other.term > site.term:
        yield put(world, me, site._replace(role=Role.STALE, token=0, last=None, waits=False))
    may_be_replaced = site.role is Role.ACTIVE or may_be_followed(world, me)
    if site.role in SERVING and may_be_replaced and not site.waits and world.returns < RETURNS:
        back = site._replace(token=0, last=None, waits=True)
        yield put(world, me, back, returns=world.returns + 1)
    if site.waits and (world.force or other.term <= site.term):
        yield put(world, me, site._replace(waits=False))
    if site.role is Role.PASSIVE:
        yield from passive_steps(world, me)
    if site.role is Role.FAILED_OVER:
        common = common_of(site.whole, other.live)
        ask = Question(1 - me, "rejoin", 0, site.term, common)
        yield world._replace(asked=world.asked | {ask})


def replicate(world: World, me: int) -> Iterator[World]:
    """A snap group of what is there now arrives whole, if the other side takes it."""
    site, other = world.sites[me], world.sites[1 - me]
    takes = other.role is Role.PASSIVE and other.term == site.term and other.step != "take"
    if takes and other.whole == site.live[: len(other.whole)]:
        sent = put(world, me, site._replace(whole=site.live), acknowledged=site.live)
        yield put(sent, 1 - me, other._replace(live=site.live, whole=site.live))


def passive_steps(world: World, me: int) -> Iterator[World]:
    site, other = world.sites[me], world.sites[1 - me]
    agreed = (other.role, other.term) == (Role.ACTIVE, site.term)
    if agreed and not site.plan and world.tokens < 2 and site.term < LAST_TERM - 1:
        token = world.tokens + 1
        yield put(world, me, site._replace(plan=token, step="drain"), tokens=token)
    if site.plan and site.step == "drain":
        yield world._replace(
            asked=world.asked | {Question(1 - me, "drain", site.plan, site.term + 1)}
        )
        # Called off, whether the partner is told or not.
        keep = Question(1 - me, "keep", site.plan, site.term + 1)
        called_off = site._replace(plan=0, step="", agreed=None)
        yield put(world, me, called_off, asked=world.asked | {keep})
        if site.agreed is not None and site.whole == site.agreed:
            yield put(world, me, site._replace(step="hand over"))
    if site.plan and site.step == "hand over":
        what = Question(1 - me, "hand over", site.plan, site.term + 1, site.agreed)
        yield world._replace(asked=world.asked | {what})
        keep = Question(1 - me, "keep", site.plan, site.term + 1)
        yield world._replace(asked=world.asked | {keep})
    if site.plan and site.step == "take":
        if (other.role, other.term) == (Role.PASSIVE, site.term + 1):
            assert other.live == site.whole, "a switchover loses what was written"
        yield put(
            world, me,
            Site(Role.ACTIVE, site.term + 1, site.whole, site.whole, site.kept),
        )  # fmt: skip
    handed_over = (other.role, other.term) == (Role.PASSIVE, site.term + 1)
    if not site.plan and handed_over and other.whole == site.whole:
        yield put(
            world, me,
            Site(
                Role.FAILED_OVER, site.term + 1, site.whole, site.whole, site.kept, forgot=True
            ),
        )  # fmt: skip
    if world.force and site.step != "take" and site.term < LAST_TERM:
        yield put(
            world, me,
            Site(Role.FAILED_OVER, site.term + 1, site.whole, site.whole, site.kept),
        )  # fmt: skip


def heard(world: World, question: Question, said: str) -> Iterator[World]:
    """The answer reaches who has asked, if it still waits for it."""
    me = 1 - question.to
    site = world.sites[me]
    waits = site.plan == question.token and site.term + 1 == question.term
    match question.what:
        case "drain" if waits and site.step == "drain":
            if said == "yes":
                yield put(world, me, site._replace(agreed=world.sites[question.to].last))
            else:
                yield put(world, me, site._replace(plan=0, step="", agreed=None))
        case "hand over" if waits and site.step == "hand over":
            if said == "yes":
                yield put(world, me, site._replace(step="take"))
            else:
                yield put(world, me, site._replace(plan=0, step="", agreed=None))
        case "keep" if waits and site.step == "hand over" and said == "yes":
            yield put(world, me, site._replace(plan=0, step="", agreed=None))
        case "rejoin" if site.role is Role.FAILED_OVER and site.term == question.term:
            if said == "yes":
                yield put(world, me, site._replace(role=Role.ACTIVE))


def may_be_followed(world: World, me: int) -> bool:
    """Whether it has ever asked the partner to become passive in its term, or found it so."""
    site = world.sites[me]
    return site.forgot or any(
        (asked.to, asked.term) == (1 - me, site.term) and asked.what in ("hand over", "rejoin")
        for asked in world.asked
    )


def serves(site: Site) -> bool:
    """People can write there."""
    return site.role in SERVING and not site.token and not site.waits


def start(*, force: bool) -> World:
    return World((Site(Role.ACTIVE, 1, (), ()), Site(Role.PASSIVE, 1, (), ())), force=force)


def check(world: World) -> None:
    one, other = world.sites
    both = [site for site in world.sites if site.role in SERVING]
    assert len(both) < 2 or one.term != other.term, "two primaries in one term"
    assert world.force or not (serves(one) and serves(other)), "two serve"
    for me, site in enumerate(world.sites):
        alone = site.role is Role.FAILED_OVER and not may_be_followed(world, me)
        replaced = world.sites[1 - me].term >= site.term
        assert not (alone and replaced), "it needs not wait, and was replaced"
    there = {one.live, other.live, one.whole, other.whole, *one.kept, *other.kept}
    for number in range(1, world.writes + 1):
        assert any(number in content for content in there), f"write {number} is lost"
    if both:
        newest = max(both, key=lambda site: site.term)
        got = world.acknowledged
        assert newest.live[: len(got)] == got, "a replicated snap group is lost"


def is_healthy(world: World) -> bool:
    roles = {site.role for site in world.sites}
    one, other = world.sites
    quiet = not (one.plan or other.plan or one.token or other.token or one.waits or other.waits)
    return roles == {Role.ACTIVE, Role.PASSIVE} and one.term == other.term and quiet


def explore(*, force: bool) -> dict[World, list[World]]:
    """All worlds, each with those that lead to it."""
    came_from: dict[World, list[World]] = {start(force=force): []}
    queue = deque(came_from)
    while queue:
        world = queue.popleft()
        check(world)
        for after in steps(world):
            if after == world:
                continue
            if after not in came_from:
                came_from[after] = []
                queue.append(after)
            came_from[after].append(world)
    return came_from


@pytest.mark.parametrize("force", [False, True])
def test_no_order_of_events_makes_two_primaries_or_loses_a_write_or_is_a_dead_end(
    force: bool,
) -> None:
    came_from = explore(force=force)
    good = {world for world in came_from if is_healthy(world)}
    queue = deque(good)
    while queue:
        for before in came_from[queue.popleft()]:
            if before not in good:
                good.add(before)
                queue.append(before)
    # In the model's last term nobody can use force any more.
    last = LAST_TERM if force else LAST_TERM + 1
    stuck = [w for w in came_from if w not in good and max(s.term for s in w.sites) < last]
    assert not stuck, f"{len(stuck)} of {len(came_from)}: {stuck[0]}"
    assert len(came_from) > 1000
