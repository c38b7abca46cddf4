"""``mount -t fuse.nasfs`` and ``umount``: the helpers, and once through mount(8) itself."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasfs.cli import mount_helper
from nasfs.errors import Failed
from nasfs.fuse.background import Order, order_of
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.fuse.mountpoint import detach_dead, find_mount, process_of, watch
from nasfs.node.context import Node
from nasfs.node.inventory import make_pool, make_volume
from nasfs.node.messages import PoolCreate, VolumeCreate
from nasfs.node.places import Places
from nasfs.node.records import Group
from nasfs.node.snapshots import take_snapshot
from nasfs.volume import check_volume, open_volume
from tests.mounts import failing, wait_for_end
from tests.node_world import NodeWorld, mounts_below

pytestmark = pytest.mark.mount

HERE = Path(__file__).parents[1]
GENERATOR = Path("/lib/systemd/system-generators/systemd-fstab-generator")


@dataclass
class Machine:
    """A node without a daemon, its volume tank/home, places to mount it, and the helpers."""

    base: Path
    capture: pytest.CaptureFixture[str]

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def places(self) -> Places:
        return Places(self.root)

    @property
    def volume(self) -> Path:
        return self.base / "pool/home"

    @property
    def place(self) -> Path:
        return self.base / "mnt"

    @property
    def other(self) -> Path:
        return self.base / "other place"

    def mount(
        self, source: str = "tank/home", *options: str, at: Path | None = None, flags: str = "-v"
    ) -> tuple[int, str]:
        """Exit code, and what was said."""
        words = ",".join(["rw", f"root={self.root}", *options])
        return self._run("mount", [source, str(at or self.place), flags, "-o", words])

    def umount(self, *words: str, at: Path | None = None) -> tuple[int, str]:
        return self._run("umount", [str(at or self.place), *words])

    def remount(self, *options: str, at: Path | None = None) -> tuple[int, str]:
        return self.mount("tank/home", "remount", *options, at=at)

    def _run(self, name: str, arguments: list[str]) -> tuple[int, str]:
        self.capture.readouterr()
        helper = getattr(mount_helper, name)
        code = mount_helper.run(f"{name}.fuse.nasfs", helper, arguments)
        said = self.capture.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    def mounted(self, *options: str, source: str = "tank/home") -> None:
        code, said = self.mount(source, *options)
        assert code == 0, said

    def pid(self, at: Path | None = None) -> int:
        mount = find_mount(at or self.place)
        assert mount is not None
        connection = watch(mount)
        assert connection is not None
        with connection:
            return process_of(connection)

    def order(self, at: Path | None = None) -> Order:
        order = order_of(self.pid(at))
        assert order is not None
        return order

    def kill(self) -> None:
        pid = self.pid()
        end = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            wait_for_end(end)
        finally:
            os.close(end)

    def snapshot(self, name: str) -> None:
        with Node.open(self.places) as node:
            take_snapshot(node, f"tank/home@{name}")

    def table(self, at: Path | None = None) -> set[str]:
        """The flags that the kernel's mount table shows."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            fields = line.split(" ")
            if fields[1].replace("\\040", " ") == str(at or self.place):
                return set(fields[3].split(","))
        return set()

    def clean_up(self) -> None:
        for place in (self.place, self.other):
            while find_mount(place) is not None:
                try:
                    unmount(place, timeout_s=60)
                except Failed:
                    detach_dead(place)


@pytest.fixture
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Machine]:
    found = Machine(tmp_path, capsys)
    monkeypatch.setenv("NASFS_ROOT", str(found.root))
    NodeWorld(found.root, "east")
    with Node.open(found.places) as node:
        make_pool(node, PoolCreate("tank", str(tmp_path / "pool")))
        make_volume(node, VolumeCreate("tank/home", 1 << 30, "thin", ""))
    found.place.mkdir()
    found.other.mkdir()
    try:
        yield found
    finally:
        found.clean_up()
    assert check_volume(found.volume) == []


# mounting


def test_it_returns_when_mounted_and_the_table_shows_the_source_as_it_was_said(
    machine: Machine,
) -> None:
    machine.mounted()
    found = find_mount(machine.place)
    assert found is not None
    assert (found.fstype, found.source) == ("fuse.nasfs", "tank/home")
    (machine.place / "file").write_text("kept")
    assert machine.umount() == (0, "")
    assert find_mount(machine.place) is None
    with open_volume(machine.volume) as volume:  # its process has let it go
        assert volume.read(volume.lookup(1, b"file").ino, 0, 10) == b"kept"
    source = str(machine.volume)
    machine.mounted(source=source)
    found = find_mount(machine.place)
    assert found is not None
    assert found.source == source
    assert (machine.place / "file").read_text() == "kept"


