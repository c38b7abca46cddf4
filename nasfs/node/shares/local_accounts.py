"""The machine's users and groups, read from its files; where other names come from.

Read from passwd(5) and group(5) themselves, not through the name service: a directory's accounts
are nobody's to copy.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

from nasfs.errors import Failed
from sharecfg.accounts import Accounts, Directory, Group, User
from sharecfg.smbconf import parse_conf

from ..context import Node
from .share_files import Server, read_text, share_files
from .share_servers import run_tool

ETC = Path("/etc")

NOBODY = frozenset((0, 65534))
"""Numbers that mean the same everywhere: root, and nobody."""


def read_accounts() -> Accounts:
    """All local users and groups, by name; of two lines of a name the first counts."""
    users: dict[str, User] = {}
    for fields in _lines(ETC / "passwd", 7):
        name, _, uid, gid, gecos, home, shell = fields
        user = User(name=name, uid=int(uid), gid=int(gid), gecos=gecos, home=home, shell=shell)
        users.setdefault(name, user)
    groups: dict[str, Group] = {}
    for name, _, gid, members in _lines(ETC / "group", 4):
        listed = tuple(sorted(filter(None, members.split(","))))
        groups.setdefault(name, Group(name=name, gid=int(gid), members=listed))
    return Accounts(
        users=tuple(users[name] for name in sorted(users)),
        groups=tuple(groups[name] for name in sorted(groups)),
    )


def _lines(path: Path, count: int) -> Iterator[list[str]]:
    """Lines of so many fields, the numbers in their places being numbers."""
    text = read_text(path)
    if not text:
        raise Failed(f"{path} is empty or not there")
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) != count or fields[0][:1] in ("", "+", "-", "#"):
            continue
        if fields[2].isdecimal() and (count != 7 or fields[3].isdecimal()):
            yield fields


def read_directory(node: Node) -> Directory:
    """Where names come from beside the files, as far as the machine's own files tell."""
    switch = _switch(read_text(ETC / "nsswitch.conf"))
    samba = share_files(node.places, node.config.shares).get(Server.SAMBA)
    told: dict[str, str] = {}
    idmap: list[str] = []
    if samba is not None:
        sections = parse_conf(read_text(samba.main), str(samba.main)).sections
        for parameter in (p for s in sections if s.name == "global" for p in s.parameters.values()):
            told[parameter.key] = parameter.text
            if parameter.key.startswith("idmapconfig"):
                idmap.append(f"{' '.join(parameter.name.lower().split())} = {parameter.text}")
    return Directory(
        passwd=switch.get("passwd", ()),
        group=switch.get("group", ()),
        realm=told.get("realm", ""),
        workgroup=told.get("workgroup", ""),
        security=told.get("security", ""),
        idmap=tuple(sorted(idmap)),
        sssd_domains=_sssd(read_text(ETC / "sssd/sssd.conf")),
        nis_domain=_nis(),
    )


def _switch(text: str) -> dict[str, tuple[str, ...]]:
    found = {}
    for line in text.splitlines():
        name, colon, sources = line.partition("#")[0].partition(":")
        if colon:
            found[name.strip()] = tuple(re.sub(r"\[[^]]*\]", "", sources).split())
    return found


def _sssd(text: str) -> tuple[str, ...]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
        domains = parser.get("sssd", "domains", fallback="")
    except configparser.Error:
        return ("(sssd.conf cannot be read)",)
    return tuple(sorted(filter(None, re.split(r"[\s,]+", domains))))


def _nis() -> str:
    name = read_text(Path("/proc/sys/kernel/domainname")).strip()
    return "" if name == "(none)" else name


def networks() -> tuple[str, ...]:
    """Of this machine's interfaces, without those of loopback; empty: not known."""
    try:
        links = json.loads(run_tool(["ip", "-json", "address"]).stdout)
    except (Failed, ValueError):
        return ()
    found = [
        str(ip_interface(f"{address['local']}/{address['prefixlen']}").network)
        for link in links
        if "LOOPBACK" not in link.get("flags", ())
        for address in link.get("addr_info", ())
        if "local" in address and address.get("scope") != "link"
    ]
    return tuple(sorted(set(found)))
