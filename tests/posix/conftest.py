"""One mount for each module; each test gets a directory of its own in it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import TestMount, mounted

ELSEWHERE = os.environ.get("NASFS_POSIX_ROOT")
"""Another file system to run the suite against."""

RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Thousands of small files: none of these tests is about the disk."""

VOLUME_BYTES = 2 << 30
"""Less than the memory has: so what is free is a matter of the volume alone."""

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.fixture(scope="module")
def mount() -> Iterator[TestMount]:
    """The mounted volume; tests that ask for it are about nasfs alone."""
    if ELSEWHERE:
        pytest.skip("about nasfs alone")
    base = Path(tempfile.mkdtemp(prefix="nasfs-posix-", dir=RAM))
    base.chmod(0o755)
    try:
        with mounted(base, size=VOLUME_BYTES) as found:
            found.root.chmod(0o755)
            yield found
    finally:
        shutil.rmtree(base)


@pytest.fixture(scope="module")
def root(request: pytest.FixtureRequest) -> Path:
    """The root directory of the file system under test."""
    if ELSEWHERE:
        return Path(ELSEWHERE)
    found: TestMount = request.getfixturevalue("mount")
    return found.root


@pytest.fixture
def work(root: Path) -> Iterator[Path]:
    """An empty directory that everybody may write into."""
    path = root / f"work-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    path.chmod(0o777)
    yield path
    if ELSEWHERE:
        shutil.rmtree(path, ignore_errors=True)
