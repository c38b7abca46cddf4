"""Lengths of time as people write them: ``90s``, ``15m``, ``1h``, ``1d``, ``2w``.  Pure."""

from __future__ import annotations

import re

from nasfs.errors import ConfigError

_SPAN = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
SPAN_MAX_S = 100 * 366 * 86_400


def parse_span(text: str, what: str) -> int:
    """Seconds.  Raises ConfigError; *what* is the option that people wrote it for."""
    match = _SPAN.fullmatch(text.strip())
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= SPAN_MAX_S:
        raise ConfigError(
            f"{what}: {text!r} is not a length of time",
            hint="a whole number and a unit: 10s, 15m, 1h, 1d or 2w; one second is the finest",
        )
    return seconds


def render_span(seconds: int) -> str:
    """With the largest unit that leaves a whole number: ``90s``, ``15m``."""
    for letter in "wdhm":
        if seconds and seconds % _SECONDS[letter] == 0:
            return f"{seconds // _SECONDS[letter]}{letter}"
    return f"{seconds}s"
