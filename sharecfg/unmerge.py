"""Doing the changes of a merge, and taking them back when the roles have gone back.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec.structs import replace

from .checks import pseudo_path
from .model import Share, free_export_id
from .steps import Change, Conflict, Kind


def apply_changes(shares: Iterable[Share], changes: Iterable[Change]) -> tuple[Share, ...]:
    """The shares after all changes, by name.

    Raises:
        ValueError: they are not what the changes were planned for.
    """
    own = {share.key: share for share in shares}
    for change in changes:
        before, after = change.before, change.after
        if before is not None:
            if own.get(before.key) != before:
                raise ValueError(f"share {before.name} is not what the plan saw")
            del own[before.key]
        if after is not None:
            if after.key in own:
                raise ValueError(f"there is a share {after.name} meanwhile")
            own[after.key] = after
    return tuple(share for _, share in sorted(own.items()))


def plan_undo(
    shares: Iterable[Share], merged: Iterable[Change], *, origin: str
) -> tuple[tuple[Change, ...], tuple[Conflict, ...]]:
    """What takes a merge back.

    What was changed since the merge is not lost: it stays, under another name if its name
    belongs to one of the node's own; it is not served while its volume is passive.  What was
    removed since stays removed.
    """
    undoing = _Undoing(shares, origin)
    for change in reversed(tuple(merged)):
        undoing.undo(change)
    undoing.separate()
    return tuple(undoing.changes), tuple(undoing.conflicts)


class _Undoing:
    """The shares as they become, step by step."""

    def __init__(self, shares: Iterable[Share], origin: str) -> None:
        self._own = {share.key: share for share in shares}
        self._origin = re.sub(r"[^A-Za-z0-9_.-]", "-", origin)
        self._kept: list[str] = []
        self.changes: list[Change] = []
        self.conflicts: list[Conflict] = []

    def undo(self, change: Change) -> None:
        before, after = change.before, change.after
        if after is None:
            assert before is not None
            self._bring_back(None, before)
            return
        now = self._own.get(after.key)
        if now is None:
            if before is not None:
                self._tell(before, "it was removed since the merge", "it stays removed")
        elif now == after:
            if before is None:
                self._change(now, None)
            else:
                self._bring_back(now, before)
        elif before is None:
            self._tell(now, "it was changed since the merge", "it stays, not served")
            self._kept.append(now.key)
        elif before.key == after.key:
            self._bring_back(None, before)
        else:  # the node's own under another name, and changed there: it gets its name back
            self._bring_back(now, replace(now, name=before.name))

    def _change(self, before: Share | None, after: Share | None) -> None:
        self.changes.append(Change(before=before, after=after))
        if before is not None:
            del self._own[before.key]
        if after is not None:
            self._own[after.key] = after

    def _tell(self, share: Share, reason: str, decision: str) -> None:
        subject = f"share {share.name}"
        self.conflicts.append(Conflict(Kind.CHANGED, subject, reason, decision))

    def _bring_back(self, now: Share | None, before: Share) -> None:
        """*before* in the place of *now*; who has its name meanwhile goes aside."""
        blocking = self._own.get(before.key)
        if blocking is not None and blocking is not now:
            name = self._aside(blocking)
            self._tell(blocking, "its name belongs to this node's own share", f"now {name}")
            self._change(blocking, replace(blocking, name=name))
            self._kept.append(name.casefold())
        self._change(now, before)

    def separate(self) -> None:
        """What stays gives way to the node's own: of numbers and NFSv4 paths there is one each."""
        for key in self._kept:
            share = self._own.get(key)
            if share is None or share.nfs is None:
                continue
            others = [one for one in self._own.values() if one is not share and one.nfs]
            taken = {one.nfs.export_id for one in others if one.nfs}
            nfs, number = share.nfs, 1
            if nfs.export_id in taken:
                nfs = replace(nfs, export_id=free_export_id(share, taken))
            path = wanted = pseudo_path(share)
            while path in {pseudo_path(one) for one in others}:
                path = f"{wanted}-{self._origin}" + (f"-{number}" if number > 1 else "")
                number += 1
            if path != wanted:
                nfs = replace(nfs, pseudo=path)
            if nfs != share.nfs:
                self._change(share, replace(share, nfs=nfs))

    def _aside(self, share: Share) -> str:
        number = 1
        while True:
            tail = f"-{self._origin}" if number == 1 else f"-{self._origin}-{number}"
            name = share.name[: 80 - len(tail)] + tail
            if name.casefold() not in self._own:
                return name
            number += 1
