"""``nasfs snapshot``: of volumes and groups."""

from __future__ import annotations

from typing import Annotated

import typer

from nasfs.node.words import parse_snapshot, render_size

from .session import DryRun, Json, client, print_fields, print_json, print_table

app = typer.Typer(help="Snapshots of volumes and groups.", no_args_is_help=True)
Snapshot = Annotated[str, typer.Argument(metavar="POOL/VOLUME@NAME")]
Owner = Annotated[str, typer.Option(help="Who holds it.")]


@app.command()
def create(
    target: Annotated[str, typer.Argument(metavar="POOL/VOLUME@NAME|GROUP@NAME")],
    as_json: Json = False,
) -> None:
    """Take one; it is durable and complete when the command returns."""
    from nasfs.node.messages import SnapshotCreate, SnapshotView

    parse_snapshot(target)
    views = client().post("/v1/snapshots", list[SnapshotView], SnapshotCreate(target))
    if as_json:
        print_json(views)


@app.command("list")
def list_(
    target: Annotated[str, typer.Argument(metavar="[POOL/VOLUME|GROUP]")] = "",
    as_json: Json = False,
) -> None:
    """Of everything, or of one volume or group; oldest first."""
    from nasfs.node.messages import SnapshotView

    views = client().get("/v1/snapshots", list[SnapshotView], target=target)
    if as_json:
        print_json(views)
        return
    print_table(
        ["SNAPSHOT", "TIME", "OWN", "SHARED", "SNAP GROUP", "GUID"],
        [
            (
                v.name,
                v.time,
                render_size(v.own),
                render_size(v.shared),
                v.snap_group[:8] or "-",
                v.guid,
            )
            for v in views
        ],
    )


@app.command()
def show(snapshot: Snapshot, as_json: Json = False) -> None:
    """One snapshot and who holds it."""
    from nasfs.node.messages import SnapshotName, SnapshotView

    parse_snapshot(snapshot)
    view = client().post("/v1/snapshots/show", SnapshotView, SnapshotName(snapshot))
    if as_json:
        print_json(view)
        return
    print_fields(
        [
            ("snapshot", view.name),
            ("guid", view.guid),
            ("time", view.time),
            ("number", view.number),
            ("own", f"{render_size(view.own)} (what destroying it alone gives back)"),
            ("shared", render_size(view.shared)),
            ("snap group", view.snap_group),
            *((f"held by {hold.owner}", hold.reason or "-") for hold in view.holds),
        ]
    )


@app.command()
def rename(snapshot: Snapshot, new_name: Annotated[str, typer.Argument(metavar="NEW")]) -> None:
    """Another name for the same snapshot."""
    from nasfs.node.messages import SnapshotRename, SnapshotView

    parse_snapshot(snapshot)
    body = SnapshotRename(snapshot, new_name.rpartition("@")[2])
    client().post("/v1/snapshots/rename", SnapshotView, body)


@app.command()
def hold(
    snapshot: Snapshot,
    owner: Owner = "admin",
    reason: Annotated[str, typer.Option(help="Why, for those who wonder later.")] = "",
) -> None:
    """Nobody may destroy it until its owner releases it."""
    from nasfs.node.messages import SnapshotHold, SnapshotView

    parse_snapshot(snapshot)
    client().post("/v1/snapshots/hold", SnapshotView, SnapshotHold(snapshot, owner, reason))


@app.command()
def release(snapshot: Snapshot, owner: Owner = "admin") -> None:
    """End a hold."""
    from nasfs.node.messages import SnapshotRelease, SnapshotView

    parse_snapshot(snapshot)
    client().post("/v1/snapshots/release", SnapshotView, SnapshotRelease(snapshot, owner))


@app.command()
def destroy(
    snapshots: Annotated[list[str], typer.Argument(metavar="POOL/VOLUME@NAME...")],
    dry_run: DryRun = False,
) -> None:
    """Destroy snapshots: all of them or, if one is missing or held, none."""
    from nasfs.node.messages import SnapshotDestroy, SnapshotView

    for snapshot in snapshots:
        parse_snapshot(snapshot)
    body = SnapshotDestroy(tuple(snapshots), dry_run)
    views = client().post("/v1/snapshots/destroy", list[SnapshotView], body)
    if dry_run:
        for view in views:
            typer.echo(f"destroy {view.name}")


_MARKS = {"added": "+", "removed": "-", "changed": "M"}


