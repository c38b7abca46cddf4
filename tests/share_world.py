"""Shares for tests: strategies for every kind of them, and the tools that read them."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from hypothesis import strategies as st

from sharecfg.checks import check_share
from sharecfg.model import Access, Guests, Nfs, NfsClient, Share, Smb, Squash

VOLUMES = tuple(str(uuid.UUID(int=number)) for number in range(1, 4))

words = st.sampled_from(
    ["alice", "@staff", "+unix", "domain users", "@domain users", "a,b", "Ünal", "DOM\\bob", "x;y"]
)
lists = st.lists(words, max_size=3, unique=True).map(tuple)
hosts = st.lists(
    st.sampled_from(["192.168.1.", "10.0.0.0/8", "EXCEPT", "fe80::/10", ".example.com"]),
    max_size=3,
    unique=True,
).map(tuple)
extras = st.lists(
    st.sampled_from(
        [
            "store dos attributes = yes",
            "fruit:metadata = stream",
            'veto files = "/.x y/*.tmp/"',
            "level2 oplocks=no",
            "strict sync = no",
            "vfs_full:odd # value; = x",
        ]
    ),
    max_size=3,
    unique=True,
).map(tuple)
smbs = st.builds(
    Smb,
    enabled=st.booleans(),
    access=st.sampled_from([Access.READ_WRITE, Access.READ_ONLY]),
    listed=st.booleans(),
    listed_for_users_only=st.booleans(),
    guests=st.sampled_from(Guests),
    users=lists,
    denied_users=lists,
    readers=lists,
    writers=lists,
    admins=lists,
    hosts=hosts,
    denied_hosts=hosts,
    modules=st.sampled_from([(), ("acl_xattr",), ("catia", "fruit", "streams_xattr", "acl_xattr")]),
    previous_versions=st.booleans(),
    create_mask=st.sampled_from(["", "0664", "770"]),
    directory_mask=st.sampled_from(["", "2775"]),
    force_user=st.sampled_from(["", "alice", "a b"]),
    force_group=st.sampled_from(["", "+staff"]),
    extra=extras,
)
numbers = st.none() | st.sampled_from([0, 65534, (1 << 32) - 3])
clients = st.builds(
    NfsClient,
    who=st.sampled_from(
        ["*", "a.example", "*.example", "@hosts", "10.0.0.0/8", "fd00::/8", "10.1.0.0/255.255.0.0"]
    ),
    access=st.sampled_from(Access),
    squash=st.sampled_from(Squash),
    anonymous_uid=numbers,
    anonymous_gid=numbers,
    security=st.sampled_from([("sys",), ("krb5p", "krb5i"), ("none", "sys")]),
    sync=st.booleans(),
    privileged_ports=st.booleans(),
    options=st.sampled_from([(), ("no_subtree_check",), ("crossmnt", "no_wdelay", "refer=/a@b")]),
)
nfses = st.builds(
    Nfs,
    enabled=st.just(True),
    clients=st.lists(clients, min_size=1, max_size=3, unique_by=lambda c: c.who).map(tuple),
    export_id=st.integers(1, 65_535),
    fsid=st.sampled_from(["", "root", "17", VOLUMES[0]]),
    filesystem_id=st.sampled_from(["", "7.9"]),
    pseudo=st.sampled_from(["", "/nfs/x y"]),
    versions=st.sampled_from([(3, 4), (4,), (3,)]),
    ganesha=st.sampled_from([(), ("PrefRead = 65536", "Attr_Expiration_Time = 30")]),
)
names = st.sampled_from(["office", "Büro", "a b", "x$", "team-1"])
directories = st.sampled_from(["", "a", "a/b c", "Grüße & #1; = [x]", "tab'le", "(x)"])
shares = st.builds(
    Share,
    name=names,
    volume=st.sampled_from(VOLUMES),
    directory=directories,
    comment=st.sampled_from(["", "what it is for", '100 % "of" it\'s; #1']),
    smb=st.none() | smbs,
    nfs=st.none() | nfses,
).filter(lambda share: not check_share(share))


def run_testparm(config: Path, *options: str) -> str:
    """What testparm prints of a file that it takes without a warning about a parameter."""
    done = subprocess.run(
        ["testparm", "-s", *options, str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Unknown parameter" not in done.stderr, done.stderr
    assert "Ignoring" not in done.stderr, done.stderr
    return done.stdout
