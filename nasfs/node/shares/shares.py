"""Shares of a node: make, change, show, remove, take from and give to files."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, Refused
from sharecfg.checks import check_share, check_together
from sharecfg.complaints import Complaint, misconfigured
from sharecfg.document import parse_document, render_document
from sharecfg.exports import parse_exports
from sharecfg.ganesha import parse_ganesha
from sharecfg.model import Nfs, Share, free_export_id
from sharecfg.placed import locate
from sharecfg.ports import at_port, with_port
from sharecfg.samba import parse_samba

from ..context import Node
from ..inventory import check_writable
from ..words import parse_volume
from .ganeshas import conf_of
from .share_files import HEAD, Server, ShareFile, include_own, replace_file, share_files
from .share_messages import (
    ConnectView,
    ImportView,
    ShareConnect,
    ShareCreate,
    ShareImport,
    ShareSet,
    ShareView,
)
from .sharing import (
    Standing,
    activate,
    change_shares,
    foreign,
    own_ganeshas,
    render,
    standings,
)


def volume_names(node: Node) -> dict[str, str]:
    """POOL/VOLUME of each UUID."""
    return {row.uuid: str(node.state.volume_name(row)) for row in node.state.volumes()}


def share_views(node: Node) -> list[ShareView]:
    names = volume_names(node)
    return [_view(one, names) for one in standings(node, node.shares.all())]


def share_view(node: Node, name: str) -> ShareView:
    """Raises Failed if there is none."""
    (one,) = standings(node, [node.shares.get(name)])
    return _view(one, volume_names(node))


def _view(one: Standing, names: dict[str, str], notes: Iterable[str] = ()) -> ShareView:
    notes = list(notes)
    for server in sorted(one.foreign, key=lambda server: server.value):
        notes.append(
            f"an administrator's file tells {server.value} of it too, and counts; remove it there"
        )
    share = replace(one.share, volume=names.get(one.share.volume, one.share.volume))
    return ShareView(share, one.share.volume, one.path, one.state, tuple(notes))


def create_share(node: Node, body: ShareCreate) -> ShareView:
    """A new share of a volume.

    Raises:
        Misconfigured: it can't be like that.
        Refused: the volume is the partner's, or a server's checker says no.
    """
    row = node.state.volume(parse_volume(body.share.volume))
    check_writable(node, row)
    before = node.shares.all()
    share = _with_numbers(node, replace(body.share, volume=row.uuid), before)
    theirs = foreign(node).sections.get(share.key) if share.smb else None
    if theirs:
        raise Refused(
            f"there is a section [{share.name}] already: {theirs}",
            hint="choose another name, or take that one over: nasfs share import smb.conf FILE",
        )
    return _changed(node, before, (*before, share), share, "share created", body.dry_run)


def _with_numbers(node: Node, share: Share, others: Iterable[Share]) -> Share:
    """With the number that is to stay in every file handle of it, and its Ganesha's port."""
    others = tuple(others)
    asked = share.nfs is not None and share.nfs.port != 0  # then it gets that or a complaint
    if not asked and Server.GANESHA in share_files(node.places, node.config.shares):
        share = with_port(share, others)
    if share.nfs is None or share.nfs.export_id:
        return share
    taken = {other.nfs.export_id for other in others if other.nfs} | foreign(node).export_ids
    return replace(share, nfs=replace(share.nfs, export_id=free_export_id(share, set(taken))))


def _changed(
    node: Node,
    before: tuple[Share, ...],
    after: tuple[Share, ...],
    share: Share,
    kind: str,
    dry_run: bool,
) -> ShareView:
    complaints = (*check_share(share), *check_together(after))
    if complaints:
        raise misconfigured(complaints, hint="nothing was changed")
    notes = change_shares(node, before, after, dry_run=dry_run)
    if not dry_run:
        node.note(kind, share.name)
    (one,) = standings(node, [share])
    return _view(one, volume_names(node), notes)


