"""``nasfs group``: volumes that are snapped and replicated together."""

from __future__ import annotations

from typing import Annotated

import typer

from nasfs.node.words import check_name, parse_volume

from .session import Json, client, print_fields, print_json, print_table

app = typer.Typer(help="Groups: volumes that are snapped together.", no_args_is_help=True)
Volumes = Annotated[list[str], typer.Argument(metavar="POOL/VOLUME...")]


def _members(volumes: list[str]) -> tuple[str, ...]:
    return tuple(str(parse_volume(text)) for text in volumes)


@app.command()
def create(group: str, volumes: Volumes) -> None:
    """Make a group of volumes that are in none."""
    from nasfs.node.messages import GroupCreate, GroupView

    check_name(group, "group")
    client().post("/v1/groups", GroupView, GroupCreate(group, _members(volumes)))


@app.command()
def add(group: str, volumes: Volumes) -> None:
    """Put more volumes into a group that is not replicated."""
    from nasfs.node.client import group_url
    from nasfs.node.messages import GroupMembers, GroupView

    client().post(f"{group_url(group)}/add", GroupView, GroupMembers(_members(volumes)))


@app.command()
def remove(group: str, volumes: Volumes) -> None:
    """Take volumes out of a group that is not replicated."""
    from nasfs.node.client import group_url
    from nasfs.node.messages import GroupMembers, GroupView

    client().post(f"{group_url(group)}/remove", GroupView, GroupMembers(_members(volumes)))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All groups."""
    from nasfs.node.messages import GroupView

    views = client().get("/v1/groups", list[GroupView])
    if as_json:
        print_json(views)
        return
    print_table(
        ["GROUP", "ROLE", "TERM", "LAST SNAP GROUP", "VOLUMES"],
        [(v.name, v.role, v.term, v.last_snapshot or "-", " ".join(v.volumes)) for v in views],
    )


@app.command()
def show(group: str, as_json: Json = False) -> None:
    """One group, its role and term."""
    from nasfs.node.client import group_url
    from nasfs.node.messages import GroupView

    view = client().get(group_url(group), GroupView)
    if as_json:
        print_json(view)
        return
    print_fields(
        [
            ("group", view.name),
            ("uuid", view.uuid),
            ("role", view.role),
            ("term", view.term),
            ("volumes", " ".join(view.volumes)),
            ("last snap group", view.last_snapshot),
            ("taken", view.last_snapshot_time),
            ("original primary", "this node" if view.is_original_primary else "the partner"),
            ("not served", view.waits and f"{view.waits} (since {view.waits_since})"),
            ("to go on", view.to_go_on),
            ("not finished", view.under_way),
            ("next step", view.next_step),
            ("what to do", view.to_finish),
        ]
    )


@app.command()
def destroy(group: str) -> None:
    """Forget a group that is not replicated; its volumes and their snapshots stay."""
    from nasfs.node.client import group_url

    client().post(f"{group_url(group)}/destroy", type(None))
