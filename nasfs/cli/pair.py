"""``nasfs pair``: the bond with exactly one other node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .session import Json, client, print_fields, print_json, warn

if TYPE_CHECKING:
    from nasfs.node.messages import PairView

app = typer.Typer(help="The pair: this node and its partner.", no_args_is_help=True)


@app.command()
def invite(as_json: Json = False) -> None:
    """Print a one-time code, to be given to `nasfs pair join` on the other node."""
    from nasfs.node.messages import InvitationView

    view = client().post("/v1/pair/invite", InvitationView)
    if as_json:
        print_json(view)
        return
    typer.echo(view.code)
    warn(f"good until {view.expires}, for one use")


@app.command()
def join(code: str, as_json: Json = False) -> None:
    """Become the partner of the node that printed the code."""
    from nasfs.node.messages import PairJoin, PairView

    _print(client().post("/v1/pair/join", PairView, PairJoin(code)), as_json)


@app.command()
def show(as_json: Json = False) -> None:
    """This node and its partner."""
    from nasfs.node.messages import PairView

    _print(client().get("/v1/pair", PairView), as_json)


@app.command()
def remove(
    force: Annotated[
        bool, typer.Option("--force", help="Although groups are replicated: that stops.")
    ] = False,
) -> None:
    """End the pair, on both nodes; volumes and snapshots stay on both."""
    from nasfs.node.messages import PairRemove
    from nasfs.node.part_messages import PairEndView

    if problem := client().post("/v1/pair/remove", PairEndView, PairRemove(force)).problem:
        warn(f"the other node still knows this one: {problem}; there as well: nasfs pair remove")


def _print(view: PairView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    fields = [("node", view.node.name), ("uuid", view.node.uuid), ("address", view.node.address)]
    if view.peer is None:
        fields.append(("partner", "none"))
    else:
        fields += [
            ("partner", view.peer.name),
            ("its uuid", view.peer.uuid),
            ("its address", view.peer.address),
        ]
    print_fields(fields)
