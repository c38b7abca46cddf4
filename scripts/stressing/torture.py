"""Samba's own test suites on a volume and on the disk below it, by one smbd, test by test.

Two shares of one smbd differ in nothing but their path: a directory of a mounted volume, and one
beside the pool.  Each suite runs on the disk, then on the volume.  A test that passes there and
not here is repeated, alone and on both sides: only what stays like that counts.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from suites import EXCEPTIONS, GROUPS, LEFT_OUT, QUICK
from world import World, mounted_world

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.smb import PASSWORD, SmbServer, smb_server  # found by the line above

USER, OTHER = "games", "news"
"""Accounts that every Debian has."""
DISK, VOLUME = "disk", "volume"
"""The two shares."""
SUITE_S = 300.0
"""So long a suite may take on one side (seconds)."""
REPEATS = 2
SECTION = """\
[{name}]
    path = {path}
    read only = no
    vfs objects = streams_xattr acl_xattr
    store dos attributes = yes
    ea support = yes
    map acl inherit = yes
    inherit acls = yes
    map archive = no
    map hidden = no
    map system = no
    map readonly = no
"""
GLOBAL = """\
    server min protocol = NT1
    client min protocol = NT1
    ntlm auth = yes
    lanman auth = no
    durable handles = yes
    kernel oplocks = no
    kernel share modes = no
    posix locking = no
    smb2 leases = yes
"""
PASSED = "pass"
_LINE = re.compile(r"^(test|success|failure|error|skip|xfail): (.*?)( \[)?$", re.MULTILINE)
_SAYS = {"success": PASSED, "xfail": PASSED, "failure": "fail", "error": "fail", "skip": "skip"}

Outcomes = dict[str, str]
"""Of each test: pass, fail, skip, or `unfinished`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that passes on the disk and not on the volume."""

    test: str
    outcome: str
    said: str

    @property
    def reason(self) -> str:
        """Why it is known; empty: it is not."""
        return EXCEPTIONS.get(self.test, "")


def parse(text: str) -> Outcomes:
    """What smbtorture says in subunit's format."""
    outcomes: Outcomes = {}
    for match in _LINE.finditer(text):
        if match[1] == "test":
            outcomes.setdefault(match[2], "unfinished")
        else:
            outcomes[match[2]] = _SAYS[match[1]]
    return outcomes


def why(text: str, test: str) -> str:
    """What smbtorture said of a test that failed, in one line."""
    found = re.search(rf"^(?:failure|error): {re.escape(test)} \[\n(.*?)^\]", text, re.M | re.S)
    return " ".join(found[1].split())[:300] if found else "it did not come to its end"


def differing(disk: Outcomes, volume: Outcomes) -> dict[str, str]:
    """Tests that pass on the disk, and what became of them on the volume instead."""
    return {
        test: volume.get(test, "unfinished")
        for test, outcome in disk.items()
        if outcome == PASSED and volume.get(test) != PASSED
    }


class Bench:
    """An smbd with the two shares, and smbtorture beside it."""

    def __init__(self, server: SmbServer, limit_s: float) -> None:
        self._server = server
        self._limit_s = limit_s

    def suites(self) -> list[str]:
        done = subprocess.run(["smbtorture", "--list-suites"], capture_output=True, text=True)
        names = (line.strip() for line in done.stdout.splitlines())
        return [name for name in names if name.startswith(GROUPS) and name not in LEFT_OUT]

    def run(self, share: str, test: str) -> tuple[Outcomes, str]:
        """A suite, or one test of it, on one side."""
        try:
            done = subprocess.run(
                [
                    "nsenter", "-t", str(self._server.pid), "-n",
                    "smbtorture", f"//127.0.0.1/{share}", f"-U{USER}%{PASSWORD}", test,
                    "-s", str(self._server.config), "--format=subunit", "--fullname",
                    f"--option=torture:user2={OTHER}", f"--option=torture:password2={PASSWORD}",
                    f"--basedir={self._server.home}", "--target=samba3",
                ],
                capture_output=True, timeout=self._limit_s, check=False,
            )  # fmt: skip
            said = done.stdout + done.stderr
        except subprocess.TimeoutExpired as exc:
            said = exc.stdout or b""
        text = said.decode(errors="replace")
        return parse(text), text

    def compare(self, suite: str) -> tuple[Outcomes, Outcomes, list[Difference]]:
        """Both sides of a suite, and what passes on the disk alone, whenever it is repeated."""
        disk, _ = self.run(DISK, suite)
        volume, text = self.run(VOLUME, suite)
        found = []
        for test, outcome in differing(disk, volume).items():
            said = why(text, test)
            for _ in range(REPEATS if test != suite or outcome != "unfinished" else 1):
                again_disk, _ = self.run(DISK, test)
                again, again_text = self.run(VOLUME, test)
                if not differing(again_disk, again):
                    volume[test] = again.get(test, disk[test])
                    break
                said = why(again_text, test)
            else:
                found.append(Difference(test, outcome, said))
        return disk, volume, found


