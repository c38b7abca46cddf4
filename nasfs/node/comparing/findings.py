"""Differences between two sites, as people and JSON see them."""

from __future__ import annotations

from collections.abc import Iterator

from replication.digests import FIELDS, MODE, InodeFact
from replication.verify import (
    DataDiffers,
    Difference,
    EntryDiffers,
    InodeDiffers,
    Witness,
    XattrDiffers,
    compare,
)

from ..paths import show_path, text_and_raw
from .verify_messages import FindingView


def findings(volume: str, ours: Witness, theirs: Witness) -> Iterator[FindingView]:
    """All of them; of what is missing on one site, or another object there, that alone."""
    whole = -1
    for difference in compare(ours, theirs):
        match difference:
            case InodeDiffers(ino=ino) if difference.is_other:
                whole = ino
            case XattrDiffers(ino=ino) | EntryDiffers(parent=ino) if ino == whole:
                continue
            case _:
                pass
        yield _view(volume, difference, ours, theirs)


def _view(volume: str, difference: Difference, ours: Witness, theirs: Witness) -> FindingView:
    unreadable = ""
    match difference:
        case InodeDiffers(ino, mine, other):
            what, detail = _of_inode(mine, other)
        case XattrDiffers(ino, name, mine_digest, other_digest):
            what = "xattr"
            detail = f"{show_path(name)}: {_where(mine_digest, other_digest, 'another value')}"
        case EntryDiffers(ino, entry, there):
            what = "entry"
            changed = ""
            if entry is not None and there is not None:
                changed = (
                    f"leads to inode {entry.ino} here, {there.ino} there"
                    if entry.ino != there.ino
                    else f"cookie {entry.cookie} and type {entry.kind:o} here, {there.cookie} and"
                    f" {there.kind:o} there"
                )
            detail = f"{show_path(difference.name)}: {_where(entry, there, changed)}"
        case DataDiffers(ino, ranges, unreadable):
            what = "data"
            spans = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in ranges]
            detail = f"blocks {', '.join(spans)}" + (
                f", unreadable {unreadable}" * bool(unreadable)
            )
    path = ours.path(ino)
    if path is None:
        path = theirs.path(ino)
    text, raw = (None, None) if path is None else text_and_raw(path)
    return FindingView(volume, text, raw, ino, what, detail, unreadable)


def _where(here: object, there: object, changed: str) -> str:
    if here is None:
        return "missing here"
    return "missing there" if there is None else changed


def _of_inode(here: InodeFact | None, there: InodeFact | None) -> tuple[str, str]:
    if here is None or there is None:
        return "missing", _where(here, there, "")
    if InodeDiffers(0, here, there).is_other:
        return "other", "another object on the two sites, with the same inode number"
    changed = [
        f"{name} {_number(n, one)} here, {_number(n, two)} there"
        for n, (name, one, two) in enumerate(zip(FIELDS, here.numbers, there.numbers, strict=True))
        if one != two
    ]
    if here.target != there.target:
        changed.append(f"target {_text(here.target)} here, {_text(there.target)} there")
    return "attribute", "; ".join(changed)


def _number(field: int, value: int) -> str:
    return f"{value:o}" if field == MODE else str(value)


def _text(target: bytes | None) -> str:
    return "none" if target is None else show_path(target)
