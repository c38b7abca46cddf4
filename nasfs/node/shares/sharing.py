"""Which shares the servers are told of at present, and telling them.

A share is served while its volume is mounted here and its group is active here: else clients
would write below an empty mount point, or into what the partner owns.  What stands in an
administrator's own file is left to it: two definitions of a name would add up to a third one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nasfs.errors import NasError, Refused
from nasfs.fuse.mountpoint import find_mount, is_dead, resolve
from sharecfg.complaints import Misconfigured
from sharecfg.exports import parse_exports, render_exports
from sharecfg.ganesha import OwnGanesha, parse_ganesha, render_ganesha, render_own
from sharecfg.model import Share
from sharecfg.placed import Placed
from sharecfg.ports import with_ports
from sharecfg.samba import parse_samba, render_samba

from ..coming_back import why_it_waits
from ..context import MountPhase, MountState, Node
from ..inventory import WRITABLE_ROLES, is_yielding, running_mount
from ..records import VolumeRow
from .ganeshas import Wanted, are_as, recovery_of, settle, telling
from .share_files import HEAD, Disk, Server, ShareFile, read_text, replace_file, share_files
from .share_servers import check_text, reload

RENDER: dict[Server, Callable[[Iterable[Placed]], str]] = {
    Server.SAMBA: render_samba,
    Server.KERNEL: render_exports,
    Server.GANESHA: render_ganesha,
}


@dataclass(frozen=True, slots=True)
class Foreign:
    """What the administrator's own files export: it is theirs."""

    sections: dict[str, str]
    """Names of SMB shares in lower case, and where each stands."""
    paths: dict[Server, dict[str, str]]
    """Of NFS exports, and where."""
    export_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a share stands on this node."""

    share: Share
    path: str
    """Where it is, or would be; empty if its volume is not known here."""
    state: str
    """``served``, or why it is not."""
    foreign: frozenset[Server] = frozenset()
    """By whom it is served as an administrator's own file says."""
    mount: int = 0
    """The process that has its volume mounted."""

    @property
    def placed(self) -> Placed:
        """Of one that is served."""
        mountpoint = self.path.removesuffix(f"/{self.share.directory}")
        return Placed(self.share, mountpoint if self.share.directory else self.path)


def foreign(node: Node) -> Foreign:
    """What the administrator's files say (the files that they include are not read)."""
    files = share_files(node.places, node.config.shares)
    sections: dict[str, str] = {}
    paths: dict[Server, dict[str, str]] = {Server.KERNEL: {}, Server.GANESHA: {}}
    export_ids: tuple[int, ...] = ()
    for server, file in files.items():
        text = read_text(file.main)
        if server is Server.SAMBA:
            sections = dict(parse_samba(text, str(file.main)).sections)
        elif server is Server.KERNEL:
            found = parse_exports(text, str(file.main))
            paths[server] = dict.fromkeys(found.paths, str(file.main))
        else:
            parsed = parse_ganesha(text, str(file.main))
            paths[server] = dict.fromkeys(parsed.paths, str(file.main))
            export_ids = parsed.export_ids
    return Foreign(sections, paths, frozenset(export_ids))


def standings(node: Node, shares: Iterable[Share]) -> list[Standing]:
    """How each share stands."""
    theirs = foreign(node)
    return [_standing(node, share, theirs) for share in shares]


def _standing(node: Node, share: Share, theirs: Foreign) -> Standing:
    row = node.state.find_volume(share.volume)
    if row is None:
        return Standing(share, "", "its volume is not here")
    mount = _mount(node, row)
    mountpoint = mount.mountpoint or str(node.mountpoint(row))
    try:
        path = Placed(share, mountpoint).path
    except Misconfigured as exc:
        return Standing(share, "", str(exc))
    group = node.state.find_group(row.group) if row.group else None
    if group is not None and group.role not in WRITABLE_ROLES:
        return Standing(share, path, f"group {group.name} is {group.role} here")
    if group is not None and is_yielding(node, group):
        return Standing(share, path, f"group {group.name} is being handed over")
    if group is not None and (waits := why_it_waits(node, group)):
        return Standing(share, path, waits)
    if mount.phase is not MountPhase.MOUNTED or not Path(f"/proc/{mount.pid}").exists():
        return Standing(share, path, "its volume is not mounted")
    taken = {Server.SAMBA} if share.smb and share.key in theirs.sections else set()
    if share.nfs:
        taken |= {server for server, paths in theirs.paths.items() if path in paths}
    return Standing(share, path, "served", frozenset(taken), mount.pid)


def _mount(node: Node, row: VolumeRow) -> MountState:
    """As the supervisor knows it; where it does not yet, what is there counts.

    So whoever served when a daemon begins goes on.  But a mount process answers before it is
    mounted, and the bare directory is not to be served.
    """
    known = node.mounts.get(row.uuid)
    if known is not None and known.phase not in (MountPhase.STARTING, MountPhase.UNMOUNTED):
        return known
    found = running_mount(node, row)
    if found is None or not _is_there(found.mountpoint):
        return MountState()
    return found