def test_a_path_needs_no_node(machine: Machine) -> None:
    nowhere = machine.base / "no-node"
    machine.mounted(f"root={nowhere}", source=str(machine.volume))
    assert machine.order().control == str(nowhere / "run/nasfs") + f"/{uuid(machine)}.sock"


def uuid(machine: Machine) -> str:
    with Node.open(machine.places) as node:
        (row,) = node.state.volumes()
        return row.uuid


def test_the_daemon_finds_its_control_socket(machine: Machine) -> None:
    machine.mounted(source=str(machine.volume))
    machine.snapshot("one")  # through the control socket: the volume is in use
    assert (machine.place / ".snapshots/one").is_dir()


def test_flags_are_carried_out(machine: Machine) -> None:
    machine.mounted()
    assert {"nosuid", "nodev", "noexec", "ro", "noatime"} & machine.table() == set()
    script = machine.place / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    subprocess.run([script], check=True)
    machine.umount()
    machine.mounted("nosuid", "nodev", "noexec", "noatime")
    assert machine.table() >= {"nosuid", "nodev", "noexec", "noatime", "rw"}
    with failing(errno.EACCES):
        subprocess.run([script], check=True)


def test_own_options_reach_the_mount_process(machine: Machine) -> None:
    log = machine.base / "a log, of mine"
    machine.mounted("commit=30", f'log="{log}"', "noallow_other")
    order = machine.order()
    assert (order.commit_interval_s, order.allow_other) == (30.0, False)
    assert "allow_other" not in machine.table()
    assert "mounted tank/home" in log.read_text()


def test_the_interval_is_the_configured_one_by_default(machine: Machine) -> None:
    machine.places.config.write_text("version: 1\ncommit_interval_s: 77\n")
    machine.mounted()
    assert machine.order().commit_interval_s == 77
    machine.umount()
    machine.mounted("commit=8")
    assert machine.order().commit_interval_s == 8


def test_with_sync_a_write_is_durable_when_it_returns(machine: Machine) -> None:
    machine.mounted("sync", "commit=3600")
    (machine.place / "file").write_text("kept")
    machine.kill()
    machine.mounted("commit=3600")
    assert (machine.place / "file").read_text() == "kept"


def test_a_fake_mount_checks_and_mounts_nothing(machine: Machine) -> None:
    code, said = machine.mount(flags="-fnv")
    assert (code, "could be mounted" in said) == (0, True)
    assert find_mount(machine.place) is None
    assert machine.mount("tank/other", flags="-f")[0] == 32
    machine.mounted()
    assert machine.mount("tank/home", "remount", "ro", flags="-f")[0] == 0
    assert "rw" in machine.table()


def test_sloppy_passes_over_unknown_words(machine: Machine) -> None:
    code, said = machine.mount("tank/home", "errors=remount-ro")
    assert code == 1
    assert "errors=remount-ro" in said
    assert machine.mount("tank/home", "errors=remount-ro", flags="-s") == (0, "")


@pytest.mark.parametrize(
    ("source", "options", "code", "words"),
    [
        ("tank/none", "rw", 32, "no volume tank/none"),
        ("none/home", "rw", 32, "no pool none"),
        ("tank/home", "root=/nonexistent", 32, "no node"),
        ("tank", "rw", 1, "not a volume"),
        ("tank/home@none", "rw", 32, "no snapshot none"),
        ("tank/home", "snapshot=none", 32, "no snapshot none"),
        ("tank/home@a", "snapshot=b", 1, "another: b"),
        ("/nonexistent/volume", "rw", 32, "no volume volume"),
        ("/usr", "rw", 32, "usr"),
        ("tank/home", "commit=soon", 1, "seconds"),
    ],
)
def test_what_cannot_be_mounted_is_told_with_the_exit_code_of_mount(
    machine: Machine, source: str, options: str, code: int, words: str
) -> None:
    got, said = machine.mount(source, options)
    assert (got, words in said) == (code, True), said
    assert find_mount(machine.place) is None


