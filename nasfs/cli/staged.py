"""``nasfs share staged``: what the partner told of its shares, where they are passive."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from .session import Json, client, print_fields, print_json, print_table


def staged(
    group: Annotated[str, typer.Argument(metavar="GROUP")],
    number: Annotated[
        int | None, typer.Option("--number", metavar="N", help="An older one of the history.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="What came when.")] = False,
    as_json: Json = False,
) -> None:
    """The partner's shares, users and groups that wait for a failover, and what differs here."""
    import yaml
    from msgspec import to_builtins

    from nasfs.node.shares.staging_views import StagedView

    query = {"number": str(number)} if number is not None else {}
    view = client().get(f"/v1/staged/{quote(group, safe='')}", StagedView, **query)
    if as_json:
        print_json(view)
        return
    if history:
        print_table(
            ["NUMBER", "CAME", "WITH", "DIGEST"],
            [(one.number, one.time, one.snapshot, one.digest) for one in view.history],
        )
        return
    print_fields(
        [
            ("group", view.group),
            ("came", f"{view.time}, number {view.number}"),
            ("with snap group", view.snapshot),
            ("digest", view.digest),
            ("users", ", ".join(f"{user.name} ({user.uid})" for user in view.users)),
            ("groups", ", ".join(f"{one.name} ({one.gid})" for one in view.groups)),
            ("SMB accounts", ", ".join(view.smb_accounts)),
            ("machine SID", view.machine_sid),
        ]
    )
    if view.shares:
        text = yaml.safe_dump(to_builtins(view.shares), sort_keys=False, allow_unicode=True)
        typer.echo(f"shares:\n{text}", nl=False)
    typer.echo("differences from this node:" if view.differences else "here it is the same")
    for line in view.differences:
        typer.echo(f"  {line}")
