"""A mount process stays small, however many files it shows."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nasfs.volume import ROOT_INO, open_volume
from tests.mounts import mounted

pytestmark = pytest.mark.mount

MIB = 1 << 20


def resident_bytes(pid: int) -> int:
    """The most that the process ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    ("directories", "files", "bound"),
    # 100,000 inodes in the cache are 50 MB; from then on only the kernel's counts grow.
    [(60, 1000, 192 * MIB), pytest.param(1000, 1000, 256 * MIB, marks=pytest.mark.soak)],
)
def test_a_walk_over_all_files_is_bounded(
    tmp_path: Path, directories: int, files: int, bound: int
) -> None:
    with mounted(tmp_path) as mount:
        mount.unmount()
        with open_volume(mount.volume_path) as volume:
            for number in range(directories):
                name = b"d%d" % number
                directory = volume.mkdir(ROOT_INO, name, 0o755, uid=0, gid=0).ino
                for other in range(files):
                    volume.mknod(directory, b"%d" % other, stat.S_IFREG | 0o644, uid=0, gid=0)
        mount.mount()
        found = 0
        for _ in range(2):
            for place, _, names in os.walk(mount.root):
                found += sum(os.stat(f"{place}/{name}").st_nlink for name in names)
        assert found == 2 * directories * files
        assert resident_bytes(mount.pid) < bound