@app.command()
def diff(
    snapshot: Snapshot,
    other: Annotated[
        str,
        typer.Argument(metavar="[@OTHER|live]", help="Another snapshot of it, or what is now."),
    ] = "live",
    as_json: Json = False,
) -> None:
    """What is added, removed, renamed or changed since the snapshot; sorted by path."""
    import msgspec

    from nasfs.node.messages import DiffEntryView
    from nasfs.node.paths import from_text_or_raw, show_path

    parse_snapshot(snapshot)
    found = client().lines("/v1/snapshots/diff", DiffEntryView, old=snapshot, new=other)
    if as_json:
        before = "["
        for entry in found:
            typer.echo(f"{before}\n  {msgspec.json.encode(entry).decode()}", nl=False)
            before = ","
        typer.echo("[]" if before == "[" else "\n]")
        return
    for entry in found:
        path = show_path(from_text_or_raw(entry.path, entry.path_raw))
        if entry.old_path is not None:
            old = show_path(from_text_or_raw(entry.old_path, entry.old_path_raw))
            typer.echo(f"R {old} -> {path}")
        else:
            what = f"\t{', '.join(entry.what)}" if entry.what else ""
            typer.echo(f"{_MARKS[entry.change]} {path}{what}")


def _bring_orphans(snapshot: str, path: str, since: str, *, dry_run: bool, as_json: bool) -> None:
    from nasfs.errors import Failed
    from nasfs.node.messages import OrphansView, SnapshotOrphans
    from nasfs.node.paths import from_command_line, from_text_or_raw, show_path
    from nasfs.node.words import LONG_S

    text, raw = from_command_line(path)
    body = SnapshotOrphans(snapshot, text, raw, since.rpartition("@")[2], dry_run)
    view = client().post("/v1/snapshots/orphans", OrphansView, body, timeout_s=LONG_S)
    if as_json:
        print_json(view)
    else:
        for one in view.orphans:
            shown = show_path(from_text_or_raw(one.path, one.path_raw))
            typer.echo(f"! {shown}\t{one.problem}" if one.problem else f"+ {shown}.orphan")
        typer.echo(f"since {view.since}: {len(view.orphans)} files and trees")
    left = sum(bool(one.problem) for one in view.orphans)
    if left:
        raise Failed(
            f"{left} of {len(view.orphans)} were left out",
            hint=f"one by one: nasfs snapshot restore {snapshot} PATH --to PATH",
        )


@app.command()
def restore(
    snapshot: Snapshot,
    path: Annotated[str, typer.Argument(metavar="PATH", help="From the volume's root.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="PATH", help="Another place in the volume.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="What is there now goes; a snapshot keeps it.")
    ] = False,
    no_snapshot: Annotated[
        bool, typer.Option("--no-snapshot", help="Keep nothing of what is replaced.")
    ] = False,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="What only the snapshot has, as copies NAME.orphan.")
    ] = False,
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="NAME", help="With --orphans: what both have (default: the newest)."
        ),
    ] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring a file or a tree back as it was, or nothing of it."""
    from nasfs.errors import ConfigError

    parse_snapshot(snapshot)
    if no_snapshot and not replace:
        raise ConfigError("--no-snapshot is for --replace", hint="nothing is lost without it")
    if since and not orphans:
        raise ConfigError("--since is for --orphans")
    if orphans:
        if to is not None or replace:
            raise ConfigError("--orphans are beside what is there: without --to and --replace")
        _bring_orphans(snapshot, path, since, dry_run=dry_run, as_json=as_json)
        return
    from nasfs.node.messages import RestoreView, SnapshotRestore
    from nasfs.node.paths import from_command_line
    from nasfs.node.words import LONG_S, render_size

    text, raw = from_command_line(path)
    to_text, to_raw = (None, None) if to is None else from_command_line(to)
    body = SnapshotRestore(
        snapshot, text, raw, to_text, to_raw, replace, keep=not no_snapshot, dry_run=dry_run
    )
    view = client().post("/v1/snapshots/restore", RestoreView, body, timeout_s=LONG_S)
    if as_json:
        print_json(view)
        return
    typer.echo(
        f"{'would restore' if dry_run else 'restored'} {view.to}: {view.files} files,"
        f" {view.directories} directories; {render_size(view.shared_bytes)} shared with the"
        f" snapshot, {render_size(view.copied_bytes)} copied"
    )
    if view.kept_as is not None:
        typer.echo(f"what {'is' if dry_run else 'was'} replaced is kept as {view.kept_as}")
    elif view.replaced:
        typer.echo(f"{view.replaced} files and directories there {'go' if dry_run else 'went'}")


@app.command()
def rollback(snapshot: Snapshot, dry_run: DryRun = False, as_json: Json = False) -> None:
    """A volume in no group becomes what it was; what it is now is kept as another snapshot."""
    from nasfs.node.messages import RollbackView, SnapshotRollback
    from nasfs.node.words import LONG_S

    parse_snapshot(snapshot)
    body = SnapshotRollback(snapshot, dry_run)
    view = client().post("/v1/snapshots/rollback", RollbackView, body, timeout_s=LONG_S)
    if as_json:
        print_json(view)
    elif view.undone is not None:
        counts = view.undone
        typer.echo(f"keep what is there now as {view.kept_as}")
        typer.echo(
            f"go back to {view.snapshot}, undoing {counts.added} added, {counts.removed} removed,"
            f" {counts.renamed} renamed and {counts.changed} changed"
        )
    else:
        typer.echo(f"what was there before is kept as {view.kept_as}")
