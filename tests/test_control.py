"""The control socket: both ends of it, without a mount."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from nasfs.errors import ConfigError, Failed, Refused, Unreachable
from nasfs.fuse import control
from nasfs.fuse.control import ControlClient, ControlServer, ControlSocket
from nasfs.volume import Snapshot, SnapshotState
from nasfs.volume.types import Epoch


class Answers:
    """Handlers that tell what they were asked."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.released: list[str] = []

    async def ping(self, request: control.Ping) -> str:
        return "here"

    async def snapshot(self, request: control.TakeSnapshot) -> Snapshot:
        if request.name == "taken":
            raise Failed("there is one", "choose another name")
        if request.name == "bug":
            raise KeyError("oops")
        return Snapshot(
            epoch=Epoch(7),
            name=request.name,
            guid=request.guid or "made",
            time_ns=request.time_ns or 1,
            snap_group=request.snap_group,
            state=SnapshotState.SEALED,
        )

    async def destroy(self, request: control.DestroySnapshots) -> None:
        raise Refused("it is held", "release it")

    async def forever(self, request: control.Commit) -> None:
        await trio.sleep_forever()

    async def stop(self, request: control.Stop) -> None:
        return None

    def handlers(self) -> control.Handlers:
        return {
            control.Ping: self.ping,
            control.TakeSnapshot: self.snapshot,
            control.DestroySnapshots: self.destroy,
            control.Commit: self.forever,
            control.Stop: self.stop,
        }


@contextmanager
def serving(path: Path) -> Iterator[Answers]:
    """A server in a thread of its own."""
    answers = Answers()
    ready = threading.Event()
    scopes: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        server = ControlServer(
            listening,
            answers.handlers(),
            on_stopped=answers.stopped.set,
            release=answers.released.append,
        )
        with trio.CancelScope() as scope:
            scopes.append((trio.lowlevel.current_trio_token(), scope))
            ready.set()
            await server.serve()

    listening = ControlSocket(path)
    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(10)
        yield answers
    finally:
        token, scope = scopes[0]
        token.run_sync_soon(scope.cancel)
        thread.join()
        listening.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_requests_are_answered_and_one_connection_may_ask_often(path: Path) -> None:
    with serving(path):
        assert ControlClient(path).call("ping") == "here"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b'{"op": "ping"}\n{"op": "pi')
            file = sock.makefile("rb")
            assert json.loads(file.readline()) == {"ok": True, "result": "here"}
            sock.sendall(b'ng"}\n')
            assert json.loads(file.readline()) == {"ok": True, "result": "here"}
            file.close()


def test_a_snapshot_is_described_in_the_answer(path: Path) -> None:
    with serving(path):
        found = ControlClient(path).call("snapshot", name="é", guid="g", snap_group="all")
    assert found == {
        "epoch": 7,
        "name": "é",
        "guid": "g",
        "time_ns": 1,
        "snap_group": "all",
        "state": SnapshotState.SEALED.value,
        "blocks": 0,
    }


def test_errors_arrive_as_the_class_of_their_exit_code(path: Path) -> None:
    with serving(path):
        client = ControlClient(path)
        with pytest.raises(Failed) as failed:
            client.call("snapshot", name="taken")
        assert (str(failed.value), failed.value.hint) == ("there is one", "choose another name")
        with pytest.raises(Refused) as refused:
            client.call("snapshot_destroy", names=["x"])
        assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("no-such-thing", {}),
        ("_answer", {}),
        ("snapshot", {}),
        ("snapshot", {"name": 7}),
        ("snapshot", {"name": "x", "color": "blue"}),
        ("snapshot_destroy", {"names": "all"}),
    ],
)
def test_bad_requests_are_the_askers_fault(path: Path, op: str, args: dict[str, object]) -> None:
    with serving(path), pytest.raises(ConfigError):
        ControlClient(path).call(op, **args)


def test_what_is_no_json_or_far_too_long_does_no_harm(path: Path) -> None:
    with serving(path):
        for line in (b"garbage\n", b"[]\n", b"\xff\n", b"x" * (control.MAX_LINE + 100_000)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                try:
                    sock.sendall(line)
                    answer = json.loads(sock.makefile("rb").readline())
                except (BrokenPipeError, ConnectionResetError):
                    continue  # it had heard enough
                assert answer["ok"] is False
                assert answer["error"]["exit_code"] == 2
        assert ControlClient(path).call("ping") == "here"


def test_a_bug_in_a_handler_is_told_and_the_server_lives_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(path):
        with pytest.raises(Failed, match="internal error"):
            ControlClient(path).call("snapshot", name="bug")
        assert ControlClient(path).call("ping") == "here"
    assert "control request failed" in caplog.text


def test_nobody_there_is_unreachable(path: Path) -> None:
    with pytest.raises(Unreachable) as missing:
        ControlClient(path).call("ping")
    assert missing.value.exit_code == 4
    with socket.socket(socket.AF_UNIX) as sock:  # what a killed process leaves
        sock.bind(str(path))
    with pytest.raises(Unreachable):
        ControlClient(path).call("ping")
    with pytest.raises(Unreachable):
        ControlClient(path.parent / "missing" / "control.sock").call("ping")


def test_no_answer_in_time_is_unreachable(path: Path) -> None:
    with serving(path), pytest.raises(Unreachable, match="in time"):
        ControlClient(path, timeout_s=0.05).call("commit")


def test_an_end_without_an_answer_is_unreachable(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept_and_leave() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)

        thread = threading.Thread(target=accept_and_leave)
        thread.start()
        with pytest.raises(Unreachable):
            ControlClient(path).call("ping")
        thread.join()


def test_stop_is_answered_before_it_takes_effect(path: Path) -> None:
    with serving(path) as answers:
        assert ControlClient(path).call("stop") is None
        assert answers.stopped.wait(10)


def test_the_socket_is_private_replaces_a_stale_one_and_goes_with_its_server(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    old_umask = os.umask(0)
    try:
        with serving(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert ControlClient(path).call("ping") == "here"
            assert os.listdir(path.parent) == [path.name]
    finally:
        os.umask(old_umask)
    assert not path.exists()


def test_a_server_leaves_the_socket_of_its_successor_alone(path: Path) -> None:
    first = ControlSocket(path)
    second = ControlSocket(path)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_paths_longer_than_a_socket_address_work(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150) / ("e" * 150)
    directory.mkdir(parents=True)
    with serving(directory / "control.sock"):
        assert ControlClient(directory / "control.sock").call("ping") == "here"


def test_a_socket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="cannot be made"):
        ControlSocket(tmp_path / "missing" / "control.sock")
