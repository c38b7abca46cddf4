"""Previous Versions: snapshots by their times, what smb.conf says of them, and a real smbd."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import ConfigError
from nasfs.fuse.previous import by_second, to_name
from nasfs.volume import Epoch, Snapshot, SnapshotState
from sharecfg.samba import PreviousVersions, render_previous_versions
from tests.mounts import TestMount, failing, mounted
from tests.node_world import NodeWorld
from tests.smb import SmbServer, smb_server

NOON_S = 1_763_812_800  # 2025-11-22 12:00:00 UTC


def taken(epoch: int, time_ns: int) -> Snapshot:
    return Snapshot(Epoch(epoch), f"s{epoch}", f"g{epoch}", time_ns, "", SnapshotState.SEALED)


times = st.lists(st.integers(0, 12_000), max_size=40).map(
    lambda found: [NOON_S * 10**9 + ms * 10**6 for ms in found]
)


@given(times)
def test_each_snapshot_has_a_second_of_its_own_in_the_order_of_times(found: list[int]) -> None:
    snapshots = [taken(epoch, time_ns) for epoch, time_ns in enumerate(found, start=1)]
    seconds = by_second(snapshots)
    assert sorted(seconds) == list(seconds)
    ordered = sorted(snapshots, key=lambda s: s.time_ns)  # a stable sort: then by epoch
    assert list(seconds.values()) == ordered
    later = None
    for second, snapshot in reversed(seconds.items()):
        own = snapshot.time_ns // 10**9
        assert second == own if later is None else second == min(own, later - 1)
        later = second


@given(times)
def test_a_snapshot_of_a_later_second_moves_no_other(found: list[int]) -> None:
    snapshots = [taken(epoch, time_ns) for epoch, time_ns in enumerate(sorted(found), start=1)]
    later = taken(1000, (NOON_S + 13) * 10**9)
    assert by_second(snapshots).items() <= by_second([*snapshots, later]).items()


def test_times_that_have_no_name_are_moved_to_the_nearest_that_has_one() -> None:
    far = 10**21
    seconds = by_second([taken(1, -5), taken(2, 0), taken(3, far), taken(4, far)])
    assert [to_name(second) for second in seconds] == [
        b"@GMT-1970.01.01-23.59.59",
        b"@GMT-1970.01.02-00.00.00",
        b"@GMT-9999.12.31-23.59.58",
        b"@GMT-9999.12.31-23.59.59",
    ]


# what smb.conf says


def test_the_lines_of_a_share_are_these() -> None:
    versions = PreviousVersions("/srv/home", "/srv/home/a b", ("streams_xattr", "acl_xattr"))
    assert render_previous_versions(versions) == (
        "    path = /srv/home/a b\n"
        "    vfs objects = streams_xattr acl_xattr shadow_copy2\n"
        "    shadow:mountpoint = /srv/home\n"
        "    shadow:snapdir = .snapshots/@GMT\n"
        "    shadow:format = @GMT-%Y.%m.%d-%H.%M.%S\n"
        "    shadow:localtime = no\n"
        "    shadow:sort = desc\n"
    )


@pytest.mark.parametrize(
    ("mountpoint", "path", "modules"),
    [
        ("srv", "srv/a", ()),
        ("/srv/../etc", "/srv/../etc", ()),
        ("/srv", "/srv2", ()),
        ("/srv", "/", ()),
        ("/srv", "/srv/%u", ()),
        ("/srv", '/srv/"', ()),
        ("/srv", "/srv/a\nguest ok = yes", ()),
        ("/srv", "/srv/a\\", ()),
        ("/srv ", "/srv ", ()),
        ("/srv", "/srv/\udcff", ()),
        ("/srv", "/srv", ("acl_xattr\n",)),
        ("/srv", "/srv", ("acl_xattr", "acl_xattr")),
        ("/srv", "/srv", ("shadow_copy2",)),
    ],
)
def test_what_smb_conf_cannot_say_is_refused(
    mountpoint: str, path: str, modules: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        PreviousVersions(mountpoint, path, modules)
    assert refused.value.hint or "absolute path" in str(refused.value)


def test_testparm_takes_the_lines_as_they_are(tmp_path: Path) -> None:
    share = tmp_path / "Grüße & #1; = [x]"
    share.mkdir()
    config = tmp_path / "smb.conf"
    lines = render_previous_versions(PreviousVersions(str(tmp_path), str(share), ("acl_xattr",)))
    config.write_text(f"[global]\n    private dir = {tmp_path}\n[office]\n{lines}")
    for name, value in (line.strip().split(" = ", 1) for line in lines.splitlines()):
        done = subprocess.run(
            ["testparm", "-s", "--section-name=office", f"--parameter-name={name}", str(config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == value
        assert "Unknown parameter" not in done.stderr


# the mount


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[TestMount]:
    with mounted(tmp_path) as found:
        yield found


@pytest.mark.mount
def test_snapshots_are_there_by_their_times_and_cannot_be_changed(mount: TestMount) -> None:
    directory = mount.root / ".snapshots"
    assert os.listdir(directory / "@GMT") == []
    file = mount.root / "dir/file"
    file.parent.mkdir()
    for text in ("one", "two", "three"):  # most likely within a second
        file.write_text(text)
        mount.snapshot(f"by hand {text}")
    labels = sorted(os.listdir(directory / "@GMT"))
    old = [directory / "@GMT" / label / "dir/file" for label in labels]
    assert [path.read_text() for path in old] == ["one", "two", "three"]
    assert os.listdir(directory) == ["by hand one", "by hand two", "by hand three"]
    assert os.path.samefile(directory / "@GMT" / labels[0] / "..", directory / "@GMT")
    assert os.path.samefile(directory / "@GMT/..", directory)
    with failing(errno.ENOENT):
        os.stat(directory / "@GMT" / "by hand one")
    with failing(errno.EROFS):
        old[0].write_text("x")
    with failing(errno.EROFS):
        old[0].unlink()
    with failing(errno.EROFS):
        (directory / "@GMT/x").mkdir()
    with failing(errno.EROFS):
        (directory / "@GMT").rmdir()


@pytest.mark.mount
def test_looking_at_a_snapshot_by_its_time_does_not_move_it_from_its_name(
    mount: TestMount,
) -> None:
    (mount.root / "dir").mkdir()
    mount.snapshot("s")
    by_name = mount.root / ".snapshots/s/dir"
    (label,) = os.listdir(mount.root / ".snapshots/@GMT")
    by_time = mount.root / ".snapshots/@GMT" / label / "dir"
    assert by_name.stat().st_ino != by_time.stat().st_ino
    inside = os.open(by_name, os.O_RDONLY)
    try:
        os.listdir(by_time)
        assert os.readlink(f"/proc/self/fd/{inside}") == str(by_name)
    finally:
        os.close(inside)


@pytest.mark.mount
def test_what_is_open_by_its_time_is_stale_when_the_snapshot_is_destroyed(
    mount: TestMount,
) -> None:
    (mount.root / "file").write_text("old")
    mount.snapshot("s")
    directory = mount.root / ".snapshots/@GMT"
    (label,) = os.listdir(directory)
    inside = os.open(directory / label, os.O_RDONLY)
    try:
        mount.control.call("snapshot_destroy", names=["s"])
        assert os.listdir(directory) == []
        with failing(errno.ESTALE):
            os.listdir(inside)
    finally:
        os.close(inside)


# a real smbd

GAMES, NEWS = 5, 9
"""Accounts that every Debian has, by the names of the two users here."""


class Office:
    """A volume with three versions of some files, served by smbd as a whole and in part."""

    def __init__(self, mount: TestMount, server: SmbServer, work: Path) -> None:
        self.mount = mount
        self.server = server
        self.work = work

    @property
    def labels(self) -> list[str]:
        """The names below `.snapshots/@GMT`, oldest first."""
        return sorted(os.listdir(self.mount.root / ".snapshots/@GMT"))

    def get(self, share: str, user: str, path: str) -> bytes:
        """The content of a file, as a client gets it."""
        copy = self.work / "got"
        self.server.client(share, user, f"get {path} {copy}")
        content = copy.read_bytes()
        copy.unlink()
        return content

    def put(self, share: str, user: str, path: str, content: bytes) -> None:
        copy = self.work / "put"
        copy.write_bytes(content)
        self.server.client(share, user, f"put {copy} {path}")

    def versions(self, share: str, path: str) -> list[str]:
        """The labels that `allinfo` lists for a file or directory, oldest first."""
        output = self.server.client(share, "games", f"allinfo {path}")
        return sorted(line for line in output.splitlines() if line.startswith("@GMT-"))


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    with tempfile.TemporaryDirectory() as name, mounted(Path(name)) as mount:
        base = Path(name)
        base.chmod(0o711)
        mount.root.chmod(0o755)
        for path in ("shared files", "shared files/sub", "nt"):
            (mount.root / path).mkdir()
            os.chown(mount.root / path, GAMES, -1)
        top, whole = str(mount.root), str(mount.root / "shared files")
        nt = str(mount.root / "nt")
        sections = "".join(
            f"[{share}]\n    read only = no\n{render_previous_versions(versions)}"
            for share, versions in {
                "whole": PreviousVersions(top, top),
                "part": PreviousVersions(top, whole),
                "nt": PreviousVersions(top, nt, ("streams_xattr", "acl_xattr")),
            }.items()
        )
        home = base / "smb"
        home.mkdir()
        with smb_server(home, sections, ["games", "news"]) as server:
            yield Office(mount, server, base)


def restrict(path: Path, mode: int) -> None:
    os.chown(path, GAMES, -1)
    path.chmod(mode)


@pytest.mark.mount
def test_windows_clients_find_all_versions_of_a_file_and_get_their_bytes(office: Office) -> None:
    file = office.mount.root / "shared files/sub/bytes"
    contents = [b"first", b"second version", os.urandom(300_000)]
    for content in contents:
        file.write_bytes(content)
        office.mount.snapshot(f"hourly-{len(content)}")
    file.write_bytes(b"live")
    labels = office.labels[-3:]
    assert office.versions("part", "sub/bytes")[-3:] == labels
    assert office.versions("whole", '"shared files/sub/bytes"')[-3:] == labels
    assert office.versions("part", "sub")[-3:] == labels
    for label, content in zip(labels, contents, strict=True):
        assert office.get("part", "games", f"{label}/sub/bytes") == content
        assert office.get("part", "games", f"sub/{label}/bytes") == content  # as Windows asks
        assert office.get("whole", "games", f'"{label}/shared files/sub/bytes"') == content
    assert office.get("part", "games", "sub/bytes") == b"live"


@pytest.mark.mount
def test_a_directory_lists_as_it_was(office: Office) -> None:
    directory = office.mount.root / "shared files/sub"
    (directory / "removed").write_bytes(b"x" * 17)
    (directory / "before").write_bytes(b"")
    office.mount.snapshot("a listing")
    (directory / "removed").unlink()
    (directory / "before").rename(directory / "after")
    old = office.server.client("part", "games", f"cd {office.labels[-1]}/sub; ls *")
    now = office.server.client("part", "games", "cd sub; ls *")
    sizes = {words[0]: words[2] for words in map(str.split, old.splitlines()) if len(words) > 5}
    assert sizes["removed"] == "17"
    assert "before" in sizes
    assert "after" not in sizes
    assert "removed" not in now
    assert "after" in now


@pytest.mark.mount
def test_a_mode_that_was_tight_is_tight_in_the_old_version(office: Office) -> None:
    file = office.mount.root / "shared files/secret"
    file.write_bytes(b"for games alone")
    restrict(file, 0o600)
    office.mount.snapshot("tight")
    file.write_bytes(b"for everybody")
    restrict(file, 0o644)
    label = office.labels[-1]
    assert office.get("part", "news", "secret") == b"for everybody"
    refused = office.server.client("part", "news", f"get {label}/secret /dev/null", ok=False)
    assert "NT_STATUS_ACCESS_DENIED" in refused
    assert office.get("part", "games", f"{label}/secret") == b"for games alone"


@pytest.mark.mount
def test_a_posix_acl_counts_in_the_old_version(office: Office) -> None:
    file = office.mount.root / "shared files/listed"
    file.write_bytes(b"not for news")
    restrict(file, 0o644)
    subprocess.run(["setfacl", "-m", "u:news:---", str(file)], check=True)
    office.mount.snapshot("acl")
    subprocess.run(["setfacl", "-b", str(file)], check=True)
    label = office.labels[-1]
    assert office.get("part", "news", "listed") == b"not for news"
    refused = office.server.client("part", "news", f"get {label}/listed /dev/null", ok=False)
    assert "NT_STATUS_ACCESS_DENIED" in refused
    assert office.get("part", "games", f"{label}/listed") == b"not for news"


@pytest.mark.mount
def test_an_nt_acl_and_a_stream_are_what_they_were(office: Office) -> None:
    entry = r"ACL:NASFSTEST\news:DENIED/0x0/FULL"
    office.put("nt", "games", "file", b"old")
    office.put("nt", "games", "file:side", b"old stream")
    office.server.acls("nt", "games", "file", "-a", entry)
    office.mount.snapshot("nt acl")
    office.server.acls("nt", "games", "file", "-D", entry)
    office.put("nt", "games", "file", b"new")
    office.put("nt", "games", "file:side", b"new stream")
    label = office.labels[-1]
    assert entry not in office.server.acls("nt", "games", "file")
    assert entry in office.server.acls("nt", "games", f"{label}/file")
    assert office.get("nt", "news", "file") == b"new"
    refused = office.server.client("nt", "news", f"get {label}/file /dev/null", ok=False)
    assert "NT_STATUS_ACCESS_DENIED" in refused
    assert office.get("nt", "games", f"{label}/file") == b"old"
    assert office.get("nt", "games", f"{label}/file:side") == b"old stream"


@pytest.mark.mount
def test_nobody_writes_into_an_old_version(office: Office) -> None:
    file = office.mount.root / "shared files/kept"
    file.write_bytes(b"kept")
    restrict(file, 0o666)
    office.mount.snapshot("kept")
    label = office.labels[-1]
    changes = (f"rm {label}/kept", f"mkdir {label}/d", f"put {office.server.config} {label}/kept")
    for change in changes:
        assert (
            "NT_STATUS_"
            in office.server.run(
                "smbclient", "//127.0.0.1/part", "-Ugames%secret", "-c", change
            ).stdout
        )
    assert office.get("part", "games", f"{label}/kept") == b"kept"
    assert file.read_bytes() == b"kept"


@pytest.mark.mount
def test_a_snapshot_that_goes_is_listed_no_more(
    office: Office,
) -> None:
    file = office.mount.root / "shared files/goes"
    file.write_bytes(b"x")
    office.mount.snapshot("goes")
    label = office.labels[-1]
    before = office.versions("part", "goes")
    assert label in before
    office.mount.control.call("snapshot_destroy", names=["goes"])
    after = office.versions("part", "goes")
    assert set(after) == set(office.labels)
    assert len(after) == len(before) - 1


# the command


@pytest.mark.mount
def test_the_command_prints_lines_that_testparm_takes(tmp_path: Path) -> None:
    node = NodeWorld(tmp_path / "a", "a")
    try:
        node.start()
        node.run("pool", "create", "tank", str(tmp_path / "pool"))
        mountpoint = node.volume("tank/home", mount=False)
        text = node.run("volume", "samba", "tank/home", "--path", "team/a", "--vfs", "acl_xattr")
        expected = PreviousVersions(str(mountpoint), f"{mountpoint}/team/a", ("acl_xattr",))
        assert text.endswith("\n" + render_previous_versions(expected))
        config = tmp_path / "smb.conf"
        config.write_text(f"[global]\n    private dir = {tmp_path}\n[office]\n{text}")
        done = subprocess.run(
            ["testparm", "-s", str(config)], capture_output=True, text=True, timeout=60, check=True
        )
        assert "shadow:snapdir = .snapshots/@GMT" in done.stdout
        shown = node.json("volume", "samba", "tank/home")
        assert shown["path"] == shown["shadow:mountpoint"] == str(mountpoint)
        absolute = node.json("volume", "samba", "tank/home", "--path", f"{mountpoint}/x")
        assert absolute["path"] == f"{mountpoint}/x"
        assert "not below" in node.fails(2, "volume", "samba", "tank/home", "--path", "../b")
        assert "VFS module" in node.fails(2, "volume", "samba", "tank/home", "--vfs", "a b")
        node.fails(1, "volume", "samba", "tank/none")
    finally:
        node.close()