@contextmanager
def bench(home: Path, limit_s: float) -> Iterator[tuple[Bench, World]]:
    """Everything that is needed, until the end of the block."""
    home.chmod(0o711)
    disk = home / "pools"
    disk.mkdir()
    disk.chmod(0o711)
    with mounted_world(home, disk, size=8 << 30) as world:
        places = {DISK: world.reference, VOLUME: world.root / "share"}
        (world.root / "share").mkdir()
        world.root.chmod(0o755)
        for place in places.values():
            os.chown(place, 5, 60)
            place.chmod(0o777)
        sections = "".join(SECTION.format(name=name, path=path) for name, path in places.items())
        smb = home / "smb"
        smb.mkdir()
        with smb_server(smb, GLOBAL + sections, [USER, OTHER]) as server:
            yield Bench(server, limit_s), world


def row(suite: str, disk: Outcomes, volume: Outcomes, found: Sequence[Difference]) -> str:
    counted = [Counter(outcomes.values()) for outcomes in (disk, volume)]
    cells = [
        f"{count[PASSED]} / {sum(count.values()) - count[PASSED] - count['skip']}"
        for count in counted
    ]
    left = ", ".join(one.test.removeprefix(f"{suite}.") for one in found)
    return f"| `{suite}` | {cells[0]} | {cells[1]} | {left} |"


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="smbtorture", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suite", nargs="*", help="these alone; else base.* and smb2.*")
    parser.add_argument("--quick", action="store_true", help="a dozen suites: some seconds")
    parser.add_argument(
        "--seconds", type=float, default=SUITE_S, help="how long a suite may take on one side"
    )
    parser.add_argument("--table", type=Path, help="write the table of suites into this file")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where to work")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    wanted = options(words)
    rows = [
        "| suite | disk: pass / fail | volume: pass / fail | on the disk alone |",
        "|---|---|---|---|",
    ]
    totals: Mapping[str, Counter[str]] = {DISK: Counter(), VOLUME: Counter()}
    unknown: list[Difference] = []
    with tempfile.TemporaryDirectory(dir=wanted.directory, prefix="t") as name:
        with bench(Path(name), wanted.seconds) as (both, world):
            for suite in wanted.suite or (QUICK if wanted.quick else both.suites()):
                began = time.monotonic()
                disk, volume, found = both.compare(suite)
                totals[DISK].update(disk.values())
                totals[VOLUME].update(volume.values())
                rows.append(row(suite, disk, volume, found))
                print(rows[-1], f"{time.monotonic() - began:.1f} s", flush=True)
                for one in found:
                    print(f"    {one.test}: {one.outcome}: {one.reason or one.said}", flush=True)
                unknown += [one for one in found if not one.reason]
        world.check()
        for problem in world.problems:
            print(problem)
    if wanted.table:
        wanted.table.write_text("\n".join(rows) + "\n")
    for share, counted in totals.items():
        print(
            f"{share}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()))
        )
    print(f"{len(unknown)} tests pass on the disk and not on the volume, and are not expected to")
    return 1 if unknown or world.problems else 0


if __name__ == "__main__":
    sys.exit(main())
