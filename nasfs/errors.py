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


class ConfigError(Failed):
    """The person's input: a word, a size, a file that we can't make sense of."""

    exit_code = 2


class Refused(Failed):
    """It would lose data or break a rule, and nobody named that loss with an option."""

    exit_code = 3


class Unreachable(Failed):
    """The daemon or the peer does not answer."""

    exit_code = 4
