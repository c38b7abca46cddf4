"""Paths within a volume, as people and JSON see them.  Names are bytes; most are UTF-8.  Pure."""

from __future__ import annotations

import base64
import binascii
import re

from nasfs.errors import ConfigError

_UNCLEAR = re.compile("[\x00-\x1f\x7f-\x9f\\\\\u2028\u2029]")


def show_path(path: bytes) -> str:
    """One line that tells the path from every other, in UTF-8.

    A backslash is doubled, bytes that are no text and characters that would break the line
    are ``\\xNN`` for each byte, and a space before ``->`` is, so that it does not look like ours.
    """
    pieces = []
    for character in path.decode("utf-8", "surrogateescape"):
        if character == "\\":
            pieces.append("\\\\")
        elif "\udc80" <= character <= "\udcff" or _UNCLEAR.match(character):
            raw = character.encode("utf-8", "surrogateescape")
            pieces += [f"\\x{byte:02x}" for byte in raw]
        else:
            pieces.append(character)
    return "".join(pieces).replace(" ->", "\\x20->") or "/"


def text_and_raw(path: bytes) -> tuple[str, str | None]:
    """For JSON: the path as text, and in base 64 what text can't hold exactly (else None)."""
    try:
        return path.decode(), None
    except UnicodeDecodeError:
        return path.decode("utf-8", "backslashreplace"), base64.b64encode(path).decode()


def from_text_or_raw(text: str, raw: str | None) -> bytes:
    """The other way.  Raises ConfigError."""
    if raw is None:
        return text.encode()
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error as exc:
        raise ConfigError(f"{raw!r} is not base 64: {exc}") from exc


def from_command_line(word: str) -> tuple[str, str | None]:
    """A word of the command line as text and raw, for a request."""
    return text_and_raw(word.encode("utf-8", "surrogateescape"))


def split_path(path: bytes) -> tuple[bytes, ...]:
    """The names on the way from the volume's root; () is the root.  Raises ConfigError."""
    names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    for name in names:
        if name == b".." or len(name) > 255 or b"\0" in name:
            raise ConfigError(
                f"{show_path(path)!r} cannot be a path in a volume",
                hint="paths begin at the volume's root, for instance docs/report.txt",
            )
    return names
