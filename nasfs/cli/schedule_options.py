"""The options that say what a policy is: the same for `schedule add` and `schedule set`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import typer

from nasfs.errors import ConfigError

Every = Annotated[
    str | None, typer.Option(metavar="SPAN", help="Each 1s, 15m, 1h, 1d, ..., counted in UTC.")
]
At = Annotated[str | None, typer.Option(metavar="HH:MM,...", help="At times of the day.")]
Days = Annotated[
    str | None,
    typer.Option(metavar="DAYS", help="With --at: mon-fri,sun or, of the month, 1,15,last."),
]
Zone = Annotated[
    str | None,
    typer.Option("--timezone", metavar="ZONE", help="With --at: Europe/Berlin (the system's)."),
]
Jitter = Annotated[
    str | None, typer.Option(metavar="SPAN", help="Up to so much later, drawn anew each time.")
]
Keep = Annotated[int | None, typer.Option(metavar="N", help="The newest N stay.")]
Thin = Annotated[
    str | None,
    typer.Option(
        metavar="STEP:AGE,...", help="Thinned as they age: 1s:10m,10s:1h,1m:1d; AGE may be forever."
    ),
]
Missed = Annotated[
    str | None,
    typer.Option(metavar="run|skip", help="Runs that passed while the daemon was down (run)."),
]
Unchanged = Annotated[
    str | None,
    typer.Option(metavar="take|skip", help="When nothing changed since its newest one (take)."),
]
Before = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND", help='Run first; if it fails there is no snapshot. Or ["JSON", "words"].'
    ),
]
After = Annotated[
    str | None, typer.Option(metavar="COMMAND", help="Run afterwards, whatever happened.")
]
Timeout = Annotated[str | None, typer.Option(metavar="SPAN", help="Then that hook is killed (1m).")]


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What was given; None for what was not.  The names are those of `PolicySpec`."""

    every: Every = None
    at: At = None
    days: Days = None
    zone: Zone = None
    jitter: Jitter = None
    keep: Keep = None
    thin: Thin = None
    missed: Missed = None
    unchanged: Unchanged = None
    before: Before = None
    before_timeout: Timeout = None
    after: After = None
    after_timeout: Timeout = None

    def named(self) -> dict[str, str | int | tuple[str, ...]]:
        """What was given, by the name of its option."""
        named: dict[str, str | int | tuple[str, ...]] = {}
        for option in fields(self):
            value = getattr(self, option.name)
            if value is None:
                continue
            is_hook = option.name in ("before", "after")
            named[option.name] = _command(value, option.name) if is_hook else value
        return named


def _command(text: str, option: str) -> str | tuple[str, ...]:
    """A line for the shell; or, as a JSON list, words."""
    import msgspec

    if not text.lstrip().startswith("["):
        return text
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.MsgspecError as exc:
        raise ConfigError(
            f"--{option}: {text!r} begins like a list of words, but is none",
            hint="""words are written '["/usr/bin/psql", "-c", "CHECKPOINT"]'""",
        ) from exc
