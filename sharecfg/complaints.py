"""What is wrong with a configuration that somebody wrote: where, which key, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nasfs.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that can't be taken as it is."""

    where: str
    """The file, with its line where that is known, or the share."""
    key: str
    """The parameter, as it is written there."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.reason}"


@dataclass(eq=False)
class Misconfigured(ConfigError):
    """All that was found wrong, so that a person corrects it in one go."""

    complaints: tuple[Complaint, ...] = ()


def misconfigured(complaints: Iterable[Complaint], hint: str = "") -> Misconfigured:
    found = tuple(complaints)
    return Misconfigured("\n".join(map(str, found)), hint, found)
