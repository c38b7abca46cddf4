"""What every command shares: which node is meant, its client, how answers are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasfs.node.places import Places

if TYPE_CHECKING:
    from nasfs.node.client import Client

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, do nothing.")]


def path(text: str) -> Path:
    """A path as it is.

    By itself typer looks at it, and fails or hangs where a mount's process is gone or stopped.
    """
    return Path(text)


_chosen: list[Places] = []


def choose(chosen: Places) -> None:
    """The node that the options name, for all that follows in this process."""
    _chosen[:] = [chosen]


def places() -> Places:
    return _chosen[0]


def client() -> Client:
    from nasfs.node.client import Client

    return Client(places())


def print_json(value: object) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_line(value: object) -> None:
    """JSON on one line, at once: one of many that come as they come."""
    import msgspec

    typer.echo(msgspec.json.encode(value))
    sys.stdout.flush()


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as they need to be; numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    right = [
        bool(texts) and all(row[i][:1].isdigit() or row[i] == "-" for row in texts)
        for i in range(len(headers))
    ]
    for row in [list(headers), *texts]:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Name and value, one pair per line; empty values are left out."""
    shown = [(name, str(value)) for name, value in fields if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        typer.echo(f"{name.ljust(width)}  {value}")


def warn(sentence: str) -> None:
    print(sentence, file=sys.stderr)
