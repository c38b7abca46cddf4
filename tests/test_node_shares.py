"""Shares of a node: the command, node.db, the files that the servers read, and a real smbd."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nasfs.errors import Refused
from nasfs.node.context import MountPhase, MountState, Node
from nasfs.node.places import Places
from nasfs.node.shares.share_files import HEAD, HostDisk, Server, replace_file, share_files
from nasfs.node.shares.sharing import activate, standings
from sharecfg.exports import parse_exports
from sharecfg.ganesha import parse_ganesha
from sharecfg.samba import parse_samba
from tests.node_world import NodeWorld, wait_until
from tests.share_world import run_testparm
from tests.smb import SmbServer, smb_server


class SharingNode(NodeWorld):
    """A node with a Samba, a Ganesha and a kernel's NFS server that are there by their files."""

    def __init__(self, root: Path, smb_conf: Path | None = None) -> None:
        super().__init__(root, "a")
        self.etc = root / "etc"
        for name in ("samba", "ganesha"):
            (self.etc / name).mkdir()
        self.smb_conf = smb_conf or self.etc / "samba/smb.conf"
        self.smb_conf.touch()
        (self.etc / "ganesha/ganesha.conf").touch()
        (self.etc / "exports").touch()
        config = self.etc / "nasfs/nasfs.yaml"
        told = yaml.safe_load(config.read_text()) | {"shares": {"smb_conf": str(self.smb_conf)}}
        config.write_text(yaml.safe_dump(told))

    def begin(self) -> None:
        self.start()
        self.run("pool", "create", "tank", str(self.root / "pool"))

    @property
    def told(self) -> dict[str, str]:
        """What each server is told."""
        files = {
            "smb": self.etc / "nasfs/shares/samba.conf",
            "ganesha": self.etc / "nasfs/shares/ganesha.conf",
            "exports": self.etc / "exports.d/nasfs.exports",
        }
        return {name: path.read_text() if path.exists() else "" for name, path in files.items()}

    def smb_names(self) -> list[str]:
        return [found.name for found in parse_samba(self.told["smb"], "").shares]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SharingNode]:
    made = SharingNode(tmp_path / "a")
    try:
        made.begin()
        yield made
    finally:
        made.close()


