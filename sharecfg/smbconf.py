"""The syntax of smb.conf: sections, parameters, lists.  Pure; ``samba`` knows what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .checks import smb_key
from .complaints import Complaint

TRUE = ("yes", "true", "1", "on")
FALSE = ("no", "false", "0", "off")


@dataclass(frozen=True, slots=True)
class Parameter:
    """``name = value`` as it stands there."""

    name: str
    value: str
    line: int

    @property
    def key(self) -> str:
        return smb_key(self.name)

    @property
    def text(self) -> str:
        """Of a value that is no list: without quotation marks around it, as Samba reads it."""
        value = self.value
        if len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in value[1:-1]:
            return value[1:-1]
        return value


@dataclass(slots=True)
class Section:
    """``[name]`` and its parameters; one that is said again counts as Samba takes it: the last."""

    name: str
    line: int
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """By `Parameter.key`, in the order of the file."""


@dataclass(frozen=True, slots=True)
class ParsedConf:
    sections: tuple[Section, ...]
    includes: tuple[Parameter, ...]
    complaints: tuple[Complaint, ...]


def parse_conf(text: str, file: str) -> ParsedConf:
    """All sections; those of the same name are one, as for Samba."""
    sections: dict[str, Section] = {}
    includes: list[Parameter] = []
    complaints: list[Complaint] = []
    current = sections.setdefault("global", Section("global", 0))
    for number, line in _logical_lines(text):
        if line.startswith("["):
            name, bracket, _ = line[1:].partition("]")
            name = " ".join(name.split())
            if not bracket or not name:
                complaints.append(Complaint(f"{file}, line {number}", line, "no section"))
                continue
            current = sections.setdefault(name.casefold(), Section(name, number))
            continue
        name, equals, value = line.partition("=")
        parameter = Parameter(" ".join(name.split()), value.strip(), number)
        if not equals or not parameter.key:
            complaints.append(Complaint(f"{file}, line {number}", line, "no NAME = VALUE"))
        elif parameter.key == "include":
            includes.append(parameter)
        else:
            current.parameters.pop(parameter.key, None)
            current.parameters[parameter.key] = parameter
    return ParsedConf(tuple(sections.values()), tuple(includes), tuple(complaints))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with what ends in a backslash put together; comments and empty ones left out."""
    pending, began = "", 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.rstrip("\r")
        if not pending:
            began = number
            if line.lstrip()[:1] in ("", ";", "#"):
                continue
        joined = pending + line.strip()
        if joined.endswith("\\"):
            pending = joined[:-1]
            continue
        pending = ""
        if joined.strip():
            yield began, joined.strip()
    if pending.strip():
        yield began, pending.strip()


def split_list(value: str) -> tuple[str, ...]:
    """Words between blanks, commas and semicolons; quotation marks hold together."""
    words = re.findall(r'(?:[^\s,;"]|"[^"]*"?)+', value)
    return tuple(word for word in (word.replace('"', "") for word in words) if word)


def join_list(words: Iterable[str]) -> str:
    return " ".join(f'"{word}"' if re.search(r"[\s,;]", word) else word for word in words)


def parse_bool(value: str) -> bool | None:
    """None: it is none."""
    lowered = value.casefold()
    return True if lowered in TRUE else False if lowered in FALSE else None
