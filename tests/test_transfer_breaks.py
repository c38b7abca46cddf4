"""An initial copy of a real volume, broken again and again: processes killed, TCP cut.

Every connection gets a random number of bytes; then the connection is cut, or the sender or the
receiver gets SIGKILL.  What was acknowledged is never taken back, little is sent twice, and in the
end both volumes are equal and sound.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nasfs.volume import ROOT_INO, Pool, check_volume, create_volume, open_volume, volume_path
from replication.pair import create_credentials

from .breaks_world import Config
from .test_volume_delta import whole

MIB = 1 << 20


class Breaker:
    """Passes bytes between sender and receiver, and breaks something when a budget is used up."""

    def __init__(self, home: Path, breaks: int, seed: int) -> None:
        self._chance = random.Random(seed)
        self._config = home / "config.json"
        self._errors = (home / "errors").open("ab")
        self._left = breaks
        self.made: dict[str, int] = {"cut": 0, "sender killed": 0, "receiver killed": 0}
        self.passed = 0
        self.done: list[tuple[int, int]] = []
        self.taken_back = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._target = ("127.0.0.1", probe.getsockname()[1])
        self.target = f"127.0.0.1:{self._target[1]}"
        self._receiver: subprocess.Popen[bytes] | None = None
        self._sender: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.breaks_world", role, self._config],
            stdout=subprocess.PIPE if role == "sender" else subprocess.DEVNULL,
            stderr=self._errors,
            cwd=Path(__file__).parents[1],
        )

    def run(self) -> None:
        """Until a sender ends by itself, which it does when the peer has everything."""
        self._receiver = self._start("receiver")
        while True:
            self._sender = self._start("sender")
            assert self._sender.stdout is not None
            for line in self._sender.stdout:
                self._note(line)
            code = self._sender.wait()
            self._sender.stdout.close()
            if code != -signal.SIGKILL:
                break
        self._kill(self._receiver)
        self._errors.close()
        assert code == 0, Path(self._errors.name).read_text()

    def _note(self, line: bytes) -> None:
        try:
            account = json.loads(line)
        except ValueError:  # cut by the kill
            return
        if account["phase"] != "sending":
            return
        done = account["rows"], account["bytes"]
        if self.done and done < max(self.done):
            self.taken_back += 1
        self.done.append(done)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._pass_on(near)

    def _pass_on(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except ConnectionRefusedError:  # the new receiver is not there yet
            near.close()
            return
        budget = self._chance.randrange(MIB // 4, 14 * MIB)
        back = threading.Thread(target=self._pump, args=(far, near, None), daemon=True)
        back.start()
        self._pump(near, far, budget if self._left > 0 else None)
        back.join()
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, budget: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if budget is not None:
                    budget -= len(data)
                    if budget <= 0:
                        self._break()
                        break
                if source.getsockname() == self._listener.getsockname():
                    self.passed += len(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _break(self) -> None:
        self._left -= 1
        kind = self._chance.choice(list(self.made))
        self.made[kind] += 1
        if kind == "sender killed" and self._sender is not None:
            self._sender.kill()
        elif kind == "receiver killed" and self._receiver is not None:
            self._kill(self._receiver)
            self._receiver = self._start("receiver")

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in (self._sender, self._receiver):
            if process is not None:
                self._kill(process)


def fill(path: Path, megabytes: int) -> int:
    """Small files, and large ones of incompressible data; the bytes in all."""
    chance = random.Random(4)
    total = 0
    with open_volume(path) as volume:
        for number in range(1500):
            ino = volume.mknod(ROOT_INO, b"s%d" % number, stat.S_IFREG | 0o644, uid=1, gid=1).ino
            data = chance.randbytes(chance.randrange(6000))
            volume.write(ino, 0, data)
            total += len(data)
        for number in range(4):
            ino = volume.mknod(ROOT_INO, b"l%d" % number, stat.S_IFREG | 0o644, uid=1, gid=1).ino
            for at in range(megabytes // 4):
                volume.write(ino, at * MIB, chance.randbytes(MIB))
            total += megabytes // 4 * MIB
        volume.seal("one", snap_group="snap-group")
    return total


@pytest.mark.parametrize(
    ("breaks", "megabytes"), [(10, 60), pytest.param(60, 320, marks=pytest.mark.soak)]
)
def test_a_copy_broken_many_times_ends_equal_and_takes_nothing_back(
    tmp_path: Path, pool: Pool, breaks: int, megabytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("active", "passive"):
        create_volume(pool, name, size=1 << 40)
    active, passive = volume_path(pool, "active"), volume_path(pool, "passive")
    total = fill(active, megabytes)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        create_credentials(tmp_path / name, name)
    breaker = Breaker(tmp_path, breaks, seed=breaks)
    try:
        Config(
            str(active), str(passive), str(tmp_path / "a"), str(tmp_path / "b"),
            breaker.target, breaker.address,
        ).save(tmp_path / "config.json")  # fmt: skip
        breaker.run()
    finally:
        breaker.close()
    made = sum(breaker.made.values())
    with capsys.disabled():
        print(
            f"\n{made} breaks {breaker.made}: {total / MIB:.0f} MiB to send,"
            f" {breaker.passed / MIB:.0f} MiB sent, {breaker.taken_back} times taken back"
        )
    assert made >= breaks * 0.8
    assert breaker.taken_back == 0
    with open_volume(active) as one, open_volume(passive) as other:
        left = one.view(one.snapshots()[0].epoch)
        right = other.view(other.snapshots()[0].epoch)
        assert whole(left) == whole(right)
    assert check_volume(passive) == []