@pytest.mark.mount
def test_a_share_is_told_to_all_servers_and_taken_back(node: SharingNode) -> None:
    mountpoint = node.volume("tank/home")
    done = node.nasfs(
        "share", "add", "office", "tank/home:/a", "--user", "@staff",
        "--smb-line", "veto files = /*.tmp/", "--nfs", "10.0.0.0/8(rw,no_root_squash)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "does not include" in done.stderr
    (smb,) = parse_samba(node.told["smb"], "").shares
    assert (smb.name, smb.path) == ("office", f"{mountpoint}/a")
    assert smb.smb.users == ("@staff",)
    assert smb.smb.extra == ("veto files = /*.tmp/",)
    (export,) = parse_exports(node.told["exports"], "").exports
    (block,) = parse_ganesha(node.told["ganesha"], "").exports
    assert export.path == block.path == smb.path
    shown = node.json("share", "show", "OFFICE")
    assert shown["state"] == "served"
    assert shown["share"]["nfs"]["export_id"] == block.nfs.export_id
    before = node.told
    node.run("share", "set", "office", "--read-only", "--user", "")
    (smb,) = parse_samba(node.told["smb"], "").shares
    assert (smb.smb.access.value, smb.smb.users) == ("read-only", ())
    assert node.told["exports"] == before["exports"]
    node.run("share", "set", "office", "--nfs", "off", "--name", "bureau")
    assert node.smb_names() == ["bureau"]
    assert parse_exports(node.told["exports"], "").exports == ()
    node.run("volume", "unmount", "tank/home")
    assert "shared as bureau" in node.fails(3, "volume", "destroy", "tank/home", "--lose-data")
    node.run("share", "remove", "bureau")
    assert node.smb_names() == []
    assert node.json("share", "list") == []


@pytest.mark.mount
def test_parameters_are_given_as_each_server_writes_them(node: SharingNode) -> None:
    node.volume("tank/home")
    node.run(
        "share", "add", "office", "tank/home", "--smb", "writeable=no", "--smb", "veto files=/*.x/",
        "--smb", "valid users = @staff", "--nfs", "10.0.0.0/8,2001:db8::/32:rw,no_root_squash",
        "--nfs", "*:ro",
    )  # fmt: skip
    share = node.json("share", "show", "office")["share"]
    assert share["smb"]["access"] == "read-only"
    assert share["smb"]["users"] == ["@staff"]
    assert share["smb"]["extra"] == ["veto files = /*.x/"]
    clients = {one["who"]: one for one in share["nfs"]["clients"]}
    assert list(clients) == ["10.0.0.0/8", "2001:db8::/32", "*"]
    assert clients["2001:db8::/32"]["squash"] == "none"
    assert clients["*"]["access"] == "read-only"
    node.run("share", "set", "office", "--smb", "read only=no")  # the rest stays
    changed = node.json("share", "show", "office")["share"]
    assert "access" not in changed["smb"]
    assert changed["smb"]["users"] == ["@staff"]
    node.run("share", "set", "office", "--smb", "off")
    assert "smb" not in node.json("share", "show", "office")["share"]


@pytest.mark.mount
def test_what_cannot_be_is_refused_and_nothing_is_changed(node: SharingNode) -> None:
    node.volume("tank/home")
    node.run("share", "add", "one", "tank/home", "--smb", "on")
    before = node.told, node.json("share", "list")
    create = ("share", "add", "two", "tank/home")
    assert "shared by what" in node.fails(2, *create, "--smb", "off")
    assert "no volume" in node.fails(1, "share", "add", "two", "tank/none", "--smb", "on")
    assert "there is a share one" in node.fails(
        2, "share", "add", "ONE", "tank/home", "--smb", "on"
    )
    assert "smb.create_mask" in node.fails(2, *create, "--create-mask", "9")
    assert "rww" in node.fails(2, *create, "--nfs", "10.0.0.0/8(rww)")
    assert "fsid" in node.fails(2, *create, "--nfs", "*(fsid=7)")
    assert "--guests" in node.fails(2, *create, "--guests", "perhaps")
    assert "KEY=VALUE" in node.fails(2, *create, "--smb", "read only")
    assert "the path follows" in node.fails(2, *create, "--smb", "path=/etc")
    assert "neither yes nor no" in node.fails(2, *create, "--smb", "read only=perhaps")
    assert "options of SMB" in node.fails(2, *create, "--smb", "off", "--user", "a")
    assert "not there" in node.fails(1, "share", "import", "exports", "/no/such/file")
    unknown = node.fails(3, *create, "--smb-line", "no such thing = 1")
    assert "Unknown parameter" in unknown
    node.fails(3, "share", "set", "one", "--smb-line", "no such thing = 1")
    node.fails(1, "share", "remove", "two")
    assert (node.told, node.json("share", "list")) == before
    node.run(*create, "--smb", "on", "--dry-run")
    assert (node.told, node.json("share", "list")) == before


@pytest.mark.mount
def test_a_share_is_served_only_while_its_volume_is_mounted(node: SharingNode) -> None:
    node.volume("tank/home", mount=False)
    node.run("share", "add", "office", "tank/home", "--smb", "on")
    assert node.json("share", "show", "office")["state"] == "its volume is not mounted"
    assert node.smb_names() == []
    node.run("volume", "mount", "tank/home")
    wait_until(lambda: node.smb_names() == ["office"], "it is served")
    node.run("volume", "unmount", "tank/home")
    wait_until(lambda: node.smb_names() == [], "it is not served")
    assert "shared as office" in node.fails(3, "volume", "destroy", "tank/home", "--lose-data")


@pytest.mark.mount
def test_a_daemon_that_begins_goes_on_serving_what_is_really_mounted(
    node: SharingNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.volume("tank/home")
    node.run("share", "add", "office", "tank/home", "--smb", "on")
    with Node.open(Places(node.root)) as inside:
        (row,) = inside.state.volumes()
        inside.mounts[row.uuid] = MountState(MountPhase.STARTING)
        (standing,) = standings(inside, inside.shares.all())
        assert standing.state == "served"
        answers = MountState(MountPhase.MOUNTED, os.getpid(), mountpoint=str(tmp_path))
        monkeypatch.setattr("nasfs.node.shares.sharing.running_mount", lambda *_: answers)
        for known in (MountPhase.STARTING, MountPhase.UNMOUNTED):
            inside.mounts[row.uuid] = MountState(known)
            (standing,) = standings(inside, inside.shares.all())
            assert standing.state == "its volume is not mounted"


@pytest.mark.mount
def test_the_administrators_file_gets_one_line_if_he_asks(node: SharingNode) -> None:
    node.volume("tank/home")
    node.smb_conf.write_text("[global]\n   workgroup = X\n\n[theirs]\n   path = /srv # last line")
    node.smb_conf.chmod(0o640)
    before = node.smb_conf.read_text()
    node.run("share", "add", "office", "tank/home", "--smb", "on")
    assert node.smb_conf.read_text() == before
    node.run("share", "connect", "smb", "--dry-run")
    assert node.smb_conf.read_text() == before
    node.run("share", "connect", "smb")
    assert node.smb_conf.read_text() == f"{before}\ninclude = {node.etc}/nasfs/shares/samba.conf\n"
    assert node.smb_conf.stat().st_mode & 0o777 == 0o640
    node.run("share", "connect", "smb")
    assert node.smb_conf.read_text().count("include") == 1
    assert "[office]" in run_testparm(node.smb_conf)
    assert "line 4" in node.fails(3, "share", "add", "Theirs", "tank/home", "--smb", "on")
    node.run("share", "connect", "ganesha")
    line = f'%include "{node.etc}/nasfs/shares/ganesha.conf"\n'
    assert (node.etc / "ganesha/ganesha.conf").read_text() == line
    assert "(nothing)" in node.run("share", "connect", "exports")


@pytest.mark.mount
def test_what_servers_export_already_is_imported_and_left_to_them(node: SharingNode) -> None:
    mountpoint = node.volume("tank/home")
    node.smb_conf.write_text(
        f"[global]\n[Old One]\n path = {mountpoint}/old\n guest ok = yes\n"
        "[other]\n path = /srv/elsewhere\n"
    )
    done = node.nasfs("share", "import", "smb.conf", str(node.smb_conf))
    assert done.stdout == f"took Old One: {mountpoint}/old\n"
    assert "in no volume" in done.stderr
    assert "an administrator's file" in done.stderr
    assert node.smb_names() == []  # one definition of it is enough
    node.smb_conf.write_text("[global]\n")
    wait_until(lambda: node.smb_names() == ["Old One"], "it is served from ours now")
    exports = node.root / "exports"
    exports.write_text(
        f"{mountpoint}/old 10.0.0.0/8(rw,fsid=7)\n{mountpoint}/new *(ro)\n/x *(ro)\n"
    )
    view = node.json("share", "import", "exports", str(exports))
    assert [one["share"]["name"] for one in view["taken"]] == ["Old One", "new"]
    assert len(view["left"]) == 1
    assert node.json("share", "import", "exports", str(exports))["taken"] == []
    assert "fsid=7" in node.told["exports"]
    text = node.run("share", "export")
    exported = node.root / "shares.yaml"
    exported.write_text(text)
    node.run("share", "remove", "new")
    node.run("share", "remove", "old one")
    node.run("share", "import", "yaml", str(exported))
    assert node.run("share", "export") == text
    exported.write_text(text.replace("tank/home", "tank/none", 1))
    assert f"{exported}, share new: volume:" in node.fails(
        2, "share", "import", "yaml", str(exported)
    )
    assert node.run("share", "export") == text
    exported.write_text(text.replace("guests: 'yes'", "guests: 'no'"))
    assert "--replace" in node.fails(2, "share", "import", "yaml", str(exported))
    node.run("share", "import", "yaml", str(exported), "--replace")
    assert "guest ok = no" in node.run("share", "render", "smb")


# a kill in the middle


class Killed(BaseException):
    """Nobody handles it."""


class DyingDisk(HostDisk):
    """Dies at one of its calls; a write may have put a part on the disk before."""

    def __init__(self, dies_at: int) -> None:
        self.left = dies_at

    def _step(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def write(self, path: Path, data: bytes, mode: int) -> None:
        self._step()
        super().write(path, data[: len(data) // 2], mode)
        self._step()
        super().write(path, data, mode)

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)
        self._step()


@pytest.mark.mount
def test_killed_at_any_step_a_server_reads_the_old_or_the_new(node: SharingNode) -> None:
    node.volume("tank/home")
    node.run("share", "add", "one", "tank/home", "--smb", "on", "--nfs", "*(ro)")
    old = node.told
    node.stop()  # the mount is gone with it: what is to be told now is nothing
    place = Places(node.root)
    with Node.open(place) as opened:
        for dies_at in range(100):
            for server, file in share_files(place, opened.config.shares).items():
                replace_file(file.own, old[server.value].encode())
            disk = DyingDisk(dies_at)
            try:
                activate(opened, disk=disk)
                ended = True
            except Killed:
                ended = False
            for server in Server:
                now = node.told[server.value]
                assert now in (old[server.value], HEAD), "to the byte"
            if ended:
                break
            activate(opened)
            assert node.smb_names() == []
        assert dies_at >= 12, "three servers, four steps each"


def test_a_refused_text_is_never_activated(tmp_path: Path) -> None:
    from nasfs.node.shares.share_files import ShareFile
    from nasfs.node.shares.share_servers import check_text

    main = tmp_path / "smb.conf"
    main.write_text("[global]\n")
    samba = ShareFile(Server.SAMBA, tmp_path / "own.conf", main, tmp_path / "pid")
    check_text(samba, "[x]\n path = /\n")
    with pytest.raises(Refused):
        check_text(samba, "[x]\n path = /\n nonsense = 1\n")
    exports = ShareFile(Server.KERNEL, tmp_path / "x.exports", tmp_path / "exports", tmp_path)
    with pytest.raises(Refused):
        check_text(exports, "/x *(rww)\n")
    ganesha = ShareFile(Server.GANESHA, tmp_path / "g.conf", tmp_path / "ganesha.conf", tmp_path)
    with pytest.raises(Refused):
        check_text(ganesha, "EXPORT { Export_Id = 1;\n")


# a real smbd


class Office:
    """A node whose Samba runs."""

    def __init__(self, node: SharingNode, server: SmbServer, mountpoint: Path) -> None:
        self.node = node
        self.server = server
        self.mountpoint = mountpoint

    def names(self, user: str = "games%secret") -> list[str]:
        done = self.server.run("smbclient", "-g", "-L", "127.0.0.1", f"-U{user}")
        lines = (line.split("|") for line in done.stdout.splitlines())
        return [words[1] for words in lines if words[0] == "Disk"]


@pytest.fixture
def office() -> Iterator[Office]:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to other users
        base = Path(name)
        base.chmod(0o711)
        home = base / "smb"
        home.mkdir()
        with smb_server(home, "", ["games", "news"]) as server:
            node = SharingNode(base / "a", server.config)
            try:
                node.begin()
                mountpoint = node.volume("tank/home")
                mountpoint.chmod(0o777)
                node.run("share", "connect", "smb")
                yield Office(node, server, mountpoint)
            finally:
                node.close()


@pytest.mark.mount
def test_a_running_smbd_serves_a_new_share_and_closes_it(office: Office) -> None:
    node, server = office.node, office.server
    (office.mountpoint / "file").write_bytes(b"hello")
    node.run("share", "add", "office", "tank/home", "--user", "games", "--nt-acls")
    wait_until(lambda: office.names() == ["office"], "smbd has read it")
    got = node.root / "got"
    server.client("office", "games", f"get file {got}")
    assert got.read_bytes() == b"hello"
    server.client("office", "games", f"put {got} made")
    assert "security.NTACL" in os.listxattr(office.mountpoint / "made")
    assert "ACCESS_DENIED" in server.client("office", "news", "ls", ok=False)
    node.run("snapshot", "create", "tank/home@s")
    assert "@GMT-" in server.client("office", "games", "allinfo file")
    node.run("share", "set", "office", "--read-only")

    def read_only() -> bool:
        done = server.run(
            "smbclient", "//127.0.0.1/office", "-Ugames%secret", "-c", f"put {got} more"
        )
        return done.returncode != 0

    wait_until(read_only, "smbd has read that it is read-only")
    with Visitor(server, "office", node.root) as visitor:
        node.run("share", "remove", "office")
        wait_until(lambda: office.names() == [], "smbd has read that it is gone")
        assert "NT_STATUS" in visitor.look_again()


class Visitor:
    """A client that is on a share, and looks at it again when it is told to."""

    def __init__(self, server: SmbServer, share: str, work: Path) -> None:
        self._here, self._go = work / "here", work / "go"
        script = work / "wait.sh"
        self._commands = work / "commands"
        self._commands.write_text(f"ls\n!sh {script}\nls\n")
        script.write_text(f"touch {self._here}\nwhile [ ! -e {self._go} ]; do sleep 0.1; done\n")
        self._argv = [
            "nsenter", "-t", str(server.pid), "-n", "smbclient", f"//127.0.0.1/{share}",
            "-Ugames%secret", "-s", str(server.config),
        ]  # fmt: skip

    def __enter__(self) -> Visitor:
        with self._commands.open() as commands:
            self._client = subprocess.Popen(
                self._argv,
                stdin=commands,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        wait_until(self._here.exists, "a client is on the share")
        return self

    def look_again(self) -> str:
        self._go.touch()
        output, _ = self._client.communicate(timeout=60)
        assert "blocks available" in output
        return output

    def __exit__(self, *_: object) -> None:
        self._go.touch()
        self._client.kill()
        self._client.communicate()
