"""Taking a volume over from the process of an earlier connection, and from nobody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.node.places import Places
from nasfs.node.receiving.receivers import MODULE, announce, take_over, withdraw

VOLUME = "v-1"
DEAF = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
POLITE = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(tmp_path)
    places.make()
    return places


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(
    processes: list[subprocess.Popen[bytes]], places: Places, script: str, *words: str
) -> subprocess.Popen[bytes]:
    """A process whose command line has *words*, announced as the receiver."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    processes.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    places.receiver_pid(VOLUME).write_text(f"{process.pid}\n")
    return process


@pytest.mark.parametrize(("script", "code"), [(POLITE, -15), (DEAF, -9)])
def test_a_receiver_is_ended(
    places: Places, processes: list[subprocess.Popen[bytes]], script: str, code: int
) -> None:
    process = start(processes, places, script, MODULE, "--root", str(places.root))
    take_over(places, VOLUME, wait_s=1.0)
    assert process.wait(30) == code


@pytest.mark.parametrize("words", [("sleep",), (MODULE, "--root", "/another")])
def test_others_are_left_alone(
    places: Places, processes: list[subprocess.Popen[bytes]], words: tuple[str, ...]
) -> None:
    process = start(processes, places, POLITE, *words)
    take_over(places, VOLUME, wait_s=1.0)
    assert process.poll() is None


def test_nobody_to_take_over_from(places: Places) -> None:
    take_over(places, VOLUME, wait_s=1.0)
    places.receiver_pid(VOLUME).write_text("nonsense")
    take_over(places, VOLUME, wait_s=1.0)
    announce(places, VOLUME)
    take_over(places, VOLUME, wait_s=1.0)  # it is us
    withdraw(places, VOLUME)
    assert not places.receiver_pid(VOLUME).exists()


def test_a_successor_stays_announced(places: Places) -> None:
    places.receiver_pid(VOLUME).write_text("1\n")
    withdraw(places, VOLUME)
    assert places.receiver_pid(VOLUME).exists()
