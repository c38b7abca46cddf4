"""docs/durability.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nasfs.fuse.commit import Committer
from nasfs.volume import DataSync, Volume, store
from nasfs.volume.filedata import FileData
from nasfs.volume.media import HostMedia
from nasfs.volume.space import Space
from nasfs.volume.store import Store

from . import crash_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "durability.md").read_text()
CLASSES = (Committer, DataSync, FileData, Space, Store, Volume, crash_model.Past)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+)\.(\w+)`", PAGE))))
def test_each_method_that_is_named_exists(name: tuple[str, str]) -> None:
    owner = {cls.__name__: cls for cls in CLASSES}[name[0]]
    assert hasattr(owner, name[1])


def test_each_test_that_is_named_exists() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    for name in re.findall(r"`(\w+\.py)`", PAGE):
        assert name in files, name
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert any(f"def {name}(" in text for text in files.values()), name


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"longer than {store.CHECKPOINT_BYTES >> 20} MiB" in PAGE
    assert f"if they are {HostMedia.MANY} or more" in PAGE