def _is_there(mountpoint: str) -> bool:
    mount = find_mount(resolve(Path(mountpoint)))
    return mount is not None and not is_dead(mount)


def render(node: Node, server: Server, shares: Iterable[Share]) -> str:
    """What *server* shall be told, if these are the shares of this node."""
    served = [one for one in standings(node, shares) if _serves(server, one)]
    if server is Server.GANESHA:
        served = _by_port(served).get(0, [])
    return HEAD + RENDER[server](one.placed for one in served)


def _serves(server: Server, one: Standing) -> bool:
    return one.state == "served" and server not in one.foreign


def _by_port(served: Iterable[Standing]) -> dict[int, list[Standing]]:
    """Exports by the port of their Ganesha: those of one volume at each.

    Never two, whatever node.db says: handles of the one would open files of the other.
    """
    found: dict[int, list[Standing]] = {}
    for one in served:
        nfs = one.share.nfs
        if nfs is not None and nfs.enabled:
            together = found.setdefault(nfs.port, [])
            if not together or together[0].share.volume == one.share.volume:
                together.append(one)
    return found


def own_ganeshas(node: Node, shares: Iterable[Share]) -> list[Wanted]:
    """The Ganeshas that nasfs shall run; none, where there is no Ganesha."""
    servers = node.config.shares
    if Server.GANESHA not in share_files(node.places, servers):
        return []
    served = [one for one in standings(node, shares) if _serves(Server.GANESHA, one)]
    wanted = []
    for port, exports in sorted(_by_port(served).items()):
        if port:
            own = OwnGanesha(
                port,
                str(recovery_of(node, port)),
                servers.ganesha_address,
                servers.ganesha_more,
            )
            text = HEAD + render_own(own, render_ganesha(one.placed for one in exports))
            wanted.append(Wanted(port, exports[0].share.volume, exports[0].mount, text))
    return wanted


def check(node: Node, shares: Iterable[Share]) -> None:
    """Raises Refused if a server's own checker would not take these shares."""
    shares = tuple(shares)
    for server, file in share_files(node.places, node.config.shares).items():
        text = render(node, server, shares)
        if text != file.text():
            check_text(file, text)


def activate(
    node: Node, *, without: frozenset[str] = frozenset(), disk: Disk | None = None
) -> list[str]:
    """Tell the servers what node.db says.  After a crash in the middle: again.

    Args:
        without: volumes (UUIDs) that shall not be served, because they are about to go.

    Returns:
        What is to be known: servers that do not run, files that nobody includes.

    Raises:
        Refused: a checker says no; that server goes on as before.
    """
    with telling:
        shares = tuple(share for share in node.shares.all() if share.volume not in without)
        notes: list[str] = []
        for server, file in share_files(node.places, node.config.shares).items():
            notes += _tell(file, render(node, server, shares), disk)
        return notes + settle(node, own_ganeshas(node, shares))


def settle_ganeshas(node: Node) -> list[str]:
    """Have those Ganeshas run that shall, each at a port of its own; returns who does not."""
    with telling:
        shares = node.shares.all()
        if Server.GANESHA in share_files(node.places, node.config.shares):
            settled = with_ports(shares)
            if settled != shares:  # there was no Ganesha when they were made
                node.shares.change(shares, settled)
                moved = (new.name for old, new in zip(shares, settled, strict=True) if old != new)
                node.state.note("daemon", "share changed", ", ".join(moved), "a port of its own")
        wanted = own_ganeshas(node, node.shares.all())
        return [] if are_as(node, wanted) else settle(node, wanted)


def _tell(file: ShareFile, text: str, disk: Disk | None) -> list[str]:
    old = file.text()
    notes = []
    if text != old and (old or text != HEAD):
        check_text(file, text)
        replace_file(file.own, text.encode("utf-8", "surrogateescape"), disk=disk)
        gone: list[str] = []
        if file.server is Server.SAMBA:
            names = {found.name for found in parse_samba(text, "").shares}
            gone = [f.name for f in parse_samba(old, "").shares if f.name not in names]
        if note := reload(file, gone):
            notes.append(note)
    if text != HEAD and not file.is_included():
        notes.append(
            f"{file.main} does not include {file.own} yet: nasfs share connect {file.server.value}"
        )
    return notes


def change_shares(
    node: Node, before: tuple[Share, ...], after: tuple[Share, ...], *, dry_run: bool = False
) -> list[str]:
    """From one set of shares to another: checked, durable, told to the servers.

    Returns:
        What is to be known, as `activate` does.

    Raises:
        Refused: a server's checker says no; nothing is changed.
        Failed: the shares are not *before* any more; nothing is changed.
    """
    check(node, after)
    if dry_run:
        return []
    node.shares.change(before, after)
    try:
        return activate(node)
    except Refused:
        raise
    except NasError as exc:  # it is durable, and told when that can be done
        return [str(exc)]