def set_share(node: Node, body: ShareSet) -> ShareView:
    """Another form of a share, if it still is what the asker saw.

    Raises:
        Failed: there is none, or it has been changed in the meantime.
        Misconfigured, Refused: as for `create_share`.
    """
    before = node.shares.all()
    old = node.shares.get(body.old.name)
    names = volume_names(node)
    if replace(old, volume=names.get(old.volume, old.volume)) != body.old:
        raise Failed(f"share {old.name} was changed in the meantime", hint="look at it again")
    row = node.state.volume(parse_volume(body.new.volume))
    check_writable(node, row)
    rest = tuple(share for share in before if share.key != old.key)
    new = replace(body.new, volume=row.uuid)
    if new.nfs and old.nfs and new.nfs.port != old.nfs.port:  # all of the volume goes there
        rest = at_port(rest, new.volume, new.nfs.port)
    asked, new = new, _with_numbers(node, new, rest)
    if asked.nfs and new.nfs and old.nfs and old.nfs.port and asked.nfs.port != new.nfs.port:
        raise Refused(
            "another volume is exported by the administrator's Ganesha, and it serves one",
            hint=f"a port of its own: --nfs-port {new.nfs.port}",
        )
    return _changed(node, before, (*rest, new), new, "share changed", body.dry_run)


def delete_share(node: Node, name: str) -> None:
    """Who is connected to it by SMB is cut off; the files stay.  Raises Failed."""
    before = node.shares.all()
    share = node.shares.get(name)
    after = tuple(other for other in before if other.key != share.key)
    change_shares(node, before, after)
    node.note("share deleted", share.name)


def export_shares(node: Node) -> str:
    """All shares as a document that `import_shares` takes."""
    return render_document(node.shares.all(), volume_names(node))


def render_shares(node: Node, server: str) -> str:
    """What a server is told, or would be if it were here."""
    shares = node.shares.all()
    text = render(node, _server(server), shares)
    if _server(server) is Server.GANESHA:
        for one in own_ganeshas(node, shares):
            text += f"\n# {conf_of(node, one.port)}\n{one.text}"
    return text


def _server(word: str) -> Server:
    try:
        return Server(word)
    except ValueError as exc:
        words = ", ".join(server.value for server in Server)
        raise ConfigError(f"{word!r} is no server", hint=words) from exc


def connect(node: Node, body: ShareConnect) -> ConnectView:
    """Add our line to the administrator's file, who asks for it here.

    Raises:
        Failed: that server has no configuration on this node.
    """
    files = share_files(node.places, node.config.shares)
    file = files.get(_server(body.server))
    if file is None:
        raise Failed(
            f"there is no configuration of {body.server} on this node",
            hint="nasfs.yaml names it, under shares",
        )
    changed = not file.is_included()
    if changed and not body.dry_run:
        _make_own(file)
        include_own(file)
        node.note("server connected", body.server, str(file.main))
        notes = activate(node)
    else:
        notes = []
    return ConnectView(str(file.main), file.include_line, changed, tuple(notes))


def _make_own(file: ShareFile) -> None:
    """A file that is included must be there."""
    if not file.own.exists():
        replace_file(file.own, HEAD.encode())


# import


def import_shares(node: Node, body: ShareImport) -> ImportView:
    """Take shares from a file: a document of ours, or a server's configuration.

    Of a server's configuration, what can be taken is; the rest is told with its reason.  Of a
    document all is taken or nothing.

    Raises:
        Misconfigured: a document with something wrong in it.
        Refused: a server's checker says no; nothing is changed.
    """
    before = node.shares.all()
    left: list[Complaint] = []
    if body.format == "yaml":
        names = {name: volume for volume, name in volume_names(node).items()}
        found = parse_document(body.text, body.file, names)
    else:
        found, left = _found(node, body, before)
    by_key = {share.key: share for share in before}
    taken = []
    for share in found:
        old = by_key.get(share.key)
        if old not in (None, share) and not body.replace and not _adds(old, share):
            reason = "there is another share of that name; --replace takes this one"
            left.append(Complaint(f"{body.file}, share {share.name}", "name", reason))
            continue
        row = node.state.find_volume(share.volume)
        assert row is not None, "the parser has looked"
        check_writable(node, row)
        share = _with_numbers(node, share, by_key.values())
        if old != share:
            taken.append(share)
            by_key[share.key] = share
    after = tuple(by_key.values())
    if wrong := check_together(after):
        raise misconfigured(wrong, hint="nothing was changed")
    if body.format == "yaml" and left:
        raise misconfigured(left, hint="nothing was changed")
    notes = change_shares(node, before, after, dry_run=body.dry_run)
    if taken and not body.dry_run:
        node.note("shares imported", body.file, ", ".join(share.name for share in taken))
    names_of = volume_names(node)
    views = [_view(one, names_of) for one in standings(node, taken)]
    return ImportView(tuple(views), tuple(map(str, left)), tuple(notes))


