"""A policy: how people write it, checked and typed.  Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import msgspec

from nasfs.errors import ConfigError

from .clock import Missed
from .retention import KEEP_MAX, Rule, parse_tiers
from .rhythm import Every, Rhythm, parse_at, parse_every
from .spans import parse_span

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
E = TypeVar("E", bound=Enum)
NAME_BYTES = 60
HOOK_MAX_S = 3600


class Unchanged(Enum):
    """What a policy does when nothing has changed since its newest snapshot."""

    TAKE = "take"
    SKIP = "skip"


class PolicySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy as people write it; so it is stored, too."""

    every: str = ""
    at: str = ""
    days: str = ""
    zone: str = ""
    jitter: str = ""
    keep: int = 0
    thin: str = ""
    missed: str = Missed.RUN.value
    unchanged: str = Unchanged.TAKE.value
    before: str | tuple[str, ...] = ""
    """A line for the shell, or words."""
    before_timeout: str = "1m"
    after: str | tuple[str, ...] = ""
    after_timeout: str = "1m"


@dataclass(frozen=True, slots=True)
class Hook:
    """A command around the snapshot: a line for the shell, or words.  Empty: there is none."""

    command: str | tuple[str, ...]
    timeout_s: int


@dataclass(frozen=True, slots=True)
class Policy:
    """When, how many, and what else."""

    rhythm: Rhythm
    rule: Rule
    jitter_s: int
    missed: Missed
    unchanged: Unchanged
    before: Hook
    after: Hook


def check_policy_name(name: str) -> str:
    """*name* itself: snapshots begin with it.  Raises ConfigError."""
    if len(name) > NAME_BYTES or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a policy",
            hint=f"letters, digits and _ . + - are allowed, at most {NAME_BYTES} of them,"
            " beginning with a letter or digit",
        )
    return name


def parse_policy(spec: PolicySpec) -> Policy:
    """Raises ConfigError: something in it makes no sense."""
    rhythm = _parse_rhythm(spec)
    jitter_s = parse_span(spec.jitter, "--jitter") if spec.jitter else 0
    limit_s = rhythm.interval_s if isinstance(rhythm, Every) else 86_400
    if jitter_s >= limit_s and jitter_s:
        raise ConfigError(
            f"--jitter: {spec.jitter} is as long as the policy's interval",
            hint="a run is delayed by less than what lies between two runs",
        )
    return Policy(
        rhythm=rhythm,
        rule=_parse_rule(spec),
        jitter_s=jitter_s,
        missed=_choice(Missed, spec.missed, "--missed"),
        unchanged=_choice(Unchanged, spec.unchanged, "--unchanged"),
        before=_parse_hook(spec.before, spec.before_timeout, "--before"),
        after=_parse_hook(spec.after, spec.after_timeout, "--after"),
    )


def _parse_rhythm(spec: PolicySpec) -> Rhythm:
    if bool(spec.every) == bool(spec.at):
        raise ConfigError(
            "a policy runs either --every so often or --at times of the day",
            hint="for instance --every 15m, or --at 02:00 --days sun",
        )
    if spec.at:
        return parse_at(spec.at, spec.days, spec.zone or "UTC")
    if spec.days or spec.zone:
        raise ConfigError(
            "--days and --timezone belong to --at; --every is counted in UTC",
            hint="for instance --at 02:00 --days sun --timezone Europe/Berlin",
        )
    return parse_every(spec.every)


def _parse_rule(spec: PolicySpec) -> Rule:
    tiers = parse_tiers(spec.thin)
    if not spec.keep and not tiers:
        raise ConfigError(
            "it is not said how many snapshots stay",
            hint="--keep N keeps the newest N, --thin 1m:1h,1h:7d thins them out as they age",
        )
    if not 0 <= spec.keep <= KEEP_MAX:
        raise ConfigError(f"--keep: a policy can keep 1 to {KEEP_MAX} snapshots")
    return Rule(spec.keep, tiers)


def _parse_hook(command: str | tuple[str, ...], timeout: str, option: str) -> Hook:
    timeout_s = parse_span(timeout, f"{option}-timeout")
    if timeout_s > HOOK_MAX_S:
        raise ConfigError(f"{option}-timeout: at most an hour")
    words = (command,) if isinstance(command, str) else command
    if any("\0" in word for word in words) or (command and not words[0].strip()):
        raise ConfigError(f"{option}: that is no command")
    return Hook(command, timeout_s)


def _choice(kind: type[E], text: str, option: str) -> E:
    try:
        return kind(text)
    except ValueError as exc:
        known = " or ".join(str(member.value) for member in kind)
        raise ConfigError(f"{option}: {text!r} is not known", hint=known) from exc
