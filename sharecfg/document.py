"""Shares as a file that people read and keep in git: YAML, names in the place of UUIDs.  Pure.

    version: 1
    shares:
    - name: office
      volume: tank/home
      directory: office
      smb:
        users: ['@staff']

What is the default is not written.  The order is that of the names, so two exports of the same
shares are the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import yaml

from .checks import check_share, check_together
from .complaints import Complaint, misconfigured
from .model import Share

VERSION = 1


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    version: int
    shares: tuple[Share, ...] = ()


def render_document(shares: Iterable[Share], volumes: Mapping[str, str]) -> str:
    """YAML of shares.

    Args:
        volumes: POOL/VOLUME of each UUID.  One that is not there keeps its UUID.
    """
    named = [
        msgspec.structs.replace(share, volume=volumes.get(share.volume, share.volume))
        for share in sorted(shares, key=lambda share: share.key)
    ]
    built = {"version": VERSION, "shares": [msgspec.to_builtins(share) for share in named]}
    text: str = yaml.safe_dump(built, sort_keys=False, allow_unicode=True, width=100)
    return text


def parse_document(text: str, file: str, volumes: Mapping[str, str]) -> tuple[Share, ...]:
    """The shares of a file.

    Args:
        file: what to call it in complaints.
        volumes: the UUID of each POOL/VOLUME of the node.

    Raises:
        Misconfigured: with everything that is wrong.
    """
    try:
        built = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise misconfigured([_yaml_complaint(exc, file)]) from exc
    if not isinstance(built, dict) or built.get("version") != VERSION:
        reason = f"this release reads version {VERSION}"
        raise misconfigured([Complaint(file, "version", reason)])
    entries = built.get("shares") or []
    if not isinstance(entries, list) or set(built) - {"version", "shares"}:
        raise misconfigured([Complaint(file, "shares", "a list of shares, and nothing beside it")])
    shares, complaints = [], []
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"{file}, share {name or number}"
        try:
            share = msgspec.convert(entry, Share)
        except msgspec.ValidationError as exc:
            complaints.append(_typed_complaint(exc, where))
            continue
        volume = volumes.get(share.volume)
        if volume is None and share.volume not in volumes.values():
            reason = f"there is no volume {share.volume}"
            complaints.append(Complaint(where, "volume", reason))
        share = msgspec.structs.replace(share, volume=volume or share.volume)
        complaints += [Complaint(where, c.key, c.reason) for c in check_share(share)]
        shares.append(share)
    complaints += [Complaint(f"{file}, {c.where}", c.key, c.reason) for c in check_together(shares)]
    if complaints:
        raise misconfigured(complaints, hint="nothing was changed")
    return tuple(shares)


def _yaml_complaint(exc: yaml.YAMLError, file: str) -> Complaint:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark:
        mark = exc.problem_mark
        where = f"{file}, line {mark.line + 1}"
        return Complaint(where, f"column {mark.column + 1}", exc.problem or "no YAML")
    return Complaint(file, "YAML", " ".join(str(exc).split()))


def _typed_complaint(exc: msgspec.ValidationError, where: str) -> Complaint:
    """msgspec says ``... - at `$.smb.access```."""
    reason, _, path = str(exc).partition(" - at `$")
    return Complaint(where, path.rstrip("`").lstrip(".") or "share", reason)