def _found(
    node: Node, body: ShareImport, before: tuple[Share, ...]
) -> tuple[tuple[Share, ...], list[Complaint]]:
    """The shares that a server's configuration names and that lie in volumes of this node."""
    places = {row.uuid: str(node.mountpoint(row)) for row in node.state.volumes()}
    found: list[Share] = []
    left: list[Complaint] = []

    def place(path: str, where: str) -> tuple[str, str] | None:
        located = locate(path, places)
        if located is None:
            left.append(Complaint(where, path, "it is in no volume of this node"))
        return located

    if body.format == "smb.conf":
        conf = parse_samba(body.text, body.file)
        left += conf.complaints
        left += [Complaint(body.file, f"include = {one}", "not followed") for one in conf.includes]
        for smb in conf.shares:
            if located := place(smb.path, smb.where):
                made = Share(
                    name=smb.name,
                    volume=located[0],
                    directory=located[1],
                    comment=smb.comment,
                    smb=smb.smb,
                )
                found.append(_together(made, before, body.format))
        return tuple(found), left
    if body.format == "exports":
        exports = parse_exports(body.text, body.file)
        entries = [(e.path, e.nfs, e.where) for e in exports.exports]
        left += exports.complaints
    elif body.format == "ganesha":
        blocks = parse_ganesha(body.text, body.file)
        entries = [(e.path, e.nfs, e.where) for e in blocks.exports]
        left += blocks.complaints
        left += [Complaint(body.file, f"%include {one}", "not followed") for one in blocks.includes]
    else:
        raise ConfigError(
            f"{body.format!r} is no format", hint="smb.conf, exports, ganesha or yaml"
        )
    for path, nfs, where in entries:
        if located := place(path, where):
            name = _name_of(path, [*before, *found])
            made = Share(name=name, volume=located[0], directory=located[1], nfs=nfs)
            found.append(_together(made, before, body.format))
    return tuple(found), left


def _together(share: Share, others: Iterable[Share], format: str) -> Share:
    """Beside what the share already is: a file tells of one protocol, and not all of it."""
    for old in others:
        if (old.volume, old.directory) != (share.volume, share.directory):
            continue
        if format == "smb.conf" and old.key == share.key:
            return replace(share, nfs=old.nfs)
        if format != "smb.conf" and share.nfs is not None:
            return replace(old, nfs=_onto(old.nfs, share.nfs, format) if old.nfs else share.nfs)
    return share


def _onto(old: Nfs, new: Nfs, format: str) -> Nfs:
    """What the one server's file can't say is kept."""
    if format == "ganesha":
        kept = {client.who: client for client in old.clients}
        clients = tuple(
            replace(client, sync=kept[client.who].sync, options=kept[client.who].options)
            if client.who in kept
            else client
            for client in new.clients
        )
        return replace(new, clients=clients, fsid=old.fsid)
    return replace(old, clients=new.clients, fsid=new.fsid or old.fsid)


def _adds(old: Share, new: Share) -> bool:
    """Nothing of the old share is changed: a protocol comes to it."""
    return old in (replace(new, nfs=None), replace(new, smb=None))


def _name_of(path: str, others: Iterable[Share]) -> str:
    """A free name for an export, of its path's last part."""
    base = re.sub(r"[^\w.-]+", "-", path.rstrip("/").rpartition("/")[2]).strip("-") or "export"
    taken = {share.key for share in others}
    name, number = base, 2
    while name.casefold() in taken:
        name, number = f"{base}-{number}", number + 1
    return name