def test_a_mount_point_must_be_there_and_free(machine: Machine) -> None:
    missing = machine.base / "missing"
    code, said = machine.mount(at=missing)
    assert (code, str(missing) in said, missing.exists()) == (32, True, False)
    machine.mounted()
    code, said = machine.mount()
    assert (code, "is busy" in said) == (32, True)
    code, said = machine.mount(at=machine.other)
    assert (code, f"mounted at {machine.place}" in said) == (32, True)


def test_a_copy_of_a_volume_does_not_take_its_place(machine: Machine) -> None:
    machine.snapshot("one")
    copy = machine.base / "copy"
    shutil.copytree(machine.volume, copy)
    code, said = machine.mount(str(copy))
    assert (code, "is a copy" in said) == (32, True)
    assert machine.mount(f"{copy}@one") == (0, machine_said(machine, f"{copy}@one"))
    nowhere = f"root={machine.base / 'no-node'}"
    assert machine.mount(str(machine.volume), nowhere, at=machine.other)[0] == 0
    machine.umount()
    code, said = machine.mount(str(copy), nowhere)  # nobody knows either, but one is mounted
    assert (code, f"mounted at {machine.other}" in said) == (32, True)


def machine_said(machine: Machine, source: str) -> str:
    return f"mount.fuse.nasfs: {source} mounted on {machine.place} by process {machine.pid()}\n"


def test_a_volume_that_is_received_is_not_mounted_but_its_snapshots_are(machine: Machine) -> None:
    machine.snapshot("one")
    with Node.open(machine.places) as node, node.state.change():
        node.state.add_group(Group("b" * 32, "office", "passive", 3))
        node.state.join_group(node.state.volumes(), "b" * 32)
    for source in ("tank/home", str(machine.volume)):
        for option in ("rw", "ro"):
            code, said = machine.mount(source, option)
            assert (code, "office is passive" in said) == (32, True)
    machine.mounted(source="tank/home@one")


def test_only_root_may(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, said = machine.mount("tank/home", "user")
    assert (code, "only root" in said) == (1, True)
    code, said = machine.umount()
    assert (code, "only root" in said) == (1, True)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mount", []),
        ("mount", ["tank/home"]),
        ("mount", ["tank/home", "/mnt", "/usr"]),
        ("mount", ["tank/home", "/mnt", "-x"]),
        ("mount", ["tank/home", "/mnt", "-o"]),
        ("umount", []),
        ("umount", ["/mnt", "/usr"]),
        ("umount", ["/mnt", "-x"]),
    ],
)
def test_calls_that_make_no_sense_are_usage_errors(name: str, arguments: list[str]) -> None:
    assert mount_helper.run(name, getattr(mount_helper, name), arguments) == 1


