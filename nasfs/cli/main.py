"""``nasfs``: the command tree, and how errors become text and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import nasfs
from nasfs.errors import NasError
from nasfs.node.places import ROOT_VARIABLE, Places

from . import (
    drill,
    explain,
    failover,
    group,
    identity,
    mount,
    node,
    pair,
    pool,
    readiness,
    replication,
    schedule,
    share,
    snapshot,
    staged,
    status,
    volume,
)
from .session import choose, print_json

app = typer.Typer(
    name="nasfs",
    help="NAS volumes with redirect-on-write snapshots and one-to-one disaster recovery.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            envvar=ROOT_VARIABLE,
            help="Configuration, state and sockets below DIR.",
        ),
    ] = None,
) -> None:
    choose(Places.find(root))


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The release."""
    if as_json:
        print_json({"version": nasfs.__version__})
    else:
        typer.echo(f"nasfs {nasfs.__version__}")


app.add_typer(node.app, name="node")
app.add_typer(pool.app, name="pool")
app.add_typer(volume.app, name="volume")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(schedule.app, name="schedule")
app.add_typer(group.app, name="group")
app.add_typer(pair.app, name="pair")
app.add_typer(replication.app, name="replication")
share.app.command("staged")(staged.staged)
app.add_typer(share.app, name="share")
app.add_typer(identity.app, name="identity")
app.add_typer(drill.app, name="test-failover")
app.command("mount")(mount.mount)
app.command("unmount")(mount.unmount)
app.command("failover")(failover.failover)
app.command("failback-join")(failover.failback_join)
app.command("failback")(failover.failback)
app.command("rollback")(failover.rollback)
app.command("readiness")(readiness.readiness)
app.command("status")(status.status)
app.command("events")(status.events)
app.command("explain")(explain.explain)


def run() -> None:
    """Run one command; our errors become text and an exit code, bugs keep their traceback."""
    try:
        app()
    except NasError as exc:
        sys.exit(report([exc]))
    except BaseExceptionGroup as group:
        ours, others = group.split(NasError)
        if ours is None or others is not None:
            raise
        sys.exit(report(list(_leaves(ours))))


def report(errors: list[NasError]) -> int:
    """Say what went wrong on standard error; the exit code."""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    return max(error.exit_code for error in errors)


def _leaves(group: BaseExceptionGroup[NasError]) -> Iterator[NasError]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc


if __name__ == "__main__":
    run()
