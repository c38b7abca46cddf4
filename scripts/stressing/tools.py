"""fio, dbench and stress-ng of Debian on a directory: what they are asked to do, what they said."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("fio", "dbench", "stress-ng")

FIO_JOBS: Mapping[str, str] = {
    "sequential 1 MiB, buffered": "rw=write bs=1m ioengine=psync",
    "sequential 64 KiB, direct": "rw=write bs=64k ioengine=psync direct=1",
    "sequential 256 KiB, O_DSYNC": "rw=write bs=256k ioengine=pvsync2 sync=dsync",
    "random 4 KiB, buffered": "rw=randwrite bs=4k ioengine=psync verify_backlog=512",
    "random 4 KiB, buffered, fsync": "rw=randwrite bs=4k ioengine=psync fsync=16 size=16m",
    "random 4 KiB, direct, libaio": "rw=randwrite bs=4k ioengine=libaio direct=1 iodepth=16",
    "random 16 KiB, direct, io_uring": "rw=randwrite bs=16k ioengine=io_uring direct=1 iodepth=16"
    " verify_backlog=256 verify_backlog_batch=64",
    "random 4 to 256 KiB, io_uring": "rw=randwrite bsrange=4k-256k ioengine=io_uring iodepth=8",
    "random 32 KiB, vectors, fdatasync": "rw=randwrite bs=32k ioengine=pvsync fdatasync=32",
    "random, any bytes": "rw=randwrite bsrange=512-70000 bs_unaligned=1 ioengine=psync",
    "random 8 KiB, mapped": "rw=randwrite bs=8k ioengine=mmap",
}
"""Each writes a file over and over and verifies every block: behind the writing, or with a
backlog, in between.  (Not rw=randrw: on any file system fio then verifies reads against what an
earlier pass wrote.)"""

FIO_USUAL = (
    "size=96m verify=crc32c verify_fatal=1 verify_dump=0 do_verify=1 time_based=1"
    " randrepeat=0 fallocate=none unlink=1"
)

STRESSORS_LEFT_OUT: Mapping[str, str] = {
    "bind-mount": "mounts something else",
    "binderfs": "mounts something else",
    "eventfd": "uses no file",
    "fanotify": "watches the mounts of the whole machine",
    "fiemap": "FUSE has no FIEMAP",
    "fsize": "expects fallocate(2) to meet the limit; pyfuse3 has no fallocate",
    "inode-flags": "FUSE through pyfuse3 has no ioctl",
    "io": "syncs every mount of the machine, and fails if somebody's disk does",
    "ioprio": "is about the scheduler",
    "procfs": "reads /proc",
    "verity": "FUSE has no fs-verity",
}
"""Of stress-ng's class "filesystem", with the reason."""

MORE_STRESSORS = (
    "aio", "aiol", "io-uring", "msync", "readahead", "revio", "seek", "sendfile", "splice"
)  # fmt: skip
"""Of other classes: they use files, too."""

SMALLER = (
    "--fallocate-bytes", "--hdd-bytes", "--iomix-bytes", "--msync-bytes",
    "--readahead-bytes", "--seek-size", "--sync-file-bytes",
)  # fmt: skip
"""16 MiB for these: with the usual GiB they would only begin."""

SLOW = ("fallocate", "iomix", "sync-file", "xattr")
"""One operation of theirs takes seconds: they get four times as long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run of a tool."""

    name: str
    figures: str
    problem: str = ""


def missing() -> list[str]:
    """The Debian packages that are not there."""
    return [package for package in PACKAGES if shutil.which(package) is None]


def run_fio(directory: Path, seconds: int) -> list[Outcome]:
    """Each job for its share of the time."""
    each = max(1, seconds // len(FIO_JOBS))
    return [_run_fio_job(directory, name, words, each) for name, words in FIO_JOBS.items()]


def _run_fio_job(directory: Path, name: str, words: str, seconds: int) -> Outcome:
    usual = dict(word.split("=") for word in FIO_USUAL.split())
    options = usual | dict(word.split("=") for word in words.split())
    done = _run(
        [
            "fio",
            "--output-format=json",
            "--name=stress",
            f"--directory={directory}",
            f"--runtime={seconds}",
            *(f"--{key}={value}" for key, value in options.items()),
        ],
        directory,
        timeout_s=seconds * 20 + 300,
    )
    title = f"fio: {name}"
    try:
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    except ValueError:
        return Outcome(title, "", _tail(done.stdout + done.stderr))
    figures = ", ".join(
        f"{job[way]['io_bytes'] >> 20} MiB {way}" for way in ("write", "read", "trim")
        if job[way]["io_bytes"]
    )  # fmt: skip
    failed = done.returncode or job["error"]
    return Outcome(title, figures, _tail(done.stderr) or f"error {failed}" if failed else "")


def run_dbench(directory: Path, seconds: int) -> list[Outcome]:
    """Four clients, half of the time with every operation synced."""
    each = max(1, seconds // 2)
    return [
        _run_dbench(directory, "dbench: 4 clients", each),
        _run_dbench(directory, "dbench: 4 clients, synced", each, "-s", "-S"),
    ]


def _run_dbench(directory: Path, title: str, seconds: int, *words: str) -> Outcome:
    done = _run(
        ["dbench", "-D", str(directory), "-t", str(seconds), *words, "4"],
        directory,
        timeout_s=seconds * 10 + 300,
    )
    found = re.search(r"^Throughput .*", done.stdout, re.MULTILINE)
    if done.returncode or found is None or "ERROR" in done.stdout + done.stderr:
        return Outcome(title, "", _tail(done.stdout + done.stderr))
    return Outcome(title, found[0])


def stressors() -> list[str]:
    """All of the class that this release of stress-ng has, but for those left out."""
    done = subprocess.run(
        ["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, check=False
    )
    names = (done.stdout + done.stderr).partition("stressors:")[2].split()
    return [name for name in names if name not in STRESSORS_LEFT_OUT] + list(MORE_STRESSORS)


def run_stress_ng(directory: Path, seconds: int) -> list[Outcome]:
    """Each stressor for its share of the time, two processes of it."""
    names = stressors()
    each = max(1, seconds // (len(names) + 3 * len(SLOW)))
    return [_run_stressor(directory, name, each * (4 if name in SLOW else 1)) for name in names]


def _run_stressor(directory: Path, name: str, seconds: int) -> Outcome:
    done = _run(
        [
            "stress-ng",
            f"--{name}", "2",
            *(word for option in SMALLER for word in (option, "16m")),
            "--timeout", str(seconds),
            "--temp-path", ".",  # its io_uring stressor loses a file below an absolute path
            "--verify",
            "--metrics-brief",
            "--oomable",
        ],
        directory,
        timeout_s=seconds * 10 + 300,
    )  # fmt: skip
    said = done.stdout + done.stderr
    found = re.search(rf"metrc: .* {name} +(\d+) ", said)
    title = f"stress-ng: {name}"
    bad = done.returncode or re.search(r"(: fail:|: error:)", said)
    figures = f"{found[1]} operations" if found and found[1] != "0" else "no operation in its time"
    return Outcome(title, figures, _tail(said) if bad else "")


def _run(command: list[str], directory: Path, timeout_s: int) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, complained = process.communicate()
        complained += f"\nnot done after {timeout_s} s"
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def _tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


TOOLS: Mapping[str, Callable[[Path, int], list[Outcome]]] = {
    "fio": run_fio,
    "dbench": run_dbench,
    "stress-ng": run_stress_ng,
}
