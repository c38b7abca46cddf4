"""Two nodes in networks of their own, with smbd and Ganesha on each, and a client in a third."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests import nfs4, recording
from tests.ganesha import CONF
from tests.node_world import wait_until
from tests.separate_nodes import SeparateNode

ADDRESSES = {"a": "10.178.0.1", "b": "10.178.0.2"}
CLIENT = "10.178.0.3"
USER, PASSWORD, UID = "alice", "alice's own", 4001
LOG = "log"
"""The file that is written by NFS."""


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


class Network:
    """A bridge where the client is, and a cable to each node."""

    def __init__(self, client: int) -> None:
        self._client = client
        for words in (
            ("link", "add", "name", "bridge", "type", "bridge"),
            ("address", "add", f"{CLIENT}/24", "dev", "bridge"),
            ("link", "set", "bridge", "up"),
            ("link", "set", "lo", "up"),
        ):
            run(*self.inside(), "ip", *words)

    def inside(self) -> tuple[str, ...]:
        """Before a command: it runs where the client is."""
        return ("nsenter", f"--net=/proc/{self._client}/ns/net")

    def plug(self, name: str, pid: int) -> None:
        """A cable to the network of a process, which gets the address of that node."""
        there = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
        cable = ("link", "add", "name", f"to-{name}", "type", "veth", "peer", "name", "cable")
        run(*self.inside(), "ip", *cable, "netns", str(pid))
        run(*self.inside(), "ip", "link", "set", f"to-{name}", "master", "bridge", "up")
        run(*there, "address", "add", f"{ADDRESSES[name]}/24", "dev", "cable")
        run(*there, "link", "set", "cable", "up")
        run(*there, "link", "set", "lo", "up")


@contextmanager
def network() -> Iterator[Network]:
    """Needs root; it ends with the process that holds it."""
    space = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert space.stdout is not None
        space.stdout.readline()
        yield Network(space.pid)
    finally:
        space.communicate()


class Site(SeparateNode):
    """A node with its servers, which run from the first share to the last."""

    def __init__(self, base: Path, name: str, net: Network) -> None:
        def plug(pid: int) -> None:
            net.plug(name, pid)

        super().__init__(base, name, address=f"{ADDRESSES[name]}:7077", plug=plug)
        self._servers: list[subprocess.Popen[bytes]] = []

    def make_servers(self) -> None:
        self.shell("useradd", "-u", str(UID), "-U", "-M", USER)
        self.have_samba({USER: PASSWORD})
        text = self.smb_conf.read_text()
        self.smb_conf.write_text(text.replace("interfaces = lo", f"interfaces = {self.host}"))
        home = self.root / "nfs"
        home.mkdir()
        own = self.root / "etc/nasfs/shares/ganesha.conf"
        own.touch()
        self.ganesha_conf.write_text(CONF.format(home=home, protocols="4") + f'%include "{own}"\n')
        path = self.root / "etc/nasfs/nasfs.yaml"
        known = yaml.safe_load(path.read_text())
        places = {"ganesha_conf": str(self.ganesha_conf), "ganesha_pid": str(home / "pid")}
        known["shares"] |= places
        path.write_text(yaml.safe_dump(known))

    @property
    def host(self) -> str:
        return ADDRESSES[self.name]

    @property
    def ganesha_conf(self) -> Path:
        return self.root / "ganesha.conf"

    def serve(self) -> None:
        """Start the servers; they answer when this returns."""
        home = self.root / "nfs"
        ganesha = ["-f", str(self.ganesha_conf), "-p", str(home / "pid"), "-L", str(home / "log")]
        for words in (
            ["smbd", "-F", "--no-process-group", "-s", str(self.smb_conf)],
            ["ganesha.nfsd", "-F", *ganesha],
        ):
            self._servers.append(
                subprocess.Popen(
                    [*self.inside, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        for port in (445, 2049):
            wait_until(lambda port=port: self._listens(port), f"{self.name}: port {port}", 60)  # type: ignore[misc]

    def _listens(self, port: int) -> bool:
        assert all(server.poll() is None for server in self._servers), self.server_logs()
        return f":{port}" in self.shell("ss", "-Hlnt", f"sport = :{port}")

    def server_logs(self) -> str:
        logs = [*self.smb.glob("log*"), self.root / "nfs/log"]
        return "\n".join(path.read_text(errors="replace")[-5000:] for path in logs if path.exists())

    def kill_servers(self) -> None:
        for server in self._servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        self._servers.clear()
        helper = self.smb / "pid/samba-dcerpcd.pid"  # smbd starts it for what it does not do itself
        with suppress(FileNotFoundError, ProcessLookupError):
            pid = int(helper.read_text())
            if str(self.smb) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)

    def lose(self) -> None:
        """The power of this node fails."""
        self.kill_all()
        self.kill_servers()

    def come_back(self) -> None:
        self.serve()
        self.start()

    def part_from(self, other: Site) -> None:
        """Nothing goes through to that node; clients reach both."""
        self.shell("ip", "route", "add", "blackhole", other.host)
        other.shell("ip", "route", "add", "blackhole", self.host)

    def meet(self, other: Site) -> None:
        self.shell("ip", "route", "delete", "blackhole", other.host)
        other.shell("ip", "route", "delete", "blackhole", self.host)

    def role(self) -> tuple[str, int]:
        view = self.json("group", "show", "office")
        return view["role"], view["term"]

    def close(self) -> None:
        self.kill_servers()
        super().close()


@dataclass
class Recorder:
    """A client that writes numbered records."""

    kind: str
    acknowledged: Path
    process: subprocess.Popen[bytes]

    def told(self) -> dict[int, tuple[str, int]]:
        """By the number of a record: who acknowledged it, and when (of the monotonic clock)."""
        found = {}
        for line in self.acknowledged.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                number, address, when = line.split()
                found[int(number)] = address.partition(",")[0], int(when)
        return found

    def count(self) -> int:
        return self.acknowledged.read_bytes().count(b"\n")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def there(self, top: Path) -> set[int]:
        """The records that are below a directory, whole."""
        if self.kind == "smb":
            names = (name for name in os.listdir(top) if name.startswith("smb-"))
            numbers = (int(name.removeprefix("smb-")) for name in names)
            return {n for n in numbers if (top / f"smb-{n}").read_bytes() == recording.record(n)}
        body = (top / LOG).read_bytes()
        size = recording.SIZE
        lines = [body[at : at + size] for at in range(0, len(body), size)]
        return {n for n, line in enumerate(lines, start=1) if line == recording.record(n)}


@dataclass
class Cycle:
    """Group office, of tank/home on a, is shared by SMB and NFS and goes to pool safe on b."""

    a: Site
    b: Site
    net: Network
    base: Path
    recorders: list[Recorder] = field(default_factory=list)
    lost: dict[str, set[int]] = field(default_factory=lambda: {"smb": set(), "nfs": set()})
    """By the kind of recorder: what forced changes of roles have lost."""

    def share(self) -> None:
        home = self.a.mountpoint("tank/home")
        home.chmod(0o777)
        (home / LOG).touch()
        self.a.run(
            "share", "add", "office", "tank/home", "--user", USER, "--nfs", f"{CLIENT}:rw",
            "--smb-line", "sync always = yes",
        )  # fmt: skip
        (home / LOG).chmod(0o666)

    def handle(self, site: Site) -> str:
        """Of the file that is written by NFS; empty: it is not served there."""
        program = [sys.executable, nfs4.__file__, f"{site.host},{CLIENT}", "handle"]
        program.append(f"office/{LOG}")
        done = subprocess.run(
            [*self.net.inside(), *program], capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def record(self) -> None:
        """Start both clients; they go on until `stop`."""
        wait_until(lambda: self.handle(self.a), f"Ganesha serves\n{self.a.server_logs()}")
        handle = self.handle(self.a)
        own = {"smb": "", "nfs": f",{CLIENT}"}
        for kind, words in (("smb", ("office", USER, PASSWORD)), ("nfs", (handle,))):
            hosts = [host + own[kind] for host in ADDRESSES.values()]
            acknowledged = self.base / f"acknowledged-{kind}"
            acknowledged.touch()
            program = ["/usr/bin/python3", recording.__file__, kind, str(acknowledged)]
            with (self.base / f"client-{kind}.log").open("wb") as log:
                process = subprocess.Popen(
                    [*self.net.inside(), *program, *words, *hosts],
                    stderr=log,
                    stdout=log,
                )
            self.recorders.append(Recorder(kind, acknowledged, process))
        self.goes_on()

    def goes_on(self, site: Site | None = None) -> None:
        """Both clients have records acknowledged again; by *site*."""
        since = time.monotonic_ns()
        for recorder in self.recorders:

            def more(recorder: Recorder = recorder) -> bool:
                assert recorder.process.poll() is None, self.client_log(recorder.kind)
                return any(
                    when > since and (site is None or address == site.host)
                    for address, when in recorder.told().values()
                )

            told = f"records by {recorder.kind}\n{self.client_log(recorder.kind)}"
            wait_until(more, told, 60)

    def client_log(self, kind: str) -> str:
        return (self.base / f"client-{kind}.log").read_text()[-2000:]

    def stop(self) -> None:
        for recorder in self.recorders:
            recorder.stop()


@contextmanager
def cycle_world(base: Path) -> Iterator[Cycle]:
    with network() as net:
        sites: list[Site] = []
        made: Cycle | None = None
        try:
            for name, pool in (("a", "tank"), ("b", "safe")):
                site = Site(base, name, net)
                sites.append(site)
                site.make_servers()
                site.start()
                site.run("pool", "create", pool, str(site.root / "pool"))
                site.serve()
            a, b = sites
            a.run("pair", "join", b.run("pair", "invite").strip())
            a.volume("tank/home")
            a.run("group", "create", "office", "tank/home")
            a.run("replication", "create", "office", "--to-pool", "safe")
            made = Cycle(a, b, net, base)
            made.share()
            yield made
        finally:
            if made is not None:
                made.stop()
            for site in sites:
                site.close()
