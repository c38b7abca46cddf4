"""``nasfs pool``: directories that hold volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasfs.node.words import render_size

from .session import Json, client, path, print_fields, print_json, print_table

app = typer.Typer(help="Pools: directories that hold volumes.", no_args_is_help=True)


@app.command()
def create(
    name: str,
    directory: Annotated[Path, typer.Argument(metavar="DIR", parser=path, help="New or empty.")],
) -> None:
    """Make a pool."""
    from nasfs.node.messages import PoolCreate, PoolView

    client().post("/v1/pools", PoolView, PoolCreate(name, str(directory.absolute())))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All pools."""
    from nasfs.node.messages import PoolView

    views = client().get("/v1/pools", list[PoolView])
    if as_json:
        print_json(views)
        return
    print_table(
        ["POOL", "VOLUMES", "FREE", "SIZE", "DIRECTORY"],
        [(v.name, v.volumes, render_size(v.free), render_size(v.size), v.path) for v in views],
    )


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """One pool."""
    from urllib.parse import quote

    from nasfs.node.messages import PoolView

    view = client().get(f"/v1/pools/{quote(name, safe='')}", PoolView)
    if as_json:
        print_json(view)
        return
    print_fields(
        [
            ("pool", view.name),
            ("uuid", view.uuid),
            ("directory", view.path),
            ("volumes", view.volumes),
            ("free", f"{render_size(view.free)} of {render_size(view.size)}"),
            ("problem", view.problem),
        ]
    )
