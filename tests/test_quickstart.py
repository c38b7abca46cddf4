"""The quickstart's own comparison: a verdict is worth what it would notice."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "quickstart_tree.py"


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 2))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda top: (top / "file").write_bytes(b"other content"), "other content"),
        (lambda top: (top / "file").write_bytes(b"longer than before"), "st_size"),
        (lambda top: (top / "file").chmod(0o600), "st_mode"),
        (lambda top: os.chown(top / "file", 5, 6), "st_uid"),
        (lambda top: touch(top / "file"), "st_mtime_ns"),
        (lambda top: (top / "file").unlink(), "only in one"),
        (lambda top: (top / "new").touch(), "only in one"),
        (lambda top: os.link(top / "file", top / "dir" / "link"), "st_nlink"),
        (lambda top: os.setxattr(top / "file", "user.k", b"w"), "another value"),
        (lambda top: os.removexattr(top / "file", "user.k"), "other extended attributes"),
        (lambda top: os.replace(symlink(top / "x", "elsewhere"), top / "link"), "another target"),
    ],
)
def test_every_kind_of_difference_is_noticed(
    quickstart: ModuleType, tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "dir").mkdir(parents=True)
    (one / "file").write_bytes(b"first content")
    os.setxattr(one / "file", "user.k", b"v")
    symlink(one / "link", "somewhere")
    shutil.copytree(one, other, symlinks=True)
    damage(other)
    paths, _, found = quickstart.differences(one, other)
    assert paths == 4
    assert any(sentence in difference for difference in found), found


def symlink(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path
