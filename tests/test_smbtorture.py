"""The script that runs Samba's own test suites: what it would notice, and its short form."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts/stressing"

SAID = """\
test: smb2.a.one
time: 2026-01-01 00:00:00.000000Z
success: smb2.a.one
test: smb2.a.two
failure: smb2.a.two [
a.c:12: status was NT_STATUS_NOT_SUPPORTED,
expected NT_STATUS_OK
]
test: smb2.a.three
skip: smb2.a.three [
not here
]
test: smb2.a.four
"""


@pytest.fixture(scope="module")
def torture() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("torture")
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in ("torture", "suites", "world"):
            sys.modules.pop(name, None)


def test_what_passes_on_the_disk_alone_is_a_difference(torture: ModuleType) -> None:
    volume = torture.parse(SAID)
    assert volume == {
        "smb2.a.one": "pass",
        "smb2.a.two": "fail",
        "smb2.a.three": "skip",
        "smb2.a.four": "unfinished",
    }
    disk = dict.fromkeys([*volume, "smb2.a.five"], "pass")
    found = torture.differing(disk, volume)
    assert found == {
        "smb2.a.two": "fail",
        "smb2.a.three": "skip",
        "smb2.a.four": "unfinished",
        "smb2.a.five": "unfinished",  # it was not even begun
    }
    assert torture.differing(dict.fromkeys(disk, "fail"), volume) == {}
    said = "a.c:12: status was NT_STATUS_NOT_SUPPORTED, expected NT_STATUS_OK"
    assert torture.why(SAID, "smb2.a.two") == said


@pytest.mark.mount
@pytest.mark.skipif(shutil.which("smbtorture") is None, reason="samba-testsuite is not installed")
def test_tests_of_samba_that_pass_on_the_disk_pass_on_a_volume(
    torture: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table"
    code = torture.main(["--quick", "--table", str(table)])
    said = capsys.readouterr().out
    assert code == 0, said
    passed = [line for line in table.read_text().splitlines() if "| 1 / 0 | 1 / 0 |" in line]
    assert len(passed) >= len(torture.QUICK) - 1, said
