"""``nasfs identity``: users and groups that files refer to, and what they mean on the partner."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from .session import Json, client, print_json, print_table

app = typer.Typer(
    help="Users and groups that files refer to; what they mean on the partner.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    target: Annotated[str, typer.Argument(metavar="POOL/VOLUME|GROUP")], as_json: Json = False
) -> None:
    """Who owns files, who is named by their ACLs, as of the newest snapshot."""
    from nasfs.node.shares.identities import IdentityView

    views = client().get("/v1/identities", list[IdentityView], target=target)
    if as_json:
        print_json(views)
        return
    print_table(
        ["KIND", "NUMBER", "NAME", "FROM", "FILES", "ACL ENTRIES"],
        [
            (one.kind, one.number, one.name or "-", one.source or "-", one.files, one.acl_entries)
            for one in views
        ],
    )


@app.command()
def check(group: Annotated[str, typer.Argument(metavar="GROUP")], as_json: Json = False) -> None:
    """Ask the partner whom the same names and numbers mean there; exit 1 if that would go wrong."""
    from nasfs.node.shares.identities import IdentityCheckView

    view = client().get(f"/v1/identities/check/{quote(group, safe='')}", IdentityCheckView)
    if as_json:
        print_json(view)
    else:
        typer.echo(f"active on {view.active}; there: {view.passive}")
        for one in view.compared:
            typer.echo(f"{'WRONG' if one.wrong else 'ok   '} {one.told}")
        for line in view.directory:
            typer.echo(f"{'WRONG' if view.directory_wrong else 'note '} directory: {line}")
    if not view.ok:
        raise typer.Exit(1)
