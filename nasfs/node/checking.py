"""``nasfs volume check`` and its ``--repair``: they need no daemon."""

from __future__ import annotations

from nasfs.errors import Refused
from nasfs.volume import Finding, RepairOutcome, VolumeBusy, check_volume, repair_volume
from nasfs.volume.check import Progress

from .context import Node
from .places import Places
from .setup import local_volume
from .words import VolumeName


def check(places: Places, name: VolumeName, progress: Progress) -> list[Finding]:
    """What is broken in a volume, mounted or not."""
    return check_volume(local_volume(places, name).path, progress)


def repair(places: Places, name: VolumeName, progress: Progress, *, dry_run: bool) -> RepairOutcome:
    """Put right what can be without guessing.

    Raises:
        Refused: it is mounted, or its group's role forbids to change it here.
    """
    from .inventory import check_writable  # it brings the mount process's half along

    with Node.open(places) as node:
        row = node.state.volume(name)
        check_writable(node, row)
        try:
            outcome = repair_volume(node.volume_path(row), progress, dry_run=dry_run)
        except VolumeBusy as exc:
            raise Refused(
                f"volume {name} is in use and can't be repaired",
                hint=f"unmount it first: nasfs volume unmount {name}",
            ) from exc
        if outcome.repairs and not dry_run:
            detail = f"{len(outcome.repairs)} repairs, {len(outcome.left)} findings left"
            node.note("volume repaired", name, detail)
        return outcome