def test_who_waits_no_longer_for_a_mount_ends_its_process(machine: Machine) -> None:
    with pytest.raises(Failed, match="did not serve"):
        mount_in_background(machine.volume, machine.place, fsname="x", timeout_s=0)
    orders = [order_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    assert all(order.mountpoint != str(machine.place) for order in orders if order is not None)
    machine.mounted()  # nobody has the volume


# read-only, and remounting


def test_a_volume_that_is_mounted_read_only_can_be_snapshotted_but_not_changed(
    machine: Machine,
) -> None:
    machine.mounted()
    (machine.place / "file").write_text("content")
    machine.umount()
    machine.mounted("ro")
    assert "ro" in machine.table()
    for change in (
        lambda: (machine.place / "new").touch(),
        lambda: (machine.place / "file").write_text("other"),
        lambda: (machine.place / "file").unlink(),
        lambda: (machine.place / "file").chmod(0),
    ):
        with failing(errno.EROFS):
            change()
    machine.snapshot("one")
    assert (machine.place / ".snapshots/one/file").read_text() == "content"


def test_remounting_changes_between_read_only_and_read_write(machine: Machine) -> None:
    machine.mounted("ro", "nodev", "commit=3600")
    pid = machine.pid()
    code, said = machine.remount("nodev", "noexec")
    assert (code, "remounted" in said) == (0, True)
    assert machine.table() >= {"rw", "nodev", "noexec"}
    (machine.place / "file").write_text("kept")
    assert machine.remount("ro")[0] == 0
    assert {"nodev", "noexec", "rw"} & machine.table() == set()
    assert machine.pid() == pid
    with failing(errno.EROFS):
        (machine.place / "new").touch()
    machine.kill()  # what was written before is durable since it is read-only
    machine.mounted()
    assert (machine.place / "file").read_text() == "kept"


def test_remounting_read_only_what_is_open_for_writing_fails(machine: Machine) -> None:
    machine.mounted()
    with (machine.place / "file").open("w") as file:
        code, said = machine.remount("ro")
        assert (code, "busy" in said) == (32, True)
        file.write("still works")
    assert machine.remount("ro")[0] == 0
    assert (machine.place / "file").read_text() == "still works"


@pytest.mark.parametrize("option", ["commit=7", "snapshot=one", "log=/other", "noallow_other"])
def test_what_only_the_mount_process_knows_is_not_remounted(machine: Machine, option: str) -> None:
    machine.mounted("commit=30")
    code, said = machine.remount("ro", option)
    assert (code, "cannot change" in said) == (1, True)
    assert "rw" in machine.table()
    assert machine.remount("ro", "commit=30")[0] == 0  # as fstab says it again


def test_a_snapshot_stays_read_only(machine: Machine) -> None:
    machine.mounted()
    (machine.place / "file").write_text("old")
    machine.snapshot("one")
    (machine.place / "file").write_text("new")
    for source, option in (("tank/home@one", "rw"), ("tank/home", "snapshot=one")):
        assert machine.mount(source, option, at=machine.other)[0] == 0
        assert (machine.other / "file").read_text() == "old"
        with failing(errno.EROFS):
            (machine.other / "file").write_text("new")
        code, said = machine.remount(at=machine.other)
        assert (code, "is a snapshot" in said) == (32, True)
        assert machine.remount("ro", "nodev", at=machine.other)[0] == 0
        assert machine.table(machine.other) >= {"ro", "nodev"}
        assert machine.umount(at=machine.other)[0] == 0


def test_remounting_what_is_not_ours_or_dead_fails(machine: Machine) -> None:
    code, said = machine.remount("ro")
    assert (code, "no nasfs volume is mounted" in said) == (32, True)
    machine.mounted()
    machine.kill()
    code, said = machine.remount("ro")
    assert (code, "is gone" in said) == (32, True)


# unmounting


def test_unmounting_what_is_in_use_fails_or_makes_it_read_only(machine: Machine) -> None:
    machine.mounted("commit=3600")
    (machine.place / "file").write_text("kept")
    with (machine.place / "file").open():
        code, said = machine.umount()
        assert (code, "busy" in said) == (32, True)
        assert "rw" in machine.table()
        assert machine.umount("-r") == (0, "")
        assert "ro" in machine.table()
    machine.kill()
    machine.mounted()
    assert (machine.place / "file").read_text() == "kept"


def test_a_lazy_unmount_is_over_when_nobody_uses_it(machine: Machine) -> None:
    machine.mounted()
    end = os.pidfd_open(machine.pid())
    try:
        with (machine.place / "file").open("w") as file:
            assert machine.umount("-l")[0] == 0
            assert find_mount(machine.place) is None
            file.write("kept")
        wait_for_end(end)
    finally:
        os.close(end)
    machine.mounted()
    assert (machine.place / "file").read_text() == "kept"


def test_a_forced_unmount_ends_what_is_under_way(machine: Machine) -> None:
    machine.mounted()
    (machine.place / "file").write_text("kept")
    assert machine.umount("-f") == (0, "")
    machine.mounted()
    assert (machine.place / "file").read_text() == "kept"
    end = os.pidfd_open(machine.pid())
    file = os.open(machine.place / "file", os.O_RDWR)
    try:
        assert machine.umount("-f")[0] == 32
        wait_for_end(end)
        with failing(errno.ENOTCONN):
            os.write(file, b"lost")
    finally:
        with suppress(OSError):
            os.close(file)
        os.close(end)
    assert machine.umount() == (0, "")  # a dead mount


def test_unmounting_what_is_not_ours_fails(machine: Machine) -> None:
    code, said = machine.umount()
    assert (code, "no nasfs volume is mounted" in said) == (32, True)


# beside the daemon


def test_the_daemon_shows_and_unmounts_what_fstab_mounted(machine: Machine) -> None:
    node = NodeWorld(machine.root, "east")
    try:
        machine.mounted()  # before the daemon, as at boot
        node.start()
        (view,) = node.json("volume", "list")
        assert (view["mount_state"], view["mountpoint"]) == ("mounted", str(machine.place))
        assert view["mount_pid"] == machine.pid()
        node.run("snapshot", "create", "tank/home@one")
        assert (machine.place / ".snapshots/one").is_dir()
        node.run("volume", "unmount", "tank/home")
        assert find_mount(machine.place) is None
        machine.mounted()  # beside the daemon
        assert machine.umount() == (0, "")
        (view,) = node.json("volume", "list")
        assert view["mount_state"] == "unmounted"
    finally:
        node.close()


def test_a_mount_that_the_daemon_took_over_is_unmounted_by_the_daemon(machine: Machine) -> None:
    node = NodeWorld(machine.root, "east")
    try:
        machine.mounted()
        node.start()
        node.run("volume", "mount", "tank/home")  # it stays where it is, and is kept from now on
        link = machine.base / "link"
        link.symlink_to(machine.place)
        for place in (machine.place, link):
            code, said = machine.umount(at=place)
            assert (code, "nasfs volume unmount tank/home" in said) == (32, True)
        node.run("volume", "unmount", "tank/home")
        assert mounts_below(machine.base) == []
    finally:
        node.close()


def test_what_the_daemon_keeps_mounted_is_unmounted_by_the_daemon(machine: Machine) -> None:
    node = NodeWorld(machine.root, "east")
    try:
        node.start()
        node.run("volume", "mount", "tank/home")
        place = node.mountpoint("tank/home")
        code, said = machine.umount(at=place)
        assert (code, "nasfs volume unmount tank/home" in said) == (32, True)
        code, said = machine.mount()
        assert (code, f"mounted at {place}" in said) == (32, True)
        assert machine.remount("ro", at=place)[0] == 0
        assert "ro" in machine.table(place)
    finally:
        node.close()
    assert mounts_below(machine.root) == []


# through mount(8), umount(8), systemd


@contextmanager
def helpers_in_sbin(base: Path) -> Iterator[None]:
    """The helpers of this very package where mount(8) looks for them; what was there comes back."""
    with ExitStack() as stack:
        lock = stack.enter_context(open("/run/lock/nasfs-test-helpers", "w"))
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests on this machine
        for name in ("mount", "umount"):
            helper = base / f"{name}.fuse.nasfs"
            helper.write_text(
                f"#!{sys.executable}\n"
                f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
                f"from nasfs.cli.mount_helper import run_{name}; run_{name}()\n"
            )
            helper.chmod(0o755)
            link = Path("/sbin") / helper.name
            if link.is_symlink() and not link.exists():  # of a run that was killed
                link.unlink()
            elif os.path.lexists(link):
                before = link.with_name(f".{helper.name}.before")
                link.rename(before)
                stack.callback(before.rename, link)
            link.symlink_to(helper)
            stack.callback(link.unlink)
        yield


@pytest.fixture
def command(machine: Machine) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """mount(8) or umount(8), with an fstab of the test's own."""
    fstab = machine.base / "fstab"
    other = str(machine.other).replace(" ", "\\040")
    fstab.write_text(
        "# the file of this test\n"
        f"tank/home {machine.place} fuse.nasfs defaults,nofail,_netdev,noatime,nodev,commit=30,"
        f"x-systemd.requires-mounts-for=/srv,root={machine.root} 0 0\n"
        f"{machine.volume}@one {other} fuse.nasfs noauto,user,comment=x,root={machine.root} 0 0\n"
    )

    def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
        table = ["-T", str(fstab)] if name == "mount" else []
        # Never without a place but with -a alone: `mount -a -o remount` is about every mount.
        assert str(machine.base) in str(words) or words == ("-a",)
        return subprocess.run(
            [name, *table, *map(str, words)], capture_output=True, text=True, check=False
        )

    with helpers_in_sbin(machine.base):
        yield run
        machine.clean_up()  # while umount(8) has its helper


def test_fstab_lines_work_with_mount_and_umount(
    machine: Machine, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    machine.snapshot("one")
    for _ in range(2):  # the second time it is mounted already
        done = command("mount", "-a")
        assert (done.returncode, done.stderr) == (0, "")
    assert machine.table() >= {"rw", "nodev", "noatime"}
    assert find_mount(machine.other) is None
    assert machine.order().commit_interval_s == 30
    (machine.place / "file").write_text("kept")

    assert command("mount", "-o", "remount,ro", machine.place).returncode == 0
    assert machine.table() >= {"ro", "nodev"}
    done = command("mount", "-o", "remount,rw,commit=5", machine.place)
    assert (done.returncode, "cannot change" in done.stderr) == (1, True)
    assert command("mount", "-o", "remount,rw", machine.place).returncode == 0
    assert machine.table() >= {"rw", "nodev"}

    assert command("mount", machine.other).returncode == 0
    assert machine.table(machine.other) >= {"ro", "nosuid", "nodev", "noexec"}
    assert command("umount", machine.other).returncode == 0

    with (machine.place / "file").open():
        done = command("umount", machine.place)
        assert (done.returncode, "busy" in done.stderr) == (32, True)
    assert command("umount", machine.place).returncode == 0
    with open_volume(machine.volume) as volume:  # no VolumeBusy: the helper waited for the process
        assert volume.read(volume.lookup(1, b"file").ino, 0, 10) == b"kept"


def test_mount_passes_its_flags_and_the_namespace(
    machine: Machine, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command("mount", "-f", "-v", machine.place)
    assert (done.returncode, "could be mounted" in done.stdout) == (0, True)
    done = command("mount", "-N", "/proc/self/ns/mnt", "-v", machine.place)
    assert (done.returncode, "mounted on" in done.stdout) == (0, True), done.stderr
    assert find_mount(machine.place) is not None
    assert command("umount", "-N", "/proc/self/ns/mnt", machine.place).returncode == 0
    assert find_mount(machine.place) is None
    nowhere = ["tank/home", str(machine.place), "-N", "/nonexistent"]
    assert mount_helper.run("mount.fuse.nasfs", mount_helper.mount, nowhere) == 2


def test_umount_takes_a_dead_mount_away(
    machine: Machine, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert command("mount", machine.place).returncode == 0
    machine.kill()
    assert command("mount", machine.place).returncode == 0  # takes the dead one's place
    (machine.place / "file").touch()
    machine.kill()
    assert command("umount", machine.place).returncode == 0
    assert find_mount(machine.place) is None


@pytest.mark.skipif(not GENERATOR.exists(), reason="systemd is not installed")
def test_systemd_makes_mount_units_of_the_documented_lines(tmp_path: Path) -> None:
    lines = [
        line for line in (HERE / "docs/mounting.md").read_text().splitlines()
        if " fuse.nasfs " in line and line.startswith(("tank/", "/"))
    ]  # fmt: skip
    assert len(lines) >= 3
    fstab = tmp_path / "fstab"
    fstab.write_text("\n".join(lines) + "\n")
    places = [tmp_path / name for name in ("normal", "early", "late")]
    for place in places:
        place.mkdir()
    environment = os.environ | {
        "SYSTEMD_FSTAB": str(fstab),
        "SYSTEMD_PROC_CMDLINE": "",
        "SYSTEMD_LOG_TARGET": "console",
    }
    done = subprocess.run(
        [GENERATOR, *places], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    units = {path.name: path.read_text() for path in places[0].glob("*.mount")}
    assert len(units) == len(lines)
    for line in lines:
        source, where, _, options, *_ = line.split()
        unit = units[where.strip("/").replace("/", "-") + ".mount"]
        assert f"What={source}\n" in unit
        assert "Type=fuse.nasfs\n" in unit
        for option in options.split(","):
            name, _, value = option.partition("=")
            if name == "x-systemd.requires-mounts-for":
                assert value in unit.partition("RequiresMountsFor=")[2].splitlines()[0]


# installing


def test_install_links_what_it_needs_and_removes_only_that(tmp_path: Path) -> None:
    def install(*words: str) -> int:
        command = [str(HERE / "scripts/install"), *words]
        environment = os.environ | {"DESTDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    helper, nasfs = tmp_path / "sbin/mount.fuse.nasfs", tmp_path / "usr/local/bin/nasfs"
    for _ in range(2):
        assert install() == 0
    for link in (helper, helper.with_name("umount.fuse.nasfs"), nasfs):
        assert os.readlink(link) == str(HERE / ".venv/bin" / link.name)
        assert os.access(link, os.X_OK)
    nasfs.unlink()
    nasfs.symlink_to("/bin/true")
    assert install("--remove") == 0
    assert (os.path.lexists(helper), os.readlink(nasfs)) == (False, "/bin/true")
    helper.write_text("of somebody else")
    assert install() == 3
    assert helper.read_text() == "of somebody else"


def test_the_package_has_the_helpers_as_commands() -> None:
    scripts = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["scripts"]
    for name in ("mount", "umount"):
        module, _, function = scripts[f"{name}.fuse.nasfs"].partition(":")
        assert module == mount_helper.__name__
        assert callable(getattr(mount_helper, function))
        assert name == function.removeprefix("run_")
