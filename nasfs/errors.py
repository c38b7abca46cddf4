"""The root of our errors: what happened, which exit code, what to do next.

Everything that people may see derives from `NasError`.  Retry, exit code and errno follow from
the class; nobody reads message text.  The exit codes are a contract with scripts: 1 failed,
2 bad usage, 3 refused, 4 not reachable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class NasError(Exception):
    """Something that a person is told about, with an exit code and a hint what to do next."""

    exit_code: ClassVar[int] = 1
    hint: str = ""


@dataclass(eq=False)
class Failed(NasError):
    """The command could not do its work."""

    message: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class ConfigError(NasError):
    """The person's input: a word, a size, a file that we can't make sense of."""

    exit_code: ClassVar[int] = 2
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class Refused(NasError):
    """It would lose data or break a rule, and nobody named that loss with an option."""

    exit_code: ClassVar[int] = 3
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class Unreachable(NasError):
    """The daemon or the peer does not answer."""

    exit_code: ClassVar[int] = 4
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message
