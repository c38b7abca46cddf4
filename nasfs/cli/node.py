"""``nasfs node``: making a node, running its daemon."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from .session import Json, places, print_fields, print_json

app = typer.Typer(help="This node: identity and daemon.", no_args_is_help=True)


@app.command()
def init(
    name: Annotated[str, typer.Option(help="How people call this node; else the host.")] = "",
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the partner reaches this node.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make identity, TLS key and configuration.

    On a node that exists: changes what is named, keeps the rest.
    """
    from nasfs.node.setup import init_node

    view = init_node(places(), name=name, listen=listen)
    if as_json:
        print_json(view)
        return
    print_fields([("node", view.name), ("uuid", view.uuid), ("listens on", view.address)])


@app.command("run")
def run_() -> None:
    """The daemon, in the foreground; SIGTERM and SIGINT end it cleanly."""
    from nasfs.node.daemon import run_daemon

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    run_daemon(places())
