"""Shares as text: what was read is rendered with its meaning, and the servers' checkers take it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sharecfg.checks import check_share, check_together
from sharecfg.complaints import Misconfigured
from sharecfg.document import parse_document, render_document
from sharecfg.exports import parse_exports, render_exports
from sharecfg.ganesha import parse_ganesha, render_export, render_ganesha
from sharecfg.model import (
    Access,
    Guests,
    Nfs,
    NfsClient,
    Share,
    Smb,
    Squash,
    derived_fsid,
    filesystem_id,
    free_export_id,
)
from sharecfg.placed import Placed, locate
from sharecfg.samba import parse_samba, render_samba, render_section
from tests import share_world
from tests.share_world import VOLUMES, nfses, run_testparm, shares, smbs

MOUNTPOINT = "/srv/nas fs"
NAMES = {VOLUMES[0]: "tank/home", VOLUMES[1]: "tank/team", VOLUMES[2]: "safe/old"}


def office(**fields: object) -> Share:
    made = Share(name="office", volume=VOLUMES[0])
    return replace(made, **fields)


# YAML


@given(st.lists(shares, max_size=4, unique_by=lambda share: share.name))
def test_a_document_says_all_of_its_shares(found: list[Share]) -> None:
    if check_together(found):
        return
    text = render_document(found, NAMES)
    back = parse_document(text, "shares.yaml", {name: u for u, name in NAMES.items()})
    assert set(back) == set(found)
    assert render_document(back, NAMES) == text
    assert render_document(reversed(back), NAMES) == text


def test_a_document_is_what_a_person_would_write() -> None:
    share = office(directory="a", smb=Smb(users=("@staff",), guests=Guests.YES))
    assert render_document([share], NAMES) == (
        "version: 1\n"
        "shares:\n"
        "- name: office\n"
        "  volume: tank/home\n"
        "  directory: a\n"
        "  smb:\n"
        "    guests: 'yes'\n"
        "    users:\n"
        "    - '@staff'\n"
    )


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("version: 1\nshares: [\n", "f.yaml, line 3", "column 1"),
        ("version: 2\n", "f.yaml", "version"),
        ("version: 1\nshares: {}\nmore: 1", "f.yaml", "shares"),
        ("version: 1\nshares: [{volume: tank/home}]", "f.yaml, share 1", "share"),
        (
            "version: 1\nshares: [{name: x, volume: tank/home, smb: {guest: true}}]",
            "f.yaml, share x",
            "smb",
        ),
        ("version: 1\nshares: [{name: x, volume: tank/no, smb: {}}]", "f.yaml, share x", "volume"),
        (
            "version: 1\nshares: [{name: x, volume: tank/home, smb: {create_mask: '9'}}]",
            "f.yaml, share x",
            "smb.create_mask",
        ),
        (
            "version: 1\nshares: [{name: x, volume: tank/home, smb: {}},"
            " {name: X, volume: tank/home, smb: {}}]",
            "f.yaml, share X",
            "name",
        ),
    ],
)
def test_a_complaint_names_file_key_and_reason(text: str, where: str, key: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_document(text, "f.yaml", {"tank/home": VOLUMES[0]})
    (complaint,) = refused.value.complaints
    assert (complaint.where, complaint.key) == (where, key)
    assert complaint.reason
    assert str(refused.value) == str(complaint)


@pytest.mark.parametrize(
    ("share", "key"),
    [
        (office(name="a/b", smb=Smb()), "name"),
        (office(name="Global", smb=Smb()), "name"),
        (office(name="a\udcff", smb=Smb()), "name"),
        (office(), "smb, nfs"),
        (office(directory="../etc", smb=Smb()), "directory"),
        (office(directory="/a", smb=Smb()), "directory"),
        (office(directory=".snapshots/x", smb=Smb()), "directory"),
        (office(directory="a%u", smb=Smb()), "directory"),
        (office(comment="a\n[global]", smb=Smb()), "comment"),
        (office(comment="a\\", smb=Smb()), "comment"),
        (office(smb=Smb(access=Access.NONE)), "smb.access"),
        (office(smb=Smb(users=('a"b',))), "smb.users"),
        (office(smb=Smb(users=("@",))), "smb.users"),
        (office(smb=Smb(hosts=("a\nb",))), "smb.hosts"),
        (office(smb=Smb(modules=("shadow_copy2",))), "smb.modules"),
        (office(smb=Smb(modules=("fruit",))), "smb.modules"),
        (office(smb=Smb(modules=("a b",))), "smb.modules"),
        (office(smb=Smb(force_user="a\\")), "smb.force_user"),
        (office(smb=Smb(extra=("guest ok = yes",))), "smb.extra"),
        (office(smb=Smb(extra=("GuestOK = yes",))), "smb.extra"),
        (office(smb=Smb(extra=("[x] = y",))), "smb.extra"),
        (office(smb=Smb(extra=("; a = b",))), "smb.extra"),
        (office(smb=Smb(extra=("a = b\\",))), "smb.extra"),
        (office(smb=Smb(extra=("a",))), "smb.extra"),
        (office(smb=Smb(extra=("include = /etc/passwd",))), "smb.extra"),
        (office(smb=Smb(extra=("root preexec = /bin/x",))), "smb.extra"),
        (office(smb=Smb(extra=("a b = 1", "ab = 2"))), "smb.extra"),
        (office(nfs=Nfs()), "nfs.clients"),
        (office(nfs=Nfs(clients=(NfsClient(who="a b"),))), "nfs.clients.a b"),
        (office(nfs=Nfs(clients=(NfsClient(who="10.0.0.0/40"),))), "nfs.clients.10.0.0.0/40"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),) * 2)), "nfs.clients"),
        (office(nfs=Nfs(clients=(NfsClient(who="*", security=()),))), "nfs.clients.*"),
        (office(nfs=Nfs(clients=(NfsClient(who="*", options=("rw",)),))), "nfs.clients.*"),
        (office(nfs=Nfs(clients=(NfsClient(who="*", anonymous_uid=-1),))), "nfs.clients.*"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), fsid="x")), "nfs.fsid"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), export_id=65536)), "nfs.export_id"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), filesystem_id="1")), "nfs.filesystem_id"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), pseudo="x")), "nfs.pseudo"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), versions=(2,))), "nfs.versions"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), ganesha=("A = 1; }",))), "nfs.ganesha"),
        (office(nfs=Nfs(clients=(NfsClient(who="*"),), ganesha=("Path = /",))), "nfs.ganesha"),
    ],
)
def test_what_a_share_cannot_be_is_told_by_its_key(share: Share, key: str) -> None:
    assert [complaint.key for complaint in check_share(share)][:1] == [key]
    with pytest.raises(Misconfigured):
        Placed(share, MOUNTPOINT)


# smb.conf


@given(smbs, st.sampled_from(["", "a comment; #1"]), share_world.directories)
def test_what_smb_conf_says_is_read_back(smb: Smb, comment: str, directory: str) -> None:
    share = office(smb=smb, comment=comment, directory=directory)
    if check_share(share):
        return
    placed = Placed(share, MOUNTPOINT)
    parsed = parse_samba(render_section(placed), "smb.conf")
    assert parsed.complaints == ()
    (found,) = parsed.shares
    assert (found.name, found.path, found.comment) == (share.name, placed.path, comment)
    assert tidy(found.smb) == tidy(smb)


def tidy(smb: Smb) -> Smb:
    """Without the blanks around the = of free lines."""
    lines = (tuple(part.strip() for part in line.split("=", 1)) for line in smb.extra)
    return replace(smb, extra=tuple("=".join(line) for line in lines))


def test_the_administrators_smb_conf_is_read_as_samba_does() -> None:
    parsed = parse_samba(
        """\
