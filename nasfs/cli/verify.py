"""``nasfs replication verify``: whether both sites hold the same, and what is different."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nasfs.errors import ConfigError, Unreachable
from nasfs.node.paths import show_path
from nasfs.node.words import check_name, render_size

from .session import Json, client, warn

if TYPE_CHECKING:
    from nasfs.node.comparing.verify_messages import FindingView, VerifiedView, VerifyRequest


def register(app: typer.Typer) -> None:
    """Add the command to ``nasfs replication``."""
    app.command()(verify)


def verify(
    group: str,
    snapshot: Annotated[
        str, typer.Option(metavar="NAME", help="That snapshot instead of the newest common one.")
    ] = "",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="If they differ: send what differs as it is here, in a new snap group.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare both sites' snapshots, each read from its own disks; exit code 1 if they differ."""
    from nasfs.node.comparing.verify_messages import VerifyRequest

    check_name(group, "group")
    if repair and (snapshot or as_json):
        raise ConfigError("--repair goes with neither --snapshot nor --json")
    done = compare_sites(group, VerifyRequest(snapshot), as_json=as_json)
    if done.differences and repair:
        done = _repair(group)
    if done.differences:
        raise typer.Exit(1)


def _repair(group: str) -> VerifiedView:
    """Have it sent what differs, and compare again."""
    from nasfs.node.client import replication_url
    from nasfs.node.comparing.verify_messages import VerifyRequest
    from nasfs.node.messages import ReplicationView

    from .progress import wait_for_attempt

    warn(
        f"repairing: what is on this node counts. It goes to the partner in a new snap group of"
        f" {group}; snapshots that are there already stay as they are, on both sites"
    )
    view = client().post(f"{replication_url(group)}/repair", ReplicationView)
    wait_for_attempt(client(), view)
    return compare_sites(group, VerifyRequest(), as_json=False)


def show_rebase(group: str, *, as_json: bool) -> None:
    """What a rebase would send: this site's newest snap group against the partner's newest."""
    from nasfs.node.comparing.verify_messages import VerifyRequest

    compare_sites(group, VerifyRequest(newest=True), as_json=as_json)


def compare_sites(group: str, request: VerifyRequest, *, as_json: bool) -> VerifiedView:
    """Compare, and print what differs as it comes; as JSON it is one object.

    Raises:
        ApiError: it could not be done.
    """
    import msgspec

    from nasfs.node.client import ApiError, replication_url
    from nasfs.node.comparing.verify_messages import (
        Comparing,
        FailedLine,
        FindingView,
        Line,
        VerifiedView,
    )

    from .progress import check_display

    done: VerifiedView | None = None
    count = 0
    if as_json:
        typer.echo(f'{{"group": {msgspec.json.encode(group).decode()}, "findings": [')
    with check_display(quiet=as_json) as show:
        for line in client().lines(f"{replication_url(group)}/verify", Line, request):
            match line:
                case Comparing():
                    step = f"comparing {line.volume}@{line.snapshot}"
                    show(step, line.bytes_done, line.bytes_total)
                case FindingView() if as_json:
                    typer.echo(", " * bool(count) + msgspec.json.encode(line).decode())
                    count += 1
                case FindingView():
                    _print(line)
                case VerifiedView():
                    done = line
                case FailedLine(error=error):
                    raise ApiError(error)
    if done is None:
        raise Unreachable("the comparison ended before it had told all")
    if as_json:
        typer.echo(f'], "result": {msgspec.json.encode(done).decode()}}}')
    else:
        typer.echo(_told(group, done))
    return done


def _told(group: str, done: VerifiedView) -> str:
    amount = f"{done.volumes} volumes, {render_size(done.bytes)} read here"
    if not done.differences:
        return f"{group}@{done.snapshot}: equal on both sites ({amount})"
    return f"{group}@{done.snapshot}: {done.differences} differences ({amount})"


def _print(finding: FindingView) -> None:
    if finding.path_raw is not None:
        path = show_path(base64.b64decode(finding.path_raw))
    elif finding.path is not None:
        path = show_path(finding.path.encode())
    else:
        path = f"inode {finding.inode}"
    typer.echo(f"{finding.volume}: {path}: {finding.what}: {finding.detail}")
    sys.stdout.flush()