# the server
[global]
   workgroup = X
   guest ok = Yes
   create mode = 0660
   include = /etc/samba/more.conf
[homes]
   comment = not ours
[Office Files]
   path = /srv/home/office/
   Writeable = TRUE
   valid users = @"domain users", alice \\
       bob
   vfs  objects = acl_xattr
   Public = no
   veto files = /*.tmp/
[readers]
   copy = office files
   path = "/srv/home/read ers"
   read only = yes
[printer]
   path = /var/spool
   printable = yes
[odd]
   path = /srv/%u
[wrong]
   path = /srv/home/w
   guest ok = perhaps
""",
        "smb.conf",
    )
    first, second = parsed.shares
    assert (first.name, first.path) == ("Office Files", "/srv/home/office")
    assert first.smb == Smb(
        users=("@domain users", "alice", "bob"),
        modules=("acl_xattr",),
        previous_versions=False,
        create_mask="0660",
        extra=("veto files = /*.tmp/",),
    )
    assert second.path == "/srv/home/read ers"
    assert second.smb == replace(first.smb, access=Access.READ_ONLY)
    assert parsed.includes == ("/etc/samba/more.conf",)
    assert set(parsed.sections) >= {"office files", "readers", "odd", "wrong"}
    assert [complaint.where for complaint in parsed.complaints] == [
        "smb.conf, line 7",
        "smb.conf, line 21",
        "smb.conf, line 25",
        "smb.conf, line 28",
    ]


def test_testparm_takes_every_option(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    every = Smb(
        access=Access.READ_ONLY,
        listed=False,
        listed_for_users_only=True,
        guests=Guests.ONLY,
        users=("@domain users", "alice"),
        denied_users=("bob",),
        readers=("carol",),
        writers=("alice", "dave"),
        admins=("root",),
        hosts=("10.0.0.0/8", "EXCEPT", "10.1.1.1"),
        denied_hosts=("ALL",),
        modules=("catia", "fruit", "streams_xattr", "acl_xattr"),
        create_mask="0664",
        directory_mask="2775",
        force_user="alice",
        force_group="staff",
        extra=("store dos attributes = yes", "fruit:metadata = stream"),
    )
    placed = [
        Placed(office(smb=every, comment="for all; #1"), str(tmp_path / "home")),
        Placed(office(name="plain", smb=Smb()), str(tmp_path / "home")),
        Placed(office(name="closed", smb=Smb(enabled=False)), str(tmp_path / "home")),
    ]
    config = tmp_path / "smb.conf"
    config.write_text(
        f"[global]\n private dir = {tmp_path}\n guest ok = yes\n vfs objects = full_audit\n"
        + render_samba(placed)
    )
    said = parse_samba(run_testparm(config), "testparm")
    assert said.complaints == ()
    by_name = {found.name: found for found in said.shares}
    assert by_name["office"].comment == "for all; #1"
    # testparm leaves out what is the default anyway
    assert replace(by_name["office"].smb, extra=every.extra) == every
    assert by_name["plain"].smb.guests is Guests.NO
    assert by_name["plain"].smb.modules == ()
    assert not by_name["closed"].smb.enabled


# exports(5)


@given(nfses, share_world.directories)
def test_what_exports_says_is_read_back(nfs: Nfs, directory: str) -> None:
    placed = Placed(office(nfs=nfs, directory=directory), MOUNTPOINT)
    text = render_exports([placed])
    parsed = parse_exports(text, "exports")
    assert parsed.complaints == ()
    told = tuple(client for client in nfs.clients if client.access is not Access.NONE)
    if not told:
        assert parsed.exports == ()
        return
    (found,) = parsed.exports
    assert found.path == placed.path
    assert found.nfs.clients == told
    assert found.nfs.fsid == (nfs.fsid or str(derived_fsid(VOLUMES[0], directory)))
    again = render_exports([Placed(office(nfs=found.nfs, directory=directory), MOUNTPOINT)])
    assert again == text


def test_the_administrators_exports_are_read_as_exports_5_says() -> None:
    parsed = parse_exports(
        """\
# a comment
"/srv/a b" -sync,rw 10.0.0.0/8 *.example(ro,all_squash,anonuid=-2) # more
/srv/gr\\303\\274\\040sse \\
   host(no_root_squash,fsid=0,insecure)
/srv/wide
/srv/flavours *(sec=krb5,rw,sec=sys,ro)
/srv/odd *(whatever)
srv *(rw)
""",
        "exports",
    )
    spaced, umlaut, wide = parsed.exports
    assert spaced.path == "/srv/a b"
    assert spaced.nfs.clients == (
        NfsClient(who="10.0.0.0/8"),
        NfsClient(
            who="*.example",
            access=Access.READ_ONLY,
            squash=Squash.ALL,
            anonymous_uid=(1 << 32) - 2,
        ),
    )
    assert umlaut.path == "/srv/grü sse"
    assert umlaut.nfs.fsid == "root"
    assert umlaut.nfs.clients[0].squash is Squash.NONE
    assert not umlaut.nfs.clients[0].privileged_ports
    assert wide.nfs.clients == (NfsClient(who="*", access=Access.READ_ONLY),)
    assert [complaint.where for complaint in parsed.complaints] == [
        "exports, line 6",
        "exports, line 7",
        "exports, line 8",
    ]


# Ganesha


@given(nfses, share_world.directories)
def test_what_ganesha_is_told_is_read_back(nfs: Nfs, directory: str) -> None:
    share = office(nfs=nfs, directory=directory)
    placed = Placed(share, MOUNTPOINT)
    parsed = parse_ganesha(render_export(placed), "ganesha.conf")
    assert parsed.complaints == ()
    (found,) = parsed.exports
    assert found.path == placed.path
    # what only the kernel's server knows is not told to Ganesha
    assert found.nfs == replace(
        nfs,
        clients=tuple(replace(client, sync=True, options=()) for client in nfs.clients),
        fsid="",
        filesystem_id=nfs.filesystem_id or filesystem_id(VOLUMES[0], directory),
        pseudo=nfs.pseudo or "/office",
        versions=tuple(sorted(nfs.versions)),
    )
    again = replace(share, nfs=replace(found.nfs))
    assert render_export(Placed(again, MOUNTPOINT)) == render_export(placed)


def test_the_administrators_ganesha_conf_is_read() -> None:
    parsed = parse_ganesha(
        """\
%include "/etc/ganesha/more.conf"
NFS_CORE_PARAM { Protocols = 4; }
EXPORT_DEFAULTS { Squash = All_Squash; SecType = krb5; }
EXPORT {   # the first
    Export_Id = 7; Path = "/srv/a b"; Pseudo = '/a';
    Access_Type = RO; PrefRead = 65536;
    FSAL { Name = VFS; }
    CLIENT { Clients = 10.0.0.1, 10.1.0.0/16; Access_Type = RW; Squash = No_Root_Squash; }
}
EXPORT { Export_Id = 8; Path = /ceph; FSAL { Name = CEPH; } }
EXPORT { Export_Id = nine; Path = /x; FSAL { Name = VFS; } }
""",
        "g.conf",
    )
    (found,) = parsed.exports
    rw = NfsClient(who="10.0.0.1", squash=Squash.NONE, security=("krb5",), privileged_ports=False)
    assert found.nfs.clients == (
        rw,
        replace(rw, who="10.1.0.0/16"),
        replace(rw, who="*", access=Access.READ_ONLY, squash=Squash.ALL),
    )
    assert found.nfs.export_id == 7
    assert found.nfs.ganesha == ("PrefRead = 65536",)
    assert parsed.includes == ("/etc/ganesha/more.conf",)
    assert parsed.export_ids == (7, 8)
    assert [complaint.where for complaint in parsed.complaints] == [
        "g.conf, line 10",
        "g.conf, line 11",
    ]


@pytest.mark.parametrize("text", ["EXPORT {", "EXPORT { a = 1 }", "a = 1;", 'x { a = "b; }', "}"])
def test_a_torn_ganesha_conf_is_a_complaint(text: str) -> None:
    parsed = parse_ganesha(text, "g.conf")
    assert parsed.exports == ()
    assert len(parsed.complaints) == 1


# what is fixed for ever


def test_handles_are_made_of_the_same_numbers_for_ever() -> None:
    assert str(derived_fsid(VOLUMES[0], "")) == "405f313f-7e82-5990-945b-c5f9a2856b37"
    assert filesystem_id(VOLUMES[0], "a") == "10484890437785836453.13413046227798641673"
    nfs = Nfs(clients=(NfsClient(who="*"),))
    first = free_export_id(office(nfs=nfs), set())
    assert first == 60_342
    assert free_export_id(office(nfs=nfs), {first}) not in (0, first)
    assert free_export_id(office(nfs=nfs), {first - 1}) == first


def test_a_closed_export_is_told_to_nobody() -> None:
    nfs = Nfs(enabled=False, export_id=1, clients=(NfsClient(who="*"),))
    placed = [Placed(office(nfs=nfs), MOUNTPOINT)]
    assert render_exports(placed) == ""
    assert render_ganesha(placed) == ""


def test_a_path_belongs_to_the_innermost_volume() -> None:
    places = {"v": "/srv", "w": "/srv/w"}
    assert locate("/srv/w/a/b/", places) == ("w", "a/b")
    assert locate("/srv/wide", places) == ("v", "wide")
    assert locate("/srv", places) == ("v", "")
    assert locate("/etc", places) is None
